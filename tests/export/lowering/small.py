"""Small ONNX files, node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.lowering import lower
from compress.integer import program as p
from compress.integer.signedness import with_signedness
from tests.export.lowering import comparing

Array = NDArray[Any]


class Net:
    """A file that grows: every method returns the name of the value that it makes.

    Args:
        shape: of the input ``x``, the batch included; a text is an open size.
        opset: of ONNX's operators.
        seed: of random constants.
    """

    def __init__(self, *shape: int | str, opset: int = 21, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.held: list[Any] = []
        self.opset = opset
        self.random = np.random.default_rng(seed)
        if shape:
            self.input("x", *shape)

    def input(self, name: str, *shape: int | str) -> str:
        from onnx import TensorProto, helper

        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.held)}"
        self.held.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        from onnx import helper

        names = [f"{op.lower()}{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"{op}{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def quantized(self, name: str, scale: float = 0.03, zero: int = 120, dtype: str = "uint8") -> str:
        """QuantizeLinear and DequantizeLinear behind a value."""
        ends = self.constant(scale), self.constant(zero, dtype)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", name, *ends), *ends)

    def weight(
        self,
        shape: tuple[int, ...],
        axis: int | None = 0,
        dtype: str = "int8",
        zero: int = 0,
        ends: tuple = (-127, 128),
    ) -> str:
        """Random weights behind DequantizeLinear, one scale an index of ``axis``, or one for all."""
        integers = self.random.integers(*ends, shape) + zero
        size = () if axis is None else (shape[axis],)
        scale = self.constant(self.random.uniform(0.001, 0.006, size))
        given = [self.constant(integers, dtype), scale, self.constant(np.full(size, zero), dtype)]
        return self.node("DequantizeLinear", *given, **({} if axis is None else {"axis": axis}))

    def bias(self, size: int, spread: float = 0.5) -> str:
        return self.constant(self.random.normal(size=size) * spread)

    def conv(self, name: str, outputs: int, inputs: int, *kernel: int, bias: bool = True, **attributes: Any) -> str:
        weight = self.weight((outputs, inputs, *kernel))
        return self.node("Conv", name, weight, *([self.bias(outputs)] if bias else []), **attributes)

    def file(self, *outputs: str) -> bytes:
        from onnx import TensorProto, helper

        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "small", self.inputs, ends, self.held)
        imports = [helper.make_opsetid("", self.opset)]
        return bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())


def islands(program: p.Program) -> set[str]:
    """Operators that are computed in float."""
    return {note.what for note in program.notes if note.why.startswith("computed in float: ")}


def check(model: bytes, *, floats: set[str] | None = None, steps: int = 1, close: float = 0.1) -> p.Program:
    """The laws of a lowered file; ``floats``: the operators in float, none by default.

    On equal inputs each quantized value is within ``steps`` of ONNX Runtime's, the outputs lie within ``close`` of
    the largest number, and the program in one signedness computes the same.
    """
    program = lower(model)
    assert islands(program) == (floats or set()), program.notes
    for seed in (0, 1):
        inputs = comparing.random_inputs(model, seed)
        found = comparing.step_differences(model, inputs)
        assert max(found.values(), default=0) <= steps, found
        assert comparing.difference(model, inputs, program) <= close
        plain = comparing.computed(program, inputs)
        for signed in (True, False):
            turned = with_signedness(program, signed)
            results = comparing.computed(turned, inputs)
            assert all(np.array_equal(a, b) for a, b in zip(plain, results, strict=True))
    names = [op.name for op in program.ops]
    assert len(names) == len(set(names))
    written = [op.output for op in program.ops]
    assert len(written) == len(set(written))
    assert set(program.tensors) == {*program.inputs, *written}
    return program


def used(program: p.Program) -> set[str]:
    """The kinds of operators of a program."""
    return {type(op).__name__ for op in program.ops}


__all__ = ["Net", "check", "islands", "used"]
