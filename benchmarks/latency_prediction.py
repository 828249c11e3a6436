"""How far calibrated predictions are off: latency on this machine, instructions on Cortex-M.

The machine is calibrated anew (``compress calibrate cpu``, its result isn't kept), and predicts networks that the
calibration never saw and that weren't drawn by what drew its own: the built-in networks, their units removed at random
to several shares of their multiply-accumulates, traced and exported as every candidate of a run is. They are made
before the calibration, so that it and their timing lie close together. Each is timed in
ONNX Runtime in float and with 8-bit numbers, and as the compiled 8-bit library; all of one network in turns, and beside
them the calibration's reference networks in each: they say how fast the machine is then, against when it was
calibrated.
Instructions of the compiled library are predicted and counted likewise, in QEMU.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from compress.calibration import Calibration
from compress.types import State, Target

NETWORKS, COUNTED = 40, 12
BASES = ("resnet8", "resnet", "resnet20", "resnet56", "mobilenetv2-coral")
SHARES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Of the multiply-accumulates that stay."""
SMALL = ("resnet8", "resnet", "resnet20")
"""What a microcontroller's emulated board holds."""
CORES = ("cortex-m4", "cortex-m7")
MOST_MEDIAN, MOST_90TH = 10.0, 20.0
"""Percent that predicted latencies may be off."""
MOST_COUNTED = 5.0
"""Percent that a predicted count of instructions may be off."""
DRIFT = 1.15
ROUNDS = 12
SIZE: Any = None
"""How many networks a calibration draws; None for its own number."""


@dataclass(frozen=True)
class Case:
    """One network: its name, the state in float and in 8 bits, two inputs."""

    name: str
    state: State
    quantized: State
    example: torch.Tensor


def cases(count: int, bases: tuple[str, ...], target: str) -> Iterator[Case]:
    """``count`` networks, the bases in turn at ever smaller shares; then other random choices of units."""
    from compress.models import load
    from compress.prune import prune
    from compress.quantize import quantize

    for number in range(count):
        base = bases[number % len(bases)]
        share = SHARES[(number // len(bases)) % len(SHARES)]
        loaded = load(base, weights="random")
        generator = torch.Generator().manual_seed(number)
        images = torch.randn((16, *loaded.input_shape), generator=generator)
        model = loaded.model.eval()
        if share < 1:
            model = prune(model, images[:2], macs=share, method="random", seed=number).model
        quantized = quantize(model, images, weight_bits=8, method="uniform", target=target).state
        yield Case(f"{base}, {100 * share:.0f}%, seed {number}", State(model), quantized, images[:2])


def latencies(calibration: Calibration, target: Target, made: Sequence[Case]) -> list[common.Row]:
    """Predicted and measured latency of each network in each runtime that was calibrated."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        beside = references(calibration, folder, stack)
        return [row for case in made for row in _timed(case, calibration, target, beside)]


def references(calibration: Calibration, folder: Path, stack: ExitStack) -> dict[str, Callable[[], Any]]:
    """A run of each reference network in each runtime and kind of numbers, by :func:`_pace` and its own name."""
    from compress.profiling import calibrating, pace
    from compress.types import FLOAT32

    found = {}
    for fit in calibration.fits:
        for drawn in pace.networks(FLOAT32 if fit.kind == "float" else calibrating.W8A8):
            path = folder / f"{drawn.name}-{fit.runtime}-{fit.kind}.onnx"
            path.write_bytes(drawn.file)
            x = np.random.default_rng(0).random(drawn.shape, np.float32)
            found[f"{_pace(fit.runtime, fit.kind)} {drawn.name}"] = _job(path, fit.runtime, x, stack)
    return found


def _pace(runtime: str, kind: str) -> str:
    return f"pace of {runtime} {kind}"


def _job(path: Path, runtime: str, x: Any, stack: ExitStack) -> Callable[[], Any]:
    """One run of a file."""
    from compress.profiling import calibrating

    run = calibrating.runner(path, runtime, x, stack)
    assert run is not None
    return run


def _timed(
    case: Case, calibration: Calibration, target: Target, beside: Mapping[str, Callable[[], Any]]
) -> list[common.Row]:
    from compress.export import onnx as interchange
    from compress.export.onnxruntime import weight_storage
    from compress.job import assess
    from compress.profiling import timer

    calibrated = replace(target, calibration=calibration)
    rows: list[common.Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        x = case.example[:1].numpy().astype(np.float32)
        jobs: dict[tuple[str, str], Callable[[], Any]] = {}
        predicted = {}
        for kind, state in (("float", case.state), ("integer", case.quantized)):
            files = {"onnxruntime": folder / f"{kind}.onnx", "tvm": folder / f"{kind}-compiled.onnx"}
            interchange.export(state, case.example, files["onnxruntime"], weights=weight_storage(target))
            interchange.export(state, case.example, files["tvm"])
            assessed = assess(state, calibrated, case.example)
            for runtime, path in files.items():
                if calibration.fit(runtime, kind) is None:
                    continue
                predicted[runtime, kind] = assessed.estimate(0, runtime)
                jobs[runtime, kind] = _job(path, runtime, x, stack)
        named = {" ".join(key): job for key, job in jobs.items()} | dict(beside)
        timed, others = common.quietly(lambda: timer.in_turns(named, ROUNDS), attempts=3, wait_s=30)
        measured = timed.measurements("", {})
        for (runtime, kind), estimate in predicted.items():
            found, fit = measured[f"{runtime} {kind}"].latency_s, calibration.fit(runtime, kind)
            assert fit is not None
            assert fit.pace_s is not None
            # Round by round against the references: a machine that is slow in some rounds is slow for all.
            own = [name for name in beside if name.startswith(_pace(runtime, kind))]
            at_pace = timed.ratios(own)[f"{runtime} {kind}"] * fit.pace_s
            row = _row(case, runtime, kind, estimate.latency_s, at_pace, estimate.error, others)
            raw = round(100 * abs(estimate.latency_s / found - 1), 2)
            row |= {"measured_ms": round(1e3 * found, 4), "slower_ratio": round(found / at_pace, 3)}
            rows.append(row | {"at_pace_ms": round(1e3 * at_pace, 4), "uncorrected_error_percent": raw})
    return rows


def _row(
    case: Case, runtime: str, kind: str, predicted_s: float, measured_s: float, interval: float, others: float | None
) -> common.Row:
    return {
        "network": case.name,
        "runtime": runtime,
        "numbers": kind,
        "predicted_ms": round(1e3 * predicted_s, 4),
        "measured_ms": round(1e3 * measured_s, 4),
        "at_pace_ms": None,
        "predicted_instructions": None,
        "counted_instructions": None,
        "slower_ratio": None,
        "uncorrected_error_percent": None,
        "error_percent": round(100 * abs(predicted_s / measured_s - 1), 2),
        "interval_percent": round(100 * interval, 1),
        "within_interval": abs(measured_s - predicted_s) <= interval * predicted_s,
        "others_percent": others,
    }


def instructions(core: str, count: int, bases: tuple[str, ...] = SMALL) -> list[common.Row]:
    """Predicted and counted instructions of each network's compiled library on one core."""
    from compress.export import onnx as interchange
    from compress.export.compiled import compile_file
    from compress.export.kernels import backends
    from compress.export.library import counting
    from compress.job import assess
    from compress.profiling import calibrating
    from compress.targets import load

    target = load(core)
    calibration = calibrating.calibrate(target, calibrating.Counted(target), lambda *_: None, SIZE)
    isa = backends.isa_of(target)
    assert isa is not None
    rows: list[common.Row] = []
    for case in cases(count, bases, core):
        estimate = assess(case.quantized, replace(target, calibration=calibration), case.example).estimate(0, "tvm")
        assert estimate.instructions is not None
        assert estimate.instructions_error is not None
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.onnx"
            interchange.export(case.quantized, case.example, path)
            built = compile_file(path, isa, Path(temporary) / "library").library
            (end,) = built.interface.inputs
            counted = counting.run(built, {end.name: case.example[:1].numpy().astype(np.float32)}).instructions
        interval = estimate.instructions_error
        row = _row(case, core, "integer", float(estimate.instructions), float(counted), interval, None)
        rows.append(
            row
            | {
                "predicted_ms": None,
                "measured_ms": None,
                "uncorrected_error_percent": row["error_percent"],
                "predicted_instructions": estimate.instructions,
                "counted_instructions": counted,
            }
        )
    return rows


def measure() -> list[common.Row]:
    from compress.profiling import calibrating
    from compress.targets import load

    target = load("cpu")
    made = list(cases(NETWORKS, BASES, target.name))
    calibration, _ = common.quietly(
        lambda: calibrating.calibrate(target, calibrating.Here(target), lambda *_: None, SIZE), attempts=2, wait_s=120
    )
    rows = latencies(calibration, target, made)
    if common.program("qemu-system-arm").missing() is None:
        rows += [row for core in CORES for row in instructions(core, COUNTED)]
    return rows


def section(document: Mapping[str, Any]) -> str:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in document["rows"]:
        groups.setdefault((row["runtime"], row["numbers"]), []).append(row)
    lines, verdicts = [], []
    for (runtime, kind), rows in groups.items():
        errors = [row["error_percent"] for row in rows]
        raw = [row["uncorrected_error_percent"] for row in rows if "uncorrected_error_percent" in row]
        within = sum(row["within_interval"] for row in rows)
        what = "instructions" if rows[0]["counted_instructions"] is not None else "latency"
        figures = (
            statistics.median(errors),
            float(np.percentile(errors, 90)),
            max(errors),
            statistics.median(raw) if raw else None,
            float(np.percentile(raw, 90)) if raw else None,
            rows[0]["interval_percent"],
        )
        counted = what == "instructions"
        kept = max(errors) < MOST_COUNTED if counted else figures[0] < MOST_MEDIAN and figures[1] < MOST_90TH
        wanted = f"median below {MOST_MEDIAN:g}%, 90th percentile {MOST_90TH:g}%"
        target = f"every error below {MOST_COUNTED:g}%" if counted else wanted
        verdicts.append(f"- {what}, {runtime} {kind}: {target}: {'kept' if kept else 'missed'}\n")
        lines.append([runtime, kind, what, str(len(rows)), *(common.shown(f, 1) for f in figures), f"{within}"])
    header = [
        "runtime or core",
        "numbers",
        "predicted",
        "networks",
        "median error, %",
        "90th percentile, %",
        "largest, %",
        "median as the clock had it, %",
        "its 90th percentile, %",
    ]
    table = common.markdown_table([*header, "its own interval, ± %", "networks within"], lines, text_columns=3)
    return (
        "Calibrated predictions (`compress calibrate`) against measurements, on networks that the calibration never "
        f"saw: {', '.join(BASES)}, units removed at random to between {min(SHARES):.0%} and all of their "
        "multiply-accumulates. Latencies are those of this machine, batch 1; instructions are counted by QEMU. "
        + paces(document["rows"])
        + "The interval is the one that the calibration gave for itself, from networks of its own that it hadn't "
        "fitted.\n\n" + "".join(verdicts) + "\n" + table + drifted(document["rows"])
    )


def paces(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the reference networks said of the machine's speed."""
    found = [row["slower_ratio"] for row in rows if row.get("slower_ratio") is not None]
    if not found:
        return "Errors are those of times as the clock had them: this run had no fixed work beside it. "
    return (
        "Fixed work was timed in turns with every network, in the calibration and afterwards; errors are those of "
        "times brought to the calibration's pace by it, and those of times as the clock had them have columns of their "
        "own. "
        f"The fixed work took from {min(found):.2f} to {max(found):.2f} times as long as at that pace. "
    )


def drifted(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured over what was predicted, early and late in the run, where that moved: it may be the machine."""
    ratios = [row["at_pace_ms"] / row["predicted_ms"] for row in rows if row.get("at_pace_ms") is not None]
    if len(ratios) < 2:
        return ""
    early, late = (statistics.median(part) for part in (ratios[: len(ratios) // 2], ratios[len(ratios) // 2 :]))
    if max(early, late) < DRIFT * min(early, late):
        return ""
    return (
        f"\nMeasured over predicted latency was {early:.2f} (median) in the first half of the run and {late:.2f} in "
        "the second, whose networks have fewer units: either these are slower than predicted, or the machine was "
        "slower then. This run can't tell.\n"
    )


BENCHMARK = common.Benchmark(
    name="latency_prediction",
    title="how far calibrated predictions of latency and of instructions are off",
    needs=(),
    packages=("onnxruntime", "apache-tvm", "torch", "numpy", "scipy"),
    measure=measure,
    section=section,
    minutes=25,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
