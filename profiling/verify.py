"""Is a bundle what it was when it was made? Hashes, golden inputs, accuracy. Nothing in it is executed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress import targets
from compress.errors import BadInput, CheckFailed, CompressError
from compress.export import bundle as bundles
from compress.export import checked, patterns
from compress.export.kernels import backends
from compress.export.manifest import GOLDEN, MODEL, Manifest, read_manifest
from compress.profiling import evaluate
from compress.profiling.session import open_session, runner
from compress.results import Accuracy
from compress.usercode import is_user_code

if TYPE_CHECKING:
    from compress.data import Data

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was found, or why it was skipped."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        bundle: the folder.
        checks: hashes, golden inputs, patterns where there are any, accuracy.
        recorded: the accuracy in the manifest.
        accuracy: the accuracy here; None where it wasn't measured.
    """

    bundle: str
    checks: tuple[Check, ...]
    recorded: Accuracy | None
    accuracy: Accuracy | None

    @property
    def ok(self) -> bool:
        """True if nothing failed; a check that was skipped is no failure."""
        return all(check.status != "failed" for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong."""
        return tuple(f"{check.name}: {check.detail}" for check in self.checks if check.status == "failed")


@dataclass(frozen=True, slots=True)
class Golden:
    """The golden inputs run on this machine: largest difference, relative to the largest golden output,
    how many classes are equal (None for images), and of how many inputs."""

    difference: float
    same: int | None
    n: int


def verify(bundle: Path, data: str | None = None) -> Verification:
    """Check a bundle.

    Args:
        bundle: its folder.
        data: where the evaluation data is, if not where the manifest says.

    Raises:
        BadInput: there is no such folder; or ``data`` was given and can't be loaded, or isn't the data that
            the manifest names by its hash.
        CheckFailed: there is no readable manifest.
    """
    if not bundle.is_dir():
        raise BadInput(f"bundle {bundle}: there is no such folder; give the folder of a bundle, such as RUN/bundle")
    manifest = read_manifest(bundle)
    hashes = _hashes(bundle, manifest)
    if hashes.status == "failed":
        rest = tuple(Check(name, "skipped", "the files are damaged") for name in ("golden inputs", "accuracy"))
        return Verification(str(bundle), (hashes, *rest), manifest.accuracy, None)
    golden = _golden(bundle, manifest)
    if golden.status == "failed":
        skipped = Check("accuracy", "skipped", "the golden inputs differ")
        return Verification(str(bundle), (hashes, golden, skipped), manifest.accuracy, None)
    optics = () if manifest.patterns is None else (_patterns(bundle, manifest),)
    accuracy, found = _accuracy(bundle, manifest, data)
    return Verification(str(bundle), (hashes, golden, *optics, accuracy), manifest.accuracy, found)


def _hashes(bundle: Path, manifest: Manifest) -> Check:
    try:
        wrong = bundles.damage(bundle, manifest)
    except OSError as error:
        wrong = [f"a file can't be read ({error.strerror})"]
    if wrong:
        return Check("hashes", "failed", "; ".join(wrong))
    unlisted = checked.self_contained(bundle)
    if unlisted is not None:
        return Check("hashes", "failed", unlisted)
    return Check("hashes", "ok", f"{len(manifest.files)} files are as the manifest says")


def run_golden(bundle: Path, manifest: Manifest) -> Golden:
    """Run the golden inputs one by one in ONNX Runtime.

    Raises:
        CheckFailed: the files can't be read or don't belong together, or the network can't be run.
    """
    inputs, outputs = checked.golden(bundle)
    if inputs.shape[1:] != manifest.input.shape[1:] or outputs.shape[1:] != manifest.output.shape[1:]:
        raise CheckFailed(str(bundle), [f"{GOLDEN} has other shapes than the manifest"])
    try:
        run = runner(open_session(bundle / MODEL, exact=_is_elsewhere(manifest)))
        found = np.concatenate([run(x[None]) for x in inputs])
        if found.shape != outputs.shape:
            raise ValueError(f"it gives {found.shape}, not {outputs.shape}")
    except Exception as error:  # whatever the runtime raises on a damaged network
        said = error.sentence if isinstance(error, CompressError) else f"ONNX Runtime can't run it ({error})"
        raise CheckFailed(str(bundle), [" ".join(said.split())[:300]]) from None
    scale = float(np.abs(outputs).max()) or 1.0
    difference = float(np.abs(found - outputs).max()) / scale
    same = None
    if manifest.task == "classification" and outputs.ndim == 2:
        same = int((found.argmax(1) == outputs.argmax(1)).sum())
    return Golden(difference, same, len(inputs))


def _is_elsewhere(manifest: Manifest) -> bool:
    """Whether a bundle is for a processor of another kind than this machine's, which only stands in for it.

    Where it isn't, or the target is a file of the user's own, the network is run as it is: a device must not be told
    that a file is right which its own kernels get wrong.
    """
    try:
        target = targets.load(manifest.target)
    except BadInput:
        return False
    host, there = backends.host(), backends.isa_of(target)
    return host is not None and (there is None or there.family != host.family)


def _golden(bundle: Path, manifest: Manifest) -> Check:
    try:
        found = run_golden(bundle, manifest)
    except CheckFailed as error:
        return Check("golden inputs", "failed", "; ".join(error.failures))
    classes = "" if found.same is None else f"{found.same} of {found.n} classes equal, "
    detail = f"{classes}largest relative difference {found.difference:.2g}, {manifest.tolerance:.2g} allowed"
    # Written so that a difference that is no number fails.
    return Check("golden inputs", "ok" if found.difference <= manifest.tolerance else "failed", detail)


def _patterns(bundle: Path, manifest: Manifest) -> Check:
    """Are the patterns what the network measures with, and does the network behind them give what the whole does?"""
    inputs, outputs = checked.golden(bundle)
    try:
        exact = _is_elsewhere(manifest)
        said, difference = patterns.check(bundle, inputs, outputs, lambda path: runner(open_session(path, exact=exact)))
    except CheckFailed as error:
        return Check("patterns", "failed", "; ".join(error.failures))
    except Exception as error:  # whatever the runtime raises on a damaged network
        return Check("patterns", "failed", " ".join(f"they can't be checked ({error})".split())[:300])
    detail = f"{said}; from simulated measurements largest relative difference {difference:.2g}"
    return Check("patterns", "ok" if difference <= manifest.tolerance else "failed", detail)


def _accuracy(bundle: Path, manifest: Manifest, place: str | None) -> tuple[Check, Accuracy | None]:
    recorded = manifest.accuracy
    if recorded is None:
        return Check("accuracy", "skipped", "the manifest holds none"), None
    if place is None:
        reason = _not_here(manifest.dataset)
        if reason is not None:
            return Check("accuracy", "skipped", reason), None
    try:
        data = _load(place or manifest.dataset, manifest)
    except BadInput as error:
        if place is not None:
            raise
        return Check("accuracy", "skipped", f"the data isn't here ({error.sentence}); name its place: --data"), None
    if data.sha256 != manifest.dataset_sha256:
        problem = f"{place or manifest.dataset} isn't the data that the bundle was measured on (its SHA-256 differs)"
        if place is not None:
            raise BadInput(f"data {problem}; give that data, or leave --data out")
        return Check("accuracy", "skipped", problem), None
    try:
        found = evaluate.accuracy(bundle / MODEL, data, exact=_is_elsewhere(manifest))
    except Exception as error:  # whatever the runtime raises
        return Check("accuracy", "failed", " ".join(f"it can't be measured ({error})".split())[:300]), None
    unit = recorded.kind.sign
    detail = (
        f"{found.value:.2f}{unit} here, {recorded.value:.2f}{unit} in the manifest "
        f"(95% interval {recorded.low:.2f} to {recorded.high:.2f}, {recorded.n} inputs)"
    )
    same_kind = (found.metric, found.n) == (recorded.metric, recorded.n)
    # Integer kernels round differently from processor to processor: equal within what the data can tell.
    equal = same_kind and recorded.low <= found.value <= recorded.high
    return Check("accuracy", "ok" if equal else "failed", detail), found


def _not_here(dataset: str) -> str | None:
    """Why the data that a manifest names isn't loaded unasked; None if it may be."""
    if is_user_code(dataset):
        return f"the data comes from a program ({dataset}), which isn't run unasked; name it: --data"
    from compress.data import is_here

    if not is_here(dataset):
        return f"{dataset} isn't on this machine; name its place: --data {dataset.partition(':')[0]}:DIR"
    return None


def data_of(manifest: Manifest) -> Data | None:
    """The data that a manifest names, if it is on this machine and is the same; a user's program isn't run."""
    if _not_here(manifest.dataset) is not None:
        return None
    try:
        data = _load(manifest.dataset, manifest)
    except BadInput:
        return None
    return data if data.sha256 == manifest.dataset_sha256 else None


def _load(place: str, manifest: Manifest) -> Data:
    from compress import data

    shape = manifest.input.shape[1:]
    sizes = data.Sizes(shape[0], 1, (shape[1], shape[2])) if manifest.task == "reconstruction" else None
    found = data.load(
        place,
        mean=manifest.mean,
        std=manifest.std,
        input_shape=(shape[0], shape[1], shape[2]) if len(shape) == 3 else None,
        seed=manifest.plan.seed,
        sizes=sizes,
    )
    return data.as_images(found) if manifest.task == "reconstruction" else found


def document(verification: Verification) -> dict[str, Any]:
    """What ``compress verify --json`` prints."""
    from compress.serial import to_json

    return {
        "bundle": verification.bundle,
        "ok": verification.ok,
        "checks": to_json(verification.checks),
        "accuracy": to_json(verification.accuracy),
        "recorded_accuracy": to_json(verification.recorded),
    }


__all__ = ["Check", "Golden", "Verification", "document", "run_golden", "verify"]
