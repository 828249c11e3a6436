"""Programs with float ends hold what the file's do, in the file's order."""

from __future__ import annotations

import numpy as np
import pytest

from compress.export.lowering import lower
from compress.export.lowering.ends import with_float_ends
from compress.integer import reference
from tests.export.lowering import comparing
from tests.export.lowering.small import Net


def image_to_image(net: Net) -> str:
    return net.quantized(net.conv(net.quantized("x"), 5, 3, 3, 3), 0.05)


def image_to_classes(net: Net) -> str:
    return net.node("Flatten", net.node("GlobalAveragePool", image_to_image(net)))


NETS = {
    "image": ((1, 3, 6, 5), image_to_image),
    "classes": ((1, 3, 6, 5), image_to_classes),
    "a channel": ((1, 3, 6, 5), lambda n: n.quantized(n.conv(n.quantized("x"), 1, 3, 3, 3), 0.05)),
    "a pixel": ((1, 8, 1, 1), lambda n: n.quantized(n.conv(n.quantized("x"), 4, 8, 1, 1), 0.05)),
    "tokens": ((1, 6, 8), lambda n: n.node("MatMul", n.quantized("x"), n.weight((8, 5), axis=1))),
    "vector": ((1, 8), lambda n: n.node("Gemm", n.quantized("x"), n.weight((5, 8)), transB=1)),
    "float": ((1, 3, 6, 5), lambda n: n.node("Relu", "x")),
    "used twice": ((1, 3, 6, 5), lambda n: n.node("Add", n.quantized("x"), "x")),
}


@pytest.mark.parametrize("name", NETS)
def test_float_ends_change_no_number(name):
    shape, make = NETS[name]
    net = Net(*shape)
    model = net.file(make(net))
    program = lower(model)
    flat = with_float_ends(program)
    (given,) = comparing.random_inputs(model, 0)
    (wanted,) = comparing.computed(program, [given])
    (end,) = flat.inputs
    assert flat.tensors[end].dtype == "float32"
    results = reference.run(flat, {end: given.ravel()})
    (got,) = (results[each] for each in flat.outputs)
    assert np.array_equal(got, wanted.ravel())
    written = [op.output for op in flat.ops]
    assert len(written) == len(set(written))
    assert list(flat.file_shapes.values()) == list(program.file_shapes.values())
