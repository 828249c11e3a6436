"""What a candidate is made of, as a digest: the key under which it is kept and found again.

Equal keys mean equal files: the network (its graph, values and source), the data, the target, the stages with their
settings, the seed, the versions, and the machine as far as it shapes results (the processor's instruction set, the
number of threads, the compilers and emulators that are installed). Limits that no stage reads, such as the accuracy
that may be lost, are no part of it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import platform
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from compress import __version__, checkpoints
from compress.cache import digest
from compress.data import ArraySplit, FolderSplit, PatchSplit, Split, TileSplit
from compress.export import onnx as interchange
from compress.export.kernels import backends
from compress.export.library import toolchain
from compress.job import Job, reference
from compress.pipeline import described
from compress.prune.goal import Goal
from compress.serial import to_json
from compress.types import Stage, State

PACKAGES = ("torch", "onnx", "onnxruntime", "apache-tvm", "brevitas", "numpy", "scikit-learn")
PROGRAMS = ("gcc", "cc", "clang", "nvcc", "ptxas", "aarch64-linux-gnu-g++", "arm-none-eabi-gcc")
EMULATORS = ("qemu-system-arm", "qemu-system-riscv32", "qemu-system-riscv64")
UNREAD = (
    *("name", "title", "aliases", "sources", "measured_on", "prediction_error"),
    *("runtime", "runtimes", "triple", "cpu", "gpu", "accelerators", "host"),
)
"""Fields of a target that no stage computes with: descriptions, and what only exporters read."""


def versions() -> dict[str, str]:
    """The versions of what shapes a result."""
    found = {"compress": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def fingerprint() -> dict[str, Any]:
    """What of this machine and this installation shapes results, but for the number of threads; JSON values.

    Machines of equal fingerprints make equal candidates.
    """
    isa = backends.host()
    return {
        **versions(),
        "source of compress": _source_digest(),
        "torch's instruction set": torch.backends.cpu.get_cpu_capability(),
        "kernels' instruction set": isa.dot if isa is not None else None,
        "compilers and emulators": _programs(),
    }


def candidate_key(job: Job, name: str, stages: Sequence[Stage]) -> str | None:
    """The key of a candidate's folder; None where it can't be known or isn't settled by what was asked for.

    That is so for data behind a user's loader, whose content only reading all of it would tell, and where kernels are
    tuned by timing them.
    """
    made_of = _made_of(job)
    if made_of is None or job.tune is not None:
        return None
    asked = {
        "kind": "candidate",
        "id": name,
        "model": job.name,
        "dataset": job.data.name,
        "target": to_json(job.target),
        "runtime": job.runtime,
        "stages": described(stages),
        "machine": fingerprint(),
    }
    return digest({**made_of, **asked})


def network_key(job: Job, stages: Sequence[Stage]) -> str | None:
    """The key of the network after ``stages``; the same for every target that looks alike to them."""
    made_of = _made_of(job)
    if made_of is None:
        return None
    return digest({**made_of, "kind": "network", "stages": described(stages), "target": seen_by_stages(job, stages)})


def sensitivity_key(job: Job) -> str | None:
    """The key of the sensitivity of the uncompressed network's layers."""
    made_of = _made_of(job)
    if made_of is None:
        return None
    return digest({**made_of, "kind": "sensitivity", "target": seen_by_stages(job), "bits": job.activation_bits})


def forecasts_key(job: Job) -> str | None:
    """The key of what a search of the job expects of all that can be proposed."""
    made_of = _made_of(job)
    if made_of is None:
        return None
    asked = {
        "kind": "forecasts",
        "target": to_json(job.target),
        "runtime": job.runtime,
        "methods": [job.prune, job.quantize],
        "tuned": job.epochs > 0,
        "budget": to_json(replace(job.budget, max_accuracy_drop=None)),
    }
    return digest({**made_of, **asked})


def seen_by_stages(job: Job, stages: Sequence[Stage] = ()) -> dict[str, Any]:
    """What stages of a job read of its target: all figures where they choose under limits of it, else its kernels.

    RAM that even the float network leaves room in limits nothing, and so is the same as any other.
    """
    target = job.target
    goals = [goal for stage in stages if isinstance(goal := getattr(stage, "goal", None), Goal)]
    if _limits(job) is not None or any(goal.latency_s is not None for goal in goals):
        figures: dict[str, Any] = to_json(target)
        return {name: value for name, value in figures.items() if name not in UNREAD}
    return {
        "precisions": to_json(target.precisions),
        "activations": target.activations,
        "channel_multiple": target.channel_multiple,
        "weights_in_ram": target.weights_in_ram,
        "ram_bytes": None if reference(job).peak.bytes <= target.ram_bytes else target.ram_bytes,
        "flash_bytes": target.flash_bytes,
    }


def _made_of(job: Job) -> dict[str, Any] | None:
    """What everything of a job depends on; found once a job."""
    if "made of" not in job.shared:
        data = _data(job)
        if data is None:
            job.shared["made of"] = None
            return None
        environment = {name: value for name, value in fingerprint().items() if name != "compilers and emulators"}
        job.shared["made of"] = {
            "environment": environment,
            "threads": torch.get_num_threads(),
            "device": job.device if job.device == "cpu" else torch.cuda.get_device_name(),
            "network": _network(job),
            "data": data,
            "limits": _limits(job),
            "seed": job.seed,
            "samples": job.samples,
            "protect_classes": list(job.protect_classes),
        }
    found: dict[str, Any] | None = job.shared["made of"]
    return found


def _limits(job: Job) -> dict[str, Any] | None:
    """The limits that stages choose bits under; None without any.

    What a front is chosen by is no part of what its candidates are, and fractions kept are the stages' own settings.
    """
    budget = job.budget
    limits = (budget.latency_s, budget.ram_bytes, budget.flash_bytes, budget.bit_operations)
    if all(limit is None for limit in limits):
        return None
    found: dict[str, Any] = to_json(replace(budget, max_accuracy_drop=None, macs=None, params=None))
    return found


def _network(job: Job) -> dict[str, Any]:
    """Digests of the float file, which holds the graph, of all values, and of the source of the modules' classes."""
    classes = {type(module) for module in job.model.modules()}
    sources = sorted({(f"{each.__module__}.{each.__qualname__}", _source(each)) for each in classes})
    return {
        "file": hashlib.sha256(interchange.serialize(State(job.model), job.example)).hexdigest(),
        "parameters": checkpoints.digest(job.model),
        "modules": hashlib.sha256(repr(job.model).encode()).hexdigest(),
        "classes": [list(each) for each in sources],
    }


def _source(kind: type) -> str:
    """The digest of the file that a class stands in; torch's own are known by its version."""
    if kind.__module__.partition(".")[0] == "torch":
        return ""
    try:
        file = inspect.getsourcefile(kind)
        return hashlib.sha256(Path(file or "").read_bytes()).hexdigest()
    except (TypeError, OSError):
        return ""  # typed at a prompt: its graph and its values say what it computes


def _data(job: Job) -> dict[str, Any] | None:
    train, evaluate = _split(job.data.train), _split(job.data.evaluate)
    if train is None or evaluate is None:
        return None
    data = job.data
    return {
        "train": train,
        "evaluate": evaluate,
        "sha256": data.sha256,
        "task": data.task,
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "augment": repr(data.augment),
    }


def _split(split: Split) -> str | None:
    """The digest of a split's content; None where only reading it all through a user's code would tell."""
    if isinstance(split, ArraySplit):
        return split.digest()
    if isinstance(split, FolderSplit):
        return digest([_status(split.files), list(split.shape), list(split.targets)])
    if isinstance(split, (PatchSplit, TileSplit)):
        return digest([type(split).__name__, _status(split.pixels.files), list(split.shape)])
    return None


def _status(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Training images may be many: as build tools do, their sizes and times stand for their content."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@functools.cache
def _source_digest() -> str:
    """The digest of this package's own files: in a checkout the version stays while the code changes."""
    root = Path(__file__).parent
    state = hashlib.sha256()
    for path in _files(root):
        state.update(path.relative_to(root).as_posix().encode())
        state.update(path.read_bytes())
    return state.hexdigest()


def _files(root: Path) -> list[Path]:
    """The Python files, templates and targets below a folder; those behind its links too."""
    found: list[Path] = []
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            found += _files(path)
        elif path.suffix in (".py", ".toml", ".j2"):
            found.append(path)
    return found


def _programs() -> dict[str, list[Any]]:
    """The compilers and emulators that are installed, each with its real name and size."""
    prefixes = (f"{family.prefix}gcc" for family in toolchain.KINDS.values())
    words = {name for name, _ in toolchain.KINDS}
    static = (f"qemu-{word}{end}" for word in sorted(words) for end in ("-static", ""))
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys((*PROGRAMS, *prefixes, *EMULATORS, *static)):
        path = shutil.which(name)
        if path is not None:
            real = Path(path).resolve()
            found[name] = [real.name, real.stat().st_size]
    for module in ("ziglang", "cuda", "tensorrt"):
        if importlib.util.find_spec(module) is not None:
            found[module] = ["python", 0]
    return found


__all__ = [
    "candidate_key",
    "fingerprint",
    "forecasts_key",
    "network_key",
    "seen_by_stages",
    "sensitivity_key",
    "versions",
]
