"""Artifacts of every runtime as functions that run them, checks of compiled code, and what is timed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compress.errors import BadInput, CheckFailed
from compress.export import checked
from compress.export.made import Made
from compress.profiling import emulator, session
from compress.profiling.emulator import Checked
from compress.profiling.evaluate import Predict
from compress.results import Artifact, Candidate

if TYPE_CHECKING:
    from compress.export.compiled import Compiled
    from compress.export.cuda import CudaCompiled
    from compress.export.kernels.isa import Isa
    from compress.export.library.building import BuiltLibrary
    from compress.export.library.loader import Library

ONNXRUNTIME, TVM = "onnxruntime", "tvm"
TWIN = "accuracy of the same program compiled for this machine"
REFERENCE = "accuracy of the integer reference, which compiled code equals bit for bit"


@contextmanager
def opened(runtime: str, made: Made) -> Iterator[tuple[Predict, int | None, str | None]]:
    """A function that runs an artifact, the largest batch that it takes, and what else it is than the artifact.

    Compiled code runs here where it is for this machine's processor. Code for others is the same integer program,
    which every back end computes bit for bit, compiled for this machine; without a compiler its reference.
    """
    if made.compiled is None:
        opened_session = session.open_session(made.path, exact=True)
        yield session.runner(opened_session), session.batch_limit(opened_session), None
        return
    with ExitStack() as stack:
        library = _here(made.compiled, stack)
        if library is not None:
            shipped = made.compiled.library
            own = shipped is not None and library.path == shipped.linked_path
            how = None if own else TWIN + ("" if not made.compiled.in_float else ", float sums in another order")
            yield library.run, None, how
            return
        program = made.compiled.program

        def predict(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            from compress.export.compiled import outputs_of

            (name,), (result,) = program.inputs, program.outputs
            return np.stack([outputs_of(program, {name: x})[result] for x in inputs])

        yield predict, None, REFERENCE


def _here(compiled: Compiled | CudaCompiled, stack: ExitStack) -> Library | None:
    """The library, or a twin of it, for this machine; None where there is no compiler or no kernel for it."""
    from compress.export.kernels import backends
    from compress.export.library import building
    from compress.export.library.loader import Library
    from compress.integer.half import spelled_out

    host = backends.host()
    built = compiled.library
    if host is None:
        return None
    if built is None or not _runs(built, host):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            code = backends.assemble(spelled_out(compiled.program), host)
            built = building.build(code, host, folder, file_shapes=compiled.program.file_shapes)
        except BadInput:
            return None
    if built.linked_path is None:
        return None
    return stack.enter_context(Library(built.linked_path))


def _runs(built: BuiltLibrary, host: Isa) -> bool:
    """Whether this machine runs the library itself: it is for its architecture, and for no more than it has."""
    order = ("neon", "sdot", "avx2", "vnni256", "vnni512")
    if built.linked_path is None or built.isa.family != host.family or host.dot not in order:
        return False
    return built.isa.dot in order and order.index(built.isa.dot) <= order.index(host.dot)


def check(compiled: Compiled | CudaCompiled, folder: Path) -> Checked:
    """Run the golden inputs of a candidate's folder through its compiled code, here or in an emulator."""
    if compiled.library is None:
        return Checked(f"machine code for {compiled.module.gpu}; not run: nothing here runs it")
    inputs, _ = checked.golden(folder)
    try:
        return emulator.check(compiled, inputs)
    except BadInput as error:
        return Checked(f"not run: {error.sentence}")
    except CheckFailed as error:
        return Checked(wrong="; ".join(error.failures))


@contextmanager
def timed_jobs(
    folder: Path, candidates: Sequence[Candidate]
) -> Iterator[tuple[dict[str, Callable[[], Any]], Mapping[str, dict[str, Any]]]]:
    """What is to be timed of a run folder's artifacts on this machine, by path, and each one's conditions.

    With an artifact comes what it is compared with at 8 bits. One run takes float32 of the file's layout and gives
    float32, rounding of the input included, in every runtime.
    """
    jobs: dict[str, Callable[[], Any]] = {}
    conditions: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        for artifact in (each for candidate in candidates for each in candidate.artifacts):
            x = checked.golden(bundle_of(folder, artifact))[0][:1]
            for name in (artifact.path, *([artifact.at_8_bits.path] if artifact.at_8_bits else [])):
                found = _job(artifact.runtime, folder / name, x, stack)
                if found is not None:
                    jobs[name], conditions[name] = found
        yield jobs, conditions


def _job(
    runtime: str, path: Path, x: npt.NDArray[np.float32], stack: ExitStack
) -> tuple[Callable[[], Any], dict[str, Any]] | None:
    """One run of a file on one input, and its conditions; None where it doesn't run here."""
    if runtime == ONNXRUNTIME:
        run = session.runner(session.open_session(path))
        return (lambda: run(x)), session.conditions()
    if runtime == TVM and path.suffix == ".so":
        return compiled_job(path, x, stack)
    return None


def bundle_of(folder: Path, artifact: Artifact) -> Path:
    """The candidate's folder that holds an artifact."""
    parts = Path(artifact.path).parts
    return folder / Path(*parts[:2])


def compiled_job(path: Path, x: npt.NDArray[np.float32], stack: ExitStack) -> tuple[Callable[[], Any], dict[str, Any]]:
    """One run of a compiled library on one input, and its conditions.

    Args:
        path: the shared library, one of our own build.
        x: float32 (1, *shape), as the file takes it.
        stack: closes it.
    """
    from compress.export.library.loader import Library, describe

    threads = session.threads() if describe(path).threads else 1
    library = stack.enter_context(Library(path, threads))
    (end,) = library.interface.inputs
    job = library.prepared([end.to_library(x)[0]])
    return job, {"threads": threads, "batch": 1, "runtime": "compiled by tvm"}
