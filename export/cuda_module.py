"""A program as a CUDA module: TVM's runtime loads it and needs no compiler, since machine code is inside.

A function ``main`` of TVM's virtual machine calls the kernels of :mod:`compress.export.kernels.cuda` one after the
other on flat tensors; TVM plans their memory. Constants lie in the module.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.export import cuda_runtime
from compress.export.kernels import cuda, cuda_tensor
from compress.export.kernels.code import Call, Code, Constant
from compress.integer.half import with_half
from compress.integer.program import Program
from compress.integer.signedness import with_signedness
from compress.types import Target

FILE = "network.so"
ELF = b"\x7fELF"
CUDA_MACHINE = 190
"""EM_CUDA in the header of an ELF file: a cubin."""


@dataclass(frozen=True)
class CudaModule:
    """A module on disk.

    Attributes:
        path: the shared library.
        program: what it computes, all 8-bit tensors signed, and float convolutions on float16 where tensor cores do
            them.
        gpu: the architecture of its machine code.
        source: the CUDA source that was compiled.
    """

    path: Path
    program: Program
    gpu: str
    source: str


def build(program: Program, target: Target, folder: Path, batch: int = 1) -> CudaModule:
    """Compile a program for a target's GPU and its host's processor.

    Args:
        program: any; it is made signed.
        target: with a ``gpu``; without a triple the host is this machine.
        folder: where the module goes; made if need be.
        batch: inputs at a time.

    Raises:
        BadInput: there is no CUDA compiler, no cross compiler, or no kernel for an operator; or what came out holds no
            machine code for the GPU.
    """
    import tvm
    from tvm import relax

    assert target.gpu is not None
    compiler = find_compiler()
    signed = with_signedness(program, True)
    if cuda.has_tensor_cores(target.gpu):
        signed = with_half(signed, cuda_tensor.fills)
    code = cuda.assemble(signed, target.gpu, batch)
    module = as_relax(code, batch)
    sources: list[str] = []
    device = tvm.target.Target({"kind": "cuda", "arch": target.gpu, "max_num_threads": 1024}, host=_host(target))
    with _compiling(compiler, target.gpu, sources) as compiling:
        try:
            built = tvm.compile(module, device, relax_pipeline=_pipeline(relax))
        except Exception as error:  # TVM makes an error of its own of whatever was raised
            if compiling.failed is not None:
                raise compiling.failed from None
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise BadInput(f"TVM can't compile it for {target.gpu} ({lines[0][:160]}); keep the ONNX file") from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    arguments: dict[str, Any] = {}
    if target.triple is not None:
        linker = shutil.which(f"{target.triple}-g++")
        if linker is None:
            raise BadInput(f"linking for {target.triple} needs its C++ compiler: apt install g++-{target.triple}")
        arguments["cc"] = linker
    built.export_library(str(path), **arguments)
    if target.gpu not in architectures(path.read_bytes()):
        raise BadInput(
            f"the module holds no machine code for {target.gpu}; is nvcc of CUDA 12 or later complete, with ptxas?"
        )
    return CudaModule(path, signed, target.gpu, "\n".join(sources))


def find_compiler() -> str:
    """``nvcc``, else ``nvrtc`` where its Python packages are.

    Raises:
        BadInput: there is neither.
    """
    import importlib.util

    if shutil.which("nvcc") and shutil.which("ptxas"):
        return "nvcc"
    if importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None:
        return "nvrtc"
    raise BadInput("compiling CUDA needs nvcc with ptxas, or: pip install cuda-bindings nvidia-cuda-nvrtc")


def cubin(source: str, gpu: str) -> bytes:
    """Machine code of CUDA source, by nvcc.

    Raises:
        BadInput: nvcc fails, or doesn't know the architecture.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "kernels.cu").write_text(source, encoding="utf-8")
        arch = f"arch=compute_{gpu[3:]},code={gpu}"
        command = ["nvcc", "-cubin", "-O3", "-w", "-gencode", arch, "-o", "kernels.cubin", "kernels.cu"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            wrong = next((line for line in lines if "error" in line or "fatal" in line), lines[-1])
            raise BadInput(f"nvcc fails for {gpu}: {wrong[:200]}; does this CUDA know that GPU?")
        return (folder / "kernels.cubin").read_bytes()


class _compiling:  # noqa: N801  # a context
    """TVM's constructor of CUDA modules behind one that compiles the source first, to a cubin.

    TVM itself keeps the source and compiles it where the module is loaded, with a compiler on the device.
    """

    def __init__(self, compiler: str, gpu: str, sources: list[str]) -> None:
        self.compiler, self.gpu, self.sources = compiler, gpu, sources
        self.failed: BadInput | None = None

    def __enter__(self) -> _compiling:
        import tvm_ffi
        from tvm.support import nvcc

        self.create = cuda_runtime.constructor()

        def compiled(code: Any, kind: str, functions: Any, sources: Any) -> Any:
            text = code.decode() if isinstance(code, bytes) else str(code)
            if any(each in text for each in (cuda_tensor.MMA, cuda_tensor.HALF_MMA)):
                text = cuda_tensor.HELPERS + text
            self.sources.append(text)
            if self.compiler == "nvcc":
                try:
                    made = cubin(text, self.gpu)
                except BadInput as error:
                    self.failed = error
                    raise
            else:
                made = bytes(nvcc.compile_cuda(text, target_format="cubin", arch=self.gpu, compiler="nvrtc"))
            return self.create(made, "cubin", functions, sources)

        tvm_ffi.register_global_func(cuda_runtime.CREATE, compiled, override=True)
        return self

    def __exit__(self, *error: object) -> None:
        import tvm_ffi

        tvm_ffi.register_global_func(cuda_runtime.CREATE, self.create, override=True)


def _host(target: Target) -> Any:
    import tvm

    if target.triple is None:
        return tvm.target.Target("llvm")
    return tvm.target.Target({"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu})


def _pipeline(relax: Any) -> Any:
    """Memory planned, calls lowered; nothing is fused or rescheduled, as the kernels are what they are."""
    import tvm

    steps: list[Callable[..., Any]] = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    return tvm.transform.Sequential(steps)


def as_relax(code: Code, batch: int) -> Any:
    """The calls of a code as one function ``main`` on flat tensors of ``batch`` inputs: inputs in, the outputs out."""
    import numpy as np
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    kernels = {call.kernel.symbol: _outputs_last(call) for call in code.calls}
    names = {symbol: builder.add_func(function, symbol) for symbol, function in kernels.items()}
    constants = [relax.const(np.ascontiguousarray(array).ravel(), str(array.dtype)) for array in code.constants]
    inputs = {
        name: relax.Var(f"in{k}", relax.TensorType((batch * code.tensors[name].elements,), code.tensors[name].dtype))
        for k, name in enumerate(code.inputs)
    }
    held: dict[str, Any] = dict(inputs)
    with builder.function("main", list(inputs.values())):
        with builder.dataflow():
            for call in code.calls:
                written = [name for name in call.arguments if isinstance(name, str) and name in call.writes]
                given = [
                    constants[a.index] if isinstance(a, Constant) else held[code.aliases.get(a, (a, 0))[0]]
                    for a in call.arguments
                    if isinstance(a, Constant) or a not in call.writes
                ]
                kinds = [relax.TensorType(*_flat(call, name)) for name in written]
                made = builder.emit(
                    relax.call_tir(names[call.kernel.symbol], given, kinds if len(kinds) > 1 else kinds[0])
                )
                for index, name in enumerate(written):
                    held[name] = builder.emit(relax.TupleGetItem(made, index)) if len(kinds) > 1 else made
            ends = [held[code.aliases.get(name, (name, 0))[0]] for name in code.outputs]
            result = builder.emit_output(relax.Tuple(ends) if len(ends) > 1 else ends[0])
        builder.emit_func_output(result)
    module = builder.get()
    assert isinstance(module, tvm.IRModule)
    return module


def _flat(call: Call, name: str) -> tuple[tuple[int], str]:
    """Elements and type of a tensor as its writer has them."""
    kind = call.kernel.function.params[call.arguments.index(name)].ty
    return (int(kind.shape[0]),), str(kind.dtype)


def _outputs_last(call: Call) -> Any:
    """The kernel with what it writes behind what it reads, as virtual machines call."""
    from tvm import tirx

    function = call.kernel.function
    order = [i for i, a in enumerate(call.arguments) if not (isinstance(a, str) and a in call.writes)]
    order += [i for i in range(len(call.arguments)) if i not in order]
    parameters = [function.params[i] for i in order]
    return tirx.PrimFunc(parameters, function.body, function.ret_type, function.attrs)


def architectures(content: bytes) -> set[str]:
    """The architectures of the cubins in a file: ELF images of machine 190, with the number in the flags' second byte
    (ABI version 8, CUDA 12 and later), or in the first."""
    found, at = set(), content.find(ELF)
    while at >= 0:
        header = content[at : at + 64]
        if len(header) == 64 and int.from_bytes(header[18:20], "little") == CUDA_MACHINE:
            found.add(f"sm_{header[49] if header[8] >= 8 else header[48]}")
        at = content.find(ELF, at + 1)
    return found


__all__ = ["FILE", "CudaModule", "architectures", "as_relax", "build", "find_compiler"]
