"""Programs with float ends hold what the file's do, in the file's order."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from compress.export.lowering import lower
from compress.export.lowering.ends import named, with_float_ends
from compress.integer import program as p
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
    assert flat.file_shapes == program.file_shapes


def test_ends_are_called_as_in_the_file():
    """Whatever lies between: a rearrangement, a value under two names, a rounded value, another output's name."""
    net = Net(1, 3, 6, 5)
    y = net.conv(net.quantized("x"), 4, 3, 3, 3)
    moved = net.node("Flatten", net.node("Transpose", y, perm=[0, 2, 3, 1]))
    same, twice = net.node("Identity", moved), net.node("Identity", moved)
    rounded = net.quantized(y, 0.05)
    outputs = (moved, same, twice, rounded, y)
    program = lower(net.file(*outputs))
    assert program.inputs == ("x",)
    assert program.outputs == outputs
    assert set(program.file_shapes) == {"x", *outputs}
    assert all(tensor.name == name for name, tensor in program.tensors.items())


def held(*names: str) -> p.Program:
    """Copies from each tensor to the next."""
    tensors = {name: p.Tensor(name, (2,), "float32") for name in names}
    ops = tuple(p.View(f"{a}{b}", (a,), b) for a, b in itertools.pairwise(names))
    return p.Program(tensors, ops, names[:1], names[-1:], {names[0]: (2,), names[-1]: (2,)})


def test_what_has_the_name_of_an_end_makes_way():
    program = named(held("x", "y", "y.before", "z"), ["y"])
    assert program.outputs == ("y",)
    assert [(op.inputs, op.output) for op in program.ops] == [
        (("x",), "y.before_2"),
        (("y.before_2",), "y.before"),
        (("y.before",), "y"),
    ]
    assert list(program.tensors) == ["x", "y.before_2", "y.before", "y"]


def test_ends_may_change_names_with_each_other():
    two = replace(held("x", "y", "z"), outputs=("y", "z"))
    program = named(two, ["z", "y"])
    assert program.outputs == ("z", "y")
    assert [(op.inputs, op.output) for op in program.ops] == [(("x",), "z"), (("z",), "y")]


def test_float_ends_beside_a_tensor_of_such_a_name():
    program = with_float_ends(held("x", "y.inside", "y"))
    x = np.array([1, 2], np.float32)
    assert np.array_equal(reference.run(program, {"x": x})["y"], x)
    written = [op.output for op in program.ops]
    assert len(written) == len(set(written))
