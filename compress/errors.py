"""Every error that a user can cause or meet, each of which writes its own sentence.

::

    CompressError                 exit 1, never raised itself
    ├── BadInput                  exit 2: one line that names the fix, nothing written
    │   ├── UnknownName           a model, target, method... that doesn't exist, nearest names offered
    │   ├── BadData               images, labels or a data set that can't be used
    │   ├── BadWeights            a checkpoint that doesn't fit, or isn't safe to read
    │   ├── Untraceable           a network that can't be captured: operator and module path named
    │   ├── MissingExtra          an optional package that isn't installed
    │   ├── MissingCompiler       no C compiler for a device
    │   ├── DeviceUnreachable     a device that doesn't answer, or doesn't any more; what came there stays there
    │   ├── WorkersUnusable       a cluster that doesn't answer, has vanished, or differs from this machine
    │   ├── RunFolderError        an output folder that is taken, unwritable or full
    │   ├── NoPrunableAxis        nothing in the network can be removed
    │   └── LimitsUnreachable     no choice of bits meets the limits: the least possible is named
    ├── BudgetUnreachable         exit 3: no candidate meets the budget; the front is still written
    ├── CheckFailed               exit 4: verify or doctor found something wrong
    └── Interrupted               exit 130: stopped by the user; the folder resumes

An error takes fields and writes the sentence from them, so that code can read the fields and people
the sentence. The sentence is one line: what is wrong, then what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar


class CompressError(Exception):
    """The base of all of them. ``exit_code`` is what the command line exits with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str) -> None:
        self.sentence = " ".join(sentence.split())
        super().__init__(self.sentence)


class BadInput(CompressError):
    """Something that the user gave can't be used; nothing has been written."""

    exit_code = 2


class UnknownName(BadInput):
    """A name that isn't in a known list.

    Args:
        kind: what was looked for: ``"target"``, ``"model"``, ``"pruning method"``.
        name: what was given.
        known: the names that exist.
        hint: where to see them, or what else is allowed.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        self.nearest = nearest_names(name, self.known)
        near = f"; nearest: {', '.join(self.nearest)}" if self.nearest else ""
        if not near and 0 < len(self.known) <= 12:
            near = f"; there are: {', '.join(self.known)}"
        super().__init__(f"unknown {kind} {name!r}{near}" + (f"; {hint}" if hint else ""))


class BadData(BadInput):
    """A data set that can't be used.

    Args:
        data: the data set as the user named it.
        problem: what is wrong with it.
        fix: what to do about it.
    """

    def __init__(self, data: str, problem: str, fix: str) -> None:
        self.data, self.problem, self.fix = data, problem, fix
        super().__init__(f"data {data}: {problem}; {fix}")


class NoGradient(BadInput):
    """A network whose output has no gradient, or only zeros.

    Args:
        reason: where it was lost, as far as that is known.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the loss gives no gradient: {reason}; take the network's output from before it is detached or rounded, "
            "or --quantize layer-error, which needs none"
        )


class BadWeights(BadInput):
    """A checkpoint that can't be loaded into the network, or not safely.

    Args:
        path: the file.
        problem: what is wrong; keys are named.
        fix: what to do about it.
    """

    def __init__(self, path: str, problem: str, fix: str) -> None:
        self.path, self.problem, self.fix = path, problem, fix
        super().__init__(f"weights {path}: {problem}; {fix}")


class Untraceable(BadInput):
    """A network whose forward pass can't be captured as a graph.

    Args:
        operator: the operator or statement that stopped it.
        module_path: where it stands in the user's module, ``""`` for the outermost module.
        reason: why, in the tracer's words, shortened.
    """

    def __init__(self, operator: str, module_path: str, reason: str) -> None:
        self.operator, self.module_path, self.reason = operator, module_path, reason
        where = f"module {module_path!r}" if module_path else "the outermost module's forward"
        super().__init__(
            f"the network can't be traced: {operator} in {where}: {reason}; "
            "make that part independent of the values of its tensors, or give a .pt2 "
            "that torch.export made"
        )


class MissingExtra(BadInput):
    """A package that an option needs and that isn't installed.

    Args:
        package: the import that failed.
        extra: the extra of this project that brings it.
        what: what it is needed for.
    """

    def __init__(self, package: str, extra: str, what: str) -> None:
        self.package, self.extra, self.what = package, extra, what
        super().__init__(f"{what} needs {package}: pip install {package} (or this project's extra '{extra}')")


class MissingCompiler(BadInput):
    """No C compiler for a device is installed.

    Args:
        triple: of the device.
        apt: Debian's packages, separated by spaces.
        pip: the Python package that brings one.
        extra: the extra of this project that brings it too.
    """

    def __init__(self, triple: str, apt: str, pip: str, extra: str) -> None:
        self.triple, self.apt, self.pip, self.extra = triple, apt, pip, extra
        super().__init__(
            f"no C compiler for {triple} is installed: apt install {apt}, or pip install {pip} "
            f"(this project's extra '{extra}')"
        )


class DeviceUnreachable(BadInput):
    """A device that can't be reached.

    Args:
        device: its address.
        problem: what is wrong.
        fix: what to do about it.
    """

    def __init__(self, device: str, problem: str, fix: str) -> None:
        self.device, self.problem, self.fix = device, problem, fix
        super().__init__(f"--device {device}: {problem}; {fix}")


class WorkersUnusable(BadInput):
    """Workers that can't be used, or can't any more; finished candidates are kept.

    Args:
        option: how they were asked for: ``"--workers tcp://host:8786"``.
        problem: what is wrong.
        fix: what to do about it.
    """

    def __init__(self, option: str, problem: str, fix: str) -> None:
        self.option, self.problem, self.fix = option, problem, fix
        super().__init__(f"{option}: {problem}; {fix}")


class RunFolderError(BadInput):
    """An output folder that is taken, can't be written or is full."""

    def __init__(self, path: str, problem: str, fix: str) -> None:
        self.path, self.problem, self.fix = path, problem, fix
        super().__init__(f"output folder {path}: {problem}; {fix}")


class NoPrunableAxis(BadInput):
    """Nothing in the network can be removed.

    Args:
        reasons: why each axis that was looked at has to stay.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        shown = "; ".join(self.reasons[:3]) or "it has no convolution or linear layer between input and output"
        super().__init__(f"no axis of the network can be pruned ({shown}); use --prune none")


class LimitsUnreachable(BadInput):
    """No choice of bits meets the limits.

    Args:
        limits: each limit by name.
        least: the least possible value of each, when the others are left aside.
    """

    def __init__(self, limits: Mapping[str, float], least: Mapping[str, float]) -> None:
        self.limits, self.least = dict(limits), dict(least)
        self.jointly = all(least[name] <= limit for name, limit in limits.items())
        each = ", ".join(
            f"{name} {_number(limit)} (least possible {_number(least[name])})" for name, limit in limits.items()
        )
        why = "each can be met alone, but not all together; raise one of them"
        if not self.jointly:
            over = [name for name, limit in limits.items() if least[name] > limit]
            why = f"raise {' and '.join(over)}"
        super().__init__(f"no choice of bits is within {each}: {why}")


class BudgetUnreachable(CompressError):
    """No candidate meets the budget. The front has been written; the nearest candidate is named.

    Args:
        budget: the budget in words.
        nearest: the candidate that comes nearest, in words.
    """

    exit_code = 3

    def __init__(self, budget: str, nearest: str) -> None:
        self.budget, self.nearest = budget, nearest
        super().__init__(
            f"no candidate meets {budget}; nearest: {nearest}; relax the budget or ask for more candidates"
        )


class CheckFailed(CompressError):
    """A check of ``verify`` or ``doctor`` failed.

    Args:
        subject: what was checked.
        failures: what is wrong with it, one entry a failure.
    """

    exit_code = 4

    def __init__(self, subject: str, failures: Sequence[str]) -> None:
        self.subject, self.failures = subject, tuple(failures)
        super().__init__(f"{subject}: {'; '.join(self.failures)}")


class Interrupted(CompressError):
    """The user stopped the run; the folder holds all that was finished.

    Args:
        resume: the command that goes on from here.
    """

    exit_code = 130

    def __init__(self, resume: str) -> None:
        self.resume = resume
        super().__init__(f"interrupted; go on with: {resume}")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def nearest_names(name: str, known: Iterable[str], most: int = 3) -> tuple[str, ...]:
    """The names in ``known`` most like ``name``, best first, at most ``most``."""
    choices = list(known)
    lowered = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=most, cutoff=0.5)
    if not found:
        found = [low for low in lowered if low.startswith(name.lower()) or name.lower().startswith(low)][:most]
    return tuple(lowered[low] for low in found)
