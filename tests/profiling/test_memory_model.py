"""The peak of working memory, against a simulation that keeps the set of live tensors step by step."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from compress.graph.operators import Operator
from compress.profiling.memory import ELEMENTWISE, PeakMemory, TensorSize, peak_ram
from compress.targets import load
from compress.types import Target

IN_RAM, IN_FLASH = load("raspberry-pi-5"), load("cortex-m7")


def op(name: str, kind: str, inputs: Sequence[str], elements: int, fused_into: str | None = None) -> Operator:
    return Operator(name, name, kind, 0, 0, 0, tuple(inputs), elements, fused_into=fused_into)


def simulated(operators: Sequence[Operator], inputs: Mapping[str, int]) -> int:
    """Peak elements of unfused operators: run them one by one and free what no later operator reads."""
    live = dict(inputs)
    most = sum(live.values())
    outputs = {o.name for o in operators} - {name for o in operators for name in o.inputs}
    for step, operator in enumerate(operators):
        needed = outputs | {name for later in operators[step + 1 :] for name in later.inputs}
        dying = [name for name in operator.inputs if name not in needed and name not in inputs]
        fits = [name for name in dying if live[name] >= operator.output_elements]
        if operator.kind in ELEMENTWISE and fits:
            live[operator.name] = live.pop(fits[0])
            most = max(most, sum(live.values()))
        else:
            live[operator.name] = operator.output_elements
            most = max(most, sum(live.values()))
        live = {name: size for name, size in live.items() if name in needed}
    return most


CHAIN = [op("a", "conv2d", ["x"], 200), op("b", "max_pool2d", ["a"], 50), op("c", "linear", ["b"], 10)]
RESIDUAL = [
    op("stem", "conv2d", ["x"], 100),
    op("conv1", "conv2d", ["stem"], 300),
    op("conv2", "conv2d", ["conv1"], 100),
    op("sum", "add", ["conv2", "stem"], 100),
    op("relu", "relu", ["sum"], 100),
    op("out", "linear", ["relu"], 10),
]


def test_a_chain_needs_an_operators_input_and_output_at_once() -> None:
    """x 100 + a 200 = 300 at ``a``, against a + b = 250 at ``b``."""
    peak = peak_ram(CHAIN, 8, 0, IN_FLASH, inputs={"x": 100})
    assert peak == PeakMemory(300, 300, 0, "a", (TensorSize("a", 200), TensorSize("x", 100)))


def test_a_shortcut_lives_until_it_is_added() -> None:
    """stem 100 + conv1 300 + conv2 100 = 500 at ``conv2``: the shortcut is held over both convolutions."""
    peak = peak_ram(RESIDUAL, 8, 0, IN_FLASH, inputs={"x": 30})
    assert (peak.bytes, peak.operator) == (500, "conv2")
    assert peak.tensors == (TensorSize("conv1", 300), TensorSize("stem", 100), TensorSize("conv2", 100))
    without = [replace(o, inputs=("conv2",)) if o.name == "sum" else o for o in RESIDUAL]
    assert peak_ram(without, 8, 0, IN_FLASH, inputs={"x": 30}).bytes == 400


def test_the_largest_tensors_are_named_in_words() -> None:
    text = str(peak_ram(RESIDUAL, 8, 70, IN_RAM, inputs={"x": 30}))
    assert text == "570 bytes at conv2 (conv1 300 bytes, stem 100 bytes, conv2 100 bytes, weights 70 bytes)"


def test_weights_count_only_where_they_lie_in_ram() -> None:
    in_ram, in_flash = (peak_ram(CHAIN, 8, 1000, target, inputs={"x": 100}) for target in (IN_RAM, IN_FLASH))
    assert (in_ram.bytes, in_ram.activation_bytes, in_ram.weight_bytes) == (1300, 300, 1000)
    assert (in_flash.bytes, in_flash.activation_bytes, in_flash.weight_bytes) == (300, 300, 0)


@pytest.mark.parametrize(("bits", "expected"), [(32, 4 * 12), (8, 12), (4, 4 + 3), (3, 3 + 2), (1, 1 + 1)])
def test_each_tensor_is_rounded_up_to_whole_bytes(bits: int, expected: int) -> None:
    """7 and 5 elements: at 4 bits 3.5 and 2.5 bytes."""
    assert peak_ram([op("a", "conv2d", ["x"], 5)], bits, 0, IN_FLASH, inputs={"x": 7}).bytes == expected


def test_tensors_that_have_no_width_are_float() -> None:
    peak = peak_ram(CHAIN, {"x": 8, "b": 8}, 0, IN_FLASH, inputs={"x": 100})
    assert peak.tensors == (TensorSize("a", 800), TensorSize("x", 100))


def test_fused_operators_write_one_tensor() -> None:
    fused = [
        op("conv", "conv2d", ["x"], 100),
        op("norm", "batch_norm", ["conv"], 100, "conv"),
        op("relu", "relu", ["norm"], 100, "norm"),
        op("next", "conv2d", ["relu"], 100),
    ]
    assert peak_ram(fused, 8, 0, IN_FLASH, inputs={"x": 100}).bytes == 200
    # The width of the one tensor may be given under any of the names.
    assert peak_ram(fused, {"x": 8, "relu": 8, "next": 8}, 0, IN_FLASH, inputs={"x": 100}).bytes == 200


def test_a_fused_addition_holds_its_shortcut_until_its_own_step() -> None:
    fused = [
        op("stem", "conv2d", ["x"], 100),
        op("conv", "conv2d", ["stem"], 100),
        op("side", "conv2d", ["x"], 100),
        op("sum", "add", ["conv", "side"], 100, "conv"),
        op("out", "linear", ["sum"], 10),
    ]
    # At ``side`` x, side and conv's output are alive; at ``conv`` x, stem and conv.
    assert peak_ram(fused, 8, 0, IN_FLASH, inputs={"x": 40}).bytes == 240
    assert peak_ram(fused, 8, 0, IN_FLASH, inputs={"x": 40}).operator == "conv"


def test_elementwise_overwrites_an_input_that_dies_and_no_other() -> None:
    dies = [op("a", "conv2d", ["x"], 100), op("r", "relu", ["a"], 100), op("o", "conv2d", ["r"], 1)]
    lives = [*dies[:2], op("o", "add", ["r", "a"], 100)]
    from_input = [op("r", "relu", ["x"], 100), op("o", "conv2d", ["r"], 1)]
    pooled = [dies[0], op("r", "max_pool2d", ["a"], 100), dies[2]]
    assert peak_ram(dies, 8, 0, IN_FLASH, inputs={"x": 3}).bytes == 103
    assert peak_ram(lives, 8, 0, IN_FLASH, inputs={"x": 3}).bytes == 200
    assert peak_ram(from_input, 8, 0, IN_FLASH, inputs={"x": 100}).bytes == 200
    assert peak_ram(pooled, 8, 0, IN_FLASH, inputs={"x": 3}).bytes == 200


def test_a_broadcast_sum_overwrites_only_an_input_that_is_large_enough() -> None:
    scaled = [op("s", "linear", ["x"], 10), op("a", "conv2d", ["x"], 100), op("m", "mul", ["s", "a"], 100)]
    assert peak_ram(scaled, 8, 0, IN_FLASH, inputs={"x": 5}).bytes == 115


def test_an_output_in_the_middle_lives_to_the_end() -> None:
    heads = [op("a", "conv2d", ["x"], 10), op("left", "linear", ["a"], 500), op("right", "conv2d", ["a"], 400)]
    assert peak_ram(heads, 8, 0, IN_FLASH, inputs={"x": 1}).bytes == 910


def test_a_network_without_operators_holds_its_inputs() -> None:
    assert peak_ram([], 8, 5, IN_RAM, inputs={"x": 4}) == PeakMemory(9, 4, 5, "", (TensorSize("x", 4),))


def test_an_unknown_tensor_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="'a' reads 'x'"):
        peak_ram(CHAIN, 8, 0, IN_FLASH, inputs={})


def random_network(seed: int) -> tuple[list[Operator], dict[str, int]]:
    random_ = random.Random(seed)
    made = {"x": random_.randint(1, 50), "y": random_.randint(1, 50)}
    inputs, operators = dict(made), []
    for index in range(random_.randint(2, 14)):
        kind = random_.choice(["conv2d", "conv2d", "max_pool2d", "relu", "add", "mul"])
        read = random_.sample(list(made)[-6:], k=2 if kind in {"add", "mul"} else 1)
        if index == 0:
            read = ["x", "y"]
        elements = max(made[name] for name in read) if kind in ELEMENTWISE else random_.randint(1, 50)
        operators.append(op(f"o{index}", kind, read, elements))
        made[f"o{index}"] = elements
    return operators, inputs


@pytest.mark.parametrize("seed", range(200))
def test_the_peak_is_that_of_a_step_by_step_simulation(seed: int) -> None:
    operators, inputs = random_network(seed)
    peak = peak_ram(operators, 8, 0, IN_FLASH, inputs=inputs)
    assert peak.bytes == simulated(operators, inputs)
    assert peak.bytes == sum(tensor.bytes for tensor in peak.tensors)


@pytest.mark.parametrize("target", [IN_RAM, IN_FLASH], ids=lambda target: target.name)
def test_narrower_activations_never_need_more(target: Target) -> None:
    peaks = [peak_ram(RESIDUAL, bits, 10, target, inputs={"x": 30}).bytes for bits in (1, 2, 4, 8, 16, 32)]
    assert peaks == sorted(peaks)
