"""Compression from Python: :func:`run` does what the command does, :func:`save_bundle` keeps one result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress import checkpoints, front_search, models, optics, runfolder, targets
from compress import data as datasets
from compress.cache import users
from compress.calibration import Calibration
from compress.errors import BadInput, RunFolderError
from compress.execution import Searching, execute
from compress.export import bundle
from compress.graph.module import in_evaluation_mode
from compress.identity import versions
from compress.job import Job
from compress.making_options import MakingOptions
from compress.preflight import Checked, check
from compress.profiling import calibrations
from compress.prune import roster as pruning
from compress.prune.recall import class_indices
from compress.quantize import roster as quantizing
from compress.results import Candidate, Front
from compress.serial import to_json, write_json
from compress.types import Budget, Note, Target
from compress.watch import Silent, Watcher
from compress.workers import pool_for

ASKED = "asked"
"""The part of a run's configuration that says how the model, data, target and weights were named."""


@dataclass(frozen=True)
class Prepared:
    """A job that was checked, with what ``run.json`` says of it."""

    job: Job
    checked: Checked
    configuration: dict[str, Any]
    loading_s: float


def run(
    model: nn.Module | str,
    data: Any = None,
    *,
    target: Target | str,
    budget: Budget | None = None,
    weights: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    prune: str | None = None,
    quantize: str | None = None,
    epochs: int | None = None,
    samples: int = 1024,
    candidates: int = 8,
    runtime: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    protect_classes: Sequence[int | str] = (),
    tune: float | None = None,
    calibration: str | Path | None = None,
    sensing: float | None = None,
    image_size: tuple[int, int] | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
    processes: int = 1,
    workers: str | None = None,
    cache: bool = True,
) -> Front:
    """Compress a network for a device and measure what came out.

    Args:
        model: a module that takes one float32 tensor (N, C, H, W), or a name that ``--model`` takes.
        data: what ``--data`` takes, a DataLoader, an (inputs, labels) pair of arrays or tensors, or a
            generator of such batches; None for the built-in network's own.
        target: a device's name, a TOML file, or a :class:`~compress.types.Target`.
        budget: limits; none by default.
        weights: a checkpoint for ``model`` where it is a name.
        out: the run folder, which must not hold a run; by default ``runs/MODEL-TARGET``.
        seed: the source of all randomness.
        prune, quantize: method names, ``"none"`` to leave the step out, None for the best.
        epochs: of fine-tuning after pruning and after quantization; by default 1 on the built-in data, else 0.
        samples: training inputs that calibration looks at.
        candidates: how many to build at most.
        runtime: the runtime whose figures count, of those that the target has.
        mean, std: of ``(x / 255 - mean) / std``, one number a channel.
        protect_classes: classes (names or indices) whose false negatives must not rise; see
            :mod:`compress.prune.protect`.
        tune: seconds for timing the compiled kernels' register blocks on this machine, for the target ``cpu``; what was
            found is kept and used again where this is given, 0 for nothing more than that.
        calibration: a file of ``compress calibrate`` to predict by, ``"none"`` for the target's numbers alone;
            None for the one that the target carries, else the newest one that holds for it here, if there is one.
        sensing: measurements a pixel, in (0, 1]: the network takes what binary patterns measure of an image, in
            place of the image. ``epochs`` trains the patterns with it.
        image_size: height and width that a network which takes any size is made for.
        resume: go on with the unfinished run in ``out``.
        watcher: told how the run goes on.
        processes: of this machine that make candidates; what comes out doesn't depend on it.
        workers: the address of a Dask scheduler whose workers make them instead: ``"tcp://host:8786"``.
        cache: take what earlier runs made of the same network, data, options and versions, and keep what this one does.

    Returns:
        The front. ``front.best()`` is the candidate to ship, None if none meets the budget.

    Raises:
        BadInput: something in the arguments can't be used; nothing has been written.
    """
    how = MakingOptions(processes, workers, cache)
    how.check(tune)
    prepared = prepare(
        model,
        data,
        target=target,
        budget=budget,
        weights=weights,
        seed=seed,
        prune=prune,
        quantize=quantize,
        epochs=epochs,
        samples=samples,
        candidates=candidates,
        runtime=runtime,
        mean=mean,
        std=std,
        protect_classes=protect_classes,
        tune=tune,
        calibration=_of_run(out) if resume and calibration is None else calibration,
        sensing=sensing,
        image_size=image_size,
    )
    job = prepared.job
    path = Path(out) if out is not None else runfolder.default_path(job.name, job.target.name)
    runfolder.check_writable(path, resume)
    command = f"compress.run({job.name!r}, target={job.target.name!r})"
    return start(prepared, path, command, watcher or Silent(), resume, how)


def prepare(
    model: nn.Module | str,
    data: Any = None,
    *,
    target: Target | str,
    budget: Budget | None = None,
    weights: str | None = None,
    seed: int = 0,
    prune: str | None = None,
    quantize: str | None = None,
    epochs: int | None = None,
    samples: int = 1024,
    candidates: int = 8,
    runtime: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    protect_classes: Sequence[int | str] = (),
    tune: float | None = None,
    calibration: str | Path | None = None,
    sensing: float | None = None,
    image_size: tuple[int, int] | None = None,
) -> Prepared:
    """Load and check everything that :func:`run` is given, without writing anything."""
    begin = time.perf_counter()
    asked = targets.load(target) if isinstance(target, str) else target
    device, notes = _calibrated(asked, calibration)
    loaded = models.load(model, weights=weights, sensing=sensing) if isinstance(model, str) else None
    name = loaded.name if loaded is not None else type(model).__name__
    if data is None:
        if loaded is None or loaded.default_data is None:
            raise BadInput(
                f"{name} has no data of its own; "
                f"give --data: {', '.join(datasets.NAMES)}, a folder, an .npz or FILE.py:factory"
            )
        data = loaded.default_data
    own_mean = tuple(mean) if mean else loaded.mean if loaded is not None else None
    own_std = tuple(std) if std else loaded.std if loaded is not None else None
    shape = loaded.input_shape if loaded is not None else None
    classes = loaded.num_classes if loaded is not None else None
    sizes = optics.sizes(name, loaded, image_size)
    if isinstance(data, str):
        dataset = datasets.load(data, mean=own_mean, std=own_std, input_shape=shape, num_classes=classes, sizes=sizes)
    else:
        dataset = datasets.from_python(data, mean=own_mean, std=own_std, input_shape=shape, num_classes=classes)
    if sizes is not None:
        dataset = datasets.as_images(dataset)
    network = loaded.model if loaded is not None else model
    assert isinstance(network, nn.Module)
    built_in = loaded is not None and dataset.name == loaded.default_data
    tuned = epochs if epochs is not None else int(built_in)
    seen = optics.measured(in_evaluation_mode(network.cpu()), loaded, dataset, sensing, epochs, tuned)
    job = Job(
        name=name,
        model=seen.model,
        data=dataset,
        target=device,
        budget=budget or Budget(),
        seed=seed,
        prune=_method(prune, pruning.DEFAULT),
        quantize=_method(quantize, quantizing.DEFAULT),
        epochs=tuned,
        samples=samples,
        candidates=candidates,
        runtime=runtime,
        device="cuda" if torch.cuda.is_available() else "cpu",
        protect_classes=class_indices(protect_classes, dataset, "--protect-classes"),
        tune=tune,
        notes=(*notes, *dataset.notes),
        sense=seen.sense,
        teacher=seen.teacher,
    )
    checked = check(job)
    configuration = {
        "model": name,
        "sensing": sensing,
        "image_size": None if image_size is None else list(image_size),
        "parameters_sha256": checkpoints.digest(job.model),
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "target": device.name,
        "target_sha256": _digest(to_json(replace(device, calibration=None))),
        "calibration": device.calibration.digest() if device.calibration is not None else None,
        "budget": to_json(job.budget),
        "seed": seed,
        "prune": job.prune,
        "quantize": job.quantize,
        "epochs": job.epochs,
        "samples": samples,
        "candidates": candidates,
        "runtime": runtime,
        "tune": tune,
        "mean": [float(m) for m in dataset.mean],
        "std": [float(s) for s in dataset.std],
        "protect_classes": [dataset.classes[c] for c in job.protect_classes],
        # As they were given, so that a run can be asked for again; not compared, as one file may be named in many ways.
        ASKED: {
            "model": model if isinstance(model, str) else None,
            "data": data if isinstance(data, str) else None,
            "target": target if isinstance(target, str) else None,
            "weights": weights,
            "mean": None if mean is None else [float(m) for m in mean],
            "std": None if std is None else [float(s) for s in std],
            "protect_classes": [str(each) for each in protect_classes] or None,
        },
    }
    return Prepared(job, checked, configuration, time.perf_counter() - begin)


def start(
    prepared: Prepared,
    path: Path,
    command: str,
    watcher: Watcher,
    resume: bool,
    how: MakingOptions | None = None,
    search: Searching | None = None,
) -> Front:
    """Do a prepared job in ``path``; the front's candidates know their folders.

    ``search`` chooses the candidates, given who makes them; :mod:`compress.front_search` by default.

    Raises:
        RunFolderError: the run in ``path`` was asked for otherwise, so that it can't be resumed, or another process
            works in it.
        WorkersUnusable: the workers can't be reached, which leaves nothing written, or have vanished.
    """
    how = how or MakingOptions()
    job = prepared.job
    if resume and (path / runfolder.RUN).exists():
        _same(path, prepared.configuration)
    kept = users() if how.cache else None
    with ExitStack() as stack:
        pool = pool_for(job, how)
        if pool is not None:
            stack.enter_context(pool)
        folder = runfolder.create(path)
        stack.enter_context(runfolder.locked(path))
        if job.target.calibration is not None:
            with runfolder.disk_errors(path):
                write_json(path / calibrations.FILE, job.target.calibration)
        return execute(
            job,
            search or (lambda maker: front_search.of(maker, prepared.checked)),
            folder,
            prepared.configuration,
            command,
            watcher,
            prepared.loading_s,
            pool,
            kept,
        )


def _calibrated(target: Target, given: str | Path | None) -> tuple[Target, tuple[Note, ...]]:
    """The target with the calibration that its latencies are predicted by, and what the report says of that.

    Raises:
        BadInput: the calibration that was given is damaged, or of another device or version.
    """
    if given == "none":
        return replace(target, calibration=None), ()
    why = None
    if given is not None:
        found: Calibration | None = calibrations.read(Path(given), target)
    elif target.calibration is not None:
        found = calibrations.holding(target.calibration, target, "the calibration that the target carries")
    else:
        found, why = calibrations.find(target)
    if found is not None:
        return replace(target, calibration=found), (Note("latency", "prediction", calibrations.described(found)),)
    return target, (Note("latency", "prediction", f"a calibration is there but not used: {why}"),) if why else ()


def _of_run(out: str | Path | None) -> str | Path | None:
    """The calibration that an unfinished run was begun with, for :func:`prepare`; None where there is no run."""
    if out is None or not (Path(out) / runfolder.RUN).exists():
        return None
    has = runfolder.read_run(Path(out))["configuration"].get("calibration") is not None
    return Path(out) / calibrations.FILE if has else "none"


def _same(path: Path, configuration: dict[str, Any]) -> None:
    document = runfolder.read_run(path)
    before = document["configuration"]
    changed = [key for key in configuration if key != ASKED and before.get(key) != configuration[key]]
    if changed:
        key, was, now = changed[0], before.get(changed[0]), configuration[changed[0]]
        if isinstance(was, dict) and isinstance(now, dict):
            key = next(name for name in now if was.get(name) != now[name])
            was, now = was.get(key), now[key]
        raise RunFolderError(
            str(path),
            f"its run has {key} {was!r}, not {now!r}",
            "resume with the same options, or choose another --out",
        )
    if document.get("versions") != versions():
        differs = [p for p, v in versions().items() if document.get("versions", {}).get(p) != v]
        raise RunFolderError(
            str(path),
            f"it was begun with another version of {', '.join(differs) or 'a package'}",
            "start anew with another --out, so that all candidates are made alike",
        )


def save_bundle(candidate: Candidate | None, path: str | Path) -> Path:
    """Copy a candidate's bundle to ``path``, which must not exist yet.

    Raises:
        BadInput: there is no candidate (none met the budget), or it came from a front without files.
        RunFolderError: ``path`` is taken or can't be written.
        CheckFailed: the candidate's files have been changed.
    """
    if candidate is None:
        raise BadInput("there is no candidate to save: none met the budget; see front.nearest()")
    if candidate.folder is None:
        raise BadInput(f"candidate {candidate.id} has no files here; load its run with its folder")
    destination = Path(path)
    if destination.exists():
        raise RunFolderError(str(destination), "it exists", "choose another path")
    runfolder.check_writable(destination, resume=False)
    with runfolder.disk_errors(destination):
        bundle.copy(Path(candidate.folder), destination)
    return destination


def _method(name: str | None, default: str) -> str | None:
    return default if name is None else None if name == "none" else name


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
