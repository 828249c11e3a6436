"""Files of older opsets, which hold as attributes what later ones take as inputs."""

from __future__ import annotations

import pytest

from compress.export.lowering import CannotLower, lower
from tests.export.lowering.small import Net, check


@pytest.mark.parametrize("opset", [10, 11, 12, 13, 17, 21])
def test_a_network_of_every_opset(opset):
    net = Net(1, 3, 8, 8, opset=opset)
    weight = net.weight((8, 3, 3, 3), axis=0 if opset >= 13 else None)
    y = net.quantized(net.node("Relu", net.node("Conv", net.quantized("x"), weight, net.bias(8))), 0.03, 0)
    y = net.quantized(net.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 0.03, 0)
    y = net.quantized(net.node("GlobalAveragePool", y), 0.02, 0)
    linear = net.weight((5, 8), axis=0 if opset >= 13 else None)
    check(net.file(net.quantized(net.node("Gemm", net.node("Flatten", y), linear, net.bias(5), transB=1), 0.05)))


OLD = {
    "clip": (10, lambda n, x: n.node("Clip", x, min=-0.5, max=0.75)),
    "pad": (10, lambda n, x: n.node("Pad", x, pads=[0, 0, 1, 0, 0, 0, 2, 1])),
    "squeeze": (11, lambda n, x: n.node("Squeeze", n.node("Unsqueeze", x, axes=[1]), axes=[1])),
    "split": (11, lambda n, x: n.node("Concat", *n.node("Split", x, axis=1, split=[1, 3], outputs=2)[::-1], axis=1)),
    "mean": (11, lambda n, x: n.node("ReduceMean", x, axes=[2, 3], keepdims=0)),
    "dropout": (10, lambda n, x: n.node("Dropout", x, ratio=0.3)),
}


@pytest.mark.parametrize("name", OLD)
def test_attributes_of_old_opsets(name):
    opset, make = OLD[name]
    net = Net(1, 4, 6, 5, opset=opset)
    check(net.file(net.quantized(make(net, net.quantized("x")))))


@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_of_the_last_axis(opset):
    net = Net(1, 10, opset=opset)
    check(net.file(net.quantized(net.node("Softmax", net.quantized("x"), axis=1), 1 / 256, 0)))


def test_softmax_over_several_axes_is_refused():
    net = Net(1, 4, 6, 5, opset=11)
    with pytest.raises(CannotLower, match="opset 13"):
        lower(net.file(net.node("Softmax", "x")))
