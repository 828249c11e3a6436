"""A calibration of one target on one device: draw the networks, have them timed, fit, and say how far off it is.

What is timed where:

- this machine (``host`` targets): each network as an ONNX file in ONNX Runtime and as the compiled library, with the
  threads that a run of ``compress`` gives them, by the timer that measures its candidates;
- a device over SSH: the ONNX files in ONNX Runtime there, all in one job (:mod:`compress.profiling.remote_designs`);
- a microcontroller that QEMU has a board for: the compiled library's instructions are counted, which is no time.

Each group that is timed in turns has reference networks in it, by which all times are brought to one pace
(:mod:`compress.profiling.pace`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compress import __version__
from compress.calibration import SCHEMA, Calibration, Fit, Kind, Unit
from compress.errors import BadInput, CheckFailed
from compress.profiling import artifacts, designs, features, fitting, pace, session, timer
from compress.profiling.drawing import Drawn
from compress.profiling.latency import network_terms, works
from compress.types import FLOAT32, Precision, Target

ONNXRUNTIME, TVM = "onnxruntime", "tvm"
W8A8, W4A8 = Precision(8, 8, "integer"), Precision(4, 8, "integer")
NARROW_EACH = 4
"""One in so many integer networks has 4-bit weights, where kernels unpack them."""
TOGETHER = 8
"""Networks that are timed in turns."""
ROUNDS, SLICE_S, WARM_UP_S = 8, 0.003, 0.01
MOST_COUNTED_MACS = 4e5
"""Of an operator whose instructions are counted: emulators are slow."""
LEAST_CHECKED = 9
"""Networks that an interval of nine in ten needs."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many networks are drawn for one runtime and kind of numbers; see :mod:`compress.profiling.designs`."""

    chains: int = designs.CHAINS
    fitted: int = designs.FITTED
    checked: int = designs.CHECKED

    @property
    def all(self) -> int:
        """Of all three."""
        return self.chains + self.fitted + self.checked


class Progress(Protocol):
    """Told how far it is: what is done, how much of it, of how much."""

    def __call__(self, what: str, done: int, of: int, /) -> None:
        """Tell it."""


class Stand(Protocol):
    """A device that measures drawn networks."""

    device: str
    address: str
    unit: Unit
    threads: int
    versions: Mapping[str, str]
    warnings: list[str]

    def groups(self) -> Sequence[tuple[str, Kind]]:
        """The runtimes and kinds of numbers that it measures."""

    def measure(self, drawn: Sequence[Drawn], runtime: str, tell: Callable[[int], None]) -> dict[str, float]:
        """Seconds or instructions of each network by name; one that the device can't run is left out.

        Where it knows the pace that the seconds are at, that is among them.
        """


def calibrate(target: Target, stand: Stand, progress: Progress, size: Size | None = None) -> Calibration:
    """Measure, fit and check.

    Args:
        target: the device's target.
        stand: where to measure.
        progress: told how far it is.
        size: how many networks; the usual number by default.

    Raises:
        BadInput: the device lacks something, or runs too few of the networks.
    """
    counted = Size(designs.COUNTED_CHAINS, designs.COUNTED)
    size, start = size or (Size() if stand.unit == "s" else counted), time.perf_counter()
    groups, fits = stand.groups(), list[Fit]()
    total = size.all * len(groups)
    for number, (runtime, kind) in enumerate(groups):
        what, before = f"{runtime}, {kind}", number * size.all
        fitted, checked = drawn(kind, runtime, size, stand.unit)
        found = stand.measure(
            [*fitted, *checked],
            runtime,
            lambda done, what=what, before=before: progress(what, before + done, total),  # type: ignore[misc]
        )
        rows = [
            [(terms_of(each, stand.unit), found[each.name]) for each in part if each.name in found]
            for part in (fitted, checked)
        ]
        if len(rows[1]) < min(LEAST_CHECKED, size.checked) or not rows[0]:
            raise BadInput(
                f"{stand.device} ran {len(rows[0]) + len(rows[1])} of {size.all} networks in {runtime}; "
                "too few to calibrate by: see compress doctor"
            )
        ridge = fitting.RIDGE if stand.unit == "s" else fitting.RIDGE_OF_COUNTS
        fits.append(fitting.fit(runtime, kind, rows[0], rows[1], ridge, found.get(pace.NAME)))
    return Calibration(
        schema=SCHEMA,
        terms=features.VERSION,
        target=target.name,
        device=stand.device,
        address=stand.address,
        date=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        versions=dict(stand.versions),
        threads=stand.threads,
        unit=stand.unit,
        fits=tuple(fits),
        seconds=round(time.perf_counter() - start, 1),
        warnings=tuple(dict.fromkeys(stand.warnings)),
    )


def drawn(kind: Kind, runtime: str, size: Size, unit: Unit) -> tuple[list[Drawn], list[Drawn]]:
    """The networks to fit and those to check by, every one by another name."""
    largest = designs.MOST_MACS if unit == "s" else MOST_COUNTED_MACS

    def some(count: int, make: Callable[[Precision, int], list[Drawn]]) -> list[Drawn]:
        if kind == "float":
            return make(FLOAT32, count)
        found = make(W8A8, count)
        if runtime == TVM:
            found[NARROW_EACH - 1 :: NARROW_EACH] = make(W4A8, count)[NARROW_EACH - 1 :: NARROW_EACH]
        return found

    fitted = some(size.chains, lambda p, n: designs.chains(p, n, largest))
    fitted += some(size.fitted, lambda p, n: designs.networks(p, n, 1, largest))
    return fitted, some(size.checked, lambda p, n: designs.networks(p, n, 2, largest))


def terms_of(each: Drawn, unit: Unit = "s") -> dict[str, float]:
    """The terms that a network's time, or its instructions, are fitted by."""
    found = works(each.operators, lambda _: each.precision, each.inputs)
    row = network_terms([work for work, _ in found], each.inputs)
    return {name: value for name, value in row.items() if unit == "instructions" or not features.counted(name)}


def versions() -> dict[str, str]:
    """Of what shapes a time on this machine."""
    return {"compress": __version__, **{each: metadata.version(each) for each in (ONNXRUNTIME, "apache-tvm")}}


class Here:
    """This machine."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.device, self.address, self.unit = session.machine(), "local", "s"
        self.threads, self.versions = session.threads(), versions()
        self.warnings: list[str] = []

    unit: Unit
    versions: Mapping[str, str]

    def groups(self) -> Sequence[tuple[str, Kind]]:
        """ONNX Runtime with both kinds of numbers, and the compiled library's integers where there are kernels.

        A compiled network in float is there for comparison, and takes minutes to compile so many times: its latency
        stays what the target's numbers say.
        """
        from compress.export.kernels import backends

        found: list[tuple[str, Kind]] = [(ONNXRUNTIME, "float"), (ONNXRUNTIME, "integer")]
        if TVM in self.target.runtimes and backends.host() is not None:
            found.append((TVM, "integer"))
        return found

    def measure(self, drawn: Sequence[Drawn], runtime: str, tell: Callable[[int], None]) -> dict[str, float]:
        """Seconds by name at one pace, timed in turns of :data:`TOGETHER` and the references."""
        groups: list[dict[str, float]] = []
        drawn = mixed(shipped(drawn, self.target) if runtime == ONNXRUNTIME else drawn)
        with ExitStack() as whole:
            home = Path(whole.enter_context(tempfile.TemporaryDirectory()))
            beside = {each.name: _job(each, runtime, home, whole) for each in references(drawn)}
            assert None not in beside.values()  # of operators that every back end has
            for first in range(0, len(drawn), TOGETHER):
                with ExitStack() as stack:
                    part = drawn[first : first + TOGETHER]
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    made = {each.name: _job(each, runtime, folder, stack) for each in part} | beside
                    jobs = {name: job for name, job in made.items() if job is not None}
                    timed = timer.in_turns(jobs, ROUNDS, SLICE_S, WARM_UP_S)
                    seconds = timed.pace(list(beside))
                    found = {name: ratio * seconds for name, ratio in timed.ratios(list(beside)).items()}
                    groups.append({**found, pace.NAME: seconds})
                    self._notice(timed.conditions[next(iter(beside))])
                tell(min(first + TOGETHER, len(drawn)))
        self.warnings += said_of(groups)
        return pace.at_one_pace(groups)

    def _notice(self, conditions: Mapping[str, Any]) -> None:
        if "other_programs" in conditions:
            self.warnings.append("other programs used the machine meanwhile")
        if "throttled" in conditions:
            self.warnings.append("the processor's clock fell meanwhile")


def shipped(drawn: Sequence[Drawn], target: Target) -> list[Drawn]:
    """Networks with their weights as files for a target have them."""
    from compress.export.onnx import stored
    from compress.export.onnxruntime import weight_storage

    return [replace(each, file=stored(each.file, weight_storage(target))) for each in drawn]


def references(drawn: Sequence[Drawn]) -> list[Drawn]:
    """The reference networks in the numbers of those that are timed; of narrow weights in 8 bits."""
    return pace.networks(FLOAT32 if drawn[0].precision.kind == "float" else W8A8)


def mixed(drawn: Sequence[Drawn]) -> list[Drawn]:
    """The same in an order that mixes kinds, those that are fitted and those that check: what is left of a machine's
    changes isn't taken for one of them."""
    return [drawn[place] for place in np.random.default_rng(0).permutation(len(drawn))]


def said_of(groups: Sequence[Mapping[str, float]]) -> list[str]:
    """What to say of a pace that moved."""
    moved = pace.moved(groups)
    if moved <= pace.MOVED:
        return []
    return [f"the machine was up to {100 * moved:.0f}% slower at times; all times are brought to one pace"]


def _job(each: Drawn, runtime: str, folder: Path, stack: ExitStack) -> Callable[[], Any] | None:
    """One run of a drawn network; None where there are no kernels for it."""
    path = folder / f"{each.name}.onnx"
    path.write_bytes(each.file)
    return runner(path, runtime, np.random.default_rng(0).random(each.shape, np.float32), stack)


def runner(path: Path, runtime: str, x: Any, stack: ExitStack) -> Callable[[], Any] | None:
    """One run of an ONNX file on ``x`` (1, C, H, W) in a runtime of this machine, compiled beside it where that is TVM;
    None where there are no kernels for it."""
    if runtime == ONNXRUNTIME:
        run = session.runner(session.open_session(path))
        return lambda: run(x)
    from compress.export.compiled import compile_file
    from compress.export.kernels import backends

    isa = backends.host()
    assert isa is not None
    try:
        linked = compile_file(path, isa, path.with_suffix("")).library.linked_path
    except BadInput:
        return None
    return None if linked is None else artifacts.compiled_job(linked, x, stack)[0]


class Counted:
    """A microcontroller in QEMU, which counts instructions.

    Raises:
        BadInput: there are no kernels for the target, or QEMU has no board with its core.
    """

    def __init__(self, target: Target) -> None:
        from compress.export.kernels import backends

        isa = backends.isa_of(target)
        if isa is None or not target.bare_metal:
            raise BadInput(f"--device qemu counts a microcontroller's instructions, and {target.name} is none")
        self.isa = isa
        self.device, self.address, self.unit = f"QEMU, {isa.cpu} ({isa.triple})", "qemu", "instructions"
        self.threads, self.versions = 1, versions()
        self.warnings: list[str] = []

    unit: Unit
    versions: Mapping[str, str]

    def groups(self) -> Sequence[tuple[str, Kind]]:
        """Compiled integers."""
        return [(TVM, "integer")]

    def measure(self, drawn: Sequence[Drawn], runtime: str, tell: Callable[[int], None]) -> dict[str, float]:
        """Instructions by name."""
        found: dict[str, float] = {}
        for number, each in enumerate(drawn, start=1):
            with tempfile.TemporaryDirectory() as folder:
                count = self._count(each, Path(folder))
            if count is not None:
                found[each.name] = float(count)
            tell(number)
        return found

    def _count(self, each: Drawn, folder: Path) -> int | None:
        from compress.export.compiled import compile_file
        from compress.export.library import counting

        path = folder / "model.onnx"
        path.write_bytes(each.file)
        x = np.random.default_rng(0).random(each.shape, np.float32)
        try:
            built = compile_file(path, self.isa, folder / "library").library
            (end,) = built.interface.inputs
            return counting.run(built, {end.name: x}).instructions
        except CheckFailed:
            return None  # the board's memory is too small for it


__all__ = [
    "Counted",
    "Here",
    "Progress",
    "Size",
    "Stand",
    "calibrate",
    "drawn",
    "mixed",
    "references",
    "runner",
    "said_of",
    "terms_of",
    "versions",
]
