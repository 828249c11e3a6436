"""TVM's CUDA runtime on a machine without a driver, so that modules can be written there: stubs for what it links to.

TVM's own constructor of CUDA modules, ``ffi.Module.create.cuda``, lives in ``libtvm_runtime_cuda.so``, which loads
where ``libcuda`` and ``libcudart`` do. Where they aren't, libraries of the same names are made, whose functions all
return "no device"; nothing is computed with them.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from compress.errors import BadInput

CREATE = "ffi.Module.create.cuda"
NO_DEVICE = 100
_held: list[Any] = []


def constructor() -> Any:
    """TVM's function ``(code, format, functions, sources) -> module``.

    Raises:
        BadInput: TVM comes without CUDA, or there is no C compiler for the stubs.
    """
    import tvm

    found = tvm.get_global_func(CREATE, allow_missing=True)
    if found is not None:
        return found
    library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    if not library.is_file():
        raise BadInput("this TVM comes without CUDA; install the apache-tvm that this project names")
    with tempfile.TemporaryDirectory() as temporary:
        for name in stubs(library.read_bytes(), Path(temporary)):
            _held.append(ctypes.CDLL(str(name), mode=ctypes.RTLD_GLOBAL))
        try:
            _held.append(ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL))
        except OSError as error:
            raise BadInput(
                f"TVM's CUDA runtime can't be loaded ({error}); compile on a machine with a driver"
            ) from None
    return tvm.get_global_func(CREATE)


def stubs(library: bytes, folder: Path) -> list[Path]:
    """``libcudart`` and ``libcuda`` with the functions that TVM's runtime names, each returning :data:`NO_DEVICE`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BadInput("writing a CUDA module without a driver needs a C compiler: apt install gcc libc6-dev")
    names = {name.decode() for name in re.findall(rb"(?<=\0)cu(?:da)?[A-Z][A-Za-z0-9_]*(?=\0)", library)}
    (soname,) = {match.decode() for match in re.findall(rb"libcudart\.so\.\d+", library)}
    made = []
    for file, version, own in (
        (soname, soname, sorted(n for n in names if n.startswith("cuda"))),
        ("libcuda.so.1", None, sorted(n for n in names if not n.startswith("cuda"))),
    ):
        source, script = folder / f"{file}.c", folder / f"{file}.map"
        source.write_text("".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in own), encoding="utf-8")
        script.write_text(f"{version} {{ global: *; }};\n" if version else "{ global: *; };\n", encoding="utf-8")
        target = folder / file
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", f"-Wl,--version-script={script}"]
        done = subprocess.run([*command, "-o", str(target), str(source)], capture_output=True, text=True)
        if done.returncode != 0:
            raise BadInput(
                f"the stubs of CUDA can't be compiled ({done.stderr.strip()[:120]}); is the compiler complete?"
            )
        made.append(target)
    return made


__all__ = ["CREATE", "NO_DEVICE", "constructor", "stubs"]
