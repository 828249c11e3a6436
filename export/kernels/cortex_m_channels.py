"""The inner loops of Cortex-M's depthwise convolutions, in assembly: four channels of two neighbouring pixels at a
time.

Inputs and weights stand as pairs of int16, channels 0 and 2 in one word, 1 and 3 in the next. A tap takes an ``ldrd``
for the weights, one for each pixel and eight ``smlabb`` or ``smlatt``: 11 instructions for 8 products. Requantization
and arguments are as in :mod:`cortex_m_tiles`.
"""

from __future__ import annotations

from dataclasses import dataclass

from compress.export.kernels.cortex_m_assembly import Function
from compress.export.kernels.cortex_m_tiles import SAVED, Saturation, saturated

ARGUMENTS = (
    "x", "y", "row", "end",
    "bias0", "bias1", "bias2", "bias3", "weights",
    "m0", "half0", "shift0", "m1", "half1", "shift1", "m2", "half2", "shift2", "m3", "half3", "shift3",
    "channels", "left", "columns", "rows", "x_start", "y_start", "down", "out_row",
    "step", "y_step", "last_step", "y_last", "low", "high",
)  # fmt: skip
"""``x``, ``y``: addresses of the first pixel's inputs and outputs, ``x_start``, ``y_start`` again; ``row``: bytes from
one row of inputs to the next under the kernel; ``weights``, ``end``: addresses of the first weight and behind the
last; ``channels``: bytes from an output pixel to the next; ``left`` and ``columns``: pairs of pixels in a row;
``rows``; ``down``, ``out_row``: bytes from an output row's inputs, and outputs, to the next row's; ``step``,
``y_step``: bytes to the next pair; ``last_step``, ``y_last``: to a row's last one, which overlaps where a row is odd;
``low``, ``high``: limits."""
ADDRESSES = ("x", "y", "end", "weights", "x_start", "y_start")
SUMS = ("r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11")


@dataclass(frozen=True, slots=True)
class Channels:
    """What a function does.

    Attributes:
        columns: of the kernel.
        stride, dilation: along a row.
        saturation: of the result.
    """

    columns: int
    stride: int
    dilation: int
    saturation: Saturation

    @property
    def name(self) -> str:
        """The function's name."""
        return f"compress_channels_{self.columns}_{self.stride}_{self.dilation}_{self.saturation}"


def at(argument: str) -> str:
    """The assembler's operand for an argument."""
    index = ARGUMENTS.index(argument)
    return f"[sp, #{4 * (index if index < 4 else index - 4 + SAVED)}]"


def _address(register: str, argument: str) -> str:
    return f"add {register}, sp, #{at(argument)[6:-1]}"


def _tap(kind: Channels, j: int) -> list[str]:
    """r12: the first pixel's inputs of this row; lr: weights; r4 to r7 and r8 to r11: sums of both pixels."""
    lines = ["ldrd r0, r1, [lr], #8"]
    for pixel in (0, 1):
        c0, c1, c2, c3 = SUMS[4 * pixel : 4 * pixel + 4]
        lines += [
            f"ldrd r2, r3, [r12, #{8 * (j * kind.dilation + pixel * kind.stride)}]",
            f"smlabb {c0}, r2, r0, {c0}",
            f"smlatt {c2}, r2, r0, {c2}",
            f"smlabb {c1}, r3, r1, {c1}",
            f"smlatt {c3}, r3, r1, {c3}",
        ]
    return lines


def assembly(kind: Channels) -> list[str]:
    """The function's instructions."""
    taps = [line for j in range(kind.columns) for line in _tap(kind, j)]
    scaled = [_address("r12", "m0")]
    for i in range(4):
        scaled.append("ldmia r12!, {r0, r1, r2}")
        for r in (SUMS[i], SUMS[i + 4]):
            scaled += [f"smmla {r}, {r}, r0, r1", f"asr {r}, {r}, r2"]
    return [
        "push {r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "0:",  # two pixels
        _address("r12", "bias0"),
        "ldmia r12, {r4, r5, r6, r7, lr}",
        "mov r8, r4",
        "mov r9, r5",
        "mov r10, r6",
        "mov r11, r7",
        f"ldr r12, {at('x')}",
        "1:",  # a row of the kernel
        *taps,
        f"ldrd r0, r1, {at('row')}",
        "add r12, r0",
        "cmp lr, r1",
        "bne 1b",
        *scaled,
        *saturated(SUMS, kind.saturation, at("low")),
        f"ldrd r2, r3, {at('x')}",
        f"ldrd r0, r1, {at('channels')}",  # and left
        *(f"strb {r}, [r3, #{i}]" for i, r in enumerate(SUMS[:4])),
        "add r12, r3, r0",
        *(f"strb {r}, [r12, #{i}]" for i, r in enumerate(SUMS[4:])),
        "subs r1, #1",
        "beq 3f",
        f"str r1, {at('left')}",
        _address("r0", "step"),
        "cmp r1, #1",
        "it eq",
        "addeq r0, #8",
        "ldrd r0, r1, [r0]",
        "2:",
        "add r2, r0",
        "add r3, r1",
        f"strd r2, r3, {at('x')}",
        "b 0b",
        "3:",  # the next row
        _address("r12", "columns"),
        "ldmia r12, {r1, r4, r5, r6, r7, r8}",  # columns, rows, x_start, y_start, down, out_row
        f"str r1, {at('left')}",
        "subs r4, #1",
        "beq 4f",
        f"str r4, {at('rows')}",
        "add r2, r5, r7",
        "add r3, r6, r8",
        f"strd r2, r3, {at('x_start')}",
        f"strd r2, r3, {at('x')}",
        "b 0b",
        "4:",
        "add sp, #16",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]


def function(kind: Channels) -> Function:
    """The function, which takes :data:`ARGUMENTS`: pointers, or int32."""
    parameters = tuple((name, "ptr" if name in ADDRESSES else "i32") for name in ARGUMENTS)
    return Function(kind.name, parameters, tuple(assembly(kind)))


WIDEN_GROUP = Function(
    "compress_widen_group",
    (("target", "ptr"), ("source", "ptr"), ("pixels", "i32"), ("channels", "i32")),
    (
        "push {r4, r5}",
        "1:",
        "ldr r4, [r1]",
        "add r1, r3",
        "sxtb16 r12, r4",
        "sxtb16 r5, r4, ror #8",
        "strd r12, r5, [r0], #8",
        "subs r2, #1",
        "bne 1b",
        "pop {r4, r5}",
        "bx lr",
    ),
)
"""``f(int16 *target, const int8 *source, int pixels, int channels)``: four channels of each pixel."""

__all__ = ["ARGUMENTS", "WIDEN_GROUP", "Channels", "assembly", "function"]
