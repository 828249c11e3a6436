"""Operators that move values, pools and resizing, beside ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from compress.export.lowering import CannotLower, lower
from tests.export.lowering.small import Net, check, used


def ints(net: Net, *values: int) -> str:
    return net.constant(values, np.int64)


MOVES = {
    "reshape": lambda n, x: n.node("Reshape", x, ints(n, 1, -1)),
    "reshape with a zero": lambda n, x: n.node("Reshape", x, ints(n, 0, 2, -1)),
    "reshape into tokens": lambda n, x: n.node("Reshape", x, ints(n, 1, 4, 30)),
    "flatten": lambda n, x: n.node("Flatten", x),
    "flatten behind": lambda n, x: n.node("Flatten", x, axis=2),
    "transpose": lambda n, x: n.node("Transpose", x, perm=[0, 2, 3, 1]),
    "transpose twice": lambda n, x: n.node("Transpose", n.node("Transpose", x, perm=[0, 3, 1, 2]), perm=[0, 2, 1, 3]),
    "tokens": lambda n, x: n.node("Transpose", n.node("Reshape", x, ints(n, 1, 4, -1)), perm=[0, 2, 1]),
    "unsqueeze": lambda n, x: n.node("Unsqueeze", x, ints(n, 2)),
    "squeeze": lambda n, x: n.node("Squeeze", n.node("Slice", x, ints(n, 1), ints(n, 2), ints(n, 1)), ints(n, 1)),
    "slice": lambda n, x: n.node("Slice", x, ints(n, 1, 0), ints(n, 4, 5), ints(n, 1, 3), ints(n, 1, 2)),
    "slice from behind": lambda n, x: n.node("Slice", x, ints(n, -3), ints(n, -1), ints(n, -1)),
    "slice backwards": lambda n, x: n.node("Slice", x, ints(n, -1), ints(n, -100), ints(n, 2), ints(n, -2)),
    "gather": lambda n, x: n.node("Gather", x, n.constant(2, np.int64), axis=1),
    "gather from behind": lambda n, x: n.node("Gather", x, n.constant(-1, np.int64), axis=3),
    "gather some": lambda n, x: n.node("Gather", x, ints(n, 3, 2, 1), axis=1),
    "pad": lambda n, x: n.node("Pad", x, ints(n, 0, 0, 1, 2, 0, 0, 0, 3)),
    "pad channels": lambda n, x: n.node("Pad", x, ints(n, 0, 2, 0, 0, 0, 1, 0, 0)),
    "pad some axes": lambda n, x: n.node("Pad", x, ints(n, 1, 2), "", ints(n, -1)),
    "pad by a number": lambda n, x: n.node("Pad", x, ints(n, 0, 0, 1, 1, 0, 0, 1, 1), n.constant(0.3)),
    "depth to space": lambda n, x: n.node("DepthToSpace", x, blocksize=2),
    "pixel shuffle": lambda n, x: n.node("DepthToSpace", x, blocksize=2, mode="CRD"),
    "space to depth": lambda n, x: n.node("SpaceToDepth", n.node("Pad", x, ints(n, *[0] * 7, 1)), blocksize=2),
    "channel shuffle": lambda n, x: n.node(
        "Reshape",
        n.node("Transpose", n.node("Reshape", x, ints(n, 1, 2, 2, 6, 5)), perm=[0, 2, 1, 3, 4]),
        ints(n, 1, 4, 6, 5),
    ),
    "identity": lambda n, x: n.node("Identity", n.node("Dropout", x)),
    "split": lambda n, x: n.node("Concat", *reversed(n.node("Split", x, ints(n, 1, 3), axis=1, outputs=2)), axis=1),
    "split evenly": lambda n, x: n.node(
        "Concat", *reversed(n.node("Split", x, axis=2, num_outputs=4, outputs=4)), axis=2
    ),
    "join with itself": lambda n, x: n.node("Concat", x, x, axis=2),
    "join in front": lambda n, x: n.node("Concat", n.node("Flatten", x), n.node("Flatten", x), axis=1),
    "nearest": lambda n, x: n.node(
        "Resize",
        x,
        "",
        n.constant([1, 1, 2, 3]),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "nearest of half pixels": lambda n, x: n.node("Resize", x, "", n.constant([1, 1, 2, 2]), mode="nearest"),
    "nearest to sizes": lambda n, x: n.node("Resize", x, "", "", ints(n, 1, 4, 12, 10), mode="nearest"),
    "max pool": lambda n, x: n.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]),
    "max pool, padded": lambda n, x: n.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool, ceiling": lambda n, x: n.node("MaxPool", x, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1),
    "max pool, asymmetric": lambda n, x: n.node("MaxPool", x, kernel_shape=[3, 2], pads=[1, 0, 2, 1]),
    "max pool, same": lambda n, x: n.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "largest": lambda n, x: n.node("GlobalMaxPool", x),
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("name", MOVES)
def test_what_moves_stays_on_its_grid(name, dtype):
    net = Net(1, 4, 6, 5)
    zero = 120 if dtype == "uint8" else -7
    y = MOVES[name](net, net.quantized("x", 0.03, zero, dtype))
    program = check(net.file(net.quantized(y, 0.03, zero, dtype)), steps=0)
    assert used(program) <= {"Copy", "View", "Dequantize", "Concatenate", "Pool"}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_in_float(name):
    net = Net(1, 4, 6, 5)
    program = check(net.file(MOVES[name](net, "x")), close=0.0)
    assert {t.dtype for t in program.tensors.values()} == {"float32"}


@pytest.mark.parametrize(
    "name", ["reshape into tokens", "slice backwards", "pixel shuffle", "channel shuffle", "gather"]
)
def test_what_moves_behind_a_function(name):
    net = Net(1, 4, 6, 5)
    y = MOVES[name](net, net.node("Sigmoid", net.quantized("x")))
    check(net.file(net.quantized(y, 1 / 256, 0)))


POOLS = {
    "plain": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "padded": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "counting padding": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    "ceiling": {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1},
    "ceiling, padded": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    "ceiling, counting": {
        "kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1
    },
    "asymmetric": {"kernel_shape": [3, 2], "pads": [1, 0, 2, 1]},
    "same": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
}  # fmt: skip


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("name", POOLS)
def test_average_pools(name, integers):
    net = Net(1, 4, 6, 5)
    if integers:
        y = net.node("AveragePool", net.quantized("x"), **POOLS[name])
        assert used(check(net.file(net.quantized(y, 0.02)))) == {"Pool", "Dequantize"}
    else:
        check(net.file(net.node("AveragePool", "x", **POOLS[name])), close=1e-6)


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_pools_of_a_line(op):
    net = Net(1, 4, 13)
    y = net.node(op, net.quantized("x"), kernel_shape=[3], strides=[2], pads=[1, 1])
    check(net.file(net.quantized(y, 0.02)))


def test_the_mean_over_all_of_the_image():
    net = Net(1, 4, 6, 5)
    check(net.file(net.quantized(net.node("GlobalAveragePool", net.quantized("x")), 0.01)))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [(2, 3), (-1,), (1,), (1, 2, 3)])
def test_means_over_axes(axes, keepdims):
    net = Net(1, 4, 6, 5)
    y = net.node("ReduceMean", net.quantized("x"), ints(net, *axes), keepdims=keepdims)
    assert "Pool" in used(check(net.file(net.quantized(y, 0.01))))


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax"])
@pytest.mark.parametrize("axes", [(2, 3), (1,), (2,)])
def test_reductions_in_float(op, axes):
    net = Net(1, 4, 6, 5)
    check(net.file(net.node(op, "x", ints(net, *axes), keepdims=0)), close=1e-6)


WAYS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("size", [(12, 10), (9, 4), (1, 1), (6, 13)])
@pytest.mark.parametrize("way", WAYS)
def test_bilinear_resizing(way, size, integers):
    net = Net(1, 4, 6, 5)
    x = net.quantized("x") if integers else "x"
    y = net.node("Resize", x, "", "", ints(net, 1, 4, *size), mode="linear", coordinate_transformation_mode=way)
    if integers:
        assert "Resize" in used(check(net.file(net.quantized(y, 0.03))))
    else:
        check(net.file(y), close=2e-3)  # weights of ten bits


@pytest.mark.parametrize("factors", [(2.0, 2.0), (1.5, 2.5)])
def test_bilinear_resizing_by_factors(factors):
    net = Net(1, 4, 6, 5)
    y = net.node("Resize", net.quantized("x"), "", net.constant([1, 1, *factors]), mode="linear")
    check(net.file(net.quantized(y, 0.03)))


GRIDS = {"alike": (0.03, 120), "unlike": (0.05, 30)}


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("other", GRIDS)
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concatenation(axis, other, quantized):
    net = Net(1, 4, 6, 5)
    shape = [1, 4, 6, 5]
    shape[axis] += 3
    net.input("y", *shape)
    y = net.node("Concat", net.quantized("x"), net.quantized("y", *GRIDS[other]), axis=axis)
    y = net.quantized(y, 0.05, 100) if quantized else y
    floats = {"Concat"} if other == "unlike" and not quantized else set()
    assert "Concatenate" in used(check(net.file(y), floats=floats))


def test_concatenation_with_a_function_and_a_constant():
    net = Net(1, 4, 6, 5)
    x = net.quantized("x")
    y = net.node("Concat", x, net.node("Sigmoid", x), axis=1)
    assert "Lookup" in used(check(net.file(net.quantized(y, 0.05, 100))))


def test_the_class_token_is_a_constant():
    net = Net(1, 6, 5)
    y = net.node("Concat", net.constant(net.random.normal(size=(1, 1, 5))), net.quantized("x"), axis=1)
    assert "Constant" in used(check(net.file(net.quantized(y, 0.05, 100))))


def test_padding_in_front_of_a_convolution_is_its_own():
    net = Net(1, 4, 6, 5)
    y = net.node("Pad", net.quantized("x"), ints(net, 0, 0, 0, 0, 0, 0, 1, 1))
    program = check(net.file(net.quantized(net.conv(y, 5, 4, 3, 3, strides=[2, 2]), 0.05)))
    assert used(program) == {"Convolution", "Dequantize"}


@pytest.mark.parametrize("name", ["flatten", "tokens", "max pool", "pixel shuffle", "slice backwards"])
def test_quantizers_go_in_front_of_what_only_moves(name):
    net = Net(1, 3, 8, 7)
    y = MOVES[name](net, net.conv(net.quantized("x"), 4, 3, 3, 3))
    program = check(net.file(net.quantized(y, 0.05)))
    assert "Quantize" not in used(program)


REFUSED = {
    "reflection": (lambda n, x: n.node("Pad", x, ints(n, 0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), "reflect"),
    "off the grid": (lambda n, x: n.node("Pad", x, ints(n, 0, 0, 1, 1, 0, 0, 1, 1), n.constant(0.31)), "grid"),
    "cubic": (lambda n, x: n.node("Resize", x, "", n.constant([1, 1, 2, 2]), mode="cubic"), "cubic"),
    "odd factor": (lambda n, x: n.node("Resize", x, "", n.constant([1, 1, 1.5, 1]), mode="nearest"), "whole"),
    "uneven indices": (lambda n, x: n.node("Gather", x, ints(n, 0, 1, 3), axis=1), "evenly spaced"),
    "table of indices": (lambda n, x: n.node("Gather", x, n.constant([[0, 1]], np.int64), axis=1), "table"),
    "cropping coordinates": (
        lambda n, x: n.node(
            "Resize", x, n.constant([0] * 4 + [1] * 4), "", ints(n, 1, 4, 3, 3),
            mode="linear", coordinate_transformation_mode="tf_crop_and_resize",
        ),
        "tf_crop_and_resize",
    ),
    "dilated pool": (lambda n, x: n.node("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 2]), "dilations"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_in_one_line(name):
    make, said = REFUSED[name]
    net = Net(1, 4, 6, 5)
    model = net.file(net.quantized(make(net, net.quantized("x"))))
    with pytest.raises(CannotLower, match=said) as caught:
        lower(model)
    assert caught.value.node
    assert "\n" not in str(caught.value)
