"""Float ends: what a run of the file takes and gives, by the same integers."""

from __future__ import annotations

import numpy as np
import pytest

from compress.export.compiled import outputs_of
from compress.export.lowering.ends import with_float_ends
from compress.integer import program as p
from compress.integer.reference import run


def pixels(shape: tuple[int, ...], file_shape: tuple[int, ...], dtype: p.DType = "uint8") -> p.Program:
    """A grid of pixels that come out as real numbers."""
    ends = (p.Tensor("x", shape, dtype, 0.5, 3 if dtype != "float32" else 0), p.Tensor("y", shape, "float32"))
    op = p.FloatElementwise("f", ("x",), "y", "neg") if dtype == "float32" else p.Dequantize("f", ("x",), "y")
    return p.Program({t.name: t for t in ends}, (op,), ("x",), ("y",), {"x": file_shape, "y": file_shape})


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
@pytest.mark.parametrize(
    ("shape", "file_shape"),
    [
        ((4, 5, 3), (3, 4, 5)),
        ((4, 4, 4), (4, 4, 4)),
        ((1, 1, 7), (7, 1, 1)),
        ((6, 2, 1), (1, 6, 2)),
        ((9,), (9,)),
        ((4, 3), (4, 3)),
    ],
)
def test_floats_in_the_files_order_give_the_same(shape, file_shape, dtype):
    program = pixels(shape, file_shape, dtype)
    outer = with_float_ends(program)
    x = np.random.default_rng(0).uniform(-4, 70, file_shape).astype(np.float32)
    found = run(outer, {"x": x.ravel()})["y"]
    assert outer.tensors["x"].dtype == "float32"
    assert np.array_equal(found.reshape(file_shape), outputs_of(program, {"x": x})["y"])
    assert np.array_equal(outputs_of(outer, {"x": x})["y"], outputs_of(program, {"x": x})["y"])
