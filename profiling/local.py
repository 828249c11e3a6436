"""A bundle on this machine: golden inputs, latency, size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import BadInput, CheckFailed
from compress.export import bundle as bundles
from compress.export import checked
from compress.export.manifest import MODEL, Manifest, read_manifest
from compress.profiling import session, timer, verify

RUNTIME, COMPILED = "onnxruntime", "tvm"


@dataclass(frozen=True)
class Profile:
    """What a device said of a bundle; None where unknown. ``document`` is what ``--json`` prints.

    Attributes:
        device: in words.
        runtime: what ran the network.
        golden_equal: the golden outputs came out, within the manifest's tolerance.
        latency_s, latency_p90_s: median and 90th percentile for one input.
        instructions: for one input, where the device counts them.
        macs: multiply-accumulates for one input.
        arena_bytes: working memory that the runtime sets aside.
        flash_bytes: size of the file that ran.
        conditions: threads, batch, versions.
    """

    device: str
    runtime: str
    golden_equal: bool
    latency_s: float | None
    latency_p90_s: float | None
    instructions: int | None
    macs: int | None
    arena_bytes: int | None
    flash_bytes: int
    conditions: dict[str, Any]


def existing(bundle: Path) -> Path:
    """The folder of a bundle.

    Raises:
        BadInput: there is no such folder.
    """
    if not bundle.is_dir():
        raise BadInput(f"bundle {bundle}: there is no such folder; give the folder of a bundle, such as RUN/bundle")
    return bundle


def profile(bundle: Path, runtime: str | None = None) -> Profile:
    """Run a bundle on this machine: its ONNX file in ONNX Runtime, or its library where that is for this processor.

    Args:
        bundle: its folder.
        runtime: ``onnxruntime`` or ``tvm``; None for the fastest of those that run here, timed in turns.

    Raises:
        BadInput: there is no such folder, or the runtime isn't one of the bundle's that runs here.
        CheckFailed: the bundle is damaged, or its network can't be run.
    """
    bundle = existing(bundle)
    manifest = read_manifest(bundle)
    wrong = bundles.damage(bundle, manifest) or [w for w in [checked.self_contained(bundle)] if w is not None]
    if wrong:
        raise CheckFailed(str(bundle), wrong)
    golden = verify.run_golden(bundle, manifest)
    path = bundle / MODEL
    x = session.as_input(checked.golden(bundle)[0][:1])
    with ExitStack() as stack:
        run = session.runner(session.open_session(path))
        jobs: dict[str, Callable[[], Any]] = {RUNTIME: lambda: run(x)}
        facts: dict[str, dict[str, Any]] = {RUNTIME: dict(session.conditions())}
        library = _library(bundle, manifest, x, stack) if runtime != RUNTIME else None
        if library is not None:
            jobs[COMPILED], facts[COMPILED] = library.job, library.conditions
        if runtime is not None and runtime not in jobs:
            raise BadInput(
                f"--runtime {runtime}: the bundle holds nothing of it that runs on this machine; there is "
                f"{', '.join(jobs)}, and --device qemu for other processors"
            )
        if runtime is not None:
            jobs = {runtime: jobs[runtime]}
        measured = timer.interleaved(jobs, session.machine(), {})
    best = min(measured, key=lambda name: measured[name].latency_s)
    compiled = best == COMPILED and library is not None
    others = {f"latency_s in {name}": found.latency_s for name, found in measured.items() if name != best}
    return Profile(
        device=measured[best].device,
        runtime=best,
        golden_equal=golden.difference <= manifest.tolerance and (library is None or library.golden_equal),
        latency_s=measured[best].latency_s,
        latency_p90_s=measured[best].latency_p90_s,
        instructions=None,
        macs=macs(path),
        arena_bytes=library.arena_bytes if compiled and library is not None else None,
        flash_bytes=library.flash_bytes if compiled and library is not None else path.stat().st_size,
        conditions={**facts[best], **measured[best].conditions, "runs": measured[best].runs, **others},
    )


@dataclass(frozen=True)
class _Library:
    job: Callable[[], Any]
    conditions: dict[str, Any]
    golden_equal: bool
    arena_bytes: int
    flash_bytes: int


def _library(bundle: Path, manifest: Manifest, x: Any, stack: ExitStack) -> _Library | None:
    """The bundle's library, built again, if it is for this machine; None where it is for another or there is none."""
    from compress.export.kernels import backends
    from compress.export.library import building
    from compress.profiling import artifacts, emulator
    from compress.profiling.rebuilt import FOLDER, rebuild

    if not (bundle / FOLDER).is_dir():
        return None  # none, or a CUDA module
    if COMPILED not in manifest.runtimes or building.load(bundle / FOLDER).isa != backends.host():
        return None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    compiled, same = rebuild(bundle, folder)
    built = compiled.library
    if built.linked_path is None:
        return None
    try:
        emulator.check(compiled, checked.golden(bundle)[0])
        equal = True
    except CheckFailed:
        equal = False
    job, conditions = artifacts.compiled_job(built.linked_path, x, stack)
    return _Library(job, {**conditions, "library": same}, equal, built.arena_bytes, built.flash_bytes)


def macs(path: Path) -> int | None:
    """Multiply-accumulates for one input of an ONNX file's convolutions and matrix products.

    ``output elements x weights an output element reads``. None where a shape isn't known.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        # The batch, the only dimension without a number, counts as one.
        shapes[value.name] = tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight, output = shapes.get(node.input[1]), shapes.get(node.output[0])
        if weight is None or output is None:
            return None
        total += _product(output) * _reads(node, weight)
    return total


def _reads(node: Any, weight: tuple[int, ...]) -> int:
    """The inputs that one output element sums over."""
    if node.op_type == "Conv":
        return _product(weight[1:])
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return weight[-1] if transposed else weight[-2]


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def document(profile: Profile) -> dict[str, Any]:
    """What ``compress profile --json`` prints."""
    from compress.serial import to_json

    found: dict[str, Any] = to_json(profile)
    return found


__all__ = ["Profile", "document", "existing", "macs", "profile"]
