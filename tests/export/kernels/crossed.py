"""Runs a back end's code for Linux on Arm or RISC-V under QEMU: many pieces of code in one freestanding program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from compress.export.kernels.code import Code, Constant
from compress.export.kernels.compiling import object_file
from compress.export.kernels.isa import Isa
from tests.export.kernels.hosted import Memory, kernels

TOOLS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "aarch64": ("aarch64-linux-gnu-gcc", (), "qemu-aarch64-static"),
    "riscv64": ("riscv64-unknown-elf-gcc", ("-march=rv64gc", "-mabi=lp64d", "-mcmodel=medany"), "qemu-riscv64-static"),
    "riscv32": ("riscv64-unknown-elf-gcc", ("-march=rv32imc", "-mabi=ilp32", "-mcmodel=medany"), "qemu-riscv32-static"),
}
"""By the triple's first part: compiler, its flags, emulator."""


def missing(isa: Isa) -> str | None:
    """The tool that isn't installed, if there is one."""
    compiler, _, emulator = TOOLS[isa.triple.split("-")[0]]
    return next((tool for tool in (compiler, emulator) if shutil.which(tool) is None), None)


def run_all(codes: Sequence[Code], isa: Isa, inputs: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The outputs of each piece of code; kernels are named apart, guards around all buffers are checked."""
    compiler, flags, emulator = TOOLS[isa.triple.split("-")[0]]
    memories = [Memory(code, values) for code, values in zip(codes, inputs, strict=True)]
    every = [kernel for code in codes for kernel in kernels(code)]
    assert len({kernel.symbol for kernel in every}) == len(every), "kernels need names of their own"
    declared, body, constants = [], [], b""
    before = [sum(memory.raw.size for memory in memories[:k]) for k in range(len(memories))]
    for code, memory, start in zip(codes, memories, before, strict=True):
        places = []
        for values in code.constants:
            constants += bytes(-len(constants) % 64)
            places.append(len(constants))
            constants += np.ascontiguousarray(values).tobytes()
        for call in code.calls:
            pointers = [
                f"constants + {places[a.index]}" if isinstance(a, Constant) else f"memory + {start + memory.offset(a)}"
                for a in call.arguments
            ]
            rows = call.kernel.rows
            types = ", ".join(["const void *"] * len(pointers) + ["int"] * (2 if rows is not None else 0))
            declared.append(f"void {call.kernel.symbol}({types});")
            spans = [[]] if rows is None else [[str(a), str(b)] for a, b in pairwise(sorted({0, 1, rows // 2, rows}))]
            body += [f"  {call.kernel.symbol}({', '.join([*pointers, *span])});" for span in spans]
    size = sum(memory.raw.size for memory in memories)
    source = MAIN % {"declared": "\n".join(dict.fromkeys(declared)), "body": "\n".join(body), "size": size}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "memory.bin").write_bytes(b"".join(memory.raw.tobytes() for memory in memories))
        (path / "constants.bin").write_bytes(constants or bytes(64))
        (path / "main.c").write_text(source)
        (path / "kernels.o").write_bytes(object_file(every, isa))
        build = [compiler, *flags, "-O1", "-nostdlib", "-static", "-fno-stack-protector", "-fno-builtin"]
        subprocess.run([*build, "-o", "main", "main.c", "kernels.o", "-lgcc"], cwd=path, check=True)
        raw = subprocess.run([emulator, "./main"], cwd=path, check=True, stdout=subprocess.PIPE).stdout
    assert len(raw) == size
    found = []
    for memory, start in zip(memories, before, strict=True):
        memory.raw[:] = np.frombuffer(raw, np.uint8)[start : start + memory.raw.size]
        memory.check_guards()
        found.append({name: memory.value(name) for name in memory.code.outputs})
    return found


MAIN = r"""
typedef __SIZE_TYPE__ size_t;
%(declared)s
extern unsigned char memory[];
extern const unsigned char constants[];
__asm__(".data\n.balign 64\n.global memory\nmemory: .incbin \"memory.bin\"\n"
        ".section .rodata\n.balign 64\n.global constants\nconstants: .incbin \"constants.bin\"\n.text\n");

#if defined(__aarch64__)
static long linux_call(long number, long a, long b, long c) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
  return x0;
}
#else
static long linux_call(long number, long a, long b, long c) {
  register long a7 __asm__("a7") = number;
  register long a0 __asm__("a0") = a;
  register long a1 __asm__("a1") = b;
  register long a2 __asm__("a2") = c;
  __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2) : "memory");
  return a0;
}
#endif

void *memcpy(void *to, const void *from, size_t count) {
  for (size_t i = 0; i < count; ++i) ((volatile char *)to)[i] = ((const char *)from)[i];
  return to;
}
void *memset(void *to, int value, size_t count) {
  for (size_t i = 0; i < count; ++i) ((volatile char *)to)[i] = (char)value;
  return to;
}

void _start(void) {
#if defined(__riscv)
  __asm__ volatile(".option push\n.option norelax\nla gp, __global_pointer$\n.option pop");
#endif
%(body)s
  for (long done = 0; done < %(size)d;) done += linux_call(64, 1, (long)memory + done, %(size)d - done);
  linux_call(93, 0, 0, 0);
}
"""
