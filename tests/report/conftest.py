"""Fronts made up for the tests of reports: each figure is chosen, so that each line can be predicted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from compress.report.facts import RunFacts
from compress.results import (
    Accuracy,
    Artifact,
    Candidate,
    ClassRecall,
    Dataset,
    Estimate,
    Front,
    LayerCost,
    LayerFact,
    Measurement,
    Unavailable,
)
from compress.search import Account, Expected
from compress.types import Budget, LayerPlan, LayerSensitivity, Note, Plan, Precision, Record, Size

LAYERS = [("conv1", 16, 442_368)] + [
    (f"layers.{stage}.{block}.conv{i}", 16 * 2**stage, 2_359_296 // (2 if i == 1 and block == 0 and stage else 1))
    for stage in range(3)
    for block in range(3)
    for i in (1, 2)
]
LAYERS.append(("linear", 10, 640))
CPU = "x86-64, 2 cores"
ACCURACIES = [(489, 500), (492, 500), (487, 500), (490, 500), (478, 500), (463, 500), (491, 500), (441, 500)]
"""Correct of 500, by candidate."""


def layer_facts(kept: float, bits: int, mixed: bool = False) -> tuple[LayerFact, ...]:
    facts = []
    for i, (name, channels, macs) in enumerate(LAYERS):
        last = name == "linear"
        share = 1.0 if last or kept == 1 else min(1.0, kept + 0.12 * math.sin(i))
        after = channels if last else max(4, 4 * round(channels * share / 4))
        ratio = after / channels
        width = 8 if mixed and i in (0, 1, len(LAYERS) - 1) else bits
        facts.append(
            LayerFact(
                name=name,
                kind="linear" if last else "conv2d",
                channels=after,
                channels_before=channels,
                weight_bits=width,
                activation_bits=8 if bits <= 8 else bits,
                params=round(channels * channels * 9 * ratio**2),
                macs=round(macs * ratio**2),
                macs_before=macs,
            )
        )
    return tuple(facts)


def estimate(latency_s: float, size: int, error: float, launch: float = 0.3) -> Estimate:
    names = [name for name, _, _ in LAYERS]
    share = latency_s / len(names)
    bounds = ["launch" if i < launch * len(names) else "compute" for i in range(len(names))]
    costs = tuple(LayerCost(n, 1000, 100, share, b) for n, b in zip(names, bounds, strict=True))
    return Estimate(latency_s, 4 * size, size, costs, error)


def measurement(latency_s: float, device: str = CPU) -> Measurement:
    return Measurement(latency_s, 1.08 * latency_s, 300, device, {"threads": 2, "batch": 1})


def candidate(
    name: str,
    kept: float,
    bits: int,
    accuracy: Accuracy | None,
    size: int,
    measured_s: float | None = None,
    predicted_s: float | None = None,
    *,
    error: float = 0.4,
    ram: int | None = None,
    mixed: bool = False,
    unavailable: tuple[Unavailable, ...] = (),
    notes: tuple[Note, ...] = (),
    launch: float = 0.3,
) -> Candidate:
    facts = layer_facts(kept, bits, mixed)
    precision = Precision(bits, 8, "integer") if bits < 32 else Precision()
    plan = Plan(
        tuple(LayerPlan(f.name, tuple(range(f.channels)), precision) for f in facts),
        seed=len(name) + sum(map(ord, name)),
    )
    macs, params = sum(f.macs for f in facts), sum(f.params for f in facts)
    weight_bits = sum(f.weight_bits * f.params for f in facts) / params
    whole = Size(sum(f.macs_before for f in facts), 272_474, 32.0)
    pruned, quantized = Size(macs, params, 32.0), Size(macs, params, weight_bits)
    records = (
        ()
        if bits == 32
        else (
            Record("prune", {"method": "norm", "macs": kept}, 0.41, whole, pruned, notes),
            Record("quantize", {"method": "uniform", "weight_bits": bits}, 1.32, pruned, quantized),
            Record("fine-tune", {"epochs": 1}, 3.8, quantized, quantized),
        )
    )
    path = f"candidates/{name}/model.onnx"
    artifact = Artifact(
        path=path,
        runtime="onnxruntime",
        plan_digest=plan.digest(),
        sha256=hashlib.sha256(path.encode()).hexdigest(),
        bytes=size,
        accuracy=accuracy,
        estimate=estimate(predicted_s, size, error, launch) if predicted_s is not None else None,
        measurement=measurement(measured_s) if measured_s is not None else None,
        ram_bytes=ram if ram is not None else 3 * size,
    )
    return Candidate(
        name, plan, (artifact,), unavailable, macs, params, weight_bits, 8.0 if bits < 32 else 32.0, facts, records
    )


def with_recall(made: Candidate, classes: tuple[str, ...], percent: tuple[float | None, ...]) -> Candidate:
    """A candidate with recall by class, the first class protected."""
    recall = ClassRecall(classes, percent, tuple(50 if p is not None else 0 for p in percent), classes[:1])
    return replace(made, artifacts=tuple(replace(artifact, recall=recall) for artifact in made.artifacts))


def top1(correct: int, n: int = 500) -> Accuracy:
    return Accuracy.from_counts(correct, n, "onnxruntime")


def psnr(value: float, measured_on: str = "onnxruntime") -> Accuracy:
    return Accuracy(value, value - 0.8, value + 0.8, 11, measured_on, "psnr_db", 0.9 + value / 1000)


KEPT = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.75, 0.3]
SIZES = [268_000, 221_000, 171_000, 128_000, 92_000, 63_000, 118_000, 41_000]
TIMES = [0.142e-3, 0.131e-3, 0.118e-3, 0.104e-3, 0.083e-3, 0.068e-3, 0.149e-3, 0.051e-3]
UNSUPPORTED = Note("avgpool", "average pooling", "no parameters and no channels of its own: left alone")


def measured_front() -> Front:
    """Eight candidates with both latencies. By hand: undominated are c8, c6, c5, c4 and c2, best is c4."""
    baseline = candidate("float", 1.0, 32, top1(493), 1_093_000, 0.262e-3, 0.29e-3)
    found = tuple(
        candidate(
            f"c{i + 1}",
            KEPT[i],
            4 if i == 6 else 8,
            top1(ACCURACIES[i][0]),
            SIZES[i],
            TIMES[i],
            TIMES[i] * (1.1 + 0.04 * i),
            mixed=i == 6,
            notes=(
                UNSUPPORTED,
                Note(
                    f"layers.{i % 3}.0.conv1", "option-A shortcut", "its channels must line up with the block's input"
                ),
            ),
        )
        for i in range(8)
    )
    return Front("resnet20", "cpu", Dataset("digits", "ab" * 32, 500), baseline, found)


TENSORRT = Unavailable(
    "tensorrt",
    "no NVIDIA GPU is in this machine, and an engine can only be built on the device it is for: copy the bundle to "
    "the Jetson and run trtexec --onnx=model.onnx there",
)


def crowded_front() -> Front:
    """Good candidates in a corner, whose names are as long as a search's get, and one far below."""
    baseline = candidate("float", 1.0, 32, top1(499), 921_000, 0.42e-3, 0.42e-3)
    found = (
        candidate("macs4-drop1-mixed7_5", 0.05, 8, top1(497), 34_300, 13.2e-6, 36.4e-6, mixed=True),
        candidate("macs4-drop1-w8", 0.05, 8, top1(497), 36_400, 13.3e-6, 36.4e-6),
        candidate("macs3-drop1-w8", 0.04, 8, top1(439), 36_600, 14.3e-6, 37.2e-6),
        candidate("macs5-drop1-w8", 0.06, 8, top1(499), 37_400, 14.6e-6, 36.6e-6),
        candidate("macs57-drop1-w8", 0.57, 8, top1(500), 261_000, 67.9e-6, 0.12e-3),
        candidate("macs55-w8", 0.55, 8, top1(499), 173_000, 77.2e-6, 0.15e-3),
        candidate("macs100-w8", 1.0, 8, top1(499), 295_000, 0.114e-3, 0.19e-3),
        candidate("macs100-mixed5_5", 1.0, 8, top1(500), 224_000, 0.12e-3, 0.19e-3, mixed=True),
    )
    return Front("resnet", "cpu", Dataset("digits", "ab" * 32, 500), baseline, found, Budget(max_accuracy_drop=1.0))


def predicted_front() -> Front:
    """Predictions only, for a device that isn't here; accuracies are still the file's own."""
    baseline = candidate(
        "float", 1.0, 32, top1(493), 1_093_000, None, 0.62e-3, error=0.5, unavailable=(TENSORRT,), launch=0.8
    )
    found = tuple(
        candidate(
            f"c{i + 1}",
            KEPT[i],
            8,
            top1(ACCURACIES[i][0]),
            SIZES[i],
            None,
            0.35e-3 + TIMES[i],
            error=0.5,
            unavailable=(TENSORRT,),
            launch=0.8,
        )
        for i in range(8)
    )
    return Front(
        "resnet", "jetson-orin-nano", Dataset("digits", "ab" * 32, 500), baseline, found, Budget(max_accuracy_drop=2.0)
    )


def psnr_front() -> Front:
    """Image reconstruction: accuracy in dB, simulated in torch for the last candidate."""
    baseline = candidate("float", 1.0, 32, psnr(33.12), 2_293_000, 8.62e-3, 9.1e-3)
    found = (
        candidate("c1", 0.9, 8, psnr(33.05), 571_000, 3.9e-3, 4.1e-3),
        candidate("c2", 0.6, 8, psnr(32.41), 291_000, 2.4e-3, 2.5e-3),
        candidate("c3", 0.4, 4, psnr(30.10, "torch"), 101_000, 1.2e-3, 2.9e-3),
    )
    return Front(
        "ista-net",
        "cpu",
        Dataset("set11", "cd" * 32, 11),
        baseline,
        found,
        Budget(max_accuracy_drop=1.0, latency_s=5e-3),
    )


def single_front() -> Front:
    """One candidate that has no latency model and no RAM figure, and misses the asked latency."""
    baseline = candidate("float", 1.0, 32, top1(493), 1_093_000, 0.262e-3)
    only = candidate("c1", 0.5, 8, top1(478), 92_000, 0.262e-3)
    return Front("resnet20", "cpu", Dataset("digits", "ab" * 32, 500), baseline, (only,), Budget(latency_s=0.2e-3))


HOSTILE = "<script>alert(1)</script>&\"'|`{{7*7}}"


def long_front() -> Front:
    """Names that are long, hostile to HTML and Markdown, or both; one artifact isn't measured."""
    baseline = candidate("float", 1.0, 32, top1(493), 1_093_000, 0.262e-3, 0.29e-3)
    tall = "coreset-mixed-precision-hessian-trace-budget-0.375-seed-0000000017"
    found = (
        candidate(tall, 0.5, 4, top1(486), 61_000, 0.1e-3, 0.11e-3, mixed=True),
        candidate(HOSTILE, 0.7, 8, top1(490), 128_000, None, 0.15e-3, unavailable=(Unavailable("tvm", HOSTILE),)),
    )
    recalls = ((98.0, 100.0, None), (98.0, 90.0, None), (94.0, 92.0, None))
    baseline, *found = (
        with_recall(c, (HOSTILE, "cat", "dog"), percent) for c, percent in zip((baseline, *found), recalls, strict=True)
    )
    model = "examples/networks/a_very_long_directory_name/another_one/file.py:make_the_network_that_we_ship"
    return Front(model, "raspberry-pi-5", Dataset(HOSTILE, "ef" * 32, 500), baseline, tuple(found))


FRONTS = {
    "measured": measured_front,
    "crowded": crowded_front,
    "predicted": predicted_front,
    "psnr": psnr_front,
    "single": single_front,
    "long": long_front,
}


def run_facts(front: Front, title: str = "This machine (x86-64)") -> RunFacts:
    return RunFacts(
        command=f"compress --model {front.model} --target {front.target} --out runs/first",
        versions={
            "compress-toolkit": "0.1.0",
            "torch": "2.13.0",
            "onnx": "1.23.2",
            "onnxruntime": "1.31.1",
            "numpy": "2.4.6",
            "Python": "3.11.9",
        },
        seed=0,
        started="2026-11-20 09:30 UTC",
        seconds=(
            ("load", 1.9),
            ("trace", 0.8),
            ("prune and quantize", 21.4),
            ("fine-tune", 30.2),
            ("export", 6.3),
            ("evaluate", 4.4),
            ("time", 9.1),
        ),
        machine="x86-64, 2 cores, 7.8 GiB, Linux 6.1",
        target_title=title,
        model=front.model,
        notes=(Note("shortcut", "aten.pad", "moves data only: not quantized"),),
        next_commands=("compress verify runs/first/bundle", "compress explain runs/first"),
        sensitivity=(
            LayerSensitivity("conv1", "conv2d", 432, 20.5, 0.9, 2.75, ((4, 3e-4), (8, 1.5e-6))),
            LayerSensitivity(HOSTILE, "linear", 640, 1.1, 0.0, 0.06, ((4, 1e-4), (8, 4e-7))),
        ),
        search=search_account(front),
    )


def search_account(front: Front) -> Account:
    """Half a point too much was expected of the first candidate, a point more of each further one."""
    made = [candidate for candidate in front.candidates if candidate.accuracy is not None]
    expected = (Expected(c.id, 1 + i // 2, c.value + 0.5 + i, 0.75) for i, c in enumerate(made))
    return Account(tuple(expected), 0.875 if len(made) > 2 else None, None)


def empty_front() -> Front:
    """A run that ended before its first candidate."""
    return Front("resnet20", "cpu", Dataset("digits", "ab" * 32, 500), measured_front().baseline)


FRONTS["empty"] = empty_front


@pytest.fixture(params=sorted(FRONTS))
def any_front(request: pytest.FixtureRequest) -> Front:
    """Each of the fronts in turn."""
    return FRONTS[request.param]()


@pytest.fixture
def fronts() -> dict[str, Front]:
    """The fronts by name."""
    return {name: make() for name, make in FRONTS.items()}


@pytest.fixture
def facts() -> Callable[[Front], RunFacts]:
    """Facts for a front."""
    return run_facts


@pytest.fixture
def hostile() -> str:
    """A name that would do harm if it weren't escaped."""
    return HOSTILE


@pytest.fixture
def make_candidate() -> Callable[..., Candidate]:
    """A candidate from its figures: see :func:`candidate`."""
    return candidate


@pytest.fixture
def make_top1() -> Callable[..., Accuracy]:
    """A top-1 accuracy from counts."""
    return top1
