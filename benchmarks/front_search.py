"""ResNet-56 on CIFAR-10 for this machine's processor, nothing trained: the search's front beside those of others.

Every search gets as many candidates. All of them are files that were evaluated on the 10,000 test images and timed, in
every runtime of the target. They are kept in the cache, so a run that was stopped goes on.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common, pruned

if TYPE_CHECKING:
    from compress.execution import Searching
    from compress.making import Maker
    from compress.results import Candidate, Front
    from compress.search import Outcome, Proposal, Search

NETWORK = "resnet56"
CANDIDATES = 30
OURS = "ours"
FLOOR_POINTS = 5.0
"""What loses more accuracy dominates nothing."""

DROP_POINTS = 1.0
TARGETS = {"speedup_over_float": 3.0, "speedup_over_8_bits": 2.0, "onnxruntime_speedup_over_8_bits": 1.4}
ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Method:
    """A search to set beside ours.

    Attributes:
        options: of :func:`compress.api.prepare`.
        search: what proposes; None for the product's own.
    """

    name: str
    options: Mapping[str, Any]
    search: Searching | None


@dataclass
class Drawn:
    """Random choices among all that a search could propose."""

    maker: Maker
    least: tuple[float, float]

    @property
    def most(self) -> int:
        """As many as the job asks for."""
        return self.maker.job.candidates

    def propose(self, outcomes: Sequence[Outcome], /) -> tuple[Proposal, ...]:
        """All at once."""
        import numpy as np

        if outcomes:
            return ()
        known = [forecast.proposal for forecast in self.maker.forecasts(self.least)]
        order = np.random.default_rng(self.maker.job.seed).permutation(len(known))
        return tuple(known[i] for i in order[: self.most])

    def account(self, outcomes: Sequence[Outcome], /) -> None:
        """Nothing was expected."""


def ladder(maker: Maker) -> Search:
    """Sizes and widths on a fixed grid."""
    from compress.preflight import check
    from compress.search import OneRound

    return OneRound(check(maker.job).ladder)


def drawn(maker: Maker) -> Search:
    """Choices at random."""
    from compress.preflight import check

    return Drawn(maker, check(maker.job).least)


METHODS = (
    Method(OURS, {}, None),
    Method("the same share of every layer, 8 bits", {"prune": "norm", "quantize": "uniform"}, ladder),
    Method("precision alone", {"prune": "none"}, ladder),
    Method("at random", {}, drawn),
    Method("a grid of sizes and widths", {}, ladder),
)


def fronts(cifar10: Path, count: int, methods: Sequence[Method], **more: Any) -> list[common.Row]:
    """One row a method."""
    rows = []
    for method in methods:
        front, correlation = found(cifar10, method, count, **more)
        rows.append(row(method.name, front, correlation))
        print(f"{method.name}: {rows[-1]}", flush=True)
    return rows


def found(cifar10: Path, method: Method, count: int, **more: Any) -> tuple[Front, float | None]:
    """A method's front, and the rank correlation of what it expected after its first round."""
    from compress import api, runfolder
    from compress.making_options import MakingOptions
    from compress.watch import Silent

    weights = next((common.data_dir() or Path()).glob(f"weights/cifar10-akamaster/{NETWORK}-*.th"))
    given: dict[str, Any] = {"target": "cpu", "weights": str(weights), "epochs": 0, "candidates": count}
    prepared = api.prepare(NETWORK, f"cifar10:{cifar10}", **(given | dict(method.options) | more))

    class Told(Silent):
        def finished(self, candidate: Candidate) -> None:
            accuracy = candidate.accuracy
            print(f"  {candidate.id}: {accuracy.value if accuracy else None}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        how = MakingOptions(processes=int(os.environ.get("PROCESSES", 1)))
        front = api.start(prepared, path, "benchmark", Told(), False, how, method.search)
        facts = runfolder.read_run(path)["facts"]
    account = facts.get("search") or {}
    return front, account.get("informed_rank_correlation")


def row(name: str, front: Front, correlation: float | None) -> common.Row:
    """A front's figures; speedups are those of its fastest candidate within the allowed drop."""
    baseline = front.baseline
    whole = seconds(baseline, ONNXRUNTIME)
    eight = next((c for c in front.candidates if c.id == "macs100-w8"), None)
    plain = seconds(eight, ONNXRUNTIME) if eight is not None else None

    def chosen(time: Callable[[Candidate], float]) -> Candidate | None:
        near = [c for c in front.candidates if baseline.value - value_in(c, time) <= DROP_POINTS + 1e-9]
        return min(near, key=time, default=None)

    def fastest(candidate: Candidate) -> float:
        return min(seconds(candidate, artifact.runtime) for artifact in candidate.artifacts)

    def by_onnxruntime(candidate: Candidate) -> float:
        return seconds(candidate, ONNXRUNTIME)

    best, best_there = chosen(fastest), chosen(by_onnxruntime)
    return {
        "search": name,
        "candidates": len(front.candidates),
        "hypervolume_nat_points": round(
            hypervolume([(fastest(c) / whole, c.value) for c in front.candidates], baseline.value), 3
        ),
        "useful_candidates": sum(c.value > baseline.value - FLOOR_POINTS for c in front.candidates),
        "float_accuracy_percent": round(baseline.value, 2),
        "float_ms": 1e3 * whole,
        "plain_8_bits_ms": None if plain is None else 1e3 * plain,
        "best": None if best is None else best.id,
        "best_accuracy_percent": None if best is None else round(best.value, 2),
        "best_ms": None if best is None else 1e3 * fastest(best),
        "speedup_over_float": None if best is None else whole / fastest(best),
        "speedup_over_8_bits": None if best is None or plain is None else plain / fastest(best),
        "onnxruntime_best": None if best_there is None else best_there.id,
        "onnxruntime_best_accuracy_percent": None if best_there is None else round(best_there.value, 2),
        "onnxruntime_speedup_over_8_bits": (
            None if best_there is None or plain is None else plain / by_onnxruntime(best_there)
        ),
        "informed_rank_correlation": correlation,
    }


def seconds(candidate: Candidate, runtime: str) -> float:
    """Measured seconds of a candidate's artifact; infinity where there is none."""
    times = [a.measurement.latency_s for a in candidate.artifacts if a.runtime == runtime and a.measurement is not None]
    return times[0] if times else math.inf


def value_in(candidate: Candidate, time: Callable[[Candidate], float]) -> float:
    """The accuracy of the artifact that a time is of."""
    wanted = time(candidate)
    for artifact in candidate.artifacts:
        if seconds(candidate, artifact.runtime) == wanted and artifact.accuracy is not None:
            return artifact.accuracy.value
    return -math.inf


def hypervolume(points: Sequence[tuple[float, float]], baseline: float) -> float:
    """The area that (latency as a share of the float file's, accuracy) dominate, down to :data:`FLOOR_POINTS` below the
    float network and up to its latency; latency by its natural logarithm, in nats times points."""
    area, top = 0.0, baseline - FLOOR_POINTS
    for share, value in sorted(points, key=lambda each: (each[0], -each[1])):
        if value > top and share < 1:
            area += -math.log(share) * (value - top)
            top = value
    return area


def measure() -> list[common.Row]:
    """``SEARCHES=1,4`` has the first and the fourth alone, ``CANDIDATES`` fewer candidates; ``PROCESSES`` makes so many
    candidates side by side (``OMP_NUM_THREADS=1`` gives each one thread), and times them alone afterwards."""
    count, chosen = int(os.environ.get("CANDIDATES", CANDIDATES)), os.environ.get("SEARCHES")
    with common.cifar10() as cifar10:
        return fronts(cifar10, count, METHODS if chosen is None else numbered(chosen))


def numbered(text: str) -> list[Method]:
    """The searches that ``SEARCHES`` names.

    Raises:
        ValueError: there is none of such a number.
    """
    known = {str(number): method for number, method in enumerate(METHODS, 1)}
    unknown = [number for number in text.split(",") if number not in known]
    if unknown:
        raise ValueError(f"SEARCHES={text}: there is no search {unknown[0]!r}; give numbers from 1 to {len(METHODS)}")
    return [known[number] for number in text.split(",")]


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    ours = pruned.find(rows, search=OURS)
    said = [
        f"within {DROP_POINTS:g} point of float, by the fastest runtime, {_verdict(ours, 'speedup_over_float')} times "
        "faster than the float file in ONNX Runtime",
        f"{_verdict(ours, 'speedup_over_8_bits')} times faster than its plain 8-bit file there",
        f"by ONNX Runtime alone {_verdict(ours, 'onnxruntime_speedup_over_8_bits')} times faster than that file",
    ]
    correlation = ours["informed_rank_correlation"]
    text = (
        f"ResNet-56 on CIFAR-10 ({ours['float_accuracy_percent']:.2f}%) for the target `cpu`, nothing trained, "
        f"{ours['candidates']} candidates a search, each a file that was evaluated on the 10,000 test images and "
        "timed. The hypervolume is the area that a front dominates over accuracy, down to "
        f"{FLOOR_POINTS:g} points below the float network, and the logarithm of measured latency by the fastest "
        "runtime, up to the float file's in ONNX Runtime. "
        f"Ours: {'; '.join(said)}. "
        + _storage(document["machine"])
        + _doubted(ours)
        + _lacking(rows)
        + (
            f"Rank correlation of expected and measured accuracy after the first round: {correlation:.2f}.\n\n"
            if correlation is not None
            else "\n\n"
        )
    )
    header = [
        "search",
        "candidates, of use",
        "hypervolume",
        "fastest within a point",
        "its accuracy, %",
        "times faster than float",
        "than plain 8 bits",
        "ONNX Runtime alone, than plain 8 bits",
    ]
    return text + common.markdown_table(
        header,
        [
            [
                each["search"],
                f"{each['candidates']}, {each['useful_candidates']}",
                common.shown(each["hypervolume_nat_points"], 2),
                each["best"] or "—",
                common.shown(each["best_accuracy_percent"], 2),
                *(common.shown(each[key], 2) for key in TARGETS),
            ]
            for each in rows
        ],
        text_columns=1,
    )


def _doubted(ours: Mapping[str, Any]) -> str:
    """ONNX Runtime's fastest file may be no smaller than the plain one."""
    best = str(ours["onnxruntime_best"])
    if not best.startswith("macs100-"):
        return ""
    return (
        f"The fastest there within a point, `{best}`, has all multiply-accumulates and runs the same 8-bit kernels as "
        "the plain file, so that ratio is this measurement's scatter and no gain. "
    )


def _lacking(rows: Sequence[Mapping[str, Any]]) -> str:
    """Searches that weren't run."""
    there = {each["search"] for each in rows}
    lacking = [method.name for method in METHODS if method.name not in there]
    return f"Not run beside it: {'; '.join(lacking)}. " if lacking else ""


def _storage(machine: Mapping[str, Any]) -> str:
    """In which form 8-bit files are where ONNX Runtime isn't exact on the usual one."""
    if "avx2" not in machine["cpu"]:
        return ""
    return (
        "This processor has no VNNI, so 8-bit files, the plain one among them, hold their weights unsigned, which ONNX "
        "Runtime is exact on; signed ones would be faster there and wrong "
        "([quantization.md](quantization.md#8-bit-weights-on-x86-without-vnni)). "
    )


def _verdict(ours: Mapping[str, Any], key: str) -> str:
    value, target = ours[key], TARGETS[key]
    if value is None:
        return f"no candidate (target {target:g})"
    return f"{value:.2f} (target {target:g}: {'reached' if value >= target else 'missed'})"


BENCHMARK = common.Benchmark(
    name="front_search",
    title="ResNet-56 on CIFAR-10: the front of the search beside those of other searches",
    needs=(
        common.data("cifar10", "CIFAR-10"),
        common.data("weights/cifar10-akamaster", "akamaster's ResNet-56"),
    ),
    packages=("torch", "onnx", "onnxruntime", "apache-tvm", "numpy", "scipy", "scikit-learn"),
    measure=measure,
    section=section,
    minutes=110,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
