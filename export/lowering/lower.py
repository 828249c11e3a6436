"""The walk over a file: each node by its operator's rule, quantizers fused into what feeds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.export.lowering import elementwise, hoist, moves, pools, products, tidy
from compress.export.lowering.builder import Builder, GridSpec, Value, default_axes
from compress.export.lowering.ends import named
from compress.export.lowering.errors import CannotLower
from compress.export.lowering.graph import DEQUANTIZE, QUANTIZE, Graph, Node, read, scalar
from compress.export.lowering.lookahead import clip_ends
from compress.integer import program as p
from compress.integer.reference import quantized

NO_RULE = "the compiled library has no such operator; replace it in the network, or run the file in ONNX Runtime"
OTHER_FORM = "quantize with explicit QuantizeLinear and DequantizeLinear (QuantFormat.QDQ), static scales"
OTHER_FORMS = (
    *("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool"),
    *("QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
)
"""Operators of files that hold integers in another form than quantize/dequantize pairs."""
EIGHT_BITS: Mapping[str, p.DType] = {"uint8": "uint8", "int8": "int8"}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a node's result goes: the file's value behind clips and QuantizeLinear, and the grid that it writes.

    Attributes:
        value: name of the value that is known once the node is lowered.
        grid: None where the result stays float32.
        low, high: of clips between, in real numbers, where the result stays float32.
    """

    value: str
    grid: GridSpec | None
    low: float = -np.inf
    high: float = np.inf


class Walk:
    """State of the walk: the file, the program that grows, and what is known of each of the file's values."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.builder = Builder()
        self.values: dict[str, Value] = {}
        self.done: set[int] = set()

    def value(self, name: str, node: Node) -> Value:
        """A computed value.

        Raises:
            CannotLower: the node reads a constant where a computed value must be.
        """
        if name not in self.values:
            raise CannotLower(f"its input {name!r} is constant; fold the constant in the network", node.name, node.op)
        return self.values[name]

    def destination(self, node: Node, *, clips: bool = True) -> Destination:
        """Follow the node's only use through clips to QuantizeLinear; what is passed counts as lowered.

        Clips in front of a float32 result are followed too where ``clips``.
        """
        name, low, high = node.outputs[0], -np.inf, np.inf
        passed: list[Node] = []
        while name not in self.graph.outputs:
            users = self.graph.users.get(name, [])
            if len(users) != 1 or users[0].inputs[0] != name or users[0].inputs.count(name) > 1:
                break
            user = users[0]
            if user.op == QUANTIZE:
                grid = self.grid(user)
                if grid is None:
                    break
                ends = quantized(np.array([low, high]), grid.scale, grid.zero_point, grid.low, grid.high)
                self.passed([*passed, user])
                name, grid = self.integer_clip(
                    user.outputs[0], GridSpec(grid.dtype, grid.scale, grid.zero_point, int(ends[0]), int(ends[1]))
                )
                return Destination(name, grid)
            ends_of = clip_ends(self.graph, user)
            if ends_of is None:
                break
            low, high = float(np.clip(low, *ends_of)), float(np.clip(high, *ends_of))
            passed.append(user)
            name = user.outputs[0]
        if not clips:
            return Destination(node.outputs[0], None)
        self.passed(passed)
        return Destination(passed[-1].outputs[0] if passed else node.outputs[0], None, low, high)

    def passed(self, nodes: list[Node]) -> None:
        """These nodes are lowered already: what stands before them took them in."""
        self.done.update(id(node) for node in nodes)

    def grid(self, node: Node) -> GridSpec | None:
        """The grid of a QuantizeLinear; None where it has several scales."""
        constants = self.graph.constants
        scale = scalar(constants, node.inputs[1])
        if scale is None:
            return None
        if not (np.isfinite(scale) and scale > 0):
            raise CannotLower(f"its scale is {scale:g}; calibrate the network again", node.name, node.op)
        point = constants.get(node.input(2))
        kind = "uint8" if point is None else str(np.asarray(point).dtype)
        if kind not in EIGHT_BITS:
            raise CannotLower(f"activations of type {kind} aren't lowered; 8 bits are", node.name, node.op)
        dtype = EIGHT_BITS[kind]
        return GridSpec(
            dtype, float(np.float32(scale)), 0 if point is None else int(np.ravel(point)[0]), *p.LIMITS[dtype]
        )

    def integer_clip(self, name: str, grid: GridSpec) -> tuple[str, GridSpec]:
        """A Clip of integers behind QuantizeLinear, as brevitas writes narrow grids, narrows the grid's ends."""
        users = self.graph.users.get(name, [])
        if len(users) != 1 or users[0].op != "Clip" or name in self.graph.outputs:
            return name, grid
        ends = clip_ends(self.graph, users[0])
        if ends is None:
            return name, grid
        self.passed([users[0]])
        low, high = (int(np.clip(end, *ends)) for end in (grid.low, grid.high))
        return users[0].outputs[0], GridSpec(grid.dtype, grid.scale, grid.zero_point, low, high)

    def output(self, to: Destination, shape: tuple[int, ...]) -> p.Tensor:
        """The tensor for a result."""
        if to.grid is None:
            return self.builder.tensor(to.value, shape, "float32")
        return self.builder.tensor(to.value, shape, to.grid.dtype, to.grid.scale, to.grid.zero_point)

    def set(self, to: Destination | str, value: Value) -> None:
        """What the file's value is from now on."""
        self.values[to if isinstance(to, str) else to.value] = value

    def finish_real(
        self, node: Node, to: Destination, tensor: str, shape: tuple[int, ...], axes: tuple[int, ...]
    ) -> None:
        """A float32 result: rounded to the destination's grid, or behind the clips that were passed."""
        held = self.builder.tensors[tensor]
        if to.grid is None:
            self.set(to, Value(self.clipped(node.name, to, held), shape, axes))
            return
        made = self.output(to, held.shape)
        ends = (to.grid.low, to.grid.high)
        self.builder.add(p.Quantize, f"{node.name}_quantize", [tensor], made.name, *ends)
        self.set(to, Value(made.name, shape, axes))

    def clipped(self, name: str, to: Destination, tensor: p.Tensor) -> str:
        """A float32 result behind the clips that were passed."""
        if to.grid is not None or (to.low == -np.inf and to.high == np.inf):
            return tensor.name
        made = self.builder.tensor(f"{tensor.name}_clipped", tensor.shape, "float32")
        ends = np.array([to.low, to.high], np.float32)
        return self.builder.add(p.FloatElementwise, f"{name}_clip", [tensor.name], made.name, "clip", ends, False)


def lower(source: Path | bytes) -> p.Program:
    """The program of an ONNX file with explicit QuantizeLinear and DequantizeLinear, as any tool wrote it.

    What the file quantizes becomes integer arithmetic; what it leaves in float stays float32, with a note. Inputs and
    outputs are called as in the file.

    Raises:
        CannotLower: it isn't a file that can be read, a size is open, or an operator has no rule; named.
    """
    graph = read(source)
    return named(tidy.tidied(walked(graph).builder.program()), graph.output_names)


def walked(graph: Graph) -> Walk:
    """The walk over all of a file: what :func:`lower` tidies, and which tensor holds which value of the file.

    Raises:
        CannotLower: as :func:`lower`.
    """
    hoist.hoisted(graph)
    walk = Walk(graph)
    _inputs(walk)
    for node in graph.nodes:
        if id(node) in walk.done:
            continue
        rule = RULES.get(node.op)
        if rule is None:
            raise CannotLower(OTHER_FORM if node.op in OTHER_FORMS else NO_RULE, node.name, node.op)
        try:
            rule(walk, node)
        except (IndexError, KeyError, ValueError, AssertionError) as error:
            if isinstance(error, CannotLower):
                raise
            said = " ".join(str(error).split())[:160] or type(error).__name__
            raise CannotLower(f"its attributes or sizes aren't supported ({said})", node.name, node.op) from error
    _outputs(walk)
    return walk


def _inputs(walk: Walk) -> None:
    """An input that is only quantized comes as integers: the caller rounds it, on the grid in the header."""
    for name in walk.graph.inputs:
        shape = walk.graph.shapes.get(name)
        if shape is None:
            raise CannotLower(f"input {name!r} has no shape; export the network with fixed sizes")
        axes = default_axes(shape)
        source = Node("Input", name, [], [name], {})
        to = walk.destination(source, clips=False)
        # Named as in the file, whatever QuantizeLinear's output is called there.
        tensor = walk.output(replace(to, value=name), tuple(shape[axis] for axis in axes))
        if to.grid is not None and (to.grid.low, to.grid.high) != p.LIMITS[to.grid.dtype]:
            # The caller rounds to the whole type; what clips leave of it is the network's own business.
            low, high = p.LIMITS[tensor.dtype]
            table = np.clip(np.arange(low, high + 1), to.grid.low, to.grid.high).astype(tensor.dtype)
            inner = walk.builder.like(f"{tensor.name}_clipped", tensor.name, tensor.shape)
            walk.builder.add(p.Lookup, f"{name}_clip", [tensor.name], inner.name, table)
            walk.set(to, Value(inner.name, shape, axes))
        else:
            walk.set(to, Value(tensor.name, shape, axes))
        walk.builder.inputs.append(tensor.name)
        walk.builder.file_shapes[tensor.name] = shape[1:]


def _outputs(walk: Walk) -> None:
    for name in walk.graph.outputs:
        node = Node("Output", name, [name], [], {})
        value = walk.builder.real(name, walk.value(name, node))
        value = walk.builder.arranged(name, value, default_axes(value.shape))
        if value.tensor in walk.builder.inputs or value.tensor in walk.builder.outputs:
            copy = walk.builder.like(f"{name}_copy", value.tensor, walk.builder.tensors[value.tensor].shape)
            flat = (copy.elements,)
            walk.builder.add(p.Copy, f"{name}_copy", [value.tensor], copy.name, flat, (1,), (1,), 0, 0, None)
            value = Value(copy.name, value.shape, value.axes)
        walk.builder.outputs.append(value.tensor)
        walk.builder.file_shapes[value.tensor] = value.shape[1:] if value.shape[:1] == (1,) else value.shape


def _quantize(walk: Walk, node: Node) -> None:
    """A QuantizeLinear that no operator took in: of a float32 value, of a function of integers, or between grids."""
    grid = walk.grid(node)
    if grid is None:
        raise CannotLower("activations with a scale a channel aren't lowered; give them one", node.name, node.op)
    value = walk.value(node.inputs[0], node)
    name, grid = walk.integer_clip(node.outputs[0], grid)
    held = walk.builder.tensors[value.tensor]
    domain = walk.builder.lookup_domain(value)
    same = (held.dtype, held.scale, held.zero_point) == (grid.dtype, grid.scale, grid.zero_point)
    if value.function is None and same and (grid.low, grid.high) == p.LIMITS[grid.dtype]:
        walk.set(name, value)
        return
    made = walk.output(Destination(name, grid), held.shape)
    if domain is None:
        walk.builder.add(p.Quantize, node.name, [value.tensor], made.name, grid.low, grid.high)
    else:
        table = quantized(domain, grid.scale, grid.zero_point, grid.low, grid.high).astype(grid.dtype)
        walk.builder.add(p.Lookup, node.name, [value.tensor], made.name, table)
    walk.set(name, Value(made.name, value.shape, value.axes))


def _dequantize(walk: Walk, node: Node) -> None:
    """The float value behind integers: the same tensor, or a function of it where the grid is another one."""
    value = walk.value(node.inputs[0], node)
    tensor = walk.builder.tensors[value.tensor]
    scale = scalar(walk.graph.constants, node.inputs[1])
    point = walk.graph.constants.get(node.input(2))
    zero = 0 if point is None else int(np.ravel(point)[0])
    if scale is None:
        raise CannotLower("activations with a scale a channel aren't lowered; give them one", node.name, node.op)
    if np.float32(scale) == np.float32(tensor.scale) and zero == tensor.zero_point:
        walk.set(node.outputs[0], value)
        return
    low = p.LIMITS[tensor.dtype][0]
    steps = (np.arange(256) + low - zero).astype(np.float32)
    walk.set(node.outputs[0], Value(value.tensor, value.shape, value.axes, steps * np.float32(scale)))


Rule = Callable[[Any, Node], None]
RULES: Mapping[str, Rule] = {
    QUANTIZE: _quantize,
    DEQUANTIZE: _dequantize,
    **products.RULES,
    **elementwise.RULES,
    **pools.RULES,
    **moves.RULES,
}
"""ONNX operator -> its rule."""
