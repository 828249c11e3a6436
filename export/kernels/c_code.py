"""Kernels as portable C99: what TVM's C writer leaves to be done before and after it.

It prints float constants with six digits, type punning through pointers, and the headers of its own runtime. So
constants and punning stand as calls while it writes, and are put in afterwards, in a file that needs ``stdint.h``
alone.
"""

from __future__ import annotations

import re
import struct
from typing import Any

HEAD = """/* Kernels of a network, in C99. Sums are those of two's complement: where a compiler takes overflow for
 * impossible, tell it otherwise (-fwrapv). Right shifts of negative integers are arithmetic, as everywhere. */
#include <stdint.h>
"""
CASTS = """
static inline float as_float32(int32_t bits) { union { int32_t i; float f; } u; u.i = bits; return u.f; }
static inline double as_float64(int64_t bits) { union { int64_t i; double f; } u; u.i = bits; return u.f; }
static inline int32_t as_int32(float value) { union { float f; int32_t i; } u; u.f = value; return u.i; }
static inline int64_t as_int64(double value) { union { double f; int64_t i; } u; u.f = value; return u.i; }
"""
NAMED = re.compile(r"\b(float|double)_([0-9a-f]+)\(\)")


def prepared(module: Any) -> Any:
    """The lowered module with constants and punning as calls.

    Raises:
        ValueError: a kernel holds vectors, or reinterprets other types than those of equal width.
    """
    import tvm
    from tvm import tirx
    from tvm.tirx.script import builder
    from tvm_ffi import structural_map

    def number(value: Any) -> Any:
        kind = str(value.ty)
        if kind not in ("float32", "float64"):
            raise ValueError(f"C99 has no {kind}")
        code = struct.pack(">f" if kind == "float32" else ">d", float(value.value)).hex()
        return builder.call_pure_extern(kind, f"{'float' if kind == 'float32' else 'double'}_{code}")

    def call(value: Any) -> Any:
        if getattr(value.op, "name", "") == "tirx.reinterpret":
            return builder.call_pure_extern(str(value.ty), f"as_{value.ty}", value.args[0])
        return value

    functions = {
        name.name_hint: structural_map(function, [(tirx.FloatImm, number), (tvm.ir.Call, call)])
        for name, function in module.functions_items()
    }
    return tvm.IRModule(functions)


def finished(source: str) -> str:
    """TVM's text as a file of its own."""
    body = source[source.index("TVM_DLL") :]
    lines = [line for line in body.splitlines() if not line.startswith(("#", 'extern "C"'))]
    kept, names = [], set()
    for line in lines:
        text = line.removeprefix("TVM_DLL ")
        if line.startswith("TVM_DLL ") and text.endswith(";"):
            name = text.split("(")[0].split()[-1]
            if re.fullmatch(r"(float|double)_[0-9a-f]+|as_\w+", name) or name in names:
                continue
            names.add(name)
        kept.append(text)
    text = NAMED.sub(_literal, "\n".join(kept))
    return HEAD + (CASTS if re.search(r"\bas_(float|int)\d\d\(", text) else "") + "\n" + text.strip() + "\n"


def _literal(match: re.Match[str]) -> str:
    """A hexadecimal literal: every bit of the number."""
    short = match[1] == "float"
    value = struct.unpack(">f" if short else ">d", bytes.fromhex(match[2]))[0]
    if value != value or value in (float("inf"), float("-inf")):
        bits = int(match[2], 16)
        size = 32 if short else 64
        bits -= (bits >> (size - 1)) << size
        return f"as_float{size}({bits})"
    return f"{value.hex()}{'f' if short else ''}"


__all__ = ["finished", "prepared"]
