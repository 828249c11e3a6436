"""The inner loops of Cortex-M's convolutions, in assembly: two pixels by two output channels at a time.

Activations and weights stand as pairs of int16 in memory. Four steps of the sum over inputs take one ``ldm`` for the
weights of both channels, an ``ldrd`` for each pixel and eight ``smlad``: 11 instructions for 16 products. The loop
needs four sums, four weights, two activations, three pointers and a counter, which is every register that the core
has; LLVM's allocator spills there. So the loop over a block's pixels is a function in assembly, and all else is
compiled around it. Its arguments lie on the stack, where it keeps what changes too.

Weights of one bit need no products. Activations stand as bytes x in [0, 255] and weights as bytes m, 0 for 1 and 255
for -1: then ``|x - m|`` is x or 255 - x, which is ``w x`` plus 255 for each -1, a constant of the channel. ``usada8``
adds four of them to a sum, so the same loop does 32 in 11 instructions.

With ``acc * M = 2^32 h + l`` and shifts s of 33 to 54, ``(acc * M + 2^(s-1)) >> s`` plus the zero point z is ``(h +
2^(s-33) + (z << (s-32))) >> (s-32)``: ``smmla``, a shift and a saturation. Nothing overflows, as |h| <= 2^30, the
rounding term is at most 2^21 and the zero point's at most 2^29.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compress.export.kernels.cortex_m_assembly import Function

UNROLL = 8
"""Steps of two words of inputs in a turn of the loop. The first turn may begin in the middle, so any number will do."""
STEP_BYTES = 44
"""Of the instructions of a step."""
Saturation = Literal["int8", "positive", "limits"]
"""How results are clamped: to [-128, 127], to [0, 127], or to limits that are arguments."""

SAVED = 13
"""Words that the function pushes: the first four arguments, r4 to r11 and lr."""
ARGUMENTS = (
    "x0", "x1", "y0", "y1",
    "bias0", "bias1", "turns", "weights", "skip", "end", "step", "y_step",
    "m0", "half0", "shift0", "m1", "half1", "shift1", "second",
    "left", "columns", "rows", "x_row", "y_row", "low", "high", "entry",
)  # fmt: skip
"""``x0``, ``x1``: addresses of the first two pixels' inputs; ``y0``, ``y1``: of their outputs; ``bias``: what sums
start with; ``weights``, ``end``: addresses of the first weight and behind the last; ``skip``: bytes from the end of a
segment of inputs to the next one; ``turns``: of the loop in a segment; ``step``, ``y_step``: bytes to the next two
pixels; ``second``: bytes from an output to the second channel's; ``left`` and ``columns``: pairs of pixels in a row;
``rows``; ``x_row``, ``y_row``: bytes from a row's end to the next row; ``low``, ``high``: limits; ``entry``: bytes of
code that a segment's first turn leaves out, and once the function runs the address where it begins."""
ADDRESSES = ("x0", "x1", "y0", "y1", "weights", "end", "other0")
ADDITION = ("own", "other", "constant", "shift", "other0", "add_low", "add_high")
"""With an addition: ``clamp((result * own + operand * other + constant) >> shift)``, ``other0``: address of
the first operand. The function keeps its distance from ``y0`` in its place."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a function does.

    Attributes:
        saturation: of the result.
        addition: None, or how the result of the addition behind it is clamped.
        differences: absolute differences of bytes are summed, not products of int16.
    """

    saturation: Saturation
    addition: Saturation | None
    differences: bool = False

    @property
    def name(self) -> str:
        """The function's name."""
        behind = "" if self.addition is None else f"_add_{self.addition}"
        what = "differences" if self.differences else "tiles"
        return f"compress_{what}_{self.saturation}{behind}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the function, all 32 bits."""
        return ARGUMENTS if self.addition is None else ARGUMENTS + ADDITION

    def at(self, argument: str) -> str:
        """The assembler's operand for an argument."""
        index = self.arguments.index(argument)
        return f"[sp, #{4 * (index if index < 4 else index - 4 + SAVED)}]"

    def address(self, register: str, argument: str) -> str:
        """The instruction that gives an argument's address."""
        return f"add {register}, sp, #{self.at(argument)[6:-1]}"


def turns(steps: int) -> tuple[int, int]:
    """Turns of the loop for segments of ``steps`` steps of two words of inputs, and bytes of code that the first turn
    leaves out."""
    whole = -(-steps // UNROLL)
    return whole, (whole * UNROLL - steps) * STEP_BYTES


def assembly(tiles: Tiles) -> list[str]:
    """The function's instructions.

    r0 and r1 point to the pixels' inputs, r12 to the weights; r2 and r3 are activations, r4 to r7 weights, r8 to r11
    the sums (pixel 0 channel 0, pixel 0 channel 1, pixel 1 channel 0, pixel 1 channel 1), lr counts.
    """
    add = "usada8" if tiles.differences else "smlad"
    step = [
        "ldmia r12!, {r4, r5, r6, r7}",
        "ldrd r2, r3, [r0], #8",
        f"{add} r8, r2, r4, r8",
        f"{add} r9, r2, r6, r9",
        f"{add} r8, r3, r5, r8",
        f"{add} r9, r3, r7, r9",
        "ldrd r2, r3, [r1], #8",
        f"{add} r10, r2, r4, r10",
        f"{add} r11, r2, r6, r11",
        f"{add} r10, r3, r5, r10",
        f"{add} r11, r3, r7, r11",
    ]
    at = tiles.at
    return [
        "push {r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        *([] if tiles.addition is None else [f"ldr r4, {at('other0')}", "sub r4, r2", f"str r4, {at('other0')}"]),
        "adr r4, 1f",
        f"ldr r5, {at('entry')}",
        "add r4, r5",
        "add r4, #1",  # Thumb
        f"str r4, {at('entry')}",
        "0:",  # two pixels
        f"ldrd r8, r9, {at('bias0')}",
        "mov r10, r8",
        "mov r11, r9",
        f"ldrd lr, r12, {at('turns')}",
        f"ldr pc, {at('entry')}",
        ".balign 4",
        "1:",  # a segment
        *step * UNROLL,
        "subs lr, #1",
        "bne 1b",
        f"ldrd r2, r3, {at('skip')}",
        "add r0, r2",
        "add r1, r2",
        f"ldr lr, {at('turns')}",
        "cmp r12, r3",
        "it ne",
        f"ldrne pc, {at('entry')}",
        tiles.address("lr", "m0"),
        "ldmia lr, {r2, r3, r4, r5, r6, r7, r12}",
        "smmla r8, r8, r2, r3",
        "smmla r9, r9, r5, r6",
        "smmla r10, r10, r2, r3",
        "smmla r11, r11, r5, r6",
        "asr r8, r8, r4",
        "asr r9, r9, r7",
        "asr r10, r10, r4",
        "asr r11, r11, r7",
        *saturated(SUMS, tiles.saturation, tiles.at("low")),
        *([] if tiles.addition is None else _added(tiles, tiles.addition)),
        "ldmia sp, {r0, r1, r2, r3}",
        "strb r8, [r2]",
        "strb r9, [r2, r12]",
        "strb r10, [r3]",
        "strb r11, [r3, r12]",
        f"ldrd r4, r5, {at('step')}",
        "add r0, r4",
        "add r1, r4",
        "add r2, r5",
        "add r3, r5",
        f"ldr r6, {at('left')}",
        "stmia sp, {r0, r1, r2, r3}",
        "subs r6, #1",
        f"str r6, {at('left')}",
        "bne 0b",
        tiles.address("lr", "columns"),  # the next row
        "ldmia lr, {r4, r5, r6, r7}",
        "add r0, r6",
        "add r1, r6",
        "add r2, r7",
        "add r3, r7",
        "stmia sp, {r0, r1, r2, r3}",
        f"str r4, {at('left')}",
        "subs r5, #1",
        f"str r5, {at('rows')}",
        "bne 0b",
        "add sp, #16",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]


SUMS = ("r8", "r9", "r10", "r11")


def saturated(sums: Sequence[str], how: Saturation, limits: str) -> list[str]:
    """Clamps registers; ``limits`` is where the two ends lie, if they aren't the instructions' own. Takes r2 and r3."""
    if how == "int8":
        return [f"ssat {r}, #8, {r}" for r in sums]
    if how == "positive":
        return [f"usat {r}, #7, {r}" for r in sums]
    lines = [f"ldrd r2, r3, {limits}"]
    for r in sums:
        lines += [f"cmp {r}, r2", "it lt", f"movlt {r}, r2", f"cmp {r}, r3", "it gt", f"movgt {r}, r3"]
    return lines


def _added(tiles: Tiles, how: Saturation) -> list[str]:
    """``clamp((own * r + other * operand + constant) >> shift)``; r12 stays."""
    lines = [
        f"ldrd r2, r3, {tiles.at('y0')}",
        tiles.address("lr", "own"),
        "ldmia lr, {r4, r5, r6, r7, lr}",
        "add r2, lr",
        "add r3, lr",
    ]
    for r, place in zip(SUMS, ("[r2]", "[r2, r12]", "[r3]", "[r3, r12]"), strict=True):
        lines += [f"ldrsb lr, {place}", "mla lr, lr, r5, r6", f"mla {r}, {r}, r4, lr", f"asr {r}, {r}, r7"]
    return lines + saturated(SUMS, how, tiles.at("add_low"))


def function(tiles: Tiles) -> Function:
    """The function, which takes :attr:`Tiles.arguments`: pointers, or int32."""
    parameters = tuple((name, "ptr" if name in ADDRESSES else "i32") for name in tiles.arguments)
    return Function(tiles.name, parameters, tuple(assembly(tiles)))


__all__ = ["Saturation", "Tiles", "assembly", "function", "turns"]
