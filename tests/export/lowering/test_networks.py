"""Every architecture of the roster, quantized by our own quantizer and in float, beside ONNX Runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress.export.lowering import CannotLower, lower
from compress.export.onnx import serialize
from compress.quantize import quantize
from compress.types import State
from tests.export.lowering import comparing
from tests.export.lowering.small import check, islands
from tests.graph import transformers
from tests.graph.networks import ARCHITECTURES, ROSTER, build, inputs_of

FLOATS: dict[str, set[str]] = {
    "Squeeze": {"Mul"},
    "Attention": {"MatMul", "LayerNormalization"},
    "PreActivationResNet": {"BatchNormalization"},
    "ShuffleNetV2": {"Concat"},
    "CrossAttention": {"MatMul"},
    "ConvNeXt": {"LayerNormalization", "Mul", "Add", "Sub"},
    "SuperResolution": {"PRelu"},
    "GroupNormNet": {"GroupNormalization", "InstanceNormalization"},
    "MobileNetV3": {"GlobalAveragePool", "Mul"},
    "Transposed": {"MatMul"},
    "ViT": {"MatMul", "Add", "Concat"},
    "HandWrittenTransformer": {"LayerNormalization", "MatMul"},
    "TorchTransformer": {"LayerNormalization", "MatMul"},
    "Swin": {"LayerNormalization", "MatMul", "Add"},
    "Mixer": {"LayerNormalization"},
    "Gated": {"Mul", "ReduceMean"},
}
"""What our quantizer may leave in float, by network: the others are integers throughout."""
REFUSED = {transformers.Recurrent: "LSTM", transformers.Text: "input 'input' is INT64"}
"""Networks that can't be lowered, and what is named."""


def serialized(factory: type[torch.nn.Module], target: str | None) -> bytes:
    model, inputs = build(factory), inputs_of(factory, 16)
    if target is None:
        few = tuple(x[:2] for x in inputs)
        return serialize(State(model), few if len(few) > 1 else few[0])
    made = quantize(model, inputs[0], target=target, method="uniform")
    return serialize(made.state, inputs[0][:2])


def marked(factory: type[torch.nn.Module], target: str) -> Any:
    """The roster's networks for x86 at every run, the rest in the long one."""
    quick = factory in ROSTER and target == "cpu"
    return pytest.param(factory, target, marks=() if quick else pytest.mark.slow)


LOWERED = [each for each in ARCHITECTURES if each not in (*REFUSED, transformers.TwoInputs)]


@pytest.mark.parametrize(
    ("factory", "target"), [marked(each, target) for each in LOWERED for target in ("cpu", "raspberry-pi-4")]
)
def test_our_own_files(factory, target):
    model = serialized(factory, target)
    found = islands(lower(model))
    assert found <= FLOATS.get(factory.__name__, set())
    program = check(model, floats=found)
    assert program.macs > 0


@pytest.mark.parametrize("factory", [pytest.param(f, marks=() if f in ROSTER else pytest.mark.slow) for f in LOWERED])
def test_float_files(factory):
    model = serialized(factory, None)
    inputs = [x[:1].numpy() for x in inputs_of(factory, 1)]
    program = lower(model)
    assert {tensor.dtype for tensor in program.tensors.values()} == {"float32"}
    assert islands(program) <= {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    assert comparing.difference(model, inputs, program) <= 1e-4


@pytest.mark.parametrize("factory", REFUSED)
def test_networks_that_cannot_be_lowered(factory):
    with pytest.raises(CannotLower, match=REFUSED[factory]):
        lower(serialized(factory, None))
