"""A program of one signedness computes the same real numbers."""

from __future__ import annotations

import numpy as np
import pytest

from compress.integer import program as p
from compress.integer import reference
from compress.integer.signedness import with_signedness
from tests.export.kernels.roster import CASES, case


def moved(value: np.ndarray, dtype: str) -> np.ndarray:
    """8-bit integers in the other type: 128 more or less."""
    if value.dtype.name == dtype or value.dtype.name not in ("uint8", "int8"):
        return value
    return (value.astype(np.int64) + (128 if dtype == "uint8" else -128)).astype(dtype)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("signed", [True, False])
def test_every_tensor_moves_by_128_and_by_nothing_else(name, signed):
    # Cases are unsigned: the signed one is made from them, and the unsigned one from that again.
    program, inputs = case(name)
    if not signed:
        program = with_signedness(program, True)
        inputs = {n: moved(v, program.tensors[n].dtype) for n, v in inputs.items()}
    other = with_signedness(program, signed)
    kept = "int8" if signed else "uint8"
    assert {t.dtype for t in other.tensors.values()} <= {kept, "int32", "float32"}
    given = {n: moved(v, other.tensors[n].dtype) for n, v in inputs.items()}
    with np.errstate(invalid="ignore"):
        held, got = (reference.run(each, feed, every=True) for each, feed in ((program, inputs), (other, given)))
    for tensor, value in held.items():
        wanted = moved(value, other.tensors[tensor].dtype)
        assert wanted.dtype == got[tensor].dtype
        assert np.array_equal(wanted, got[tensor], equal_nan=wanted.dtype.kind == "f"), tensor
        old, new = program.tensors[tensor], other.tensors[tensor]
        if old.dtype != new.dtype:
            assert (new.scale, new.shape) == (old.scale, old.shape)
            assert new.zero_point - old.zero_point == (-128 if signed else 128)


@pytest.mark.parametrize("name", ["chain", "add_relu", "lookup", "copy_padded", "softmax", "quantize"])
def test_there_and_back_is_the_same_program(name):
    program, inputs = case(name)
    back = with_signedness(with_signedness(program, True), False)
    assert back.tensors == program.tensors
    held, got = (reference.run(each, inputs, every=True) for each in (program, back))
    for tensor, value in held.items():
        assert np.array_equal(value, got[tensor], equal_nan=value.dtype.kind == "f")


def test_constants_of_8_bits_move_too():
    c, y = p.Tensor("c", (4,), "uint8", 0.5, 3), p.Tensor("y", (4,), "float32")
    ops = (p.Constant("c", (), "c", np.array([0, 3, 200, 255], np.uint8)), p.Dequantize("y", ("c",), "y"))
    program = p.Program({"c": c, "y": y}, ops, (), ("y",))
    held, got = (reference.run(each, {}) for each in (program, with_signedness(program, True)))
    assert np.array_equal(held["y"], got["y"])
