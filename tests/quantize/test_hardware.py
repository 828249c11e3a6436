"""Layers whose weights are in hardware: no method changes them, and files hold them in one bit or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from compress import data, targets
from compress.export import onnx as interchange
from compress.export.lowering import lower
from compress.graph.hardware import fixed_parameters, in_hardware
from compress.graph.trace import trace
from compress.integer import program as p
from compress.prune import prune
from compress.prune import roster as pruning
from compress.prune.finetune import FineTune
from compress.quantize import quantize
from compress.quantize import roster as quantizing
from compress.quantize.hardware import precisions
from compress.quantize.mixed import integer_precisions
from compress.quantize.sensed import SensedClassifier, sensed
from compress.quantize.study import shared_study
from compress.quantize.training import QuantizationAware
from compress.types import FIRST, Budget, Context, Plan, Precision, Record, Size, State
from tests.rosters import some


def network() -> nn.Module:
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


X = torch.rand(48, 1, 16, 16, generator=torch.Generator().manual_seed(1))
Y = torch.arange(48) % 4


def model(values: str = "+-1") -> SensedClassifier:
    return sensed(network(), X[:2], 0.1, values=values).eval()  # type: ignore[arg-type]


def context(target: str = "cpu", **changes: Any) -> Context:
    found = data.from_python((X, Y), divisible=False)
    return Context(targets.load(target), Budget(), found, torch.Generator().manual_seed(0), samples=32, **changes)


def test_modules_say_that_they_are_in_hardware() -> None:
    made = nn.ModuleDict({"front": model(), "plain": network()})
    assert in_hardware(made) == ("front.sensing",)
    assert fixed_parameters(made) == {"front.sensing.weight"}
    assert fixed_parameters(model().sensing) == {"weight"}


@some("method", list(pruning.METHODS), quick=[pruning.DEFAULT, "coreset", "norm"])
def test_no_pruning_method_changes_them(method: str) -> None:
    before = model()
    made = prune(before, X[:2], macs=0.7, data=(X, Y), method=method, seed=1)
    assert torch.equal(made.model.sensing.weight, before.sensing.weight)
    if method != "blocks":
        assert made.model.network[0].out_channels < 8
    assert any(note.where == "sensing" and "hardware" in note.why for note in made.report.notes) or method == "blocks"


@pytest.mark.parametrize("method", quantizing.METHODS)
@pytest.mark.parametrize(("values", "bits"), [("+-1", 1), ("01", 2)])
def test_no_quantization_method_changes_them(method: str, values: str, bits: int) -> None:
    before = model(values)
    made = quantize(before, (X, Y), weight_bits=8, method=method, target="raspberry-pi-4")
    assert torch.equal(made.model.sensing.weight, before.sensing.weight)
    assert torch.equal(made.model.sensing.patterns(), before.sensing.patterns())
    assert made.plan.layer("sensing").precision == Precision(bits, 8, "binary")
    assert made.state.quantization is not None
    grid = made.state.quantization.weights["sensing.weight"]
    assert (grid.bits, grid.scale) == (bits, tuple(before.sensing.weight.flatten(1).abs().amax(1).tolist()))
    assert made.plan.layer("network.0").precision.weight_bits == 8
    assert any(note.where == "sensing" and "hardware" in note.why for note in made.report.notes)


def test_limits_count_them_by_their_bits() -> None:
    # 26 patterns of 256 pixels are 832 bytes in one bit and 26,624 in float32.
    made = quantize(model(), (X, Y), budget=Budget(flash_bytes=60_000), weight_bits=8, target="cpu")
    assert not any("nearest" in note.why for note in made.report.notes)


def test_training_leaves_them_alone() -> None:
    before = model()
    ready = context(teacher=network())
    tuned = FineTune(1)(State(before), ready)
    assert torch.equal(tuned.model.sensing.weight, before.sensing.weight)
    assert not torch.equal(tuned.model.sensing.expand.weight, before.sensing.expand.weight)
    state = quantizing.METHODS["uniform"](8, 8)(tuned, ready)
    trained = QuantizationAware(1)(state, ready)
    assert torch.equal(trained.model.sensing.weight, before.sensing.weight)
    assert trained.quantization is not None
    assert state.quantization is not None
    assert trained.quantization.weights["sensing.weight"] == state.quantization.weights["sensing.weight"]
    assert trained.quantization.weights["network.0.weight"] != state.quantization.weights["network.0.weight"]


@pytest.mark.parametrize(("values", "bits"), [("+-1", 1), ("01", 2)])
def test_files_hold_the_patterns_and_integer_programs_add_them(values: str, bits: int, tmp_path: Path) -> None:
    made = quantize(model(values), (X, Y), weight_bits=8, target="cortex-m7")
    path = tmp_path / "model.onnx"
    interchange.export(made.state, X[:2], path)
    packed = {t.name: t for t in onnx.load(path).graph.initializer}["sensing.weight_quantized_int2"]
    assert packed.data_type == onnx.TensorProto.INT2
    wanted = made.model.sensing.patterns().numpy()
    assert np.array_equal(numpy_helper.to_array(packed).astype(np.float32)[:, 0], wanted)
    first = next(op for op in lower(path).ops if isinstance(op, p.Convolution))
    assert first.weight_bits == bits
    assert np.array_equal(first.weight.reshape(wanted.shape), wanted)


def test_without_integer_kernels_they_stay_float() -> None:
    device = targets.load("cpu")
    floats = replace(device, macs_per_s=tuple(r for r in device.macs_per_s if r.precision.kind == "float"))
    assert precisions(model(), floats) == {}
    assert precisions(model(), device) == {"sensing": Precision(1, 8, "binary")}


def test_weights_of_more_values_are_left_in_float_with_a_note() -> None:
    odd = model()
    with torch.no_grad():
        odd.sensing.weight[0, 0, 0, 0] *= 0.3
    made = quantize(odd, (X, Y), weight_bits=8, method="uniform", target="cpu")
    assert torch.equal(made.model.sensing.weight, odd.sensing.weight)
    assert any(note.where == "sensing" and note.why.endswith("in float") for note in made.report.notes)


def test_the_traced_network_has_the_same_plan_digest_every_time() -> None:
    made = [quantize(model(), (X, Y), weight_bits=8, target="cpu", seed=3) for _ in range(2)]
    assert made[0].plan.digest() == made[1].plan.digest()
    assert made[0].plan != Plan()
    assert trace(made[0].model, (X[:2],)).nodes


def test_the_network_that_every_candidate_begins_with_is_studied_once() -> None:
    ready = context()
    size = Size(1, 1, 32.0)
    begun = State(model(), records=(Record("sense", {}, 0.0, size, size),))
    which = integer_precisions(ready.target, 8)
    assert shared_study(begun, ready, which[-1:]) is not shared_study(begun, ready, which[-1:])
    ready.shared[FIRST] = begun
    assert shared_study(begun, ready, which[-1:]) is shared_study(begun, ready, which[-1:])
