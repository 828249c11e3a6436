"""The roster's other integer operators, moves among them, and a small network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compress.integer import program as p
from tests.export.kernels.cases import Case, add, numbers, requantize, single
from tests.export.kernels.roster_convolutions import convolution


def _broad(g: np.random.Generator, kind: str, first: tuple[int, ...], second: tuple[int, ...], **more: object) -> Case:
    a, b = p.Tensor("a", first, "uint8", 0.1, 7), p.Tensor("b", second, "uint8", 0.1, 250)
    y = p.Tensor("y", np.broadcast_shapes(first, second), "uint8", 0.1, 100)
    if kind == "add":
        fields: dict = {"multipliers": (1_500_000, 2**21 - 1), "shift": 21, "zero_point": 100, "low": 0, "high": 255}
        return single(p.Add, [a, b], y, g, **{**fields, **more})
    how = requantize(g, 1, (39, 39), 100)
    return single(p.Multiply, [a, b], y, g, **{"requantize": how, **more})


PAIRS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "alike": ((5, 6, 17), (5, 6, 17)),
    "vectors": ((19,), (19,)),
    "channels": ((5, 6, 8), (8,)),
    "one": ((5, 6, 3), (1, 1, 1)),
    "pixels": ((5, 6, 4), (5, 6, 1)),
    "both": ((5, 1, 4), (1, 6, 4)),
    "larger_second": ((4,), (3, 5, 4)),
    "excitation": ((6, 6, 16), (1, 1, 16)),
}
for _name, _pair in PAIRS.items():
    for _kind in ("add", "multiply"):
        add(f"{_kind}_{_name}", lambda g, k=_kind, s=_pair: _broad(g, k, *s))
_same = ((4, 5, 16), (4, 5, 16))
add("add_subtracts", lambda g: _broad(g, "add", *_same, multipliers=(1 << 20, -(1 << 20)), shift=20))
add("add_extreme", lambda g: _broad(g, "add", *_same, multipliers=(2**21 - 1, -(2**21 - 1)), shift=30))
add("add_shift_1", lambda g: _broad(g, "add", *_same, multipliers=(1, -1), shift=1))
add("add_relu", lambda g: _broad(g, "add", *_same, low=100, high=180))
add("multiply_shift_31", lambda g: _broad(g, "multiply", *_same, requantize=requantize(g, 1, (31, 31), 100)))
add("multiply_shift_33", lambda g: _broad(g, "multiply", *_same, requantize=requantize(g, 1, (33, 33), 100)))


def _regrid(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (3, 7, 5), "uint8", 0.1, 9), p.Tensor("y", (3, 7, 5), "uint8", 0.2, 200)
    fields: dict = {"multipliers": (1_200_000,), "shift": 21, "zero_point": 200, "low": 10, "high": 255}
    return single(p.Add, [x], y, g, **fields)


def _twice(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (3, 4, 5), "uint8", 0.1, 9), p.Tensor("y", (3, 4, 5), "uint8", 0.2, 20)
    fields: dict = {"multipliers": (700_000, 800_000), "shift": 21, "zero_point": 20, "low": 0, "high": 255}
    return single(p.Add, [x, x], y, g, **fields)


add("add_of_one", _regrid)
add("add_to_itself", _twice)


def _pool(
    g: np.random.Generator,
    kind: str,
    image: tuple[int, int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    each: bool = False,
    floating: bool = False,
) -> Case:
    size = [(image[k] + padding[k] + padding[k + 2] - kernel[k]) // strides[k] + 1 for k in (0, 1)]
    dtype = "float32" if floating else "uint8"
    z = 0 if floating else 9
    x, y = p.Tensor("x", image, dtype, 1.0, z), p.Tensor("y", (*size, image[2]), dtype, 1.0, z)
    fields: dict = {"kind": kind, "kernel": kernel, "strides": strides, "padding": padding}
    if floating:
        if kind == "average":
            fields["counts"] = g.integers(1, 10, size[0] * size[1]).astype(np.float32)
        return single(p.FloatPool, [x], y, g, **fields)
    if kind == "average":
        fields["requantize"] = requantize(g, size[0] * size[1] if each else 1, (33, 35), 9)
    return single(p.Pool, [x], y, g, **fields)


POOLS: dict[str, tuple] = {
    "2x2": ((8, 8, 16), (2, 2), (2, 2)),
    "3x3_padded": ((7, 9, 5), (3, 3), (2, 2), (1, 1, 1, 1)),
    "global": ((6, 5, 19), (6, 5), (1, 1)),
    "global_wide": ((4, 4, 80), (4, 4), (1, 1)),
    "ceiling": ((5, 5, 3), (2, 2), (2, 2), (0, 0, 1, 1)),
    "row": ((1, 12, 4), (1, 3), (1, 2), (0, 1, 0, 0)),
    "same": ((4, 4, 33), (3, 3), (1, 1), (1, 1, 1, 1)),
}
for _name, _arguments in POOLS.items():
    for _kind in ("max", "average"):
        add(f"{_kind}_pool_{_name}", lambda g, k=_kind, a=_arguments: _pool(g, k, *a))
        add(f"float_{_kind}_pool_{_name}", lambda g, k=_kind, a=_arguments: _pool(g, k, *a, floating=True))
add("average_pool_each", lambda g: _pool(g, "average", (7, 9, 20), (3, 3), (2, 2), (1, 1, 1, 1), each=True))


def _joined(g: np.random.Generator, axis: int) -> Case:
    shapes = [[3, 4, 5] for _ in range(3)]
    for k, shape in enumerate(shapes):
        shape[axis] += 3 * k
    inputs = [p.Tensor(f"x{k}", tuple(shape), "uint8", 0.1, 5) for k, shape in enumerate(shapes)]
    whole = list(shapes[0])
    whole[axis] = sum(shape[axis] for shape in shapes)
    return single(p.Concatenate, inputs, p.Tensor("y", tuple(whole), "uint8", 0.1, 5), g, axis=axis)


for _axis in range(3):
    add(f"concatenate_{_axis}", lambda g, a=_axis: _joined(g, a))


def _class_token(g: np.random.Generator) -> Case:
    """A constant in front of the tokens, as vision transformers have one."""
    c, x = p.Tensor("c", (1, 7), "uint8", 0.1, 5), p.Tensor("x", (4, 7), "uint8", 0.1, 5)
    y = p.Tensor("y", (5, 7), "uint8", 0.1, 5)
    ops = (p.Constant("token", (), "c", numbers(g, c)), p.Concatenate("join", ("c", "x"), "y", 0))
    return p.Program({t.name: t for t in (c, x, y)}, ops, ("x",), ("y",)), {"x": numbers(g, x)}


add("class_token", _class_token)


def _copied(g: np.random.Generator, name: str, dtype: str = "uint8") -> Case:
    z = 5 if dtype == "uint8" else 0
    x = p.Tensor("x", (4, 6, 8), dtype, 1.0, z)
    ways: dict = {
        "transposed": ((8, 4, 6), {"extents": (4, 6, 8), "in_strides": (48, 8, 1), "out_strides": (6, 1, 24)}),
        "slice": (
            (2, 3, 4),
            {"extents": (2, 3, 4), "in_strides": (96, 16, 2), "out_strides": (12, 4, 1), "in_offset": 57},
        ),
        "padded": (
            (6, 9, 8),
            {
                "extents": (4, 6, 8),
                "in_strides": (48, 8, 1),
                "out_strides": (72, 8, 1),
                "out_offset": 88,
                "fill": z,
            },
        ),
        "shuffled": (
            (8, 12, 2),
            {"extents": (4, 6, 2, 2, 2), "in_strides": (48, 8, 4, 2, 1), "out_strides": (48, 4, 24, 2, 1)},
        ),
        "nearest": (
            (8, 12, 8),
            {"extents": (4, 2, 6, 2, 8), "in_strides": (48, 0, 8, 0, 1), "out_strides": (192, 96, 16, 8, 1)},
        ),
        "flat": ((192,), {"extents": (192,), "in_strides": (1,), "out_strides": (1,)}),
    }
    shape, fields = ways[name]
    return single(p.Copy, [x], p.Tensor("y", shape, dtype, 1.0, z), g, **fields)


for _name in ("transposed", "slice", "padded", "shuffled", "nearest", "flat"):
    add(f"copy_{_name}", lambda g, n=_name: _copied(g, n))
add("copy_floats", lambda g: _copied(g, "padded", "float32"))


def _table(g: np.random.Generator, dtype: str = "uint8") -> Case:
    x, y = p.Tensor("x", (3, 5, 7), "uint8", 0.1, 5), p.Tensor("y", (3, 5, 7), dtype, 0.1, 5 if dtype == "uint8" else 0)
    table = numbers(g, p.Tensor("t", (256,), dtype))
    return single(p.Lookup, [x], y, g, table=table)


add("lookup", _table)
add("lookup_floats", lambda g: _table(g, "float32"))


def _softmax(g: np.random.Generator, shape: tuple[int, ...], scale: float, factor: int) -> Case:
    x, y = p.Tensor("x", shape, "uint8", scale, 5), p.Tensor("y", shape, "uint8", 1 / factor, 0)
    table = np.round(2.0**20 * np.exp(-np.arange(256) * scale)).astype(np.int32)
    return single(p.Softmax, [x], y, g, table=table, factor=factor, zero_point=0, low=0, high=255)


add("softmax", lambda g: _softmax(g, (4, 6, 10), 0.05, 256))
add("softmax_vector", lambda g: _softmax(g, (1000,), 0.2, 256))
add("softmax_wide_products", lambda g: _softmax(g, (3, 40), 0.01, 1 << 14))


def _resize(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (4, 5, 6), "uint8", 0.1, 5), p.Tensor("y", (8, 9, 6), "uint8", 0.1, 6)

    def places(source: int, target: int) -> np.ndarray:
        where = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(where).astype(int)
        weight = np.round((where - low) * 1024).astype(int)
        return np.stack([low, np.minimum(low + 1, source - 1), weight], 1).astype(np.int32)

    fields = {"rows": places(4, 8), "columns": places(5, 9), "requantize": requantize(g, 1, (51, 51), 6)}
    return single(p.Resize, [x], y, g, **fields)


add("resize", _resize)


def _matmul(g: np.random.Generator, lead: tuple[int, ...], m: int, k: int, n: int, scale: float | None = None) -> Case:
    a, b = p.Tensor("a", (*lead, m, k), "uint8", 0.1, 7), p.Tensor("b", (*lead, k, n), "uint8", 0.1, 250)
    out = p.Tensor("y", (*lead, m, n), "uint8" if scale is None else "float32", 0.1, 4 if scale is None else 0)
    how = requantize(g, 1, (44, 44), 4) if scale is None else None
    return single(p.MatMul, [a, b], out, g, requantize=how, scale=scale)


add("matmul", lambda g: _matmul(g, (3,), 7, 16, 33))
add("matmul_plain", lambda g: _matmul(g, (), 5, 3, 5))
add("matmul_row", lambda g: _matmul(g, (2,), 1, 9, 70))
add("matmul_to_float", lambda g: _matmul(g, (2,), 6, 8, 12, 0.01))


def _quantize(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (4, 5, 3), "float32"), p.Tensor("y", (4, 5, 3), "uint8", 0.013, 120)
    program, inputs = single(p.Quantize, [x], y, g, low=0, high=255)
    flat = inputs["x"].reshape(-1)
    flat[:8] = np.nan, np.inf, -np.inf, 1e30, 0.0065, 0.0195, -0.0065, -1e-30
    return program, inputs


def _dequantize(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (4, 5, 3), "uint8", 0.0137, 120), p.Tensor("y", (4, 5, 3), "float32")
    return single(p.Dequantize, [x], y, g)


add("quantize", _quantize)
add("dequantize", _dequantize)


def _chain(g: np.random.Generator) -> Case:
    """A residual block, a view, a linear layer: several operators that share memory, one kernel used twice."""
    tensors = {
        t.name: t
        for t in (
            p.Tensor("x", (6, 6, 8), "uint8", 0.1, 3),
            p.Tensor("a", (6, 6, 8), "uint8", 0.1, 3),
            p.Tensor("b", (6, 6, 8), "uint8", 0.1, 3),
            p.Tensor("c", (6, 6, 8), "uint8", 0.1, 3),
            p.Tensor("d", (1, 1, 8), "uint8", 0.1, 3),
            p.Tensor("e", (8,), "uint8", 0.1, 3),
            p.Tensor("f", (1, 1, 8), "uint8", 0.1, 3),
            p.Tensor("y", (1, 1, 5), "float32"),
        )
    }
    first, _ = convolution(g, (6, 6, 8), 8, out_zero=3)
    second, _ = convolution(g, (6, 6, 8), 8, out_zero=3)
    last, _ = convolution(g, (1, 1, 8), 5, (1, 1), padding=(0, 0, 0, 0), dequantized=True)
    ops = (
        replace(first.ops[0], name="first", inputs=("x",), output="a"),
        replace(second.ops[0], name="second", inputs=("a",), output="b"),
        p.Add("join", ("b", "x"), "c", (1_000_000, 900_000), 21, 3, 3, 255),
        p.Pool("pool", ("c",), "d", "average", (6, 6), requantize=requantize(g, 1, (36, 36), 3)),
        p.View("flatten", ("d",), "e"),
        p.View("image", ("e",), "f"),
        replace(last.ops[0], name="last", inputs=("f",), output="y"),
    )
    return p.Program(tensors, ops, ("x",), ("y",)), {"x": numbers(g, tensors["x"])}


add("chain", _chain)
