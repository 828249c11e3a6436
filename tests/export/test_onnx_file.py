"""The ONNX file: it computes what the simulation computes, integers run as integers, small is small."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from compress.export import torch_exporter
from compress.export.onnx import FILE, OPSET, export, serialize
from compress.export.torch_exporter import operators_read_once
from compress.graph.interpret import Steps
from compress.graph.qdq import insert, integers
from compress.graph.trace import trace
from compress.profiling.session import open_session, runner
from compress.prune import prune
from compress.quantize import quantize
from compress.quantize.rebuild import rebuild
from compress.quantize.simulation import Simulation
from compress.quantize.uniform import Uniform
from compress.types import Grid, State
from tests.graph.networks import ROSTER, Attention, Plain, Residual, UNet, build, images
from tests.graph.transformers import Recurrent
from tests.rosters import crossed, some
from tests.support import context, exact_here, file_of, optimized_operators, quantized

networks = pytest.mark.parametrize("factory", ROSTER, ids=lambda factory: factory.__name__)
FEW = (Plain, Residual, UNet, Attention)


def run(content: bytes, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(exact_here(content), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@some("factory", ROSTER, quick=FEW)
def test_a_float_file_computes_what_the_network_computes(factory):
    model = build(factory)
    torch.testing.assert_close(run(serialize(State(model), images(2)), images()), model(images()), rtol=1e-3, atol=1e-4)


@some("factory", ROSTER, quick=FEW)
def test_a_pruned_file_computes_what_the_pruned_network_computes(factory):
    result = prune(build(factory), images(2), macs=0.8)
    got = run(serialize(result.state, images(2)), images())
    torch.testing.assert_close(got, result.model(images()), rtol=1e-3, atol=1e-4)


@crossed(("factory", "bits"), ROSTER, [8, 5])
def test_a_quantized_file_computes_what_the_simulation_computes(factory, bits):
    result = quantized(factory, bits)
    got = run(file_of(factory, bits), images(32, 9))
    expected = result.simulation(images(32, 9))
    # ONNX Runtime rescales accumulators in one float step where the simulation rounds twice, so single
    # activations may land a step apart; over the output that stays well below the quantization error.
    assert float((got - expected).norm() / expected.norm()) < 0.02


def test_signed_values_move_into_a_float_operator():
    """A layout that only an LSTM reads: ONNX Runtime repeats the pair behind it."""
    result = quantize(build(Recurrent), images(32), target="visionfive-2")
    assert any(grid.signed for grid in result.state.quantization.activations.values())
    expected = result.simulation(images(8, 9))
    got = run(serialize(result.state, images(2)), images(8, 9))
    assert float((got - expected).norm() / expected.norm()) < 0.02


@networks
def test_the_integers_in_the_file_are_those_of_the_state(factory):
    result = quantized(factory, 5)
    model = onnx.load_from_string(file_of(factory, 5))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, grid in result.state.quantization.weights.items():
        packed = tensors.get(f"{name}_quantized_int4")
        stored = packed if packed is not None else tensors[f"{name}_quantized"]
        assert (packed is not None) == (grid.bits == 4)
        values = numpy_helper.to_array(stored).astype(np.int8)
        assert np.array_equal(values, integers(result.model.get_parameter(name), grid).numpy())


def test_every_layer_runs_as_an_integer_kernel_also_from_packed_weights(tmp_path):
    for bits in (8, 4):
        (tmp_path / FILE).write_bytes(file_of(Residual, bits))
        operators = optimized_operators(tmp_path / FILE)
        assert operators.count("QLinearConv") == 6
        assert operators.count("QLinearAdd") == 2
        assert "Conv" not in operators


class Twice(nn.Module):
    """One convolution, applied to images and to what it makes of them, which is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.again(torch.relu(self.again(x)))))


def test_a_layer_that_is_applied_again_has_a_bias_on_each_inputs_grid(tmp_path):
    """One bias for both would be wrong in integers at one of them, or leave it in float."""
    model = build(Twice)
    with torch.no_grad():
        model.again.weight.mul_(9)
        model.again.bias.copy_(torch.tensor([2.0, -1.0, 0.5]))
    result = quantize(model, images(32))
    content = serialize(result.state, images(2))
    file = onnx.load_from_string(content)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
    made = {name: node for node in file.graph.node for name in node.output}
    layers = [node for node in file.graph.node if node.op_type == "Conv"][:2]
    assert len({layer.input[1] for layer in layers}) == 1
    steps = []
    for layer in layers:
        bias, source, weight = (made[layer.input[i]] for i in (2, 0, 1))
        integers, step = (tensors[name] for name in bias.input[:2])
        assert np.array_equal(step, tensors[source.input[1]] * tensors[weight.input[1]])
        assert np.abs(integers * step.astype(np.float64) - model.again.bias.detach().numpy()).max() <= step.max() / 2
        steps.append(step)
    assert (steps[1] > 2 * steps[0]).all()
    (tmp_path / FILE).write_bytes(content)
    operators = optimized_operators(tmp_path / FILE)
    assert (operators.count("QLinearConv"), operators.count("Conv")) == (2, 1)
    got, expected = run(content, images(32, 9)), result.simulation(images(32, 9))
    assert float((got - expected).norm() / expected.norm()) < 0.02


def test_four_bit_weights_take_half_the_bytes():
    wide, narrow = (
        sum(
            len(tensor.raw_data)
            for tensor in onnx.load_from_string(file_of(Plain, bits)).graph.initializer
            if "weight_quantized" in tensor.name
        )
        for bits in (8, 4)
    )
    assert narrow == wide // 2


@pytest.mark.parametrize("width", [4, 2])
def test_packed_integers_unpack_to_themselves(width):
    from compress.export.onnx import _pack

    values = np.random.default_rng(0).integers(-(2 ** (width - 1)), 2 ** (width - 1), (3, 5, 3)).astype(np.int8)
    packed = _pack(numpy_helper.from_array(values, "w"), width)
    assert np.array_equal(numpy_helper.to_array(packed).astype(np.int8), values)


@functools.cache
def narrow_state(bits: int) -> State:
    """A network with a convolution, a depthwise one and a linear layer, its weights rounded by second order."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ).eval()
    start = Uniform(8, 8)(State(model), context())
    whole = Steps.of(trace(start.model, (images(2),)))
    made = Simulation(replace(whole, parameters=dict(whole.parameters)), start.quantization.activations)
    weights = rebuild(
        *(whole, made, dict.fromkeys(start.quantization.weights, bits), images(64)),
        **{"batch": 32, "generator": torch.Generator().manual_seed(0), "progress": lambda message: None},
    )
    with torch.no_grad():
        for name, parameter in start.model.named_parameters():
            parameter.copy_(made.steps.parameters[name])
    return replace(start, quantization=replace(start.quantization, weights=weights))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_weights_of_one_to_three_bits_run_and_agree_with_the_simulation(bits):
    state = narrow_state(bits)
    content = serialize(state, images(2))
    x = images(32, 9)
    expected = insert(trace(state.model, (images(2),)), state.quantization)(x)
    assert float((run(content, x) - expected).norm() / expected.norm()) < 0.02
    tensors = {tensor.name: tensor for tensor in onnx.load_from_string(content).graph.initializer}
    for name, grid in state.quantization.weights.items():
        assert (grid.bits, grid.low, grid.high) == (bits, -(2 ** (bits - 1)), max(1, 2 ** (bits - 1) - 1))
        stored = numpy_helper.to_array(tensors[f"{name}_quantized_int{2 if bits < 3 else 4}"]).astype(np.int8)
        assert np.array_equal(stored, integers(state.model.get_parameter(name), grid).numpy())
        if bits == 1:
            assert set(np.unique(stored).tolist()) <= {-1, 1}


def test_narrow_activations_are_clipped_to_their_grid():
    result = quantize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), images(64))
    grids = {
        name: Grid((grid.scale[0] * 16,), grid.zero_point // 16, 4, False)
        for name, grid in result.state.quantization.activations.items()
    }
    state = replace(result.state, quantization=replace(result.state.quantization, activations=grids))
    expected = insert(trace(state.model, (images(2),)), state.quantization)(images(8))
    torch.testing.assert_close(
        run(serialize(state, images(2)), images(8)),
        expected,
        rtol=1e-3,
        atol=float(max(g.scale[0] for g in grids.values())),
    )


def test_the_same_state_gives_the_same_bytes_and_no_path_of_this_machine(tmp_path):
    result = quantized(Residual)
    one, two = (serialize(result.state, images(2)) for _ in range(2))
    assert one == two
    assert b"site-packages" not in one
    assert str(tmp_path.parent).encode() not in one
    assert b".py" not in one


def test_operators_are_read_once_and_every_export_has_its_own(monkeypatch):
    """The table that was read before gives the same bytes as one that is read anew, and nothing that is added to it."""
    registry = pytest.importorskip("torch.onnx._internal.exporter._registration").ONNXRegistry
    original, state = vars(registry)["from_torchlib"], quantized(Plain).state
    file = serialize(state, images(2))
    monkeypatch.setattr(torch_exporter, "_OPERATORS", {})
    assert serialize(state, images(2)) == file
    with operators_read_once():
        one, two = (registry.from_torchlib(opset_version=OPSET) for _ in range(2))
        assert one.functions == two.functions
        # Our two operators, which serialize adds, are in no other export's table.
        assert not any(str(name).startswith("compress::") for name in two.functions)
        for functions in one.functions.values():
            functions.clear()
        one.functions.clear()
        assert registry.from_torchlib(opset_version=OPSET).functions == two.functions
    assert vars(registry)["from_torchlib"] is original
    assert serialize(state, images(2)) == file


def test_the_file_takes_any_batch(tmp_path):
    export(quantized(Attention).state, images(2), tmp_path / FILE)
    execute = runner(open_session(tmp_path / FILE))
    whole = execute(images(5).numpy())
    assert whole.shape == (5, 5)
    np.testing.assert_allclose(
        np.concatenate([execute(x[None]) for x in images(5).numpy()]), whole, rtol=1e-3, atol=1e-3
    )


def test_the_checker_accepts_the_file():
    for bits in (8, 4):
        onnx.checker.check_model(onnx.load_from_string(file_of(Residual, bits)))
