"""Peak working memory of a network, by the lifetimes of its tensors.

A tensor lives from the operator that makes it to the last one that reads it; the peak is the largest
sum of tensors alive at one operator. What an operator needs beside its inputs and its output (an
im2col buffer, a runtime's own tables) and what an allocator loses between tensors are not counted: a
runtime needs at least this much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from compress.graph.operators import Operator
from compress.profiling.fusion import MOVES_NOTHING, heads
from compress.types import Target

FLOAT_BITS = 32
ELEMENTWISE = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu"}
    | {"elu", "softplus", "clamp", "clamp_min", "clamp_max", "abs", "neg", "exp", "sqrt", "add", "sub", "mul", "div"}
    | {"batch_norm", "_native_batch_norm_legit_no_training"}
)
"""Kinds that can write each element where they read it."""


@dataclass(frozen=True, slots=True)
class TensorSize:
    """A tensor that lives at the peak: the operator or network input that it is named after, and its bytes."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The most memory that is in use at once.

    Attributes:
        bytes: activations at the peak, and the weights too where the target holds them in RAM.
        activation_bytes, weight_bytes: the two parts of ``bytes``.
        operator: the first operator at which the peak is reached, ``""`` for a network without any.
        tensors: the activations alive there, largest first.
    """

    bytes: int
    activation_bytes: int
    weight_bytes: int
    operator: str
    tensors: tuple[TensorSize, ...]

    def __str__(self) -> str:
        largest = ", ".join(f"{tensor.name} {tensor.bytes} bytes" for tensor in self.tensors[:3])
        weights = f", weights {self.weight_bytes} bytes" if self.weight_bytes else ""
        return f"{self.bytes} bytes at {self.operator} ({largest}{weights})"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Memory that one tensor holds, or several of at most its size in turn.

    Attributes:
        names: the operators and network inputs whose tensors lie in it, those that are fused included.
        elements, bits: of the largest, for one input: it takes ``ceil(elements * bits / 8)`` bytes.
        first, last: the steps between which it is needed, both included.
    """

    names: tuple[str, ...]
    elements: int
    bits: int
    first: int
    last: int


@dataclass(slots=True)
class _Buffer:
    """Memory that one tensor holds, or several in turn.

    Attributes:
        tensors: the step from which each tensor lies in it, and the tensor's name.
        elements, bits: of the first.
        first, last: the steps between which it is needed, both included.
        reusable: False for a network input, which is the caller's.
    """

    tensors: list[tuple[int, str]]
    elements: int
    bits: int
    first: int
    last: int
    reusable: bool

    @property
    def bytes(self) -> int:
        return _bytes(self.elements, self.bits)

    def at(self, step: int) -> TensorSize:
        return TensorSize(next(name for start, name in reversed(self.tensors) if start <= step), self.bytes)


def peak_ram(
    operators: Sequence[Operator],
    activation_bits: Mapping[str, int] | int,
    weights_bytes: int,
    target: Target,
    *,
    inputs: Mapping[str, int],
) -> PeakMemory:
    """Peak bytes for one input (batch 1).

    Operators that are fused write one tensor between them; an elementwise operator overwrites an input
    that nobody reads after it; the network's inputs are counted and never overwritten; a tensor that
    nobody reads is an output and lives to the end.

    Args:
        operators: in the order of execution.
        activation_bits: width of every tensor, or of each by the name of the operator (any of those
            fused together) or network input; one that isn't listed is float. A tensor takes
            ``elements * bits / 8`` bytes, rounded up.
        weights_bytes: size of all parameters as the device holds them.
        target: says whether the weights lie in RAM.
        inputs: elements of each of the network's inputs by name.

    Raises:
        ValueError: an operator reads a tensor that is neither made before nor a network input.
    """
    head = heads(operators)
    buffers = _buffers(operators, head, activation_bits, inputs)
    weights = weights_bytes if target.weights_in_ram else 0
    changes = [0] * (max(len(operators), 1) + 1)
    for buffer in buffers:
        changes[buffer.first] += buffer.bytes
        changes[buffer.last + 1] -= buffer.bytes
    in_use = list(accumulate(changes))
    peak = in_use.index(max(in_use))
    alive = sorted((b for b in buffers if b.first <= peak <= b.last), key=lambda b: (-b.bytes, b.first))
    return PeakMemory(
        bytes=in_use[peak] + weights,
        activation_bytes=in_use[peak],
        weight_bytes=weights,
        operator=head[operators[peak].name] if operators else "",
        tensors=tuple(buffer.at(peak) for buffer in alive),
    )


def lifetimes(
    operators: Sequence[Operator], activation_bits: Mapping[str, int] | int, *, inputs: Mapping[str, int]
) -> tuple[Lifetime, ...]:
    """What :func:`peak_ram` adds up at each step, for one input.

    Tensors that lie in the same memory one after the other can do so as long as none is wider than the first.

    Args:
        operators, activation_bits, inputs: as for :func:`peak_ram`.

    Raises:
        ValueError: an operator reads a tensor that is neither made before nor a network input.
    """
    head = heads(operators)
    fused: dict[str, list[str]] = {}
    for operator in operators:
        fused.setdefault(head[operator.name], []).append(operator.name)
    return tuple(
        Lifetime(
            tuple(name for _, tensor in buffer.tensors for name in fused.get(tensor, [tensor])),
            buffer.elements,
            buffer.bits,
            buffer.first,
            buffer.last,
        )
        for buffer in _buffers(operators, head, activation_bits, inputs)
    )


def _buffers(
    operators: Sequence[Operator],
    head: Mapping[str, str],
    activation_bits: Mapping[str, int] | int,
    inputs: Mapping[str, int],
) -> list[_Buffer]:
    """The memory that the network's tensors lie in."""
    steps = {operator.name: step for step, operator in enumerate(operators)}
    last = _last_uses(operators, head, inputs)
    members: dict[str, list[Operator]] = {}
    for operator in operators:
        members.setdefault(head[operator.name], []).append(operator)
    holder: dict[str, _Buffer] = {}
    buffers: list[_Buffer] = []
    for name, elements in inputs.items():
        holder[name] = _Buffer(
            [(0, name)], elements, _width(activation_bits, [name]), 0, last.get(name, 0), reusable=False
        )
        buffers.append(holder[name])
    for name, group in members.items():
        first = min(steps[member.name] for member in group)
        width = _width(activation_bits, [member.name for member in group])
        elements = max(member.output_elements for member in group)
        buffer = _overwritten(steps[name], operators[steps[name]], _bytes(elements, width), head, holder)
        if buffer is None:
            buffer = _Buffer([(first, name)], elements, width, first, last[name], reusable=True)
            buffers.append(buffer)
        else:
            buffer.last = last[name]
            buffer.tensors.append((steps[name], name))
        holder[name] = buffer
    return buffers


def _last_uses(operators: Sequence[Operator], head: Mapping[str, str], inputs: Mapping[str, int]) -> dict[str, int]:
    """Tensor (by the head of its group, or network input) -> the last step that needs it."""
    last: dict[str, int] = {}
    read: set[str] = set()
    for step, operator in enumerate(operators):
        for name in operator.inputs:
            if name not in head and name not in inputs:
                raise ValueError(f"operator {operator.name!r} reads {name!r}, neither an operator nor a network input")
            tensor = head.get(name, name)
            last[tensor] = step
            if tensor != head[operator.name]:
                read.add(tensor)
        last[head[operator.name]] = step
    return last | {tensor: len(operators) - 1 for tensor in head.values() if tensor not in read}


def _overwritten(
    step: int, operator: Operator, size: int, head: Mapping[str, str], holder: Mapping[str, _Buffer]
) -> _Buffer | None:
    """The buffer of an input that ``operator`` may write its output to, None if there is none."""
    if operator.kind not in ELEMENTWISE | MOVES_NOTHING:
        return None
    candidates = [holder[tensor] for name in operator.inputs if (tensor := head.get(name, name)) in holder]
    return next((b for b in candidates if b.reusable and b.last == step and b.bytes >= size), None)


def _width(activation_bits: Mapping[str, int] | int, tensor: Sequence[str]) -> int:
    if isinstance(activation_bits, int):
        return activation_bits
    return max((activation_bits[name] for name in tensor if name in activation_bits), default=FLOAT_BITS)


def _bytes(elements: int, bits: int) -> int:
    return -(-elements * bits // 8)
