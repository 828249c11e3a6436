"""A program while it grows: values of the file, the tensors that hold them, and changes of arrangement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.integer import program as p
from compress.integer.reference import quantized
from compress.types import Note

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class GridSpec:
    """What a QuantizeLinear writes: its type, scale and zero point, and the ends that clips in front of it leave."""

    dtype: p.DType
    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A value of the file and the tensor that holds it.

    Attributes:
        tensor: name in the program.
        shape: in the file, batch 1 included.
        axes: for each axis of the tensor the axis of the file; file axes that aren't there have size 1.
        function: where the value isn't what the (8-bit) tensor stands for but a function of it: float32 (256,), by
            distance from the type's lowest integer.
    """

    tensor: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    function: NDArray[np.float32] | None = None


def default_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """How values lie by default: without the batch, images (1, C, H, W) channels last."""
    rank = len(shape)
    if rank == 4 and shape[0] == 1:
        return (2, 3, 1)
    return tuple(range(1, rank)) if rank > 1 and shape[0] == 1 else tuple(range(rank))


class Builder:
    """Collects tensors, operators and notes."""

    def __init__(self) -> None:
        self.tensors: dict[str, p.Tensor] = {}
        self.ops: list[p.Op] = []
        self.notes: list[Note] = []
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.file_shapes: dict[str, tuple[int, ...]] = {}
        self._real: dict[tuple[str, int], str] = {}

    def tensor(
        self, name: str, shape: Sequence[int], dtype: p.DType, scale: float = 1.0, zero_point: int = 0
    ) -> p.Tensor:
        """A new tensor; a name that is taken gets a number."""
        unique, number = name, 1
        while unique in self.tensors:
            number += 1
            unique = f"{name}_{number}"
        made = p.Tensor(unique, tuple(shape), dtype, scale, zero_point)
        self.tensors[unique] = made
        return made

    def like(self, name: str, source: str, shape: Sequence[int]) -> p.Tensor:
        """A new tensor of the type and grid of ``source``."""
        old = self.tensors[source]
        return self.tensor(name, shape, old.dtype, old.scale, old.zero_point)

    def add(self, make: Callable[..., p.Op], name: str, inputs: Sequence[str], output: str, *fields: Any) -> str:
        """Append an operator, its name made unique, and return its output."""
        taken = {op.name for op in self.ops}
        unique, number = name, 1
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        self.ops.append(make(unique, tuple(inputs), output, *fields))
        return output

    # -- arrangement ---------------------------------------------------------------------------------------------

    def view(self, name: str, value: Value, shape: Sequence[int]) -> str:
        """The value's tensor under another shape of as many elements."""
        old = self.tensors[value.tensor]
        if old.shape == tuple(shape):
            return value.tensor
        made = self.like(f"{value.tensor}_view", value.tensor, shape)
        return self.add(p.View, f"{name}_view", [value.tensor], made.name)

    def arranged(self, name: str, value: Value, axes: Sequence[int]) -> Value:
        """The value with its tensor's axes in the file's order ``axes``; moved only where it has to be."""
        if tuple(axes) == value.axes:
            return value
        target = tuple(value.shape[axis] for axis in axes)
        sized = [axis for axis in value.axes if value.shape[axis] > 1]
        wanted = [axis for axis in axes if value.shape[axis] > 1]
        if sized == wanted:
            return replace(value, tensor=self.view(name, value, target), axes=tuple(axes))
        held = dict(zip(value.axes, strides_of(self.tensors[value.tensor].shape), strict=True))
        made = self.like(f"{value.tensor}_moved", value.tensor, target)
        extents = tuple(value.shape[axis] for axis in wanted)
        sources = tuple(held[axis] for axis in wanted)
        dense = dict(zip(axes, strides_of(target), strict=True))
        goals = tuple(dense[axis] for axis in wanted)
        self.add(p.Copy, f"{name}_move", [value.tensor], made.name, extents, sources, goals, 0, 0, None)
        return replace(value, tensor=made.name, axes=tuple(axes))

    # -- integers and reals ----------------------------------------------------------------------------------------

    def is_integer(self, value: Value) -> bool:
        """The value lies on an 8-bit grid, without a function in between."""
        return value.function is None and self.tensors[value.tensor].dtype in ("uint8", "int8")

    def lookup_domain(self, value: Value) -> NDArray[np.float32] | None:
        """The real numbers that a value of an 8-bit tensor takes, by distance from the lowest integer; else None."""
        tensor = self.tensors[value.tensor]
        if tensor.dtype not in ("uint8", "int8"):
            return None
        if value.function is not None:
            return value.function
        low = p.LIMITS[tensor.dtype][0]
        steps = np.arange(256, dtype=np.int64) + low - tensor.zero_point
        return steps.astype(np.float32) * np.float32(tensor.scale)

    def integer(self, name: str, value: Value) -> Value | None:
        """The value as one on an 8-bit grid: as it is, or its function as a table where its results lie on the
        tensor's own grid; None where neither holds."""
        tensor = self.tensors[value.tensor]
        if value.function is None:
            return value if tensor.dtype in ("uint8", "int8") else None
        low, high = p.LIMITS[tensor.dtype]
        table = quantized(value.function, tensor.scale, tensor.zero_point, low, high)
        back = (table - tensor.zero_point).astype(np.float32) * np.float32(tensor.scale)
        if not np.array_equal(back, value.function):
            return None
        made = self.like(f"{value.tensor}_function", value.tensor, tensor.shape)
        self.add(p.Lookup, name, [value.tensor], made.name, table.astype(tensor.dtype))
        return replace(value, tensor=made.name, function=None)

    def real(self, name: str, value: Value) -> Value:
        """The value as float32."""
        tensor = self.tensors[value.tensor]
        if tensor.dtype == "float32":
            return value
        key = (value.tensor, id(value.function) if value.function is not None else 0)
        if key not in self._real:
            made = self.tensor(f"{value.tensor}_real", tensor.shape, "float32")
            if value.function is None:
                self.add(p.Dequantize, f"{name}_dequantize", [value.tensor], made.name)
            else:
                self.add(p.Lookup, f"{name}_table", [value.tensor], made.name, value.function.astype(np.float32))
            self._real[key] = made.name
        return replace(value, tensor=self._real[key], function=None)

    def island(self, where: str, what: str, why: str) -> None:
        """Say that an operator is computed in float."""
        self.notes.append(Note(where, what, f"computed in float: {why}"))

    def program(self) -> p.Program:
        """What was built."""
        return p.Program(
            self.tensors, tuple(self.ops), tuple(self.inputs), tuple(self.outputs), self.file_shapes, tuple(self.notes)
        )


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements from one index of each axis to the next, densely packed."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
