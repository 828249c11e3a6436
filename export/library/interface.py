"""The network's ends as callers see them: names in C, layouts, and the way from floats to integers and back.

A library takes and gives tensors channels last, in the network's own type. Programs that hold floats in the file's
order (channels first) come through :meth:`End.to_library` and :meth:`End.from_library`, which do what the file's
QuantizeLinear and DequantizeLinear do, bit for bit.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.errors import BadData, BadInput
from compress.export.kernels.code import Code
from compress.integer.program import LIMITS, DType

CTYPES: Mapping[str, str] = {"uint8": "uint8_t", "int8": "int8_t", "int32": "int32_t", "float32": "float"}


@dataclass(frozen=True, slots=True)
class End:
    """One input or output.

    Attributes:
        name: in the file.
        identifier: in C: ``input``, ``output``, or with the name behind it if there are several.
        shape: as it lies in memory: (H, W, C) for an image.
        file_shape: as the file has it, without the batch: (C, H, W).
        dtype: of its numbers; ``real = scale * (integer - zero_point)``.
    """

    name: str
    identifier: str
    shape: tuple[int, ...]
    file_shape: tuple[int, ...]
    dtype: DType
    scale: float
    zero_point: int

    @property
    def elements(self) -> int:
        """How many numbers."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return self.elements * np.dtype(self.dtype).itemsize

    @property
    def ctype(self) -> str:
        """The C type of one number."""
        return CTYPES[self.dtype]

    @property
    def image(self) -> bool:
        """Whether it lies channels last here and channels first in the file."""
        return len(self.shape) == 3 and self.file_shape == (self.shape[2], *self.shape[:2])

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest integer of the type."""
        return LIMITS[self.dtype]

    def to_library(self, values: npt.ArrayLike) -> npt.NDArray[Any]:
        """A batch of floats in the file's order, (N, *file_shape), as the library takes it, (N, *shape).

        Integers are ``clamp(round_half_even(x / scale) + zero_point)``, the division in float32.

        Raises:
            BadData: the shape is another, or values aren't numbers.
        """
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            raise BadData(self.name, "the values aren't numbers", "give a float32 array") from None
        if array.shape[1:] != self.file_shape or array.ndim == 0:
            wanted = ("N", *map(str, self.file_shape))
            raise BadData(self.name, f"the shape is {array.shape}", f"give float32 ({', '.join(wanted)})")
        laid = array.transpose(0, 2, 3, 1) if self.image else array.reshape(len(array), *self.shape)
        if self.dtype == "float32":
            return np.ascontiguousarray(laid)
        if np.isnan(laid).any():
            raise BadData(self.name, "some values are NaN", "give numbers")
        low, high = self.limits
        steps = np.rint(laid / np.float32(self.scale)).astype(np.float64) + self.zero_point
        return np.ascontiguousarray(np.clip(steps, low, high).astype(self.dtype))

    def from_library(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What the library gave, (N, *shape), as floats in the file's order."""
        if self.dtype == "float32":
            real = np.asarray(values, np.float32)
        else:
            steps = (values.astype(np.int64) - self.zero_point).astype(np.float32)
            real = np.asarray(steps * np.float32(self.scale), np.float32)
        if self.image:
            return np.ascontiguousarray(real.transpose(0, 3, 1, 2))
        return np.ascontiguousarray(real.reshape(len(real), *self.file_shape))


@dataclass(frozen=True, slots=True)
class Interface:
    """All that a caller of a compiled library has to know; it stands in the library as JSON.

    Attributes:
        name: the prefix of the library's functions.
        triple, cpu: what it was compiled for.
        version: of this toolkit.
        arena_bytes, arena_alignment: the memory that a run needs.
        threads: whether ``NAME_run_threads`` is there.
    """

    name: str
    triple: str
    cpu: str
    version: str
    arena_bytes: int
    arena_alignment: int
    threads: bool
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]


def identifier(name: str) -> str:
    """``name`` as what a C identifier may go on with: lower case, other signs as underscores."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "x"


def checked_name(name: str) -> str:
    """``name``, if it can be the prefix of C functions and the name of files.

    Raises:
        BadInput: it can't.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,47}", name):
        raise BadInput(f"a library can't be named {name!r}; give a letter, then small letters, digits and underscores")
    return name


def ends(code: Code, file_shapes: Mapping[str, Sequence[int]] | None = None) -> tuple[tuple[End, ...], tuple[End, ...]]:
    """The inputs and the outputs of a code.

    Args:
        code: what the back end made.
        file_shapes: by name, without the batch; else images are taken to be channels first in the file.

    Raises:
        ValueError: a shape holds another number of elements than the tensor.
    """
    given = file_shapes or {}

    def one(kind: str, names: Sequence[str]) -> tuple[End, ...]:
        found: list[End] = []
        for name in names:
            tensor = code.tensors[name]
            shape = tensor.shape
            usual = (shape[2], *shape[:2]) if len(shape) == 3 else shape
            file_shape = tuple(given.get(name, usual))
            if np.prod(file_shape, dtype=np.int64) != tensor.elements:
                raise ValueError(f"{name!r} has shape {shape}, which isn't the file's {file_shape}")
            label = kind if len(names) == 1 else f"{kind}_{identifier(name)}"
            used = [end.identifier for end in found]
            label = next(each for i in itertools.count(1) if (each := label if i == 1 else f"{label}_{i}") not in used)
            scale = float(np.float32(tensor.scale))
            found.append(End(name, label, shape, file_shape, tensor.dtype, scale, tensor.zero_point))
        return tuple(found)

    return one("input", code.inputs), one("output", code.outputs)


__all__ = ["CTYPES", "End", "Interface", "checked_name", "ends", "identifier"]
