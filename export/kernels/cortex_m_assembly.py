"""Functions in assembly beside kernels that LLVM compiles: once in an object file, local to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Function:
    """A function of Arm's calling convention.

    Attributes:
        name: a symbol.
        parameters: LLVM's types (``ptr``, ``i32``) by name, in order.
        lines: its instructions.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]

    def module(self, triple: str) -> str:
        """LLVM's text of a module with the function and ``NAME_call``, which calls it. Given twice, the function is
        there once."""
        lines = [
            f".ifndef {self.name}",
            f".pushsection .text.{self.name}, \\22ax\\22, %progbits",
            ".syntax unified",
            ".balign 4",
            ".thumb_func",
            f".type {self.name}, %function",
            f"{self.name}:",
            *self.lines,
            f".size {self.name}, . - {self.name}",
            ".popsection",
            ".endif",
        ]
        text = "".join(f'module asm "{line}"\n' for line in lines)
        types = ", ".join(kind for _, kind in self.parameters)
        values = ", ".join(f"{kind} %{name}" for name, kind in self.parameters)
        # A call that can't throw spares the library tables for unwinding, and the code that reads them.
        return (
            f'target triple = "{triple}"\n{text}declare i32 @{self.name}({types})\n'
            f"define linkonce_odr i32 @{self.name}_call({values}) alwaysinline nounwind {{\n"
            f"  %r = call i32 @{self.name}({values}) nounwind\n  ret i32 %r\n}}\n"
        )

    def __call__(self, *arguments: Any) -> None:
        """Writes a call, inside :func:`imported`; what it returns is undefined."""
        from tvm.tirx.script import builder as T

        T.evaluate(T.call_extern("int32", f"{self.name}_call", *arguments))


@contextmanager
def imported(triple: str, functions: Sequence[Function]) -> Iterator[None]:
    """A scope in which the functions can be called."""
    from tvm.tirx.script import builder as T

    with ExitStack() as stack:
        for function in functions:
            stack.enter_context(T.attr(T.int32(0), "pragma_import_llvm", function.module(triple)))
        yield


__all__ = ["Function", "imported"]
