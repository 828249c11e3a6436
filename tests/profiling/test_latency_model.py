"""The roofline: every figure is recomputed from the target's numbers beside the call."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from compress.graph.operators import Operator
from compress.profiling.latency import computing_rate, padded_macs, predict, rate_for
from compress.results import Estimate
from compress.targets import load, names
from compress.types import FLOAT32, Precision, Rate, Target

W8A8, W4A8, FLOAT16 = Precision(8, 8, "integer"), Precision(4, 8, "integer"), Precision(16, 16, "float")
BINARY = Precision(1, 1, "binary")

SIMPLE = replace(
    load("cortex-m7"),
    macs_per_s=(Rate(W8A8, 2e9, 0.5), Rate(FLOAT32, 1e9, 0.25)),
    bandwidth_bytes_per_s=1e8,
    launch_overhead_s=1e-6,
    channel_multiple=1,
    weights_in_ram=False,
    prediction_error=0.4,
)


@pytest.fixture(params=names())
def target(request: pytest.FixtureRequest) -> Target:
    return load(request.param)


def conv(name: str, source: str, channels: int, out: int, side: int, groups: int = 1) -> Operator:
    weights = out * (channels // groups) * 9
    return Operator(
        name, name, "conv2d", weights * side**2, weights, weights, (source,), out * side**2, channels, out, groups
    )


def network(width: int, side: int = 16) -> list[Operator]:
    return [
        conv("a", "x", 3, width, side),
        Operator("a_relu", "", "relu", 0, 0, 0, ("a",), width * side**2, fused_into="a"),
        conv("b", "a_relu", width, width, side),
        Operator("sum", "", "add", 0, 0, 0, ("b", "a_relu"), width * side**2),
        Operator("pool", "", "adaptive_avg_pool2d", 0, 0, 0, ("sum",), width),
        Operator("flat", "", "flatten", 0, 0, 0, ("pool",), width),
        Operator("fc", "fc", "linear", width * 10, width * 10, width * 10 + 10, ("flat",), 10, width, 10),
    ]


def run(target: Target, precision: Precision, width: int = 16, side: int = 16) -> Estimate:
    return predict(network(width, side), lambda _: precision, target, 11, 22, inputs={"x": 3 * side**2})


def test_an_operator_that_computes_long_is_bound_by_computing() -> None:
    """64 to 64 channels at 16x16: 9,437,184 MACs at 1e9/s against 36,864 + 32,768 bytes at 1e8/s."""
    cost = predict([conv("c", "x", 64, 64, 16)], {"c": W8A8}, SIMPLE, 0, 0, inputs={"x": 16384}).per_layer[0]
    assert cost.bound == "compute"
    assert cost.latency_s == pytest.approx(9_437_184 / 1e9 + 1e-6)
    assert (cost.name, cost.macs, cost.weight_bytes) == ("c", 9_437_184, 36_864)


def test_an_operator_that_reads_many_weights_is_bound_by_memory() -> None:
    linear = Operator("l", "l", "linear", 1_000_000, 1_000_000, 1_001_000, ("x",), 1000, 1000, 1000)
    cost = predict([linear], {"l": W8A8}, SIMPLE, 0, 0, inputs={"x": 1000}).per_layer[0]
    assert cost.bound == "memory"
    assert cost.latency_s == pytest.approx((1_000_000 + 1000 + 1000) / 1e8 + 1e-6)


def test_an_operator_with_little_to_do_is_bound_by_its_launch() -> None:
    cost = predict([conv("c", "x", 1, 1, 2)], {"c": W8A8}, SIMPLE, 0, 0, inputs={"x": 4}).per_layer[0]
    assert cost.bound == "launch"
    assert cost.latency_s == pytest.approx(17 / 1e8 + 1e-6)  # 9 weights, 4 read, 4 written


def test_float_activations_and_weights_move_four_bytes() -> None:
    linear = Operator("l", "l", "linear", 1_000_000, 1_000_000, 1_000_000, ("x",), 1000, 1000, 1000)
    cost = predict([linear], {}, SIMPLE, 0, 0, inputs={"x": 1000}).per_layer[0]
    assert cost.latency_s == pytest.approx(4 * 1_002_000 / 1e8 + 1e-6)
    assert cost.weight_bytes == 4_000_000


def test_the_sum_the_sizes_and_the_error_are_the_estimates(target: Target) -> None:
    estimate = run(target, W8A8)
    assert estimate.latency_s == pytest.approx(sum(cost.latency_s for cost in estimate.per_layer))
    assert (estimate.ram_bytes, estimate.flash_bytes, estimate.error) == (11, 22, target.prediction_error)


def test_fused_operators_and_views_cost_nothing(target: Target) -> None:
    assert [cost.name for cost in run(target, W8A8).per_layer] == ["a", "b", "sum", "pool", "fc"]
    alone = [replace(operator, fused_into=None) for operator in network(16)]
    unfused = predict(alone, lambda _: W8A8, target, 0, 0, inputs={"x": 768})
    assert unfused.latency_s > run(target, W8A8).latency_s


def test_a_fused_addition_reads_its_shortcut() -> None:
    conv_alone = [conv("s", "x", 1, 1, 100), conv("c", "x", 1, 1, 100)]
    added = [*conv_alone, Operator("sum", "", "add", 0, 0, 0, ("c", "s"), 10_000, fused_into="c")]
    slow = replace(SIMPLE, bandwidth_bytes_per_s=1e6)
    without, with_sum = (predict(ops, lambda _: W8A8, slow, 0, 0, inputs={"x": 10_000}) for ops in (conv_alone, added))
    assert with_sum.latency_s - without.latency_s == pytest.approx(10_000 / 1e6)


def test_what_has_no_precision_of_its_own_takes_that_of_its_input() -> None:
    given = predict(network(16), {"a": W8A8, "b": W8A8, "fc": W8A8}, SIMPLE, 0, 0, inputs={"x": 768})
    assert given == predict(network(16), lambda _: W8A8, SIMPLE, 0, 0, inputs={"x": 768})
    assert predict(network(16), {}, SIMPLE, 11, 22, inputs={"x": 768}) == run(SIMPLE, FLOAT32)


@pytest.mark.parametrize("precision", [W8A8, W4A8, FLOAT32, FLOAT16, BINARY], ids=str)
def test_more_macs_take_longer(target: Target, precision: Precision) -> None:
    """From one channel multiple to the next the time grows; within one it never falls."""
    times = [run(target, precision, width).latency_s for width in range(32, 257, 32)]
    assert times == sorted(times)
    assert times[-1] > times[0]
    fine = [run(target, precision, width).latency_s for width in range(8, 40)]
    assert all(later >= earlier * (1 - 1e-12) for earlier, later in pairwise(fine))
    assert run(target, precision, 32, 32).latency_s > run(target, precision, 32, 16).latency_s


@pytest.mark.parametrize("width", [3, 16, 64, 200])
def test_integers_are_never_predicted_slower_than_float(target: Target, width: int) -> None:
    eight, real = run(target, W8A8, width), run(target, FLOAT32, width)
    assert all(a.latency_s <= b.latency_s for a, b in zip(eight.per_layer, real.per_layer, strict=True))
    assert run(target, FLOAT16, width).latency_s <= real.latency_s
    assert run(target, W4A8, width).latency_s <= real.latency_s


def test_a_precision_of_its_own_is_used_as_it_is(target: Target) -> None:
    for rate in target.macs_per_s:
        assert rate_for(target, rate.precision) == rate


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        (W4A8, W8A8),
        (Precision(2, 8, "integer"), W8A8),
        (Precision(8, 4, "integer"), W8A8),
        (BINARY, W8A8),
        (Precision(8, 16, "integer"), FLOAT32),
        (Precision(16, 16, "integer"), FLOAT32),
        (FLOAT16, FLOAT32),
        (Precision(64, 64, "float"), FLOAT32),
    ],
    ids=str,
)
def test_a_precision_without_a_rate_falls_back_to_the_next_wider(asked: Precision, used: Precision) -> None:
    assert rate_for(SIMPLE, asked).precision == used


def test_the_next_wider_has_the_fewest_bits() -> None:
    both = replace(SIMPLE, macs_per_s=(Rate(FLOAT32, 1, 1), Rate(W8A8, 3, 1), Rate(W4A8, 2, 1), Rate(FLOAT16, 4, 1)))
    assert rate_for(both, Precision(3, 8, "integer")).precision == W4A8
    assert rate_for(both, Precision(5, 8, "integer")).precision == W8A8
    assert rate_for(both, Precision(16, 16, "integer")).precision == FLOAT16


def test_gpus_compute_float_layers_in_float16_and_others_as_they_are(target: Target) -> None:
    real, half = run(target, FLOAT32), run(target, FLOAT16)
    assert (real.latency_s == half.latency_s) == (
        target.gpu is not None or rate_for(target, FLOAT16).precision == FLOAT32
    )
    assert [cost.weight_bytes for cost in real.per_layer] == [2 * cost.weight_bytes for cost in half.per_layer]
    wanted = FLOAT16 if target.gpu is not None else FLOAT32
    assert computing_rate(target, FLOAT32).precision == wanted


def test_jetson_computes_four_bit_weights_as_eight_and_says_what_is_stored() -> None:
    four, eight = run(load("jetson"), W4A8), run(load("jetson"), W8A8)
    assert four.latency_s == eight.latency_s
    assert [2 * cost.weight_bytes for cost in four.per_layer] == [cost.weight_bytes for cost in eight.per_layer]


def test_packed_weights_move_fewer_bytes_only_where_they_are_read_in_place() -> None:
    linear = Operator("l", "l", "linear", 1_000_000, 1_000_000, 1_000_000, ("x",), 1000, 1000, 1000)
    packed = replace(SIMPLE, macs_per_s=(*SIMPLE.macs_per_s, Rate(W4A8, 2e9, 0.5)))
    in_place, loaded = (
        predict([linear], {"l": W4A8}, replace(packed, weights_in_ram=in_ram), 0, 0, inputs={"x": 1000}).latency_s
        for in_ram in (False, True)
    )
    assert in_place == pytest.approx((500_000 + 2000) / 1e8 + 1e-6)
    assert loaded == pytest.approx((1_000_000 + 2000) / 1e8 + 1e-6)


@pytest.mark.parametrize(
    ("channels", "out", "groups", "factor"),
    [
        (16, 16, 1, 1),
        (3, 16, 1, 16 / 3),
        (17, 16, 1, 32 / 17),
        (20, 33, 1, 32 / 20 * 48 / 33),
        (20, 20, 20, 32 / 20),
        (32, 32, 4, 2 * 2),
        (64, 64, 4, 1),
    ],
)
def test_channels_are_filled_up_to_the_multiple(channels: int, out: int, groups: int, factor: float) -> None:
    operator = conv("c", "x", channels, out, 4, groups)
    assert padded_macs(operator, 16) == pytest.approx(operator.macs * factor)
    assert padded_macs(operator, 1) == operator.macs


def test_pruning_within_a_multiple_saves_no_computing() -> None:
    """A network that is smaller but not faster: 33 and 64 channels fill the same vectors of 32."""
    jetson = load("jetson")
    some, full = conv("c", "x", 33, 33, 64), conv("c", "x", 64, 64, 64)
    assert padded_macs(some, jetson.channel_multiple) == pytest.approx(padded_macs(full, jetson.channel_multiple))


def test_an_unknown_tensor_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="'a' reads 'x'"):
        predict(network(4), {}, SIMPLE, 0, 0, inputs={})
