"""Every architecture of the roster, quantized by our own quantizer and in float, beside ONNX Runtime."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from compress.export.lowering import CannotLower, lower
from compress.export.onnx import serialize
from compress.quantize import quantize
from compress.types import State
from tests.export.lowering import comparing
from tests.export.lowering.small import check
from tests.graph import convolutional, transformers
from tests.graph.networks import ARCHITECTURES, build, inputs_of

FLOATS = {}
"""What our quantizer leaves in float, by network; nothing else is."""
REFUSED = {}
"""Networks that can't be lowered, and what is said."""


def serialized(factory: type[torch.nn.Module], target: str | None) -> bytes:
    model, inputs = build(factory), inputs_of(factory, 16)
    if target is None:
        few = tuple(x[:2] for x in inputs)
        return serialize(State(model), few if len(few) > 1 else few[0])
    made = quantize(model, inputs[0], target=target, method="uniform")
    return serialize(made.state, inputs[0][:2])


IMAGES = [each for each in ARCHITECTURES if each not in (transformers.Text, transformers.TwoInputs)]


@pytest.mark.parametrize("target", ["cpu", "raspberry-pi-4"])
@pytest.mark.parametrize("factory", IMAGES)
def test_our_own_files(factory, target):
    model = serialized(factory, target)
    program = check(model, floats=FLOATS.get(factory.__name__, set()), close=0.15)
    assert program.macs > 0


@pytest.mark.parametrize("factory", ARCHITECTURES)
def test_float_files(factory):
    model = serialized(factory, None)
    inputs = [x[:1].numpy() for x in inputs_of(factory, 1)]
    assert comparing.difference(model, inputs) <= 1e-4
