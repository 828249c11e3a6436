"""Operators on one or two values, beside ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from compress.integer import program as p
from tests.export.lowering.small import Net, check, islands, used

BROADCASTS = [
    ((1, 3, 4, 5), (1, 3, 4, 5)),
    ((1, 3, 4, 5), (1, 3, 1, 1)),
    ((1, 3, 4, 5), (1, 1, 4, 5)),
    ((1, 7), (1, 7)),
]
BROADCASTS += [((1, 6, 5), (1, 1, 5)), ((1, 3, 1, 1), (1, 3, 4, 5)), ((1, 3, 1, 5), (1, 3, 4, 1))]


@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("shapes", BROADCASTS)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_two_values(op, shapes, activation):
    net = Net(*shapes[0])
    net.input("y", *shapes[1])
    y = net.node(op, net.quantized("x"), net.quantized("y", 0.05, 3, "int8"))
    y = net.node("Relu", y) if activation else y
    program = check(net.file(net.quantized(y, 0.06)))
    assert used(program) - {"Copy"} == {"Multiply" if op == "Mul" else "Add", "Dequantize"}


@pytest.mark.parametrize("op", ["Div", "Max", "Min"])
def test_two_values_without_an_integer_rule_are_computed_in_float(op):
    net = Net(1, 3, 4, 5)
    net.input("y", 1, 3, 4, 5)
    b = net.node("Add", net.node("Sigmoid", net.quantized("y", 0.05, 3, "int8")), net.constant(0.5))
    check(net.file(net.quantized(net.node(op, net.quantized("x"), b), 0.06)), floats={op})


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_two_float_values_of_which_one_is_quantized(op):
    net = Net(1, 3, 4, 5)
    net.input("y", 1, 3, 4, 5)
    check(net.file(net.quantized(net.node(op, net.quantized("x"), "y"), 0.06)), floats={op})


@pytest.mark.parametrize("scales", [(1e-6, 3.0), (3.0, 1e-6), (0.4, 0.4)])
def test_grids_far_apart(scales):
    net = Net(1, 3, 4, 5)
    net.input("y", 1, 3, 4, 5)
    y = net.node("Add", net.quantized("x", scales[0], 128), net.quantized("y", scales[1], 128))
    check(net.file(net.quantized(y, max(scales) * 1.7, 128)))


CHAINS = {
    "sigmoid": lambda n, x: n.node("Sigmoid", x),
    "tanh": lambda n, x: n.node("Tanh", x),
    "hard_swish": lambda n, x: n.node("HardSwish", x),
    "hard_sigmoid": lambda n, x: n.node("HardSigmoid", x, alpha=0.3, beta=0.4),
    "leaky": lambda n, x: n.node("LeakyRelu", x, alpha=0.2),
    "elu": lambda n, x: n.node("Elu", x, alpha=0.7),
    "selu": lambda n, x: n.node("Selu", x),
    "softplus": lambda n, x: n.node("Softplus", x),
    "mish": lambda n, x: n.node("Mish", x),
    "gelu": lambda n, x: n.node("Gelu", x),
    "gelu_tanh": lambda n, x: n.node("Gelu", x, approximate="tanh"),
    "erf": lambda n, x: n.node("Erf", x),
    "exp": lambda n, x: n.node("Exp", x),
    "abs": lambda n, x: n.node("Abs", x),
    "neg": lambda n, x: n.node("Neg", x),
    "sign": lambda n, x: n.node("Sign", x),
    "sqrt of abs": lambda n, x: n.node("Sqrt", n.node("Abs", x)),
    "prelu of one": lambda n, x: n.node("PRelu", x, n.constant([0.25])),
    "swish": lambda n, x: n.node("Mul", x, n.node("Sigmoid", x)),
    "swish, swapped": lambda n, x: n.node("Mul", n.node("Sigmoid", x), x),
    "gelu, written out": lambda n, x: n.node(
        "Mul",
        n.node("Mul", x, n.node("Add", n.node("Erf", n.node("Div", x, n.constant(1.4142135))), n.constant(1.0))),
        n.constant(0.5),
    ),
    "hard swish, written out": lambda n, x: n.node(
        "Div",
        n.node("Mul", x, n.node("Clip", n.node("Add", x, n.constant(3.0)), n.constant(0.0), n.constant(6.0))),
        n.constant(6.0),
    ),
    "power": lambda n, x: n.node("Pow", x, n.constant(2.0)),
    "constants": lambda n, x: n.node("Sub", n.constant(1.0), n.node("Mul", x, n.constant(-2.0))),
    "relu": lambda n, x: n.node("Relu", x),
    "clip": lambda n, x: n.node("Clip", x, n.constant(-0.5), n.constant(0.5)),
}


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_a_value_with_itself(op):
    net = Net(1, 3, 4, 5)
    x = net.quantized("x")
    check(net.file(net.quantized(net.node(op, x, x), 0.04)))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_functions_are_one_table(name, dtype):
    net = Net(1, 3, 4, 5)
    x = net.quantized("x", 0.03, 120 if dtype == "uint8" else -7, dtype)
    program = check(net.file(net.quantized(CHAINS[name](net, x), 0.02)))
    assert used(program) == {"Lookup", "Dequantize"}
    assert len(program.ops) == 2


@pytest.mark.parametrize("name", sorted(set(CHAINS) - {"selu", "sign"}))
def test_functions_in_float(name):
    net = Net(1, 3, 4, 5)
    program = check(net.file(CHAINS[name](net, "x")), close=1e-5)
    assert not {"Lookup", "Quantize"} & used(program)


@pytest.mark.parametrize("per_channel", [True, False])
def test_prelu(per_channel):
    slopes = [0.1, 0.2, 0.3] if per_channel else [0.2]
    net = Net(1, 3, 4, 5)
    x = net.quantized("x")
    y = net.quantized(net.node("PRelu", x, net.constant(np.reshape(slopes, (-1, 1, 1)))), 0.03)
    assert islands(check(net.file(y), floats={"PRelu"} if per_channel else set())) <= {"PRelu"}


@pytest.mark.parametrize(("axis", "shape"), [(-1, (1, 10)), (1, (1, 5, 3, 4)), (2, (1, 4, 6)), (3, (1, 2, 6, 6))])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_softmax(axis, shape, dtype):
    net = Net(*shape)
    x = net.quantized("x", 0.03, 120 if dtype == "uint8" else -7, dtype)
    y = net.quantized(net.node("Softmax", x, axis=axis), 1 / 256, 0 if dtype == "uint8" else -128, dtype)
    assert "Softmax" in used(check(net.file(y)))


@pytest.mark.parametrize("scale", [0.004, 0.0039, 0.3, 0.0000123])
def test_softmax_onto_any_grid(scale):
    net = Net(1, 10)
    check(net.file(net.quantized(net.node("Softmax", net.quantized("x")), scale, 3)), close=1.0)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_in_float(op):
    net = Net(1, 10)
    check(net.file(net.node(op, net.quantized("x"), axis=-1)), floats={op}, close=1e-5)


NORMS = {
    "layer": lambda n, x: n.node("LayerNormalization", x, n.bias(5), n.bias(5)),
    "instance": lambda n, x: n.node("InstanceNormalization", x, n.bias(4), n.bias(4)),
    "group": lambda n, x: n.node("GroupNormalization", x, n.bias(4), n.bias(4), num_groups=2),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalization_by_the_inputs_own_mean_stays_in_float(name):
    net = Net(1, 4, 6, 5)
    y = NORMS[name](net, net.quantized("x"))
    (note,) = check(net.file(net.quantized(y, 0.02)), floats={net.nodes[-1 - 2].op_type}).notes
    assert "normalization" in note.why


def test_two_uses_one_quantized_and_one_in_float():
    net = Net(1, 3, 6, 6)
    y = net.conv(net.quantized("x"), 5, 3, 3, 3)
    model = net.file(net.quantized(y, 0.05), net.node("Exp", y))
    program = check(model, close=0.02)
    assert {"Convolution", "Quantize", "FloatElementwise"} <= used(program)


def test_a_quantized_value_that_is_also_an_output():
    net = Net(1, 3, 6, 6)
    y = net.quantized(net.conv(net.quantized("x"), 5, 3, 3, 3), 0.05)
    check(net.file(y, net.quantized(net.conv(y, 4, 5, 3, 3), 0.05)))


def test_a_value_quantized_onto_two_grids():
    net = Net(1, 3, 6, 6)
    y = net.conv(net.quantized("x"), 5, 3, 3, 3)
    check(net.file(net.quantized(y, 0.05), net.quantized(y, 0.02, 0)))


def test_an_input_quantized_onto_two_grids():
    net = Net(1, 3, 6, 6)
    check(net.file(net.quantized("x", 0.05), net.quantized("x", 0.02, 0)))


def test_dequantized_by_another_grid_than_it_was_quantized_by():
    net = Net(1, 3, 6, 6)
    q = net.node("QuantizeLinear", "x", net.constant(0.03), net.constant(120, np.uint8))
    x = net.node("DequantizeLinear", q, net.constant(0.05), net.constant(100, np.uint8))
    check(net.file(net.quantized(net.node("Relu", x), 0.05)))


def test_the_sum_of_a_value_on_a_grid_of_another_scale():
    net = Net(1, 3, 6, 6)
    q = net.node("QuantizeLinear", "x", net.constant(0.03), net.constant(120, np.uint8))
    a = net.node("DequantizeLinear", q, net.constant(0.05), net.constant(100, np.uint8))
    b = net.node("DequantizeLinear", q, net.constant(0.03), net.constant(120, np.uint8))
    check(net.file(net.quantized(net.node("Add", a, b), 0.05)))


def test_a_clip_of_integers_narrows_the_grid():
    """As brevitas writes 4-bit activations."""
    net = Net(1, 3, 6, 6)
    grid = net.constant(0.3), net.constant(0, np.int8)
    y = net.node("QuantizeLinear", net.conv(net.quantized("x"), 5, 3, 3, 3), *grid)
    y = net.node("Clip", y, net.constant(-8, np.int8), net.constant(7, np.int8))
    (op, *_) = check(net.file(net.node("DequantizeLinear", y, *grid))).ops
    assert isinstance(op, p.Convolution)
    assert op.requantize is not None
    assert (op.requantize.low, op.requantize.high) == (-8, 7)


def test_a_clip_of_the_inputs_integers():
    net = Net(1, 3, 6, 6)
    grid = net.constant(0.3), net.constant(0, np.int8)
    y = net.node("QuantizeLinear", "x", *grid)
    y = net.node("Clip", y, net.constant(-2, np.int8), net.constant(1, np.int8))
    check(net.file(net.quantized(net.conv(net.node("DequantizeLinear", y, *grid), 5, 3, 3, 3), 0.05)))


def test_from_one_grid_to_another():
    net = Net(1, 3, 6, 6)
    check(net.file(net.quantized(net.quantized("x"), 0.1, 3, "int8")))


@pytest.mark.parametrize("swapped", [True, False])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_a_constant_a_channel(op, swapped):
    net = Net(1, 3, 4, 5)
    constant = net.constant(np.reshape([0.5, -1.5, 2.0], (3, 1, 1)))
    x = net.quantized("x")
    if op == "Div" and swapped:
        x = net.node("Add", net.node("Sigmoid", x), net.constant(0.1))
    y = net.node(op, *((constant, x) if swapped else (x, constant)))
    check(net.file(net.quantized(y, 0.05)), floats={"Div"} if op == "Div" and swapped else set())


def test_a_constant_larger_than_the_value():
    net = Net(1, 3, 1, 1)
    y = net.node("Add", net.quantized("x"), net.constant(net.random.normal(size=(1, 3, 4, 5))))
    check(net.file(net.quantized(y, 0.05)), floats={"Add"})


@pytest.mark.parametrize("behind", [True, False])
def test_batch_normalization(behind):
    net = Net(1, 3, 6, 6)
    x = net.quantized("x")
    y = net.conv(x, 4, 3, 3, 3) if behind else x
    size = 4 if behind else 3
    given = [net.bias(size), net.bias(size), net.bias(size), net.constant(np.linspace(0.5, 2, size))]
    y = net.node("Relu", net.node("BatchNormalization", y, *given))
    program = check(net.file(net.quantized(y, 0.02)))
    assert used(program) == {"Convolution", "Dequantize"}
