"""The explanation of a run's candidates: as it was recorded, or measured by layer on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compress.errors import BadInput, RunFolderError
from compress.explaining.reasons import reasons
from compress.explanation import Explanation, LayerTimes
from compress.finished import candidate_of, read
from compress.report import gains
from compress.results import Candidate, Front

ONNXRUNTIME = "onnxruntime"


def explain(run: str | Path, candidate: str | None = None, *, measure: bool = False) -> Explanation:
    """Where a candidate's time goes, layer by layer, why it isn't less, and what would help.

    Args:
        run: the folder of a finished run.
        candidate: its id; None for the one that the report is about.
        measure: time it on this machine, layer by layer by ONNX Runtime's own clock. Only where the run's target is
            this machine.

    Raises:
        BadInput: there is no such run or candidate, the run is of a version that recorded no explanations, or
            ``measure`` was asked for and this machine isn't its target.
        CheckFailed: the file to be measured has been changed.
    """
    path = Path(run)
    front, _ = read(path)
    chosen = pick(path, front, candidate)
    if measure:
        reason = unmeasurable(front, chosen)
        if reason is not None:
            raise BadInput(f"{path}: its layers can't be measured here: {reason}; leave measure out")
        chosen = measured(path, front, chosen)[1]
    assert chosen.explanation is not None
    return chosen.explanation


def pick(path: Path, front: Front, name: str | None) -> Candidate:
    """A run's candidate by its id, None for the one that its report is about.

    Raises:
        UnknownName: there is none of that id.
        RunFolderError: nothing was recorded of where its time goes.
    """
    chosen = candidate_of(front, name) if name is not None else gains.subject(front) or front.baseline
    if chosen.explanation is None:
        raise RunFolderError(
            str(path), f"nothing was recorded of where {chosen.id}'s time goes", "run again with another --out"
        )
    return chosen


def unmeasurable(front: Front, candidate: Candidate) -> str | None:
    """Why a candidate's layers can't be measured on this machine; None if they can."""
    from compress import targets

    try:
        host = targets.load(front.target).host
    except BadInput:
        host = False  # a target of the user's own: this machine is never one
    if not host:
        return f"the target, {front.target}, isn't this machine"
    if not any(artifact.runtime == ONNXRUNTIME for artifact in candidate.artifacts):
        return f"{candidate.id} has no file for ONNX Runtime, and no other runtime gives times by layer"
    return None


def measured(path: Path, front: Front, candidate: Candidate) -> tuple[Candidate, Candidate]:
    """The float network and a candidate with their layers measured here, one after the other.

    Args:
        path: the run folder.
        front: what the run found.
        candidate: one of its candidates, or the float network.

    Raises:
        RunFolderError: a file is missing.
        CheckFailed: a file isn't the one that the run made.
    """
    from compress.profiling.layer_times import with_times

    base = front.baseline
    of_base, said = _times(path, base)
    layers = with_times(base.explanation.layers if base.explanation else (), of_base, {})
    by_name = {layer.name: layer.measured_s for layer in layers if layer.measured_s is not None}
    base = _with(base, replace(_explained(base), layers=layers, measured=said))
    if candidate.id == base.id:
        return base, base
    now, said = _times(path, candidate)
    found = _explained(candidate)
    layers = with_times(found.layers, now, by_name)
    why = reasons(layers, found.channel_multiple, said.rest_s)
    return base, _with(candidate, replace(found, layers=layers, reasons=why, measured=said))


def _explained(candidate: Candidate) -> Explanation:
    return candidate.explanation or Explanation((), 1, 0.0)


def _with(candidate: Candidate, explanation: Explanation) -> Candidate:
    return replace(candidate, explanation=explanation)


def _times(path: Path, candidate: Candidate) -> tuple[dict[str, float], LayerTimes]:
    from compress.errors import CheckFailed
    from compress.export import checked
    from compress.export.manifest import sha256
    from compress.profiling.layer_times import measure

    artifact = next(each for each in candidate.artifacts if each.runtime == ONNXRUNTIME)
    file, folder = path / artifact.path, path / "candidates" / candidate.id
    if not file.is_file():
        raise RunFolderError(str(path), f"{artifact.path} is missing", "add --predicted, or run again")
    if sha256(file) != artifact.sha256:
        raise CheckFailed(str(file), ["it isn't the file that the run made; add --predicted, or run again"])
    x = checked.golden(folder)[0][:1]
    return measure(file, x, _explained(candidate).layers)


__all__ = ["explain", "measured", "pick", "unmeasurable"]
