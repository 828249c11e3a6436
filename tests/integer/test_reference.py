"""The reference of every operator against a slow version that shares no code with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compress.integer import program as p
from compress.integer import reference
from compress.integer.half import spelled_out, with_half
from tests.export.kernels.roster import CASES, case, numbers, single
from tests.integer import slow
from tests.rosters import some

ELEMENTWISE = ("add", "sub", "mul", "div", "max", "min", "pow")
FUNCTIONS = ("relu", "sigmoid", "tanh", "exp", "erf", "neg", "abs", "reciprocal", "sqrt", "log", "half")


def agree(program: p.Program, inputs: dict[str, np.ndarray]) -> None:
    """Integers equal bit for bit; float32 within its rounding."""
    with np.errstate(invalid="ignore"):
        got, wanted = reference.run(program, inputs, every=True), slow.run(program, inputs)
    for op in program.ops:
        tensor = program.tensors[op.output]
        assert got[op.output].dtype == np.dtype(tensor.dtype)
        assert got[op.output].shape == tensor.shape
        if tensor.dtype == "float32" and not isinstance(op, p.Dequantize | p.Copy | p.Lookup):
            np.testing.assert_allclose(got[op.output], wanted[op.output], rtol=2e-5, atol=2e-5, err_msg=op.name)
        else:
            np.testing.assert_array_equal(got[op.output], wanted[op.output], err_msg=op.name)


LONG = frozenset({"softmax_vector"})
"""Takes the slow version as long as all others together."""


@some("name", list(CASES), quick=[name for name in CASES if name not in LONG])
def test_every_case_of_the_back_ends_is_what_the_slow_version_computes(name):
    agree(*case(name))


def test_every_operator_has_a_case_or_a_test_here():
    covered = {type(op) for name in CASES for op in case(name)[0].ops}
    here = {p.FloatElementwise, p.FloatReduce, p.FloatSoftmax, p.FloatMatMul}
    assert covered | here == set(reference.OPERATORS) == set(slow.OPERATORS)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("float_conv")])
def test_a_convolution_of_float16_operands(name):
    program, inputs = case(name)
    halved = with_half(program, lambda op, program: True)
    if any(isinstance(op, p.FloatConvolution) for op in program.ops):
        assert halved.ops != program.ops
        agree(halved, inputs)
        agree(spelled_out(halved), inputs)


@pytest.mark.parametrize("name", ["conv_unequal_w8", "conv_dilated_w2", "conv_grouped_many_w8", "depthwise_zero_255"])
def test_a_convolution_is_the_sum_of_its_docstring(name):
    program, inputs = case(name)
    (op,) = program.ops
    assert isinstance(op, p.Convolution)
    assert op.requantize is not None
    x, out = program.tensors["x"], program.tensors["y"]
    acc = slow.convolution_by_loops(op, inputs["x"], x.zero_point, (out.shape[0], out.shape[1]))
    wanted = np.array([slow.requantized(int(acc[at]), op.requantize, at[2]) for at in slow.indices(out.shape)]).reshape(
        out.shape
    )
    assert np.array_equal(reference.run(program, inputs)["y"], wanted)


def floats(op: Any, shapes: list[tuple[int, ...]], result: tuple[int, ...], positive: bool = False, **fields: object):
    g = np.random.default_rng(5)
    given = [p.Tensor(f"x{k}", shape, "float32") for k, shape in enumerate(shapes)]
    program, inputs = single(op, given, p.Tensor("y", result, "float32"), g, **fields)
    return program, {n: np.abs(v) + np.float32(0.1) for n, v in inputs.items()} if positive else inputs


@pytest.mark.parametrize("kind", ELEMENTWISE)
@pytest.mark.parametrize("shapes", [((4, 5, 6), (4, 5, 6)), ((4, 5, 6), (6,)), ((4, 1, 6), (1, 5, 1))])
def test_elementwise_operators_of_two_tensors(kind, shapes):
    result = np.broadcast_shapes(*shapes)
    agree(*floats(p.FloatElementwise, list(shapes), result, positive=kind in ("pow", "div"), kind=kind))


@pytest.mark.parametrize("kind", ELEMENTWISE)
@pytest.mark.parametrize("swapped", [False, True])
def test_elementwise_operators_of_a_tensor_and_a_constant(kind, swapped):
    constant = np.random.default_rng(2).uniform(0.5, 2, 6).astype(np.float32)
    fields = {"kind": kind, "constant": constant, "swapped": swapped}
    agree(*floats(p.FloatElementwise, [(4, 5, 6)], (4, 5, 6), positive=True, **fields))


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_of_one_float_tensor(kind):
    positive = kind in ("sqrt", "log", "reciprocal")
    agree(*floats(p.FloatElementwise, [(4, 5, 6)], (4, 5, 6), positive=positive, kind=kind))


def test_clip_and_every_kind_has_a_test():
    ends = np.array([-0.5, 0.75], np.float32)
    agree(*floats(p.FloatElementwise, [(4, 5, 6)], (4, 5, 6), kind="clip", constant=ends))
    assert {*ELEMENTWISE, *FUNCTIONS} == {*reference.UNARY, *reference.BINARY}


@pytest.mark.parametrize("kind", ["mean", "sum", "max"])
@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_reductions(kind, axes):
    result = tuple(1 if axis in axes else size for axis, size in enumerate((4, 5, 6)))
    agree(*floats(p.FloatReduce, [(4, 5, 6)], result, kind=kind, axes=axes))


def test_softmax_and_matrix_products_in_float():
    agree(*floats(p.FloatSoftmax, [(4, 5, 6)], (4, 5, 6)))
    agree(*floats(p.FloatMatMul, [(3, 4, 5), (3, 5, 6)], (3, 4, 6)))


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8"])
def test_a_constant_is_its_value(dtype):
    value = numbers(np.random.default_rng(0), p.Tensor("c", (3, 4), dtype))
    agree(p.Program({"c": p.Tensor("c", (3, 4), dtype)}, (p.Constant("node", (), "c", value),), (), ("c",)), {})


def test_only_what_was_asked_for_comes_back():
    program, inputs = case("chain")
    assert set(reference.run(program, inputs)) == {"y"}
    assert set(reference.run(program, inputs, every=True)) == set(program.tensors)


@pytest.mark.parametrize("wrong", [np.zeros((6, 6, 8), np.int8), np.zeros((6, 8, 6), np.uint8)])
def test_an_input_of_another_type_or_shape_is_refused(wrong):
    program, _ = case("chain")
    with pytest.raises(ValueError, match="input 'x' must be uint8"):
        reference.run(program, {"x": wrong})


def by_loops(program: p.Program) -> int:
    """Multiply-accumulates, one by one as the docstrings' sums have them."""
    total = 0
    for op in program.ops:
        shape = program.tensors[op.output].shape
        if isinstance(op, p.Convolution | p.FloatConvolution):
            total += sum(1 for _ in slow.indices((*shape[:2], *op.weight.shape)))
        elif isinstance(op, p.MatMul | p.FloatMatMul):
            total += sum(program.tensors[op.inputs[0]].shape[-1] for _ in slow.indices(shape))
    return total


@pytest.mark.parametrize(
    "name", ["conv_plain_w8", "conv_grouped_w4", "conv_depthwise_w8", "matmul", "chain", "softmax"]
)
def test_macs_are_the_terms_of_the_sums(name):
    program, _ = case(name)
    assert program.macs == by_loops(program)


def test_sizes_of_tensors():
    assert p.Tensor("x", (4, 5, 6), "float32").bytes == 480
    assert p.Tensor("x", (4, 5, 6), "int8").bytes == p.Tensor("x", (4, 5, 6), "int8").elements == 120
    assert p.Tensor("x", (), "int32").bytes == 4
