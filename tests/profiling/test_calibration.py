"""Calibration: networks drawn as they are traced, prices found again, intervals that hold, files that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import binom

from compress import api
from compress.calibration import Calibration
from compress.errors import BadInput
from compress.export.lowering import lower
from compress.graph import costs
from compress.graph.operators import Operator
from compress.graph.trace import trace
from compress.integer import program as p
from compress.integer.reference import run as reference_run
from compress.job import assess
from compress.profiling import calibrating, calibrations, designs, features, fitting, latency, session
from compress.profiling.calibrating import Size
from compress.profiling.drawing import Drawing
from compress.prune import prune
from compress.prune.counter import Counter
from compress.prune.prunable import prunable
from compress.quantize import quantize
from compress.serial import from_json, to_json
from compress.targets import load
from compress.types import FLOAT32, Budget, Precision, Target
from tests.graph.networks import Plain, build, images
from tests.profiling.synthetic import PRICES, Synthetic, calibration

W8A8, W4A8 = Precision(8, 8, "integer"), Precision(4, 8, "integer")


class Twin(torch.nn.Module):
    """The network of :func:`drawn_twin`, as a user would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.inner = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8)
        self.pointwise = torch.nn.Conv2d(8, 22, 1)
        self.fc = torch.nn.Linear(22, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.inner(x) + x)
        x = torch.relu(self.depthwise(torch.nn.functional.max_pool2d(x, 2)))
        x = torch.nn.functional.silu(self.pointwise(x))
        return self.fc(torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1))


def drawn_twin(precision: Precision):
    d = Drawing("twin", 3, 12, precision)
    x = d.conv(d.input, 8)
    x = d.add(d.conv(x, 8, activation=None), x)
    x = d.conv(d.max_pool(x), 8, 5, 2, groups=8)
    x = d.conv(x, 22, 1, activation="silu")
    return d.done(d.linear(d.global_pool(x), 10))


def test_a_drawing_has_the_operators_and_the_terms_of_the_traced_network() -> None:
    network = trace(Twin().eval(), (torch.rand(2, 3, 12, 12),))
    traced, drawn = costs.operators(network), drawn_twin(FLOAT32)
    fields = ("kind", "macs", "weights", "output_elements", "in_channels", "out_channels", "groups")
    assert [[getattr(o, f) for f in fields] for o in drawn.operators] == [
        [getattr(o, f) for f in fields] for o in traced
    ]
    of_traced = latency.works(traced, lambda _: FLOAT32, {network.inputs[0]: 432})
    wanted = calibrating.terms_of(drawn, "instructions")
    assert latency.network_terms([work for work, _ in of_traced], {"x": 432}) == wanted
    timed = calibrating.terms_of(drawn)
    assert timed.items() < wanted.items()
    assert not any(features.counted(name) for name in timed)


@pytest.mark.parametrize("precision", [W8A8, W4A8], ids=str)
def test_drawn_integers_compute_what_onnxruntime_computes(tmp_path, precision) -> None:
    """The network is really one of integers, and its output is what the pairs say, to a step of the last grid."""
    drawn = drawn_twin(precision)
    path = tmp_path / "twin.onnx"
    path.write_bytes(drawn.file)
    program = lower(path)
    assert [type(op).__name__ for op in program.ops if type(op).__name__.startswith("Float")] == []
    x = np.random.default_rng(1).random(drawn.shape, np.float32)
    wanted = session.runner(session.open_session(path, 1))(x)[0]
    tensor = program.tensors[program.inputs[0]]
    given = x[0].transpose(1, 2, 0)
    if tensor.dtype != "float32":
        given = np.clip(np.rint(given / tensor.scale) + tensor.zero_point, 0, 255).astype(tensor.dtype)
    (result,) = program.outputs
    found = reference_run(program, {program.inputs[0]: given})[result]
    assert np.abs(found - wanted).max() < 0.05
    assert np.abs(wanted).max() > 0.05


def test_all_designs_are_integers_throughout_and_each_has_a_name_of_its_own(tmp_path) -> None:
    size = Size(len(designs.KINDS), len(designs.STYLES), len(designs.STYLES))
    fitted, checked = calibrating.drawn("integer", "tvm", size, "instructions")
    names = [each.name for each in (*fitted, *checked)]
    assert len(set(names)) == size.all == len(names)
    assert {each.precision for each in fitted} == {W8A8, W4A8}
    for each in (*fitted, *checked):
        path = tmp_path / "model.onnx"
        path.write_bytes(each.file)
        program = lower(path)
        assert [op for op in program.ops if isinstance(op, p.FloatConvolution)] == [], each.name
        assert program.macs == sum(o.macs for o in each.operators)


def test_networks_that_check_are_none_of_those_that_are_fitted() -> None:
    fitted, checked = designs.networks(FLOAT32, 9, 1), designs.networks(FLOAT32, 9, 2)
    assert not {each.file for each in fitted} & {each.file for each in checked}
    assert [each.file for each in designs.networks(FLOAT32, 2, 1)] == [each.file for each in fitted[:2]]


def test_a_third_of_the_networks_has_whole_channels_throughout_and_a_third_of_them_is_of_8() -> None:
    """Of 16 the float kernels' blocks are made, which one odd layer breaks."""
    steps = []
    for each in designs.networks(FLOAT32, 90, 1):
        channels = [o.out_channels for o in each.operators if o.kind == "conv2d"]
        steps.append(next(step for step in (16, 8, 1) if all(out % step == 0 for out in channels)))
    assert all(steps.count(step) >= 20 for step in (16, 8, 1)), steps


def test_what_checks_is_timed_among_what_is_fitted() -> None:
    fitted, checked = calibrating.drawn("float", "onnxruntime", Size(), "s")
    found = calibrating.mixed([*fitted, *checked])
    assert sorted(each.name for each in found) == sorted(each.name for each in (*fitted, *checked))
    assert found == calibrating.mixed([*fitted, *checked])
    places = [number for number, each in enumerate(found) if each in checked]
    quarters = [sum(4 * place // len(found) == quarter for place in places) for quarter in range(4)]
    assert min(quarters) >= 2, quarters


def test_what_of_an_image_no_cache_holds_has_terms_of_its_own() -> None:
    """600 x 600 pixels of 3 channels to 8: 4 bytes each in float, 1 in integers; a core's cache holds 2^20."""
    for precision, element in ((FLOAT32, 4), (W8A8, 1)):
        d = Drawing("one", 3, 600, precision)
        d.conv(d.input, 8)
        ((work, _),) = latency.works(d.operators, lambda _, p=precision: p, {"x": 3 * 600**2})
        found = features.terms(work)
        assert found["far_read"] == element * 3 * 600**2 - 2**20
        assert found["far_written"] == element * 8 * 600**2 - 2**20


def test_terms_of_a_convolution_by_hand() -> None:
    """18 to 20 channels, 3x3, 5x5 pixels: 25 pixels, 2 vectors of 16, 18 channels filled up to 20, misaligned."""
    d = Drawing("one", 18, 5, FLOAT32)
    d.conv(d.input, 20)
    ((work, _),) = latency.works(d.operators, lambda _: FLOAT32, {"x": 450})
    found = features.terms(work)
    assert found["macs"] == 25 * 9 * 18 * 20
    assert found["out_macs"] == 25 * 9 * 18 * 32
    assert found["filled_macs"] == found["paired_macs"] == 25 * 9 * 20 * 32
    assert found["tiles"] == 25 * 2
    assert found["edges"] == 25  # 4 channels beyond the first vector are one step
    assert (found["patches"], found["taps"]) == (25 * 9 * 18, 25 * 9)
    assert (found["read"], found["written"], found["weights"]) == (450, 500, 4 * 9 * 18 * 20)
    assert found["border_macs"] == 2 * 5 * 9 * 20 * 32  # two of five pixels of each row
    assert {name for name in features.named(work) if "misaligned" in name} == {
        f"dense misaligned.{name}" for name in found
    }


@pytest.mark.parametrize(("stride", "groups", "strided"), [(1, 18, False), (2, 18, True), (2, 1, False)])
def test_a_stride_is_told_of_float_depthwise_convolutions(stride, groups, strided) -> None:
    for precision in (FLOAT32, W8A8):
        d = Drawing("one", 18, 9, precision)
        d.conv(d.input, 18, 3, stride, groups)
        ((work, _),) = latency.works(d.operators, lambda _, p=precision: p, {"x": 18 * 81})
        wanted = d.operators[0].macs if strided and precision == FLOAT32 else None
        assert features.terms(work).get("strided_macs") == wanted


def test_zeros_around_an_image_are_part_of_the_convolutions_behind_them() -> None:
    """As files have them; in front of anything else they are copied, and take time."""
    first = Operator("first", "first", "conv2d", 27 * 64**2, 27, 27, ("x",), 64**2, 3, 1)
    pad = Operator("pad", "", "pad", 0, 0, 0, ("first",), 66**2)
    conv = Operator("conv", "conv", "conv2d", 9 * 64**2, 9, 9, ("pad",), 64**2, 1, 1)
    linear = Operator("linear", "linear", "linear", 10 * 66**2, 10 * 66**2, 0, ("pad",), 10, 66**2, 10)
    relu = Operator("relu", "", "relu", 0, 0, 0, ("pad",), 66**2)
    for behind, timed in ([conv], False), ([linear], True), ([relu], True), ([conv, relu], True), ([], True):
        found = latency.works([first, pad, *behind], lambda _: FLOAT32, {"x": 3 * 64**2})
        names = [work.operator.name for work, _ in found]
        assert names == ["first", *["pad"] * timed, *(each.name for each in behind)]


@pytest.mark.parametrize(
    ("settings", "timed"),
    [({}, False), ({"value": 0.0}, False), ({"value": 1.0}, True), ({"mode": "reflect"}, True)],
    ids=str,
)
def test_what_is_no_zeros_is_no_convolutions_padding(settings, timed) -> None:
    class Padded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(torch.nn.functional.pad(x, (0, 1, 0, 1), **settings))

    operators = costs.operators(trace(Padded().eval(), (torch.randn(2, 3, 16, 16),)))
    found = latency.works(operators, lambda _: FLOAT32, {operators[0].inputs[0]: 3 * 16**2})
    assert len(list(found)) == 1 + timed


@pytest.mark.parametrize(
    ("channels", "out", "kernel", "groups", "kind", "misaligned"),
    [
        (16, 8, 3, 1, "dense", False),
        (17, 8, 3, 1, "dense", True),
        (20, 8, 3, 1, "dense", False),
        (15, 8, 1, 1, "pointwise", False),  # fewer than a vector need no blocks
        (18, 8, 1, 1, "pointwise", True),
        (18, 18, 3, 18, "depthwise", True),
        (36, 36, 3, 36, "depthwise", False),
        (36, 36, 3, 2, "grouped", True),
    ],
)
def test_kinds_of_kernels(channels, out, kernel, groups, kind, misaligned) -> None:
    d = Drawing("one", channels, 4, FLOAT32)
    d.conv(d.input, out, kernel, groups=groups)
    assert features.kernel_kind(d.operators[0]) == kind
    assert features.misaligned(d.operators[0], kind) == misaligned


def test_known_prices_predict_exactly_again() -> None:
    found = calibrating.calibrate(load("cpu"), Synthetic(), lambda *_: None)
    assert [(fit.runtime, fit.kind) for fit in found.fits] == [
        ("onnxruntime", "float"), ("onnxruntime", "integer"), ("tvm", "integer")
    ]  # fmt: skip
    for fit in found.fits:
        assert fit.error < 0.03
        assert all(price > 0 for price in fit.prices.values())
        assert fit.prices["run"] == pytest.approx(PRICES["run"], rel=0.1)


def test_the_interval_is_the_errors_of_networks_that_were_not_fitted() -> None:
    """Times that vary by 10% up and down: nine in ten of the errors of fresh networks are within the interval."""
    size, told = Size(40, 24, 19), []
    found = calibrating.calibrate(load("cpu"), Synthetic(0.1), lambda what, done, of: told.append((done, of)), size)
    fit = found.fits[0]
    fitted, checked = calibrating.drawn("float", "onnxruntime", size, "s")
    times = Synthetic(0.1).measure([*fitted, *checked], "onnxruntime", lambda _: None)
    predicted = [fitting.predicted(calibrating.terms_of(each), fit.prices) for each in checked]
    errors = sorted(abs(times[e.name] - guess) / guess for e, guess in zip(checked, predicted, strict=True))
    assert fit.error == pytest.approx(errors[17])  # the 18th of 19: ceil(20 * 0.9)
    assert fit.median_error == pytest.approx(np.median(errors))
    assert (fit.fitted, fit.checked) == (64, 19)
    assert 0.02 < fit.error < 0.3
    assert told[-1] == (3 * size.all, 3 * size.all)


@pytest.mark.parametrize(("n", "rank"), [(9, 9), (10, 10), (19, 18), (20, 19), (29, 27), (5, 5)])
def test_the_conformal_rank(n, rank) -> None:
    assert fitting.interval([float(i) for i in range(n, 0, -1)]) == rank


def test_an_interval_holds_a_new_draw_as_often_as_it_says() -> None:
    """Exchangeable errors: the chance is rank / (n + 1), by binomial bounds over many draws."""
    random = np.random.default_rng(0)
    draws, n = 4000, 19
    held = sum(bool(e[-1] <= fitting.interval(list(e[:-1]))) for e in random.exponential(size=(draws, n + 1)))
    low, high = binom.ppf([1e-4, 1 - 1e-4], draws, 18 / 20)
    assert low <= held <= high


def test_a_device_that_runs_too_few_networks_is_refused() -> None:
    with pytest.raises(BadInput, match="too few to calibrate by"):
        calibrating.calibrate(load("cpu"), Synthetic(lost=designs.CHAINS + designs.FITTED + 15), lambda *_: None)


def test_a_calibrated_estimate_is_the_sum_of_its_terms() -> None:
    drawn, held = drawn_twin(W8A8), calibration()
    target = replace(load("cpu"), calibration=held)
    found = latency.predict(drawn.operators, lambda _: W8A8, target, 1, 2, inputs=drawn.inputs)
    assert found.latency_s == pytest.approx(fitting.predicted(calibrating.terms_of(drawn), PRICES))
    assert found.latency_s == pytest.approx(sum(cost.latency_s for cost in found.per_layer))
    assert (found.error, found.calibration) == (0.25, held.digest())
    low, high = found.interval_s
    assert (low, high) == (pytest.approx(0.75 * found.latency_s), pytest.approx(1.25 * found.latency_s))
    costs_by = {cost.name: cost for cost in found.per_layer}
    assert costs_by[latency.CALL].latency_s == pytest.approx(PRICES["run"] + 432 * PRICES["input"])
    stem = costs_by["conv0"]
    taps, filled = 144 * 9, 144 * 9 * 4 * 16  # 3 channels take a step of 4, 8 outputs a vector of 16
    assert stem.latency_s == pytest.approx(1e-6 + filled * 5e-12 + taps * 1e-9)
    assert stem.bound == "memory"
    assert costs_by["add3" if "add3" in costs_by else "add4"].bound == "memory"


def test_without_a_fit_for_the_runtime_the_targets_numbers_predict() -> None:
    drawn = drawn_twin(W8A8)
    only = replace(calibration(), fits=calibration().fits[:1])
    target = load("cpu")
    plain = latency.predict(drawn.operators, lambda _: W8A8, target, 1, 2, inputs=drawn.inputs)
    held = replace(target, calibration=only)
    assert latency.predict(drawn.operators, lambda _: W8A8, held, 1, 2, inputs=drawn.inputs) == plain
    as_float = latency.predict(drawn.operators, lambda _: FLOAT32, held, 1, 2, inputs=drawn.inputs)
    assert as_float.calibration == only.digest()
    compiled = latency.predict(drawn.operators, lambda _: FLOAT32, held, 1, 2, inputs=drawn.inputs, runtime="tvm")
    assert compiled.calibration is None


def test_wider_layers_are_never_predicted_faster() -> None:
    target = replace(load("cpu"), calibration=calibration())

    def seconds(width: int) -> float:
        d = Drawing("w", 3, 16, FLOAT32)
        d.conv(d.conv(d.input, width), 32)
        return latency.predict(d.operators, lambda _: FLOAT32, target, 0, 0, inputs={"x": 768}).latency_s

    times = [seconds(width) for width in range(20, 100, 4)]
    assert all(later >= earlier for earlier, later in pairwise(times))
    assert times[-1] > times[0]


def test_counts_are_predicted_beside_the_latency() -> None:
    drawn = drawn_twin(W8A8)
    held = calibration(unit="instructions", target="cortex-m4", fits=(calibration().fits[3],))
    prices = {name: 1e12 * price for name, price in PRICES.items()}
    held = replace(held, fits=(replace(held.fits[0], prices=prices),))
    count, error = latency.predicted_instructions(drawn.operators, lambda _: W8A8, held, inputs=drawn.inputs)
    assert count == round(fitting.predicted(calibrating.terms_of(drawn), prices))
    assert error == 0.25
    assert latency.predicted_instructions(drawn.operators, lambda _: FLOAT32, held, inputs=drawn.inputs) is None
    assert latency.predicted_instructions(drawn.operators, lambda _: W8A8, calibration(), inputs=drawn.inputs) is None
    target = replace(load("cortex-m4"), calibration=held)
    predicted = latency.predict(drawn.operators, lambda _: W8A8, target, 0, 0, inputs=drawn.inputs)
    assert predicted.error == target.prediction_error  # a count is no time


# Files


def test_a_calibration_comes_back_from_its_file_and_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    target, held = load("cpu"), calibration()
    assert from_json(Calibration, json.loads(json.dumps(to_json(held)))) == held
    assert calibrations.find(target) == (None, None)
    path = calibrations.save(target, held)
    assert path.is_relative_to(tmp_path / "compress" / "calibrations" / "cpu")
    assert calibrations.read(path, target) == held
    assert calibrations.find(target) == (held, None)
    newer = replace(held, date="2026-11-28 03:00:00 +0000")
    assert calibrations.save(target, newer) == path  # one file a device
    assert calibrations.find(target)[0] == newer
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"device": "another machine, 64 cores, Linux"}, "made on another device"),
        ({"address": "ssh://pi@somewhere"}, "made on another device"),
        ({"versions": {**calibrating.versions(), "onnxruntime": "1.0"}}, "made with onnxruntime 1.0"),
        ({"versions": {**calibrating.versions(), "compress": "0"}}, "made with compress 0"),
        ({"terms": 0}, "terms are of version 0"),
        ({"target": "x86-64"}, "it is of x86-64, not of cpu"),
        ({"schema": 7}, "schema 7"),
    ],
)
def test_another_devices_or_versions_calibration_is_refused_with_the_way_to_redo_it(
    tmp_path, monkeypatch, changed, said
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    target = load("cpu")
    path = calibrations.save(target, replace(calibration(), **changed))
    with pytest.raises(BadInput) as refused:
        calibrations.read(path, target)
    assert said in refused.value.sentence
    assert refused.value.sentence.endswith("make it again: compress calibrate cpu")
    found, why = calibrations.find(target)
    assert found is None
    assert why is not None
    assert said in why


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "terms": "x"}'])
def test_a_damaged_file_is_refused(tmp_path, content) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(BadInput, match="compress calibrate cpu"):
        calibrations.read(path, load("cpu"))
    with pytest.raises(BadInput, match="--device ssh://USER@HOST"):
        calibrations.read(tmp_path / "nothing.json", load("raspberry-pi-4"))


def test_a_device_far_away_may_have_other_versions() -> None:
    far = calibration(target="raspberry-pi-4", address="ssh://pi@host", device="Raspberry Pi 4")
    far = replace(far, versions={"compress": far.versions["compress"], "onnxruntime": "1.20"})
    assert calibrations.stale(far, load("raspberry-pi-4")) is None
    assert calibrations.stale(replace(far, versions={"compress": "0"}), load("raspberry-pi-4")) is not None


def test_a_run_predicts_by_the_calibration_that_its_target_carries(tmp_path, monkeypatch) -> None:
    """Before any that lies in the user's folder; one that doesn't hold is refused, "none" leaves it out."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    target, own = load("cpu"), calibration(seconds=90.0)
    calibrations.save(target, calibration(date="2999-01-01 00:00:00 +0000"))

    def used(target: Target, given: str | None = None) -> tuple[Calibration | None, int]:
        data = (images(32), torch.arange(32) % 5)
        prepared = api.prepare(build(Plain), data, target=target, candidates=1, calibration=given)
        return prepared.job.target.calibration, len(prepared.job.notes)

    carrying = replace(target, calibration=own)
    assert used(carrying) == (own, 1)
    assert used(carrying, "none") == (None, 0)
    found, _ = used(target)
    assert found is not None
    assert found.date.startswith("2999")
    with pytest.raises(BadInput, match="the calibration that the target carries: .*make it again: compress calibrate"):
        used(replace(target, calibration=replace(own, terms=own.terms + 1)))


def test_the_digest_is_of_the_content() -> None:
    one = calibration()
    assert one.digest() == calibration().digest()
    assert one.digest() != replace(one, threads=one.threads + 1).digest()
    assert one.digest()[:12] in calibrations.described(one)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(BadInput, match="set XDG_DATA_HOME to a folder of yours"):
        calibrations.check_writable(load("cpu"))


def test_a_goal_in_seconds_is_met_by_the_calibrated_prediction() -> None:
    target = replace(load("cpu"), calibration=calibration())
    network = trace(build(Plain).eval(), (images(2),))
    inputs = {name: images(1)[0].numel() for name in network.inputs}

    def seconds(found: tuple[Operator, ...]) -> float:
        return latency.predict(found, lambda _: FLOAT32, target, 0, 0, inputs=inputs).latency_s

    full = seconds(costs.operators(network))
    counter = Counter.of(network, prunable(build(Plain), network), target)
    least = counter.cost([1] * len(counter.all_units)).latency_s
    assert least is not None
    goal = (full + least) / 2
    small = prune(build(Plain), images(2), budget=Budget(latency_s=goal), target=target, method="norm").model
    found = seconds(costs.operators(trace(small.eval(), (images(2),))))
    assert least < found <= goal < full


def test_a_microcontrollers_estimate_has_the_count_and_the_seconds_of_the_targets_numbers() -> None:
    held = calibration(unit="instructions", target="cortex-m4", fits=(calibration().fits[3],))
    prices = {name: 1e12 * price for name, price in PRICES.items()}
    held = replace(held, fits=(replace(held.fits[0], prices=prices),))
    plain = load("cortex-m4")
    state = quantize(build(Plain), images(8), weight_bits=8, method="uniform", target=plain).state
    before = assess(state, plain, images(2)).estimate(1000)
    found = assess(state, replace(plain, calibration=held), images(2)).estimate(1000)
    assert found.instructions is not None
    assert found.instructions > 0
    assert found == replace(before, instructions=found.instructions, instructions_error=0.25)
    in_the_file = assess(state, replace(plain, calibration=held), images(2)).estimate(1000, "onnxruntime")
    assert in_the_file.instructions is None
