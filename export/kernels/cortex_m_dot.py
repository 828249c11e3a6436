"""The innermost loop of Cortex-M's convolutions as LLVM inlines it, for requantizations that
:mod:`cortex_m_tiles` doesn't do: two pixels by two output channels, two products an instruction."""

from __future__ import annotations

from typing import Any

UNROLLS = (4, 1)
"""By how many steps of four inputs the loop may be unrolled, best first."""


def unroll(steps: int) -> int:
    """The unrolling for segments of ``steps`` steps of four inputs."""
    return next(each for each in UNROLLS if steps % each == 0)


def _assembly(unrolled: int) -> str:
    """The loop. Operands: 0-3 sums, 4-6 pointers, 7 and 8 activations, 9 counter; weights are r4, r5, r6 and r8.

    On entry r4, r5 and r6 hold the bytes from a segment's end to the next one's start, the turns of the loop in a
    segment, and the weights' end; they wait on the stack.
    """
    step = [
        "ldmia $6!, {r4, r5, r6, r8}",
        "ldrd $7, $8, [$4], #8",
        "smlad $0, $7, r4, $0",
        "smlad $1, $7, r6, $1",
        "smlad $0, $8, r5, $0",
        "smlad $1, $8, r8, $1",
        "ldrd $7, $8, [$5], #8",
        "smlad $2, $7, r4, $2",
        "smlad $3, $7, r6, $3",
        "smlad $2, $8, r5, $2",
        "smlad $3, $8, r8, $3",
    ]
    lines = [
        "push {r4, r5, r6}",
        "0:",
        "ldr $9, [sp, #4]",
        "1:",
        *step * unrolled,
        "subs $9, #1",
        "bne 1b",
        "ldr $7, [sp]",
        "add $4, $7",
        "add $5, $7",
        "ldr $8, [sp, #8]",
        "cmp $6, $8",
        "bne 0b",
        "add sp, #12",
    ]
    return "\\0A".join(lines)


def name(unrolled: int) -> str:
    """The function's name in the module of :func:`module`."""
    return f"compress_dot_2x2_{unrolled}"


def module(triple: str, unrolled: int) -> str:
    """LLVM's text of a module with one function, which is always inlined::

        i32 f(ptr sums, ptr x0, ptr x1, ptr weights, i32 skip, i32 turns, ptr end)

    ``sums`` int32 (2, 2) for pixels by channels, added to. ``x0``, ``x1``: int16 inputs of the pixels, four bytes
    aligned, in segments of ``turns * unrolled * 4``, ``skip`` bytes from the end of each to the next one's start.
    ``weights``: int16, (steps, channel, 4), up to ``end``.
    """
    results = "{ i32, i32, i32, i32, ptr, ptr, ptr, i32, i32, i32, i32, i32, i32, i32 }"
    # Outputs: sums, pointers, two activations, the counter, then the fixed registers.
    outputs = "=r,=r,=r,=r,=r,=r,=r,=&r,=&r,=&r,={r4},={r5},={r6},={r8}"
    tied = "0,1,2,3,4,5,6,10,11,12"
    load = "".join(
        f"  %p{i} = getelementptr i32, ptr %sums, i32 {i}\n  %b{i} = load i32, ptr %p{i}, align 4\n" for i in range(4)
    )
    store = "".join(
        f"  %a{i} = extractvalue {results} %r, {i}\n  store i32 %a{i}, ptr %p{i}, align 4\n" for i in range(4)
    )
    return (
        f'target triple = "{triple}"\n'
        f"define linkonce_odr i32 @{name(unrolled)}(ptr %sums, ptr %x0, ptr %x1, ptr %w, i32 %skip, i32 %turns, "
        "ptr %end) alwaysinline nounwind {\n"
        f"{load}"
        f'  %r = call {results} asm sideeffect "{_assembly(unrolled)}", "{outputs},{tied},~{{memory}},~{{cc}}"('
        "i32 %b0, i32 %b1, i32 %b2, i32 %b3, ptr %x0, ptr %x1, ptr %w, i32 %skip, i32 %turns, ptr %end) nounwind\n"
        f"{store}  ret i32 0\n}}\n"
    )


def call(unrolled: int, *arguments: Any) -> Any:
    """The call of :func:`module`'s function; inside :func:`imported`."""
    from tvm.tirx.script import builder as T

    return T.call_extern("int32", name(unrolled), *arguments)


def imported(triple: str, unrolled: int) -> Any:
    """A scope in which :func:`call` is known."""
    from tvm.tirx.script import builder as T

    return T.attr(T.int32(0), "pragma_import_llvm", module(triple, unrolled))


__all__ = ["call", "imported", "module", "unroll"]
