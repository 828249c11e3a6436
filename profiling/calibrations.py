"""Calibrations in the user's data folder: where they lie, which one holds, and why another doesn't."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from compress import __version__
from compress.calibration import SCHEMA, Calibration
from compress.errors import BadInput
from compress.profiling import features, session
from compress.serial import from_json, mismatch, write_json
from compress.types import Target

FILE = "calibration.json"
"""Of the one that predicted, in a run folder."""


def folder(target: Target) -> Path:
    """Of a target's calibrations, below ``$XDG_DATA_HOME/compress/calibrations``."""
    return session.user_data() / "calibrations" / target.name


def path_of(target: Target, calibration: Calibration) -> Path:
    """One file a device: measuring there again replaces what was measured before."""
    named = hashlib.sha256(f"{calibration.device}; {calibration.address}".encode()).hexdigest()[:16]
    return folder(target) / f"{named}.json"


def check_writable(target: Target) -> None:
    """See that a calibration of a target can be kept, before one takes minutes to make.

    Raises:
        BadInput: its folder can't be made or written.
    """
    path = folder(target)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadInput(
            f"calibrations in {path} can't be written ({reason}); set XDG_DATA_HOME to a folder of yours"
        ) from None


def save(target: Target, calibration: Calibration) -> Path:
    """Keep a calibration; the file is there whole or not at all.

    Raises:
        BadInput: the folder can't be written.
    """
    path = path_of(target, calibration)
    check_writable(target)
    try:
        write_json(path, calibration)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadInput(
            f"calibration {path}: it can't be written ({reason}); set XDG_DATA_HOME to a folder of yours"
        ) from None
    return path


def read(path: Path, target: Target) -> Calibration:
    """A calibration from a file, if it holds for the target here and now.

    Raises:
        BadInput: it can't be read, is damaged, or is of another target, device or version; the sentence says how to
            make it anew.
    """
    anew = f"make it again: {_command(target)}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"calibration {path}: {error.strerror or 'it cannot be read'}; {anew}") from None
    except ValueError:
        raise BadInput(f"calibration {path}: it isn't JSON; {anew}") from None
    if isinstance(document, dict) and document.get("schema") != SCHEMA:
        raise BadInput(
            f"calibration {path}: it has schema {document.get('schema')!r}, this version reads {SCHEMA}; {anew}"
        )
    wrong = mismatch(Calibration, document)
    if wrong is not None:
        raise BadInput(f"calibration {path}: it is damaged ({wrong}); {anew}")
    return holding(from_json(Calibration, document), target, f"calibration {path}")


def holding(calibration: Calibration, target: Target, named: str) -> Calibration:
    """``calibration`` if it holds for the target here and now.

    Args:
        calibration: any.
        target: what is to be predicted.
        named: how the calibration was given, for the sentence.

    Raises:
        BadInput: it is of another target, device or version; the sentence says how to make it anew.
    """
    reason = stale(calibration, target)
    if reason is not None:
        raise BadInput(f"{named}: {reason}; make it again: {_command(target)}")
    return calibration


def stale(calibration: Calibration, target: Target) -> str | None:
    """Why a calibration doesn't hold for a target here and now; None if it does."""
    if calibration.target != target.name:
        return f"it is of {calibration.target}, not of {target.name}"
    if calibration.terms != features.VERSION:
        return f"its terms are of version {calibration.terms}, this version's of {features.VERSION}"
    here = calibration.address in ("local", "qemu")
    if target.host and (calibration.address != "local" or calibration.device != session.machine()):
        return f"it was made on another device ({calibration.device}), this is {session.machine()}"
    from compress.profiling.calibrating import versions

    now = versions() if here else {"compress": __version__}
    for package, version in now.items():
        if calibration.versions.get(package) != version:
            return f"it was made with {package} {calibration.versions.get(package)}, this is {version}"
    return None


def find(target: Target) -> tuple[Calibration | None, str | None]:
    """The newest calibration that holds for a target, and where none does, why those that are there don't."""
    found: list[Calibration] = []
    reasons: list[str] = []
    for path in sorted(folder(target).glob("*.json")):
        try:
            found.append(read(path, target))
        except BadInput as error:
            reasons.append(error.sentence)
    if found:
        return max(found, key=lambda each: each.date), None
    return None, reasons[0] if reasons else None


def described(calibration: Calibration) -> str:
    """Which calibration predicted, in a sentence."""
    errors = ", ".join(f"{each.runtime} {each.kind} ±{100 * each.error:.0f}%" for each in calibration.fits)
    what = "latencies" if calibration.unit == "s" else "instructions"
    return (
        f"{what} are predicted by the calibration of {calibration.date} on {calibration.device} "
        f"(sha256 {calibration.digest()[:12]}); nine of ten networks that it hadn't seen lay within: {errors}"
    )


def _command(target: Target) -> str:
    where = "" if target.host or target.bare_metal else " --device ssh://USER@HOST"
    return f"compress calibrate {target.name}{where}"


__all__ = ["FILE", "check_writable", "described", "find", "folder", "holding", "read", "save", "stale"]
