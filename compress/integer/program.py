"""A network as a list of integer operators on tensors that lie channels last.

Images are (H, W, C), vectors (C,), sequences (T, C); the batch is always 1 and left out. Every operator is a frozen
value that names its tensors, holds its constants as numpy arrays and says in its docstring what it computes;
:mod:`compress.integer.reference` is the definition in code. With ``x`` the integers of an input with zero point ``z``,
all arithmetic is on ``x - z``; padding stands for the real number 0, that is for ``z``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compress.types import Note

DType = Literal["uint8", "int8", "int32", "float32"]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
LIMITS: Mapping[str, tuple[int, int]] = {"uint8": (0, 255), "int8": (-128, 127), "int32": (-(2**31), 2**31 - 1)}
LARGEST_HALF = 65504.0
"""The largest number of float16."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: ``real = scale * (integer - zero_point)``; float32 ones have scale 1 and zero point 0."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    scale: float = 1.0
    zero_point: int = 0

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Its size, densely packed."""
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False, slots=True)
class Requantize:
    """From int32 accumulators to 8 bits: ``clamp(rescale(acc, multiplier, shift) + zero_point, low, high)``.

    Attributes:
        multiplier, shift: int32, one for each output channel, or one for all; shift in [1, 62].
        zero_point: of the output.
        low, high: what the result is clamped to: the output's type, or less where an activation function is fused.
    """

    multiplier: Ints
    shift: Ints
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, eq=False, slots=True)
class Op:
    """What all operators have: a unique ``name`` (the node in the file), input tensors, one output tensor."""

    name: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, eq=False, slots=True)
class Convolution(Op):
    """``acc[y, x, o] = bias[o] + sum weight[o, i, j, c] * (in[y sh + i dh - top, x sw + j dw - left, c + C g/G] - z)``.

    The sum is over i, j and the C/G channels of o's group g, in int32 (modulo 2^32). A linear layer has a 1x1 kernel
    and an image of one row or column.

    Attributes:
        weight: int8 (O, KH, KW, C / groups), symmetric, within ``weight_bits``; one bit is -1 or 1.
        weight_bits: 8, 4, 3, 2 or 1: how the weights are to be stored.
        bias: int32 (O,).
        strides, dilations: (rows, columns).
        padding: (top, left, bottom, right).
        requantize: to the 8-bit output; None where the output is float32: ``float32(acc) * scale[o]``.
        scale: float32 (O,) or None; see ``requantize``.
    """

    weight: NDArray[np.int8]
    weight_bits: int
    bias: Ints
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    requantize: Requantize | None = None
    scale: Floats | None = None

    @property
    def depthwise(self) -> bool:
        """One input channel a group."""
        return self.groups > 1 and self.weight.shape[3] == 1


@dataclass(frozen=True, eq=False, slots=True)
class Add(Op):
    """``clamp(((a - za) * ma + (b - zb) * mb + 2^(shift-1)) >> shift) + zero_point, low, high)``, all in int32.

    One input instead of two is a change of grid. Inputs broadcast as numpy does. A negative multiplier subtracts.

    Attributes:
        multipliers: one an input, at most 21 bits; shift in [1, 30].
    """

    multipliers: tuple[int, ...]
    shift: int
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, eq=False, slots=True)
class Multiply(Op):
    """``acc = (a - za) * (b - zb)``, requantized (one multiplier). Inputs broadcast as numpy does."""

    requantize: Requantize


@dataclass(frozen=True, eq=False, slots=True)
class Pool(Op):
    """Pooling of an image (H, W, C) over windows.

    ``max``: the largest integer of the window's part inside the image. ``average``: ``acc`` is the sum of ``x - z``
    over the part inside, requantized with one multiplier for each output pixel (OH * OW of them), or one for all.
    """

    kind: Literal["max", "average"]
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    requantize: Requantize | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Concatenate(Op):
    """Inputs of one grid, joined along ``axis``."""

    axis: int


@dataclass(frozen=True, eq=False, slots=True)
class Copy(Op):
    """Moves values: ``out[out_offset + sum i_k * out_strides_k] = in[in_offset + sum i_k * in_strides_k]`` on flat,
    dense tensors, for all ``i`` in ``extents``. Where ``fill`` is given, the output is filled with it first.

    Transposition, slices, padding, pixel shuffle, nearest-neighbour enlargement. Any type.
    """

    extents: tuple[int, ...]
    in_strides: tuple[int, ...]
    out_strides: tuple[int, ...]
    in_offset: int = 0
    out_offset: int = 0
    fill: int | float | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Constant(Op):
    """Numbers of the network itself as a tensor; it has no inputs."""

    value: NDArray[np.generic]


@dataclass(frozen=True, eq=False, slots=True)
class View(Op):
    """The same memory under another shape."""


@dataclass(frozen=True, eq=False, slots=True)
class Lookup(Op):
    """``table[x - lowest]``: any function of one 8-bit tensor. ``table``: 256 values of the output's type."""

    table: NDArray[np.generic]


@dataclass(frozen=True, eq=False, slots=True)
class Softmax(Op):
    """Along the last axis: ``e = table[max - x]``, ``clamp((2 * e * factor + sum) // (2 * sum) + zero_point)``.

    Attributes:
        table: int32 (256,): ``round(2^20 * exp(-d * scale))`` for the distance d from the maximum.
        factor: ``round(1 / output scale)``; 64-bit products.
    """

    table: Ints
    factor: int
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, eq=False, slots=True)
class Resize(Op):
    """Bilinear: ``acc = sum over 2x2 of wy * wx * (x - z)``, weights of 10 bits, requantized (one multiplier).

    Attributes:
        rows, columns: int32 (OH, 3), (OW, 3): first index, second index, weight of the second in [0, 1024].
    """

    rows: Ints
    columns: Ints
    requantize: Requantize


@dataclass(frozen=True, eq=False, slots=True)
class MatMul(Op):
    """``acc[..., m, n] = sum_k (a[..., m, k] - za) * (b[..., k, n] - zb)``, both inputs computed, requantized with one
    multiplier or, without ``requantize``, ``float32(acc) * scale``. Leading axes are equal."""

    requantize: Requantize | None = None
    scale: float | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Quantize(Op):
    """float32 to the output's grid: ``clamp(round_half_even(float32(x / scale)) + zero_point)`` within its type, or
    [low, high]."""

    low: int
    high: int


@dataclass(frozen=True, eq=False, slots=True)
class Dequantize(Op):
    """An integer tensor to float32: ``float32(x - z) * float32(scale)``."""


@dataclass(frozen=True, eq=False, slots=True)
class FloatConvolution(Op):
    """A convolution in float32; shapes as :class:`Convolution`. ``low`` and ``high`` clamp the result.

    With ``half`` its inputs and weights are rounded to float16, halves to even and no farther than its largest number;
    products, sums and the bias stay in float32.
    """

    weight: Floats
    bias: Floats
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    low: float = -np.inf
    high: float = np.inf
    half: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class FloatElementwise(Op):
    """A function of one or two float32 tensors, broadcast as numpy does, or of a tensor and constants.

    Attributes:
        kind: ``add``, ``sub``, ``mul``, ``div``, ``max``, ``min``, ``pow``; ``relu``, ``sigmoid``, ``tanh``, ``exp``,
            ``erf``, ``sqrt``, ``log``, ``neg``, ``abs``, ``reciprocal``, ``clip``; ``half``, rounded
            to float16 as :class:`FloatConvolution` has it.
        constant: the second operand where it isn't computed; ``(low, high)`` of ``clip``.
        swapped: the constant is the first operand.
    """

    kind: str
    constant: Floats | None = None
    swapped: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class FloatReduce(Op):
    """``kind`` (``mean``, ``sum``, ``max``) over ``axes``, which stay as 1 in the output's shape."""

    kind: str
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class FloatPool(Op):
    """As :class:`Pool`, in float32; ``counts``: float32 (OH * OW,) divisors of an average."""

    kind: Literal["max", "average"]
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    counts: Floats | None = None


@dataclass(frozen=True, eq=False, slots=True)
class FloatSoftmax(Op):
    """Along the last axis, in float32."""


@dataclass(frozen=True, eq=False, slots=True)
class FloatMatMul(Op):
    """``a @ b`` over the last two axes, both computed; leading axes are equal."""


@dataclass(frozen=True)
class Program:
    """Operators in an order in which they can run.

    Attributes:
        tensors: by name.
        ops: each reads inputs and outputs of earlier ones.
        inputs, outputs: the network's ends.
        file_shapes: for each input and output its shape in the file without the batch, ``(C, H, W)`` for an image
            that lies (H, W, C) here: how callers hand tensors over.
        notes: what stays in float, and why.
    """

    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    file_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run: convolutions, linear layers and matrix products."""
        total = 0
        for op in self.ops:
            out = self.tensors[op.output].elements
            if isinstance(op, (Convolution, FloatConvolution)):
                total += out * int(np.prod(op.weight.shape[1:]))
            elif isinstance(op, (MatMul, FloatMatMul)):
                total += out * self.tensors[op.inputs[0]].shape[-1]
        return total
