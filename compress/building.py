"""One candidate of a job, from its stages to a folder that is a bundle: exported, compiled, checked and evaluated."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress import __version__, eight_bits, pipeline
from compress.explaining.explain import explain
from compress.export import bundle, patterns, tvm
from compress.export import onnx as interchange
from compress.export.made import Made
from compress.export.manifest import GOLDEN, Manifest, TensorSpec
from compress.export.onnxruntime import weight_storage
from compress.export.roster import EXPORTERS
from compress.graph import costs
from compress.graph.traces import traced
from compress.job import Assessment, Job, assess
from compress.profiling import artifacts, evaluate
from compress.profiling.session import as_input, open_session, runner
from compress.results import Artifact, Candidate, LayerFact, Unavailable, candidate_document
from compress.runfolder import CANDIDATE, SCHEMA
from compress.serial import write_json
from compress.types import Note, Progress, Record, Size, Stage, State, Target

FLOAT_TOLERANCE, INTEGER_TOLERANCE = 1e-3, 5e-2
"""How far a device's outputs may lie from the golden ones: float kernels differ in the order of sums,
integer ones in a rounding step a layer."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """A candidate that the device can't hold or run, and why. It isn't part of the front.

    Attributes:
        id: of the candidate.
        reason: one sentence.
        uncompiled: it isn't its size: there is no code for an operator of its network.
    """

    id: str
    reason: str
    uncompiled: bool = False


def misfit(assessed: Assessment, flash_bytes: int, target: Target) -> str | None:
    """Why the target can't hold it; None if it can."""
    if assessed.peak.bytes > target.ram_bytes:
        return f"{target.name} has {target.ram_bytes} bytes of RAM, its peak is {assessed.peak}"
    if target.flash_bytes is not None and flash_bytes > target.flash_bytes:
        return f"its file takes {flash_bytes} bytes, {target.name} has {target.flash_bytes} bytes of flash"
    return None


def too_large(made: Made, target: Target) -> str | None:
    """Why the target can't hold a compiled artifact, with its largest tensors; None if it can."""
    if made.compiled is None:
        return None
    if made.ram_bytes is not None and made.ram_bytes > target.ram_bytes:
        tensors = sorted(made.compiled.program.tensors.values(), key=lambda tensor: -tensor.bytes)[:3]
        largest = ", ".join(f"{t.name} {'x'.join(map(str, t.shape))} {t.bytes}" for t in tensors)
        over = made.ram_bytes - target.ram_bytes
        return (
            f"compiled, it needs {made.ram_bytes} bytes of RAM, {over} more than {target.name} has; "
            f"the largest tensors: {largest}"
        )
    if target.flash_bytes is not None and made.bytes > target.flash_bytes:
        over = made.bytes - target.flash_bytes
        return f"compiled, it takes {made.bytes} bytes of flash, {over} more than {target.name} has"
    return None


def build(
    job: Job,
    name: str,
    stages: tuple[Stage, ...],
    folder: Path,
    reference: Assessment | None,
    progress: Progress,
    known: pipeline.Known | None = None,
) -> Candidate | Unfit:
    """Make one candidate in ``folder``: run the stages, export, check against the device, compile, evaluate.

    Args:
        job: what was asked for.
        name: the candidate's id.
        stages: the job's first ones alone for the float baseline.
        folder: exists and is empty; afterwards it is a bundle.
        reference: the uncompressed network, for what each layer was; None if this is it.
        progress: told what is happening.
        known: networks that it may go on from.
    """
    state = pipeline.run(stages, State(job.model), job.context(name, progress), partial(size_of, job), known)
    state = replace(state, plan=replace(state.plan, seed=job.seed))
    assessed = assess(state, job.target, job.example, job.shared)
    progress("export")
    path = folder / interchange.FILE
    interchange.export(state, job.example, path, assessed.network, weight_storage(job.target))
    smaller = stages != job.first
    reason = misfit(assessed, path.stat().st_size, job.target)
    if reason is not None and smaller:
        return Unfit(name, reason)
    ends = _golden(job, folder)
    unavailable: list[Unavailable] = []
    found: list[Artifact] = []
    records = list(state.records)
    start = time.perf_counter()
    optics = _optics(job, state, folder, path)
    if optics is not None:
        seconds, size = time.perf_counter() - start, records[-1].after if records else assessed.size
        records.append(Record("export patterns", {"folder": patterns.FOLDER}, seconds, size, size, (optics,)))
    for runtime in job.target.runtimes:
        progress(f"make the artifact for {runtime}")
        start = time.perf_counter()
        made, tuned = _made(job, state, runtime, folder, progress)
        seconds = time.perf_counter() - start
        if isinstance(made, Unavailable):
            if smaller and _needed(job, runtime):
                return Unfit(name, made.reason, uncompiled=True)
            unavailable.append(made)
            continue
        reason = too_large(made, job.target) if runtime == job.target.runtime else None
        if reason is not None and smaller:
            return Unfit(name, reason)
        if made.compiled is not None:
            size = records[-1].after if records else assessed.size
            notes = tuple(made.notes)
            records.append(Record("compile", {"runtime": runtime, **tuned}, seconds, size, size, notes))
        progress(f"evaluate in {runtime}")
        artifact = _artifact(job, state, assessed, runtime, made, folder, Path("candidates") / name)
        (unavailable if isinstance(artifact, Unavailable) else found).append(artifact)  # type: ignore[arg-type]
    wide = eight_bits.widened(state)
    if wide is not None:
        progress("compare with 8-bit weights")
        start = time.perf_counter()
        found, notes = eight_bits.beside(
            job, wide, found, folder, lambda wide, runtime, inner: _made(job, wide, runtime, inner, progress)[0]
        )
        seconds, size = time.perf_counter() - start, records[-1].after
        records.append(Record("compare with 8 bits", {}, seconds, size, size, notes))
    candidate = Candidate(
        id=name,
        plan=state.plan,
        artifacts=tuple(found),
        unavailable=tuple(unavailable),
        macs=assessed.size.macs,
        params=assessed.size.params,
        weight_bits=assessed.size.weight_bits,
        activation_bits=float(max((p.activation_bits for p in assessed.precisions.values()), default=32)),
        layers=layer_facts(assessed, reference or assessed),
        records=tuple(records),
        runtime=job.runtime,
        folder=str(folder),
        explanation=explain(assessed, reference if smaller else None, job.target, _notes(state, records)),
    )
    _bundle(job, state, candidate, folder, ends)
    write_json(folder / CANDIDATE, {"schema": SCHEMA, "candidate": candidate_document(candidate, on_front=False)})
    return candidate


def _notes(state: State, records: list[Record]) -> tuple[Note, ...]:
    """What the stages and the compiler noted."""
    return (*state.notes, *(note for record in records for note in record.notes))


def _made(
    job: Job, state: State, runtime: str, folder: Path, progress: Progress
) -> tuple[Made | Unavailable, dict[str, Any]]:
    """The artifact of a folder's ONNX file, and what its kernels were tuned to."""
    tuned: dict[str, Any] = {}
    with ExitStack() as stack:
        if job.tune is not None and runtime == tvm.RUNTIME:
            tuned = _tuned(job, folder / interchange.FILE, progress, stack)
        return EXPORTERS[runtime](state, folder, job.target), tuned


def _tuned(job: Job, path: Path, progress: Progress, stack: ExitStack) -> dict[str, Any]:
    """Have kernels compiled with blocks that were timed on this machine; the seconds are the whole job's."""
    from compress.export.kernels.dot_blocks import fixed
    from compress.export.lowering import CannotLower, lower
    from compress.profiling import tuning

    assert job.tune is not None
    spent = job.shared.setdefault("tuned_s", [0.0])
    start = time.perf_counter()
    try:
        blocks = tuning.tune(lower(path), max(0.0, job.tune - spent[0]), progress)
    except CannotLower:
        return {}  # the exporter says why
    spent[0] += time.perf_counter() - start
    stack.enter_context(fixed(blocks))
    return {"tuned_blocks": tuning.described(blocks)}


def _artifact(
    job: Job, state: State, assessed: Assessment, runtime: str, made: Made, folder: Path, place: Path
) -> Artifact | Unavailable:
    """What is known of one artifact: its accuracy, and for compiled code that it gives what it should."""
    checked, instructions = None, None
    if made.compiled is not None:
        checking = artifacts.check(made.compiled, folder)
        if checking.wrong is not None:
            return Unavailable(runtime, checking.wrong)
        checked, instructions = checking.said, checking.instructions
    with artifacts.opened(runtime, made) as (predict, limit, how):
        accuracy, recall = evaluate.of(predict, job.data, runtime, limit, job.protect_classes)
    library = made.compiled.library if made.compiled is not None else None
    unlinked = library.reason if library is not None else None
    said = "; ".join(each for each in (how, checked, unlinked and f"not linked: {unlinked}") if each) or None
    return Artifact(
        (place / made.path.relative_to(folder)).as_posix(),
        runtime,
        state.plan.digest(),
        bundle.sha256(made.path),
        made.bytes,
        accuracy,
        assessed.estimate(made.bytes, runtime),
        None,
        made.ram_bytes if made.ram_bytes is not None else assessed.peak.bytes,
        recall,
        said,
        instructions,
    )


def _needed(job: Job, runtime: str) -> bool:
    """Whether a candidate without an artifact for a runtime is of no use: it was asked for, or nothing else runs there.

    TensorRT is never made here but on the device.
    """
    return runtime == tvm.RUNTIME and (job.runtime == runtime or job.target.bare_metal)


def size_of(job: Job, state: State) -> Size:
    """The size of a state's network, whose graph is one of those that the job's candidates share if it can be."""
    network = traced(state.model, (job.example,), job.shared)
    return costs.size(network, {} if state.quantization is None else state.quantization.layer_bits)


def layer_facts(assessed: Assessment, reference: Assessment) -> tuple[LayerFact, ...]:
    """What each convolution and linear layer of ``reference`` became."""
    before = {operator.path: operator for operator in reference.operators if operator.weights}
    facts = []
    for operator in assessed.operators:
        if not operator.weights:
            continue
        was = before.get(operator.path, operator)
        precision = assessed.precisions[operator.path]
        facts.append(
            LayerFact(
                operator.path,
                operator.kind,
                operator.out_channels,
                was.out_channels,
                precision.weight_bits,
                precision.activation_bits,
                operator.params,
                operator.macs,
                was.macs,
            )
        )
    return tuple(facts)


def _golden(job: Job, folder: Path) -> tuple[TensorSpec, TensorSpec]:
    """Write the golden inputs and what ONNX Runtime gives for them; the network's ends."""
    session = open_session(folder / interchange.FILE, 1, exact=True)
    run = runner(session)
    inputs = as_input(job.data.train.inputs(bundle.GOLDEN_INPUTS, torch.Generator().manual_seed(1)))
    outputs = np.concatenate([run(x[None]) for x in inputs])
    bundle.write_golden(folder / GOLDEN, inputs, outputs)
    names = (session.get_inputs()[0].name, session.get_outputs()[0].name)
    return TensorSpec(names[0], (1, *inputs.shape[1:])), TensorSpec(names[1], (1, *outputs.shape[1:]))


def _optics(job: Job, state: State, folder: Path, path: Path) -> Note | None:
    """Write the patterns of a network that has a sensing layer, and say what was written; None for any other."""
    shape = tuple(job.example.shape[1:])
    if len(shape) != 3:
        return None
    made = patterns.export(state.model, folder, path, shape, job.data.mean, job.data.std)
    if made is None:
        return None
    count, shown = len(made.patterns.values), len(made.patterns.frames)
    said = f"{count} patterns in {shown} frames for the optics; model.onnx simulates them in front of the network"
    if isinstance(made.cut, str):
        return Note("sensing", "patterns", f"{said}; {made.cut}")
    return Note("sensing", "patterns", f"{said}, {patterns.FOLDER}/{patterns.NETWORK} is the network alone")


def _bundle(job: Job, state: State, candidate: Candidate, folder: Path, ends: tuple[TensorSpec, TensorSpec]) -> None:
    here = (Path("candidates") / candidate.id).as_posix()
    bundle.finish(
        folder,
        Manifest(
            model=job.name,
            target=job.target.name,
            plan=candidate.plan,
            plan_digest=candidate.plan.digest(),
            input=ends[0],
            output=ends[1],
            mean=tuple(job.data.mean),
            std=tuple(job.data.std),
            classes=job.data.classes,
            task=job.data.task,
            dataset=job.data.name,
            dataset_sha256=job.data.sha256,
            accuracy=candidate.accuracy,
            tolerance=FLOAT_TOLERANCE if state.quantization is None else INTEGER_TOLERANCE,
            compress_version=__version__,
            runtimes={
                artifact.runtime: Path(artifact.path).relative_to(here).as_posix() for artifact in candidate.artifacts
            },
            unavailable={each.runtime: each.reason for each in candidate.unavailable},
            patterns=patterns.FOLDER if (folder / patterns.FOLDER).is_dir() else None,
        ),
    )


__all__ = ["Unfit", "build", "layer_facts", "misfit", "too_large"]
