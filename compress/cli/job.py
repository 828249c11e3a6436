"""The main job: options, those of an earlier run included, to a run and what is printed of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress import runfolder, targets
from compress.cache import limit_bytes
from compress.cli import interrupts, screen
from compress.cli.progress import watching
from compress.cli.session import PROGRAM, Session
from compress.errors import BadInput, BudgetUnreachable, RunFolderError
from compress.finished import read_finished
from compress.making_options import MakingOptions
from compress.report import words
from compress.results import Candidate, Front
from compress.types import Budget, Target

BUDGET = {
    "latency": "latency_s",
    "ram": "ram_bytes",
    "flash": "flash_bytes",
    "macs": "macs",
    "params": "params",
    "weight_bits": "weight_bits",
    "activation_bits": "activation_bits",
    "bit_operations": "bit_operations",
    "max_drop": "max_accuracy_drop",
}
"""Option to the field of :class:`~compress.types.Budget`."""
NAMED = ("model", "target", "data", "weights", "mean", "std", "protect_classes")
SETTINGS = ("seed", "prune", "quantize", "epochs", "samples", "candidates", "runtime", "tune", "sensing", "image_size")
CALIBRATION = "calibration.json"
"""Of a run that predicts by a calibration: the one that it was begun with."""


def run(session: Session, typed: Mapping[str, Any]) -> int:
    """Do the main job.

    Args:
        session: the call of the command.
        typed: the options; None where one wasn't typed.

    Raises:
        BadInput: something that was typed can't be used; nothing has been written.
        BudgetUnreachable: no candidate meets the budget; the front has been written and printed.
    """
    resume = typed["resume"]
    if not resume:
        return _begin(session, dict(typed), None, session.command, resume=False)
    path = _unfinished(typed)
    try:
        document = runfolder.read_run(path)
    except RunFolderError:
        others = {each.name for each in path.iterdir()} - {"candidates", CALIBRATION} if path.is_dir() else set()
        if typed["model"] is None or typed["target"] is None or others:
            raise
        # It was stopped before it wrote anything: what was typed is all there is to know.
        return _begin(session, dict(typed), path, session.command, resume=True)
    options = _options(path, document, typed)
    if document.get("status") == "finished":
        _same(path, options, typed)
        front, _ = read_finished(path, document)
        sys.stderr.write("" if typed["quiet"] else f"the run in {path} is finished; this is what it found\n")
        return _end(front, path, {**typed, **options})
    return _begin(session, {**typed, **options}, path, str(document.get("command", session.command)), resume=True)


def _begin(session: Session, options: Mapping[str, Any], path: Path | None, command: str, resume: bool) -> int:
    """Check what was asked for, do it, and print what came out.

    Args:
        session: the call of the command.
        options: all of them.
        path: the run folder; None for the one that ``options`` or the default says.
        command: the command line that began the run.
        resume: go on with what is in the folder.
    """
    for name, example in (("model", "resnet"), ("target", "jetson")):
        if options[name] is None:
            raise BadInput(f"--{name} is missing; give one, such as --{name} {example}, or see {PROGRAM} {name}s")
    # What costs nothing to check comes before torch is imported.
    device = targets.load(options["target"])
    limit_bytes()
    how = MakingOptions(
        1 if options["processes"] is None else options["processes"], options["workers"], not options["no_cache"]
    )
    how.check(options["tune"])
    if path is None:
        path = (
            Path(options["out"])
            if options["out"] is not None
            else runfolder.default_path(options["model"], device.name)
        )
    runfolder.check_writable(path, resume)
    with watching(options["quiet"], options["verbose"]) as watcher:
        watcher.phase("load PyTorch")
        with interrupts.deferred():
            from compress import api
        watcher.phase(f"load {options['model']}, trace it and check the job")
        prepared = api.prepare(
            **{name: options[name] for name in (*NAMED, *SETTINGS, "calibration") if options[name] is not None},
            budget=Budget(**{field: options[option] for option, field in BUDGET.items()}),
        )
        # Loading took seconds: somebody else may have taken the folder since.
        runfolder.check_writable(path, resume)
        session.folder = path
        front = api.start(prepared, path, command, watcher, resume, how)
    return _end(front, path, options)


def _end(front: Front, path: Path, options: Mapping[str, Any]) -> int:
    if options["as_json"]:
        screen.emit(json.loads((path / "front.json").read_text(encoding="utf-8")))
    else:
        _show(front, path, targets.load(options["target"]))
    if front.best() is None:
        raise unreachable(front)
    return 0


def _options(path: Path, document: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the run in ``path`` was begun with, and the typed ones over them."""
    try:
        recorded = _recorded(document["configuration"])
        named = document["configuration"]["data"]
    except (KeyError, TypeError, AttributeError):
        raise RunFolderError(str(path), f"its {runfolder.RUN} is damaged", "begin again with another --out") from None
    options = {name: value if typed[name] is None else typed[name] for name, value in recorded.items()}
    options["calibration"] = typed.get("calibration")
    if options["model"] is None or (options["data"] is None and named is not None):
        raise RunFolderError(
            str(path), "its network or data came from Python", "go on there: compress.run(..., out=..., resume=True)"
        )
    if options.get("calibration") is None:
        # The one that the run was begun with, whatever has been measured since.
        has = document["configuration"].get("calibration") is not None
        options["calibration"] = str(path / CALIBRATION) if has else "none"
    return options


def _same(path: Path, options: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """See that nothing was typed that a finished run was not asked for."""
    document = runfolder.read_run(path)
    for name, was in _recorded(document["configuration"]).items():
        if options[name] != was and not (name == "target" and targets.load(options[name]) == targets.load(str(was))):
            option = f"--{name.replace('_', '-')}"
            raise RunFolderError(
                str(path), f"its finished run has {option} {was!r}, not {typed[name]!r}", "choose another --out"
            )


def _unfinished(typed: Mapping[str, Any]) -> Path:
    if typed["out"] is not None:
        return Path(typed["out"])
    if typed["model"] is None or typed["target"] is None:
        raise BadInput("--resume doesn't say which run; add --out DIR, or --model and --target")
    name = targets.load(typed["target"]).name
    path = runfolder.latest_unfinished(typed["model"], name)
    if path is None:
        raise BadInput(
            f"under runs is no unfinished run of {typed['model']} for {name}; add --out DIR, or leave --resume out"
        )
    return path


def _recorded(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a run was begun with."""
    asked, budget = configuration["asked"], configuration["budget"]
    known = {"sensing": None, "image_size": None, **configuration}  # runs of earlier versions have no sensing
    found = {**{name: asked[name] for name in NAMED}, **{name: known[name] for name in SETTINGS}}
    for name in ("mean", "std", "protect_classes", "image_size"):
        found[name] = None if found[name] is None else tuple(found[name])
    for name in ("prune", "quantize"):
        found[name] = found[name] or "none"
    return {**found, **{option: budget.get(field) for option, field in BUDGET.items()}}


def unreachable(front: Front) -> BudgetUnreachable:
    """That no candidate of ``front`` meets its budget: the budget, the nearest and by how much it misses."""
    nearest = front.nearest()
    over = front.violations(nearest)
    excesses = ", ".join(_excess(front, nearest, name, by) for name, by in over.items())
    return BudgetUnreachable(" and ".join(words.budget_text(front.budget, front.metric)), f"{nearest.id} ({excesses})")


def _excess(front: Front, candidate: Candidate, name: str, by: float) -> str:
    if name == "accuracy drop":
        lost = front.metric.difference(front.baseline.value - candidate.value, 2)
        return f"{front.metric.name} drop {lost}, {by:.2f} over"
    base = front.baseline
    value = {
        "latency": words.seconds(front.latency_s(candidate)),
        "RAM": words.size(candidate.best.ram_bytes),
        "flash": words.size(candidate.best.bytes),
        "MACs": words.percent(candidate.macs / base.macs, 1),
        "parameters": words.percent(candidate.params / base.params, 1),
        "average weight bits": words.bits(candidate.weight_bits),
        "activation bits": words.bits(candidate.activation_bits),
        "bit operations": f"{candidate.bit_operations or 0:,}",
    }[name]
    if by >= 1:
        return f"{name} {value}, {words.times(1 + by)} the limit"
    return f"{name} {value}, {words.percent(by, 1 if by < 0.1 else 0)} over"


CONTENTS = (
    ("report.html", "the report, to look at in a browser"),
    ("front.svg", "its plot"),
    ("front.json", "every figure, for programs"),
    ("run.json", "what was asked for, versions, times"),
    ("candidates", "every candidate, each a bundle"),
    ("bundle", "the best candidate, to copy to the device"),
)


def _show(front: Front, path: Path, device: Target) -> None:
    """The end of a run on standard output: the table, what is in the folder, and what to type next."""
    from rich.text import Text

    from compress.report.terminal import front_table, rows_table

    out = screen.console()
    there = [(name, what) for name, what in CONTENTS if (path / name).exists()]
    rows = [(f"{name}/" if (path / name).is_dir() else name, what) for name, what in there]
    out.print()
    screen.show(front_table(front), rows_table(["", ""], rows, title=f"In {path}"))
    out.print()
    out.print(Text("Next:", style="bold"))
    for command in next_commands(front, path, device):
        # Not wrapped, so that it can be copied.
        out.print(Text(f"  {command}"), soft_wrap=True)


def next_commands(front: Front, path: Path, device: Target) -> tuple[str, ...]:
    """What to type after a run: see where the time goes, check the bundle, measure it here or take it to the device."""
    if front.best() is None:
        return (shlex.join([PROGRAM, "report", str(path)]),)
    bundle = str(path / "bundle")
    commands = [shlex.join([PROGRAM, "explain", str(path)]), shlex.join([PROGRAM, "verify", bundle])]
    if device.host:
        commands.append(shlex.join([PROGRAM, "profile", bundle]))
    elif device.triple is not None and "linux" in device.triple:
        commands += [f"scp -r {shlex.quote(bundle)} USER@DEVICE:", "ssh USER@DEVICE python3 bundle/run.py --time"]
    return tuple(commands)


__all__ = ["next_commands", "run", "unreachable"]
