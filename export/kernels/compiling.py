"""PrimFuncs to machine code, without TVM's packed calling convention: an object file that needs nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.export.kernels.code import Kernel
from compress.export.kernels.isa import Isa


def lower(kernels: Sequence[Kernel], target: Any) -> Any:
    """The kernels as one lowered ``IRModule``: loops unrolled and vectorized as they ask, intrinsics resolved.

    The passes are those of ``tvm.tirx.build`` less the ones that make packed functions.
    """
    import tvm
    from tvm.tirx import transform

    functions = {kernel.symbol: kernel.function for kernel in kernels}
    module = tvm.IRModule(functions)
    passes = tvm.ir.transform.Sequential(
        [
            transform.BindTarget(target.with_host(target)),
            transform.StmtSimplify(),
            transform.FlattenBuffer(),
            transform.NarrowDataType(32),
            transform.VectorizeLoop(True),
            transform.UnrollLoop(),
            transform.StmtSimplify(),
            transform.LowerIntrin(),
        ]
    )
    with target:
        return passes(module)


def object_file(kernels: Sequence[Kernel], isa: Isa) -> bytes:
    """The kernels as one relocatable object file."""
    return _object(_lowered(kernels, isa), isa)


def assembly(kernels: Sequence[Kernel], isa: Isa) -> str:
    """The kernels' assembly, to be looked at."""
    return _assembly(_lowered(kernels, isa), isa)


def object_and_assembly(kernels: Sequence[Kernel], isa: Isa) -> tuple[bytes, str]:
    """Both :func:`object_file` and :func:`assembly`, side by side.

    LLVM generates code once for each, and a module of its is for one thread alone: making a second one takes a
    processor that would be idle, and the wait is two thirds as long.
    """
    lowered = _lowered(kernels, isa)
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(_assembly, lowered, isa)
        return _object(lowered, isa), listing.result()


def _object(lowered: Any, isa: Isa) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.o"
        _built(lowered, isa).write_to_file(str(path))
        return path.read_bytes()


def _assembly(lowered: Any, isa: Isa) -> str:
    return str(_built(lowered, isa).inspect_source("asm"))


def _lowered(kernels: Sequence[Kernel], isa: Isa) -> Any:
    if isa.family == "cortex-m":
        kernels = [_of_any_float_abi(kernels[0], isa), *kernels[1:]]
    return lower(kernels, isa.tvm_target())


def _built(lowered: Any, isa: Isa) -> Any:
    import tvm

    return tvm.get_global_func("target.build.llvm")(lowered, isa.tvm_target())


def _of_any_float_abi(kernel: Kernel, isa: Isa) -> Kernel:
    """The kernel, with a mark for the whole object that it links with programs of either float calling convention."""
    from tvm import ir, tirx

    module = f'target triple = "{isa.triple}"\nmodule asm ".eabi_attribute 28, 3"\n'  # Tag_ABI_VFP_args: compatible
    body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", ir.StringImm(module), kernel.function.body)
    return replace(kernel, function=kernel.function.with_body(body))


def c_source(kernels: Sequence[Kernel]) -> str:
    """The kernels as one file of portable C99, for kernels that use neither intrinsics nor vectors.

    Those of an :class:`Isa` whose ``dot`` is ``none`` and that has no floating-point unit are such.
    """
    import tvm

    from compress.export.kernels.c_code import finished, prepared

    target = tvm.target.Target("c")
    module = prepared(lower(kernels, target))
    return finished(str(tvm.get_global_func("target.build.c")(module, target).inspect_source()))
