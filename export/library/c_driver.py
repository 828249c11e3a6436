"""The C of a library: ``NAME.h`` with its three calls, ``NAME.c`` that calls the kernels, the constants, the threads.

C99 without extensions where the compiler isn't GNU-like, no heap, no variables but the caller's arena. Everything is
named after ``NAME``, so that several networks link into one program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

import compress
from compress.export.kernels.code import Call, Code, Constant, Kernel
from compress.export.kernels.isa import Isa
from compress.export.library import liveness, rendering
from compress.export.library.golden import Golden
from compress.export.library.interface import End, Interface
from compress.export.library.memory_plan import MemoryPlan

LARGE = 1 << 20
"""Bytes of constants above which they come as a binary file, so that compiling takes no time."""
WEIGHT_ALIGNMENT: Mapping[str, int] = {"x86": 64, "aarch64": 64, "cortex-m": 16, "riscv": 16}


@dataclass(frozen=True, slots=True)
class Processor:
    """What cpuid has to say, in C: bits of leaf 7 and of the state that the operating system saves."""

    words: str
    state: str
    ebx: str
    ecx: str = ""
    eax: str = ""


_AVX2 = 1 << 3 | 1 << 5 | 1 << 8  # BMI1, AVX2, BMI2
_AVX512 = _AVX2 | 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31  # F, DQ, CD, BW, VL
PROCESSORS: Mapping[str, Processor] = {
    "vnni512": Processor("AVX-512 with VNNI", "0xe6", hex(_AVX512), hex(1 << 11)),
    "vnni256": Processor("AVX2 with AVX-VNNI", "0x6", hex(_AVX2), hex(1 << 8), hex(1 << 4)),  # and GFNI
    "avx2": Processor("AVX2 and FMA", "0x6", hex(_AVX2)),
}
"""By :attr:`Isa.dot`."""


@dataclass(frozen=True)
class Blob:
    """All constants, one behind the other.

    Attributes:
        content: little-endian bytes, a multiple of 8 of them.
        offsets: where each constant starts.
    """

    content: bytes
    offsets: tuple[int, ...]


def blob(constants: Sequence[npt.NDArray[Any]], alignment: int) -> Blob:
    """The constants, equal ones once, each at a multiple of ``alignment`` bytes."""
    content = bytearray()
    known: dict[bytes, int] = {}
    offsets = []
    for constant in constants:
        data = np.ascontiguousarray(constant).astype(constant.dtype.newbyteorder("<"), copy=False).tobytes()
        if data not in known:
            content += bytes(-len(content) % alignment)
            known[data] = len(content)
            content += data
        offsets.append(known[data])
    content += bytes(-len(content) % 8)
    return Blob(bytes(content) or bytes(8), tuple(offsets))


def renamed(code: Code, name: str) -> Code:
    """The code with kernels whose symbols start with ``name``.

    Raises:
        ValueError: two kernels have one symbol.
    """
    new: dict[str, tuple[Kernel, Kernel]] = {}

    def of(kernel: Kernel) -> Kernel:
        if kernel.symbol not in new:
            symbol = (
                f"{name}_{kernel.symbol}" if kernel.symbol.startswith("kernel") else f"{name}_kernel_{kernel.symbol}"
            )
            function = kernel.function.with_attr("global_symbol", symbol) if kernel.function is not None else None
            new[kernel.symbol] = kernel, Kernel(symbol, function, kernel.rows)
        old, made = new[kernel.symbol]
        if old is not kernel:
            raise ValueError(f"two kernels have the symbol {kernel.symbol!r}")
        return made

    calls = tuple(dataclasses.replace(call, kernel=of(call.kernel)) for call in code.calls)
    return dataclasses.replace(code, calls=calls)


def kernels(code: Code) -> tuple[Kernel, ...]:
    """The kernels in the order of their first calls."""
    return tuple({call.kernel.symbol: call.kernel for call in code.calls}.values())


@dataclass(frozen=True)
class Driver:
    """What the C files of one library are rendered from.

    Attributes:
        code: its kernels already :func:`renamed`.
        plan: where the buffers lie.
        interface: the ends, and the name.
        isa: what the kernels were compiled for.
        stack_bytes: about what a run takes.
    """

    code: Code
    plan: MemoryPlan
    interface: Interface
    isa: Isa
    stack_bytes: int

    @cached_property
    def weights(self) -> Blob:
        """The constants."""
        return blob(self.code.constants, WEIGHT_ALIGNMENT[self.isa.family])

    def sources(self, golden: Golden | None = None) -> dict[str, bytes]:
        """The files of ``src/`` by name, and those of ``examples/``."""
        name = self.interface.name
        weights = self.weights
        files = {
            f"src/{name}.h": self._text("model.h"),
            f"src/{name}_private.h": self._text("private.h"),
            f"src/{name}.c": self._text("model.c"),
        }
        if len(weights.content) > LARGE:
            files[f"src/{name}_weights.bin"] = weights.content
            files[f"src/{name}_weights.S"] = self._text("weights.S")
            files[f"src/{name}_weights_embed.c"] = self._text("embed.c")
        else:
            files[f"src/{name}_weights.c"] = self._text("weights.c") + _numbers(weights.content)
        if self.interface.threads:
            files[f"src/{name}_threads.h"] = self._text("threads.h")
            files[f"src/{name}_threads.c"] = self._text("threads.c")
        if golden is not None:
            files[f"src/{name}_golden.h"] = rendering.golden_header(self.interface, golden)
            files["golden/main.c"] = self._text("main.c")
        return files

    def _text(self, template: str) -> bytes:
        return rendering.render(template, **self.words)

    @cached_property
    def words(self) -> Mapping[str, Any]:
        """What the templates may name."""
        interface, weights = self.interface, self.weights
        calls: list[dict[str, Any]] = []
        shared: list[dict[str, Any]] = []
        for call in self.code.calls:
            place = len(shared) if call.kernel.rows is not None and call.kernel.rows > 1 else None
            arguments = ", ".join(map(self._argument, call.arguments))
            calls.append({"kernel": call.kernel, "arguments": arguments, "op": call.op, "shared": place})
            shared += [] if place is None else calls[-1:]
        return {
            **rendering.words(interface),
            "family": self.isa.family,
            "stack_bytes": self.stack_bytes,
            "weight_bytes": len(weights.content),
            "weight_words": len(weights.content) // 8,
            "weight_alignment": WEIGHT_ALIGNMENT[self.isa.family],
            "large": len(weights.content) > LARGE,
            "kernels": _prototypes(self.code.calls),
            "calls": calls,
            "shared": shared,
            "parted": bool(shared),
            "processor": PROCESSORS.get(self.isa.dot) if self.isa.family == "x86" else None,
        }

    def _argument(self, argument: str | Constant) -> str:
        if isinstance(argument, Constant):
            return f"w + {self.weights.offsets[argument.index]}"
        if argument in self.plan.offsets:
            return f"a + {self.plan.offsets[argument]}"
        root = self.roots[argument]
        end = next(end for end in (*self.interface.inputs, *self.interface.outputs) if end.name == root.name)
        return f"bytes_of_{end.identifier} + {root.offset}"

    @cached_property
    def roots(self) -> Mapping[str, liveness.Root]:
        """Where each buffer lies."""
        return liveness.roots(self.code)


def interface_of(
    name: str, isa: Isa, plan: MemoryPlan, ends: tuple[tuple[End, ...], tuple[End, ...]], threads: bool
) -> Interface:
    """The interface of a library."""
    inputs, outputs = ends
    return Interface(
        name,
        isa.triple,
        isa.cpu,
        compress.__version__,
        max(plan.arena_bytes, 1),
        plan.alignment,
        threads,
        inputs,
        outputs,
    )


def _prototypes(calls: Sequence[Call]) -> list[dict[str, str]]:
    """Symbol and parameters of every kernel; what no call writes is const."""
    constant: dict[str, list[bool]] = {}
    rows: dict[str, bool] = {}
    for call in calls:
        here = [isinstance(a, Constant) or a not in call.writes for a in call.arguments]
        before = constant.setdefault(call.kernel.symbol, here)
        constant[call.kernel.symbol] = [a and b for a, b in zip(before, here, strict=True)]
        rows[call.kernel.symbol] = call.kernel.rows is not None
    return [
        {
            "symbol": symbol,
            "prototype": ", ".join(
                ["const void *" if c else "void *" for c in is_constant]
                + (["int32_t first", "int32_t last"] if rows[symbol] else [])
            ),
        }
        for symbol, is_constant in constant.items()
    ]


def _numbers(content: bytes) -> bytes:
    """The end of the file of constants: 64-bit numbers, eight times fewer for the compiler to read than bytes."""
    numbers = np.frombuffer(content, "<u8")
    texts = [f"0x{int(number):x}u" for number in numbers]
    return ("".join(f"    {', '.join(texts[i : i + 6])},\n" for i in range(0, len(texts), 6)) + "};\n").encode()


__all__ = ["LARGE", "Blob", "Driver", "blob", "interface_of", "kernels", "renamed"]
