"""Convolutions, linear layers and matrix products, each attribute, beside ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from compress.export.lowering import CannotLower, lower
from compress.integer import program as p
from tests.export.lowering.small import Net, check, used

CONVOLUTIONS = {
    "plain": ((3, 3), {"pads": [1, 1, 1, 1]}),
    "asymmetric": ((3, 2), {"pads": [0, 1, 2, 0]}),
    "strided": ((3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 3]}),
    "dilated": ((3, 3), {"pads": [2, 3, 2, 3], "dilations": [2, 3]}),
    "same_upper": ((4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same_lower": ((4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "same_upper_odd": ((2, 2), {"auto_pad": "SAME_UPPER"}),
    "valid": ((3, 3), {"auto_pad": "VALID"}),
    "grouped": ((3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((3, 3), {"group": 4, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, bias):
    kernel, attributes = CONVOLUTIONS[name]
    net = Net(1, 4, 9, 11)
    y = net.conv(net.quantized("x"), 8, 4 // attributes.get("group", 1), *kernel, bias=bias, **attributes)
    program = check(net.file(net.quantized(y, 0.05, 130)))
    assert used(program) == {"Convolution", "Dequantize"}


@pytest.mark.parametrize("attributes", [{}, {"pads": [3, 1]}, {"strides": [2], "dilations": [2]}, {"group": 4}])
def test_convolutions_of_a_line(attributes):
    net = Net(1, 4, 17)
    y = net.conv(net.quantized("x"), 8, 4 // attributes.get("group", 1), 3, **attributes)
    check(net.file(net.quantized(y, 0.05, 130)))


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_convolutions_of_a_line_with_automatic_padding(auto):
    net = Net(1, 4, 17)
    y = net.conv(net.quantized("x"), 8, 4, 4, strides=[2], auto_pad=auto)
    check(net.file(net.quantized(y, 0.05, 130)))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("zero", [0, 100])
@pytest.mark.parametrize("activation", ["Relu", "Clip", None])
def test_activations_go_into_the_convolution(activation, dtype, zero):
    net = Net(1, 3, 6, 6)
    y = net.conv(net.quantized("x", 0.03, -5, "int8"), 5, 3, 3, 3)
    if activation == "Relu":
        y = net.node("Relu", y)
    elif activation == "Clip":
        y = net.node("Clip", y, net.constant(0.25), net.constant(1.5))
    program = check(net.file(net.quantized(y, 0.02, zero, dtype)))
    assert used(program) == {"Convolution", "Dequantize"}


def test_ends_of_a_clip_are_those_of_the_grid():
    net = Net(1, 3, 6, 6)
    y = net.node("Clip", net.conv(net.quantized("x"), 5, 3, 3, 3), net.constant(-0.5), net.constant(1.5))
    (op, *_) = check(net.file(net.quantized(y, 0.1, 50))).ops
    assert isinstance(op, p.Convolution)
    assert op.requantize is not None
    assert (op.requantize.low, op.requantize.high) == (45, 65)


@pytest.mark.parametrize("activation", [True, False])
def test_a_float_result_of_integers(activation):
    net = Net(1, 3, 6, 6)
    y = net.conv(net.quantized("x"), 5, 3, 3, 3)
    y = net.node("Clip", y, net.constant(-0.2), net.constant(0.6)) if activation else y
    program = check(net.file(y), close=1e-3)  # the bias is rounded to the accumulators' grid
    (op, *_) = program.ops
    assert isinstance(op, p.Convolution)
    assert op.requantize is None


def test_a_bias_of_32_bits_is_taken_as_it_is():
    net = Net(1, 3, 6, 6)
    given = net.constant(net.random.integers(-127, 128, (5, 3, 3, 3)), np.int8), net.constant(0.004)
    weight = net.node("DequantizeLinear", *given)
    step = np.float32(0.03) * np.float32(0.004)
    integers = np.array([0, 1, -7, 12345, -(2**20)])
    bias = net.node("DequantizeLinear", net.constant(integers, np.int32), net.constant(step))
    model = net.file(net.quantized(net.node("Conv", net.quantized("x"), weight, bias), 0.5, 100))
    (op, *_) = check(model).ops
    assert isinstance(op, p.Convolution)
    assert list(op.bias) == list(integers)


@pytest.mark.parametrize(("ends", "bits"), [((-8, 8), 4), ((-4, 4), 3), ((-2, 2), 2), ((-128, 128), 8)])
def test_the_narrowest_width_of_the_weights(ends, bits):
    net = Net(1, 3, 6, 6)
    y = net.node("Conv", net.quantized("x"), net.weight((16, 3, 3, 3), ends=ends))
    (op, *_) = check(net.file(net.quantized(y, 0.02))).ops
    assert isinstance(op, p.Convolution)
    assert op.weight_bits == bits


def test_binary_weights():
    net = Net(1, 3, 6, 6)
    integers = net.constant(net.random.integers(0, 2, (4, 3, 3, 3)) * 2 - 1, np.int8)
    weight = net.node("DequantizeLinear", integers, net.constant([0.1, 0.2, 0.3, 0.4]), axis=0)
    (op, *_) = check(net.file(net.quantized(net.node("Conv", net.quantized("x"), weight), 0.05))).ops
    assert isinstance(op, p.Convolution)
    assert op.weight_bits == 1


@pytest.mark.parametrize("axis", [0, None])
def test_unsigned_weights_around_128(axis):
    net = Net(1, 3, 6, 6)
    y = net.node("Conv", net.quantized("x"), net.weight((5, 3, 3, 3), axis, "uint8", 128), net.bias(5))
    check(net.file(net.quantized(y, 0.05)))


@pytest.mark.parametrize("zero", [1, 100, 255])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_weights_off_the_middle_of_their_grid_are_two_products(zero, groups):
    net = Net(1, 4, 6, 6)
    integers = net.constant(net.random.integers(0, 256, (8, 4 // groups, 3, 3)), np.uint8)
    weight = net.node("DequantizeLinear", integers, net.constant(0.004), net.constant(zero, np.uint8))
    y = net.node("Conv", net.quantized("x"), weight, net.bias(8), group=groups, pads=[1, 1, 1, 1])
    program = check(net.file(net.quantized(y, 0.2)))
    (note,) = program.notes
    assert "two products" in note.why
    assert used(program) == {"Copy", "Convolution", "Dequantize"}


TRANSPOSED = {
    "plain": ((2, 2), {"strides": [2, 2]}),
    "padded": ((4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "asymmetric": ((4, 3), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
    "more": ((3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    "dilated": ((3, 3), {"dilations": [2, 2]}),
    "grouped": ((3, 3), {"strides": [2, 2], "group": 2}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name):
    kernel, attributes = TRANSPOSED[name]
    groups = attributes.get("group", 1)
    net = Net(1, 4, 5, 6)
    weight = net.weight((4, 6 // groups, *kernel), axis=1 if groups == 1 else None)
    y = net.node("ConvTranspose", net.quantized("x"), weight, net.bias(6), **attributes)
    check(net.file(net.quantized(y, 0.03)))


def test_a_transposed_convolution_of_a_line():
    net = Net(1, 4, 9)
    weight = net.weight((4, 6, 4), axis=1)
    y = net.node("ConvTranspose", net.quantized("x"), weight, strides=[2], pads=[1, 1], output_padding=[1])
    check(net.file(net.quantized(y, 0.03)))


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(turned, bias):
    net = Net(1, 20)
    weight = net.weight((10, 20) if turned else (20, 10), axis=0 if turned else 1)
    y = net.node("Gemm", net.quantized("x"), weight, *([net.bias(10)] if bias else []), transB=turned)
    program = check(net.file(net.quantized(y, 0.02)))
    assert "Convolution" in used(program)


@pytest.mark.parametrize("shape", [(1, 20), (1, 7, 20), (1, 3, 7, 20)])
def test_products_with_a_constant_matrix(shape):
    net = Net(*shape)
    y = net.node("MatMul", net.quantized("x"), net.weight((20, 10), axis=1))
    check(net.file(net.quantized(y, 0.02)))


def test_the_addition_behind_a_product_is_its_bias():
    net = Net(1, 7, 20)
    y = net.node("Add", net.node("MatMul", net.quantized("x"), net.weight((20, 10), axis=1)), net.bias(10))
    program = check(net.file(net.quantized(y, 0.02)))
    assert used(program) <= {"Convolution", "View", "Dequantize"}


BEHIND = {
    "scale": lambda n, y: n.node("Mul", y, n.constant(np.reshape([0.5, -1.5, 2.0, 0.1, -0.01], (5, 1, 1)))),
    "number": lambda n, y: n.node("Sub", n.constant(0.3), n.node("Div", y, n.constant(-2.0))),
    "bias": lambda n, y: n.node("Add", n.constant(np.reshape([0.5, -1.5, 2.0, 0.1, -0.01], (1, 5, 1, 1))), y),
    "norm": lambda n, y: n.node(
        "BatchNormalization", y, n.bias(5), n.bias(5), n.bias(5), n.constant(np.linspace(0.1, 2, 5))
    ),
}


@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("name", BEHIND)
def test_constants_of_each_channel_go_into_the_convolution(name, quantized, activation):
    net = Net(1, 3, 6, 6)
    y = BEHIND[name](net, net.conv(net.quantized("x"), 5, 3, 3, 3))
    y = net.node("Relu", y) if activation else y
    program = check(net.file(net.quantized(y, 0.03) if quantized else y), close=0.05)
    assert used(program) <= {"Convolution", "Dequantize" if quantized else "FloatElementwise"}
    assert len(program.ops) <= 2


@pytest.mark.parametrize(
    "constant",
    [np.linspace(-1, 1, 16).reshape(4, 4), np.array([0.0, 1, 2, 3, 4]).reshape(5, 1, 1), np.ones((2, 1, 1, 1, 1))],
)
def test_what_a_convolution_cannot_take_in_stays_behind_it(constant):
    """A constant that differs along other axes, a factor of 0, a constant of more axes."""
    net = Net(1, 3, 6, 6)
    y = net.node("Mul", net.conv(net.quantized("x"), 5, 3, 3, 3), net.constant(constant))
    program = check(net.file(net.quantized(y, 0.03)), floats=set())
    assert "FloatElementwise" in used(program)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("float_result", [True, False])
def test_products_of_computed_matrices(lead, float_result):
    net = Net(1, *lead, 5, 8)
    net.input("y", 1, *lead, 8, 6)
    y = net.node("MatMul", net.quantized("x"), net.quantized("y", 0.04, 7, "int8"))
    check(net.file(y if float_result else net.quantized(y, 0.1)))


def test_a_product_with_a_transposed_matrix():
    net = Net(1, 2, 5, 8)
    x = net.quantized("x")
    y = net.node("MatMul", x, net.node("Transpose", x, perm=[0, 1, 3, 2]))
    check(net.file(net.quantized(y, 0.2)))


FLOAT = {
    "its weight": lambda n: n.node("Conv", n.quantized("x"), n.constant(n.random.normal(size=(5, 3, 3, 3)))),
    "its input": lambda n: n.node("Conv", "x", n.weight((5, 3, 3, 3))),
}


@pytest.mark.parametrize("name", FLOAT)
def test_what_stays_in_float_says_why(name):
    net = Net(1, 3, 6, 6)
    program = check(net.file(net.quantized(FLOAT[name](net), 0.1)), floats={"Conv"})
    (note,) = program.notes
    assert note.why.startswith("computed in float: ")


COMPUTED = {
    "weight": lambda n: n.node("Conv", "x", n.node("Reshape", "y", n.constant([5, 3, 3, 3], np.int64))),
    "bias": lambda n: n.node("Conv", n.quantized("x"), n.weight((5, 3, 3, 3)), n.node("ReduceMax", "y", keepdims=0)),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_parameters_are_refused(name):
    net = Net(1, 3, 6, 6)
    net.input("y", 1, 135)
    with pytest.raises(CannotLower, match=f"its {name} is computed") as caught:
        lower(net.file(COMPUTED[name](net)))
    assert caught.value.operator == "Conv"
    assert "\n" not in str(caught.value)
