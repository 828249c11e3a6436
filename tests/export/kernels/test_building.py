"""Rescaling in kernels equals its definition; packed weights come back; functions are as exact as they say."""

from __future__ import annotations

import ctypes
import subprocess

import numpy as np
import pytest
from scipy.special import erf

from compress.export.kernels import building as b
from compress.export.kernels import functions as f
from compress.export.kernels import vectors as v
from compress.export.kernels.compiling import object_file
from compress.export.kernels.isa import RV32_BARE, X86_AVX2
from compress.export.kernels.packing import Packing
from compress.export.kernels.spans import merged, widths
from compress.integer.fixed_point import rescale
from compress.integer.program import Requantize


def library(tmp_path, *kernels):
    (tmp_path / "k.o").write_bytes(object_file(kernels, X86_AVX2))
    subprocess.run(["cc", "-shared", "-o", "k.so", "k.o"], cwd=tmp_path, check=True)
    return ctypes.CDLL(str(tmp_path / "k.so"))


def pointers(*arrays):
    return [ctypes.c_void_p(a.ctypes.data) for a in arrays]


EXTREMES = np.array([0, 1, -1, 2**31 - 1, -(2**31), 2**30, -(2**30), 12345, -54321], np.int32)


@pytest.mark.parametrize("width", [1, 4])
def test_rescaling_equals_its_definition_for_every_shift(tmp_path, width):
    g = np.random.default_rng(1)
    acc = np.concatenate([EXTREMES, g.integers(-(2**31), 2**31, 55).astype(np.int32)])
    shifts = np.repeat(np.arange(1, 63), 64).astype(np.int32)
    m = np.resize(np.array([2**31 - 1, 2**30, 1, 1_500_000_001], np.int32), shifts.size)
    acc = np.resize(acc, shifts.size)
    from tvm.tirx.script import builder as T

    for high in (False, True):
        chosen = shifts >= (b.HIGH if high else 1)
        how = b.Rescaling.of(Requantize(m[chosen], shifts[chosen], 0, 0, 0))
        assert how.high is high
        count, kind = int(chosen.sum()), "int32" if high else "int64"
        tables = [("acc", "int32", count), *how.parameters, ("y", kind, count)]
        with b.function("rescale", tables) as body, T.serial(count // width) as i:
            x, *factors, y = body.buffers
            parts = [v.load(table, i * width, width) for table in factors]
            v.put(y, b.rescaled(v.load(x, i * width, width), *parts, high, width), i * width, width)
        folder = tmp_path / str(high)
        folder.mkdir()
        got = np.zeros(count, kind)
        values = np.ascontiguousarray(acc[chosen])
        library(folder, body.done).rescale(*pointers(values, *how.tables, got))
        np.testing.assert_array_equal(got, rescale(values.astype(np.int64), m[chosen], shifts[chosen]))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("vectors", "width", "inputs"), [(4, 1, 17), (2, 8, 16), (1, 4, 3), (3, 4, 8)])
def test_packed_weights_come_back(bits, vectors, width, inputs):
    g = np.random.default_rng(bits)
    weight = g.integers(-(1 << (bits - 1)), 1 << (bits - 1), (2, 21, 9, inputs))
    weight = np.where(weight >= 0, 1, -1) if bits == 1 else weight
    packing = Packing.of(bits, vectors, width, inputs)
    packed = packing.pack(weight)
    blocks, steps = -(-21 // packing.block), packing.steps(inputs)
    assert packed.shape == (2, blocks, 9, steps, packing.step)
    if packing.word == 3:
        planes = packed.reshape(2, blocks, 9, steps, 3, width).astype(np.int64)
        words = planes[..., 0, :] | planes[..., 1, :] << 8 | planes[..., 2, :] << 16
    else:
        words = packed.astype(np.int64) & ((1 << (8 * packing.word)) - 1)
    for o in range(21):
        lane, vector, block = o % width, o // width % vectors, o // packing.block
        for c in range(inputs):
            number = (c % packing.unit) * vectors + vector
            code = words[:, block, :, c // packing.unit, lane] >> (bits * number) & ((1 << bits) - 1)
            value = 2 * code - 1 if bits == 1 else np.where(code >= 1 << (bits - 1), code - (1 << bits), code)
            np.testing.assert_array_equal(value, weight[:, o, :, c])


def evaluated(tmp_path, function, *operands):
    """A function of ``functions`` over arrays."""
    from tvm.tirx.script import builder as T

    count = operands[0].size
    tables = [*((f"x{k}", "float32", count) for k in range(len(operands))), ("y", "float32", count)]
    with b.function("evaluate", tables) as body, T.serial(count) as i:
        *xs, y = body.buffers
        b.store(y, function(*(x[i] for x in xs)), i)
    got = np.zeros(count, np.float32)
    library(tmp_path, body.done).evaluate(*pointers(*operands, got))
    return got


def ulps(got, want):
    """Distance in units of the last place of the exact float64 result."""
    return np.abs(got.astype(np.float64) - want) / np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)


def sweep(low, high, count=40_001):
    return np.linspace(low, high, count, dtype=np.float32)


EXACT = {
    "exp": (f.exp, np.exp, sweep(-87, 88.7), 2.0),
    "log": (f.log, np.log, np.abs(sweep(1e-6, 50)) ** 3, 2.0),
    "log_near_1": (f.log, np.log, sweep(0.5, 2), 2.0),
    "log_subnormal": (f.log, np.log, sweep(1e-44, 1e-38), 2.0),
    "tanh": (f.tanh, np.tanh, sweep(-10, 10), 2.5),
    "sigmoid": (f.sigmoid, lambda x: 1 / (1 + np.exp(-x)), sweep(-80, 30), 4.0),
    "erf": (f.erf, erf, sweep(-5, 5), 3.0),
    "newton": (lambda x: f.sqrt(x, RV32_BARE), np.sqrt, sweep(1e-3, 70) ** 9, 1.0),
    "newton_tiny": (lambda x: f.sqrt(x, RV32_BARE), np.sqrt, sweep(1e-44, 1e-30), 1.0),
}


@pytest.mark.parametrize("name", EXACT)
def test_functions_are_exact_to_a_few_units_in_the_last_place(tmp_path, name):
    function, exact, x, bound = EXACT[name]
    got = evaluated(tmp_path, function, x)
    assert ulps(got, exact(x.astype(np.float64))).max() <= bound


def test_powers_are_exact_to_one_unit(tmp_path):
    g = np.random.default_rng(0)
    a, e = g.uniform(0.01, 30, 20_000).astype(np.float32), g.uniform(-9, 9, 20_000).astype(np.float32)
    assert ulps(evaluated(tmp_path, f.power, a, e), a.astype(np.float64) ** e.astype(np.float64)).max() <= 1.0


def test_special_values(tmp_path):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1.0, 200.0, -200.0], np.float32)
    functions = {
        "exp": (f.exp, np.exp),
        "log": (f.log, np.log),
        "tanh": (f.tanh, np.tanh),
        "erf": (f.erf, erf),
        "sigmoid": (f.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        "sqrt": (lambda x: f.sqrt(x, RV32_BARE), np.sqrt),
    }
    for name, (function, exact) in functions.items():
        folder = tmp_path / name
        folder.mkdir()
        with np.errstate(all="ignore"):
            want = exact(x).astype(np.float32)
        np.testing.assert_allclose(evaluated(folder, function, x), want, rtol=1e-6, atol=1e-37, err_msg=name)


def test_powers_of_special_values(tmp_path):
    bases = np.array([0, 1, -1, -2, 2, np.inf, -3, np.nan, 0.5, -8], np.float32)
    exponents = np.array([0, 1, -1, 2, 3, -3, 0.5, 1e9, -1e9], np.float32)
    a, e = (np.ascontiguousarray(grid.ravel()) for grid in np.meshgrid(bases, exponents))
    with np.errstate(all="ignore"):
        want = np.power(a, e)
    np.testing.assert_allclose(evaluated(tmp_path, f.power, a, e), want, rtol=1e-6)


def test_merged_axes_visit_the_same_offsets():
    shape, operands = (3, 4, 1, 5), [(20, 5, 5, 1), (0, 5, 5, 1), (40, 10, 0, 2)]
    sizes, steps = merged(shape, operands)
    assert sizes == (3, 20)
    for strides, short in zip(operands, steps, strict=True):
        long = np.tensordot(strides, np.indices(shape).reshape(4, -1), 1)
        np.testing.assert_array_equal(np.tensordot(short, np.indices(sizes).reshape(2, -1), 1), long)


@pytest.mark.parametrize("count", [1, 7, 16, 37, 64, 65])
def test_widths_cover_every_element_once(count):
    covered = [start + r * w + k for start, w, n in widths(count, 16, 4) for r in range(n) for k in range(w)]
    assert covered == list(range(count))
