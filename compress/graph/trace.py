"""Capture a network as a graph of ATen operators, with the batch size left open.

The graph is torch.export's own (``ExportedProgram``); this module adds what the rest of the project
asks of it: which parameter a node reads, in which of the user's modules a node stands, shapes at
batch 1, and an error that names the operator and the module where the capture stopped.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from compress.errors import Untraceable
from compress.graph.hardware import fixed_parameters
from compress.types import Note


@dataclass(frozen=True)
class Network:
    """A traced network.

    Attributes:
        program: torch.export's capture.
        parameters: placeholder name -> qualified name of the parameter or buffer it stands for.
        inputs: placeholder names of the network's inputs.
        example_inputs: the tensors that it was traced with.
        notes: what the trace had to fix, such as a batch size that the network's code fixes.
        hardware: qualified names of parameters that live in hardware, as modules' ``in_hardware`` lists them: they are
            neither pruned, nor refitted, nor rounded to other values than they have.
    """

    program: ExportedProgram
    parameters: Mapping[str, str]
    inputs: tuple[str, ...]
    example_inputs: tuple[torch.Tensor, ...]
    notes: tuple[Note, ...] = field(default=())
    hardware: frozenset[str] = field(default=frozenset())

    @property
    def graph(self) -> fx.Graph:
        """The captured graph."""
        graph: fx.Graph = self.program.graph
        return graph

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The operators in the order of execution (no placeholders, no output)."""
        return tuple(node for node in self.graph.nodes if node.op == "call_function")

    def live(self) -> tuple[fx.Node, ...]:
        """The operators that the outputs depend on, in the order of execution, and those that write in place."""
        needed: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node.op == "output" or node in needed or _writes(node):
                needed |= {node, *node.all_input_nodes}
        return tuple(node for node in self.nodes if node in needed)

    @property
    def dynamic_batch(self) -> bool:
        """True if the captured graph takes any batch size."""
        return not self.notes

    def parameter(self, node: Any) -> str | None:
        """The qualified name of the parameter or buffer that ``node`` reads; None if it is none."""
        return self.parameters.get(node.name) if isinstance(node, fx.Node) else None

    def of(self, model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> Network:
        """The trace of ``model``, which differs from the traced module in its tensors' values alone: the same graph."""
        tensors = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        program = copy.copy(self.program)
        program._state_dict = {name: tensors[name] for name in self.program.state_dict}
        inputs = tuple(map(_batch_of_two if self.dynamic_batch else _batch_of_one, example_inputs))
        return replace(self, program=program, example_inputs=inputs)

    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes whose values the network returns."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        return tuple(node for node in output.all_input_nodes if node.op != "placeholder")


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def kind(node: fx.Node) -> str:
    """The operator's plain name: ``aten.conv2d.default`` is ``conv2d``, ``aten.relu_`` is ``relu``."""
    if isinstance(node.target, torch._ops.OpOverload):
        name: str = node.target._schema.name.split("::")[1]
        return name.rstrip("_") if not name.startswith("_") else name
    if node.target is operator.getitem:
        return "getitem"
    return getattr(node.target, "__name__", str(node.target))


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """The argument called ``name`` in the operator's schema, wherever the call put it."""
    if name in node.kwargs:
        return node.kwargs[name]
    assert isinstance(node.target, torch._ops.OpOverload)
    for position, formal in enumerate(node.target._schema.arguments):
        if formal.name == name:
            if position < len(node.args):
                return node.args[position]
            return formal.default_value if formal.has_default_value() else default
    return default


def module_path(node: fx.Node) -> str:
    """Path of the innermost of the user's modules in which the node stands, ``""`` for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        if not path.startswith("_"):
            return str(path)
    return ""


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor for one input: the open batch size counts as 1."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        value = value[0]
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(size if isinstance(size, int) else _at_batch_one(str(size), size) for size in value.shape)


def batch_first(node: fx.Node) -> bool:
    """True if the first axis of a node's tensor is the batch (not windows of it, nor tokens)."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.shape:
        return False
    size = value.shape[0]
    return bool(size.node.expr.is_Symbol) if isinstance(size, torch.SymInt) else size == 1


_SIZES: dict[str, int] = {}


def _at_batch_one(text: str, size: torch.SymInt) -> int:
    # Sizes that follow from the batch's (windows * batch) aren't 1 where the batch is.
    if text not in _SIZES:
        expression = size.node.expr
        _SIZES[text] = int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
    return _SIZES[text]


def layer_name(parameter: str) -> str:
    """The layer that a weight belongs to: ``"layer1.0.conv1.weight"`` is ``"layer1.0.conv1"``."""
    return parameter.removesuffix(".weight")


def trace(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> Network:
    """Capture ``model`` in evaluation mode.

    Args:
        model: any module whose forward takes tensors; it is not changed.
        example_inputs: one tensor an input, the batch first; the values don't matter.

    Raises:
        Untraceable: the forward pass depends on the values of its tensors, or calls what can't be
            captured; the operator and the module are named.
    """
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        return _trace(model, tuple(_batch_of_two(x) for x in example_inputs))
    finally:
        for name, module in model.named_modules():
            module.training = training[name]


def _batch_of_two(x: torch.Tensor) -> torch.Tensor:
    # torch.export takes a size of 1 for a constant, so a batch is open only if it is seen as 2.
    return x if x.shape[0] > 1 else torch.cat([x, x])


def _batch_of_one(x: torch.Tensor) -> torch.Tensor:
    return x[:1]


def _trace(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Network:
    batch = Dim("batch", min=1, max=65536)
    notes: tuple[Note, ...] = ()
    with quiet(), torch.no_grad(), _plain_attention():
        try:
            program = torch.export.export(model, inputs, dynamic_shapes=_dynamic(model, inputs, batch), strict=False)
        except Exception as first:
            # A reshape that names the batch size makes it a constant; the network still runs, one at a time. Watching
            # takes time at every call, so only what failed once is watched.
            one, watch = tuple(map(_batch_of_one, inputs)), _Watch(model)
            try:
                with watch:
                    program = torch.export.export(model, one, strict=False)
            except Exception as error:
                raise Untraceable(watch.operator, watch.path, _first_line(error)) from error
            inputs, notes = one, (Note("", "batch size", f"the network's code fixes it: {_first_line(first)}"),)
    _plain_means(program)
    signature = program.graph_signature
    parameters = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return Network(program, parameters, tuple(signature.user_inputs), inputs, notes, fixed_parameters(model))


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Without torch's fused inference path, which hides a transformer layer in one operator."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _plain_means(program: ExportedProgram) -> None:
    """Write pooling to one pixel as the mean that it is.

    torch's own decomposition adds ``as_strided`` where it can't tell the memory format of a one-channel
    input, and no runtime has that operator.
    """
    for node in program.graph.nodes:
        if node.op == "call_function" and kind(node) == "adaptive_avg_pool2d" and set(shape(node)[2:]) == {1}:
            node.target, node.args, node.kwargs = torch.ops.aten.mean.dim, (node.args[0], [2, 3], True), {}
    program.graph_module.recompile()


def _dynamic(model: nn.Module, inputs: tuple[torch.Tensor, ...], batch: Any) -> tuple[Any, ...]:
    shapes = tuple({0: batch} for _ in inputs)
    if isinstance(model, fx.GraphModule) or not _takes_varargs(model):
        return shapes
    return (shapes,)


def _takes_varargs(model: nn.Module) -> bool:
    with contextlib.suppress(TypeError, ValueError):
        kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
        return bool(kinds) and kinds[0] is inspect.Parameter.VAR_POSITIONAL
    return False


class _Watch(TorchFunctionMode):
    """Remembers the operator called last and the module it was called in, for the error."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.operator, self.path, self._failed = "its forward", "", False
        self._model, self._stack, self._hooks = model, [""], list[Any]()

    def __enter__(self) -> _Watch:
        self._stack, self._failed = [""], False
        for name, module in self._model.named_modules():
            if name:
                self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
                self._hooks.append(module.register_forward_hook(self._leaving))
        super().__enter__()  # type: ignore[no-untyped-call]  # torch annotates neither end
        return self

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)  # type: ignore[no-untyped-call]  # as above
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            self._stack.append(name)
            self.path = name

        return hook

    def _leaving(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._stack.pop()
        self.path = self._stack[-1]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", str(function))
        if not self._failed and not name.startswith("_set_") and name != "__get__":
            self.operator = _OPERATOR_WORDS.get(name, name)
            self.path = self._stack[-1]
        try:
            return function(*args, **(kwargs or {}))
        except Exception:
            # What unwinds from here calls operators of its own; the first one that failed is the one to name.
            self._failed = True
            raise


_OPERATOR_WORDS = {"__bool__": "a branch on a tensor's value (bool)", "item": "a read of a tensor's value (item)"}


def _first_line(error: BaseException) -> str:
    for line in str(error).splitlines():
        line = line.strip()
        if line and not line.startswith(("Traceback", "File ")):
            return f"{type(error).__name__}: {line[:200].rstrip('.')}"
    return type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch.export's warnings concern its developers; what matters to users is returned as notes."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
