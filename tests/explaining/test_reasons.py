"""Each reason: of two networks that differ in one thing it is given for one, and not for the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from compress.explaining.reasons import lagging, reasons, summary
from compress.explanation import LayerWork, Reason
from compress.graph.operators import Operator
from compress.profiling import latency, roofline
from compress.targets import load
from compress.types import FLOAT32, Note, Precision, Rate, Target

W8A8, W4A8, W2A8 = (Precision(bits, 8, "integer") for bits in (8, 4, 2))
TARGET = replace(
    load("cortex-m7"),
    macs_per_s=(Rate(W4A8, 4e9, 0.5), Rate(W8A8, 2e9, 0.5), Rate(FLOAT32, 1e9, 0.25)),
    bandwidth_bytes_per_s=5e8,
    launch_overhead_s=1e-6,
    channel_multiple=8,
    weights_in_ram=False,
)
"""1e9 MACs a second with 8 bits, twice that with 4, a quarter in float; 500 MB a second, a microsecond a launch."""


def conv(name: str, source: str, channels: int, out: int, side: int, kernel: int = 3) -> Operator:
    weights = out * channels * kernel**2
    return Operator(name, name, "conv2d", weights * side**2, weights, weights, (source,), out * side**2, channels, out)


def other(name: str, kind: str, sources: tuple[str, ...], elements: int, fused_into: str | None = None) -> Operator:
    return Operator(name, "", kind, 0, 0, 0, sources, elements, fused_into=fused_into)


def works(
    operators: Sequence[Operator],
    precisions: Mapping[str, Precision] | None = None,
    target: Target = TARGET,
    grids: Sequence[str] = (),
    notes: Sequence[Note] = (),
) -> tuple[LayerWork, ...]:
    planned = precisions if precisions is not None else {o.path: W8A8 for o in operators if o.weights}
    inputs = {"x": operators[0].in_channels * 256}
    estimate = latency.predict(operators, planned, target, 0, 0, inputs=inputs)
    return roofline.works(operators, planned, target, estimate, inputs=inputs, grids=grids, notes=notes)


def why(layers: Sequence[LayerWork], target: Target = TARGET) -> tuple[Reason, ...]:
    return reasons(layers, target.channel_multiple)


def kinds(layers: Sequence[LayerWork], target: Target = TARGET) -> set[tuple[str, str]]:
    return {(reason.layer, reason.why) for reason in why(layers, target)}


def test_a_layer_that_computes_long_has_no_reason() -> None:
    """32 to 32 channels at 16x16: 2,359,296 MACs take 2.36 ms, 9,216 + 16,384 bytes 51 us, the launch 1 us."""
    (layer,) = works([conv("c", "x", 32, 32, 16)])
    assert (layer.compute_s, layer.memory_s, layer.launch_s) == pytest.approx((2359296e-9, 25600 / 5e8, 1e-6))
    assert layer.intensity == pytest.approx(2359296 / 25600)
    assert layer.ridge == pytest.approx(1e9 / 5e8)
    assert layer.bound == "compute-bound"
    assert why([layer]) == ()


def test_launch_bound() -> None:
    """8 to 8 channels at one pixel: 576 MACs take 0.58 us, its 592 bytes 1.18 us, a launch of 2 us is longer."""
    slow = replace(TARGET, launch_overhead_s=2e-6)
    tiny = [conv("c", "x", 8, 8, 1)]
    # The input has 8 x 256 elements in works(), so a network of one pixel is given its own here.
    estimate = latency.predict(tiny, {"c": W8A8}, slow, 0, 0, inputs={"x": 8})
    layers = roofline.works(tiny, {"c": W8A8}, slow, estimate, inputs={"x": 8})
    assert kinds(layers, slow) == {("c", "launch-bound")}
    assert kinds(works([conv("c", "x", 32, 32, 16)], target=slow), slow) == set()
    text = why(layers, slow)[0].text
    assert "2.00 µs" in text
    assert "1.18 µs" in text


def test_memory_bound() -> None:
    """1,024 to 1,024 channels at one pixel: each weight is multiplied once, and a byte takes twice as long as a MAC."""
    matrix = replace(conv("c", "x", 1024, 1024, 1, 1), inputs=("p",))
    pool = other("p", "mean", ("x",), 1024)
    planned = {"c": W8A8}
    estimate = latency.predict([pool, matrix], planned, TARGET, 0, 0, inputs={"x": 1024})
    layers = roofline.works([pool, matrix], planned, TARGET, estimate, inputs={"x": 1024})
    assert kinds(layers) == {("c", "memory-bound")}
    assert layers[1].intensity == pytest.approx(2**20 / (2**20 + 2048))
    fast = replace(TARGET, bandwidth_bytes_per_s=5e9)
    estimate = latency.predict([pool, matrix], planned, fast, 0, 0, inputs={"x": 1024})
    assert kinds(roofline.works([pool, matrix], planned, fast, estimate, inputs={"x": 1024}), fast) == set()


def test_misaligned_channels() -> None:
    """33 channels are computed as 40: (40/33)^2 = 1.47 times the MACs."""
    layers = works([conv("c", "x", 33, 33, 16)])
    assert kinds(layers) == {("c", "misaligned")}
    assert layers[0].padded_macs / layers[0].macs == pytest.approx((40 / 33) ** 2)
    assert "1.5" in why(layers)[0].text
    assert kinds(works([conv("c", "x", 32, 32, 16)])) == set()
    any_count = replace(TARGET, channel_multiple=1)
    assert kinds(works([conv("c", "x", 33, 33, 16)], target=any_count), any_count) == set()


def test_unfused() -> None:
    """A batch norm runs by itself where the sum reads what comes before it too."""

    def network(fused_into: str | None) -> list[Operator]:
        return [
            conv("a", "x", 32, 32, 16, 1),
            other("norm", "batch_norm", ("a",), 8192, fused_into),
            other("sum", "add", ("norm", "a"), 8192),
        ]

    apart, together = kinds(works(network(None))), kinds(works(network("a")))
    assert {reason for _, reason in apart} - {reason for _, reason in together} == {"unfused"}
    assert ("norm", "unfused") in apart
    assert not any(layer == "norm" for layer, _ in together)


def test_no_kernel_for_the_bits() -> None:
    operators = [conv("c", "x", 32, 32, 16)]
    assert kinds(works(operators, {"c": W2A8})) == {("c", "no fast kernel")}
    assert "computes as W4A8" in why(works(operators, {"c": W2A8}))[0].text
    assert kinds(works(operators, {"c": W4A8})) == set()
    assert kinds(works(operators, {"c": W8A8})) == set()


def test_a_kernel_that_is_no_faster_than_the_wider_one() -> None:
    operators = [conv("c", "x", 32, 32, 16)]
    same = replace(TARGET, macs_per_s=(Rate(W4A8, 2e9, 0.5), *TARGET.macs_per_s[1:]))
    assert kinds(works(operators, {"c": W4A8}, same), same) == {("c", "no fast kernel")}
    assert kinds(works(operators, {"c": W8A8}, same), same) == set()
    # Where a layer waits for its weights, narrower ones help though the kernel is no faster.
    matrix = [other("p", "mean", ("x",), 1024), replace(conv("c", "x", 1024, 1024, 1, 1), inputs=("p",))]
    assert ("c", "no fast kernel") not in kinds(works(matrix, {"c": W4A8}, same), same)


def test_a_layer_that_stays_in_float_among_integers() -> None:
    operators = [conv("a", "x", 32, 32, 16), conv("b", "a", 32, 32, 16), conv("c", "b", 32, 32, 16)]
    island = works(operators, {"a": W8A8, "b": FLOAT32, "c": W8A8}, grids=("a",))
    assert kinds(island) == {("b", "float island")}
    assert [layer.precision for layer in island] == [W8A8, FLOAT32, W8A8]
    assert kinds(works(operators, grids=("a", "b"))) == set()
    assert kinds(works(operators, dict.fromkeys("abc", FLOAT32))) == set()


def test_an_operator_without_weights_that_stays_in_float() -> None:
    operators = [
        conv("a", "x", 32, 32, 16, 1),
        other("soft", "softmax", ("a",), 8192),
        conv("b", "soft", 32, 32, 16, 1),
    ]
    assert ("soft", "float island") in kinds(works(operators, grids=("a",)))
    assert not any(reason == "float island" for _, reason in kinds(works(operators, grids=("a", "soft"))))
    notes = [Note("elsewhere", "add", "stays float: no"), Note("", "softmax", "stays float: exponentials need range")]
    said = why(works(operators, grids=("a",), notes=notes))
    assert any(r.layer == "soft" and "(exponentials need range)" in r.text for r in said)
    # At the end of the network float is what is wanted.
    assert not any(r == "float island" for _, r in kinds(works(operators[:2], grids=("a",))))


def test_now_dominated_by_a_layer_that_kept_its_macs() -> None:
    """Two equal layers; of the second an eighth is left: the first takes eight ninths instead of half."""
    before = works([conv("a", "x", 32, 32, 16), conv("b", "a", 32, 32, 16)])
    smaller = works([conv("a", "x", 32, 32, 16), replace(conv("b", "a", 32, 32, 16), macs=2359296 // 8)])
    found = why(roofline.beside(smaller, before))
    assert {(reason.layer, reason.why) for reason in found} == {("a", "dominated")}
    assert found[0].share == pytest.approx(8 / 9, abs=0.01)
    both = [replace(o, macs=o.macs // 8) for o in (conv("a", "x", 32, 32, 16), conv("b", "a", 32, 32, 16))]
    assert kinds(roofline.beside(works(both), before)) == set()


def test_a_layer_lags_where_fewer_macs_gave_little() -> None:
    base = works([conv("c", "x", 64, 64, 16)])[0]
    half = replace(base, macs=base.macs // 2, macs_before=base.macs)
    assert lagging(replace(half, predicted_s=0.8, predicted_before_s=1.0))
    assert not lagging(replace(half, predicted_s=0.5, predicted_before_s=1.0))
    assert not lagging(replace(base, macs_before=base.macs, predicted_s=1.0, predicted_before_s=1.0))
    said = why([replace(half, predicted_s=0.8, predicted_before_s=1.0, padded_macs=base.macs)])[0].text
    assert said.startswith("c: 2.0× fewer MACs, 1.2× faster: ")  # noqa: RUF001  # the sign that reports print


def test_a_measured_time_counts_before_a_predicted_one() -> None:
    layers = works([conv("a", "x", 33, 33, 16), conv("b", "a", 33, 33, 16)])
    measured = [replace(layers[0], measured_s=3e-3), replace(layers[1], measured_s=1e-3)]
    assert [reason.share for reason in why(measured)] == pytest.approx([0.75, 0.25])
    assert [r.share for r in reasons(measured, 8, rest_s=4e-3)] == pytest.approx([0.375, 0.125])
    assert [layer.before_s for layer in measured] == [None, None]


def test_small_layers_are_not_worth_a_reason() -> None:
    layers = works([conv("a", "x", 33, 33, 16), conv("b", "a", 33, 33, 16)])
    tiny = replace(layers[1], predicted_s=0.01 * layers[0].predicted_s)
    assert kinds([layers[0], tiny]) == {("a", "misaligned")}
    assert why([]) == ()


def test_kinds_of_reasons_are_summed_up() -> None:
    layers = works([conv("a", "x", 33, 33, 16), conv("b", "a", 33, 33, 16)], {"a": W8A8, "b": W2A8})
    (first, count, share), second = summary(layers, why(layers))
    assert (first, count) == ("misaligned", 2)
    assert share == pytest.approx(1.0)
    assert second[:2] == ("no fast kernel", 1)
