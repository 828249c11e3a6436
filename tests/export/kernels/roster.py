"""Programs of one operator, or of few, that every back end has to compute as the reference does.

Each case is a program with unsigned or signed tensors and inputs for it; :func:`cases` makes them from a name, so
that a back end's tests can pick. Numbers are random from a seed of the case's own name, and include the extremes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from compress.integer import program as p
from compress.integer.signedness import with_signedness

Case = tuple[p.Program, dict[str, np.ndarray]]
CASES: dict[str, Callable[[np.random.Generator], Case]] = {}
WEIGHTS = {8: (-127, 128), 4: (-8, 8), 3: (-4, 4), 2: (-2, 2)}


def case(name: str, signed: bool | None = None) -> Case:
    """A case by name; with ``signed`` its 8-bit tensors are all int8, or all uint8."""
    program, inputs = CASES[name](np.random.default_rng(zlib.crc32(name.encode())))
    if signed is None:
        return program, inputs
    wanted = with_signedness(program, signed)
    moved = {}
    for name_, value in inputs.items():
        dtype = wanted.tensors[name_].dtype
        same = dtype == value.dtype.name
        moved[name_] = value if same else (value.view(np.uint8) ^ 0x80).view(dtype)
    return wanted, moved


def numbers(g: np.random.Generator, tensor: p.Tensor) -> np.ndarray:
    """Random numbers of a tensor's type, its extremes among them."""
    if tensor.dtype == "float32":
        return g.normal(size=tensor.shape).astype(np.float32)
    low, high = p.LIMITS[tensor.dtype]
    value = g.integers(low, high + 1, tensor.shape).astype(tensor.dtype)
    flat = value.reshape(-1)
    flat[g.integers(0, flat.size, 2)] = low, high
    return value


def requantize(
    g: np.random.Generator, count: int, shift: int | tuple[int, int] = (34, 40), zero: int = 4, ends: tuple = (0, 255)
) -> p.Requantize:
    """Random factors; ``shift`` is one for all, or a range."""
    low, high = shift if isinstance(shift, tuple) else (shift, shift)
    m = g.integers(2**30, 2**31, count).astype(np.int32)
    m[0] = 2**31 - 1
    return p.Requantize(m, g.integers(low, high + 1, count).astype(np.int32), zero, *ends)


def single(
    op: Callable[..., p.Op], inputs: list[p.Tensor], output: p.Tensor, g: np.random.Generator, **fields: object
) -> Case:
    """A program of one operator."""
    made = op("node", tuple(t.name for t in inputs), output.name, **fields)
    tensors = {t.name: t for t in [*inputs, output]}
    program = p.Program(tensors, (made,), tuple(dict.fromkeys(t.name for t in inputs)), (output.name,))
    return program, {t.name: numbers(g, t) for t in inputs}


def weights(g: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    if bits == 1:
        return (g.integers(0, 2, shape) * 2 - 1).astype(np.int8)
    values = g.integers(*WEIGHTS[bits], shape).astype(np.int8)
    values.reshape(-1)[0] = WEIGHTS[bits][0]
    return values


def convolution(
    g: np.random.Generator,
    image: tuple[int, int, int],
    outputs: int,
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    dilations: tuple[int, int] = (1, 1),
    groups: int = 1,
    bits: int = 8,
    zero: int = 3,
    shift: int | tuple[int, int] = (34, 40),
    ends: tuple[int, int] = (0, 255),
    out_zero: int = 4,
    floating: bool = False,
    dequantized: bool = False,
    bias: int = 3000,
) -> Case:
    size = [
        (image[k] + padding[k] + padding[k + 2] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1 for k in (0, 1)
    ]
    shape = (outputs, *kernel, image[2] // groups)
    fields = {"strides": strides, "padding": padding, "dilations": dilations, "groups": groups}
    if floating:
        x, y = p.Tensor("x", image, "float32"), p.Tensor("y", (*size, outputs), "float32")
        weight = (g.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        fields |= {"weight": weight, "bias": g.normal(size=outputs).astype(np.float32)}
        return single(p.FloatConvolution, [x], y, g, **fields)
    x = p.Tensor("x", image, "uint8", 0.1, zero)
    y = p.Tensor("y", (*size, outputs), "float32" if dequantized else "uint8", 0.1, 0 if dequantized else out_zero)
    how = None if dequantized else requantize(g, outputs, shift, out_zero, ends)
    scale = g.uniform(1e-4, 1e-2, outputs).astype(np.float32) if dequantized else None
    offsets = g.integers(-bias, bias + 1, outputs).astype(np.int32)
    fields |= {"weight": weights(g, shape, bits), "weight_bits": bits, "bias": offsets}
    return single(p.Convolution, [x], y, g, **fields, requantize=how, scale=scale)


SHAPES: dict[str, dict] = {
    "plain": {"image": (8, 8, 16), "outputs": 16},
    "wide": {"image": (4, 12, 32), "outputs": 64},
    "stride_2": {"image": (9, 7, 3), "outputs": 17, "strides": (2, 2)},
    "stride_2_even": {"image": (8, 8, 16), "outputs": 32, "strides": (2, 2), "padding": (0, 0, 1, 1)},
    "dilated": {"image": (7, 11, 17), "outputs": 5, "padding": (2, 2, 2, 2), "dilations": (2, 2)},
    "dilated_far": {"image": (5, 5, 4), "outputs": 8, "padding": (4, 4, 4, 4), "dilations": (4, 4)},
    "unequal": {"image": (6, 9, 5), "outputs": 3, "kernel": (1, 5), "strides": (1, 3), "padding": (0, 3, 0, 1)},
    "one_channel": {"image": (9, 9, 1), "outputs": 1, "kernel": (5, 5), "padding": (2, 2, 2, 2)},
    "pointwise": {"image": (5, 5, 24), "outputs": 40, "kernel": (1, 1), "padding": (0, 0, 0, 0)},
    "pointwise_stride": {"image": (7, 7, 8), "outputs": 16, "kernel": (1, 1), "padding": (0,) * 4, "strides": (2, 2)},
    "small_images": {"image": (2, 2, 9), "outputs": 70, "kernel": (1, 1), "padding": (0, 0, 0, 0)},
    "linear": {"image": (1, 1, 37), "outputs": 10, "kernel": (1, 1), "padding": (0, 0, 0, 0)},
    "linear_long": {"image": (1, 1, 64), "outputs": 100, "kernel": (1, 1), "padding": (0, 0, 0, 0)},
    "pixel_in_window": {"image": (1, 1, 8), "outputs": 12},
    "column": {"image": (13, 1, 5), "outputs": 7, "kernel": (3, 3)},
    "row": {"image": (1, 13, 6), "outputs": 9, "kernel": (1, 3), "padding": (0, 1, 0, 1)},
    "grouped": {"image": (6, 6, 8), "outputs": 12, "groups": 2},
    "grouped_many": {"image": (5, 6, 12), "outputs": 24, "groups": 4, "strides": (2, 1)},
    "depthwise": {"image": (6, 6, 16), "outputs": 16, "groups": 16},
    "depthwise_odd": {"image": (7, 6, 17), "outputs": 17, "groups": 17, "strides": (2, 2)},
    "depthwise_5x5": {"image": (8, 9, 8), "outputs": 8, "groups": 8, "kernel": (5, 5), "padding": (2, 2, 2, 2)},
    "depthwise_twice": {"image": (5, 5, 6), "outputs": 12, "groups": 6},
    "depthwise_wide": {"image": (5, 5, 96), "outputs": 96, "groups": 96},
    "window_of_all": {"image": (4, 4, 12), "outputs": 10, "kernel": (4, 4), "padding": (0, 0, 0, 0)},
    "beyond": {"image": (3, 3, 4), "outputs": 4, "padding": (3, 3, 3, 3)},
}
"""Convolutions of every form; each comes in every width of weights and in float32."""


def _add(name: str, make: Callable[[np.random.Generator], Case]) -> None:
    assert name not in CASES
    CASES[name] = make


for _shape, _fields in SHAPES.items():
    for _bits in (8, 4, 3, 2, 1):
        _add(f"conv_{_shape}_w{_bits}", lambda g, f=_fields, b=_bits: convolution(g, bits=b, **f))
    _add(f"float_conv_{_shape}", lambda g, f=_fields: convolution(g, floating=True, **f))

SMALL: dict = {"image": (5, 6, 8), "outputs": 12}
for _name, _more in {
    "zero_0": {"zero": 0},
    "zero_255": {"zero": 255},
    "zero_128": {"zero": 128},
    "out_zero_0": {"out_zero": 0},
    "out_zero_255": {"out_zero": 255},
    "clamped": {"ends": (4, 200)},
    "one_value": {"ends": (7, 7)},
    "shift_1": {"shift": 1},
    "shift_31": {"shift": 31},
    "shift_32": {"shift": 32},
    "shift_33": {"shift": 33},
    "shift_62": {"shift": 62},
    "shifts_mixed": {"shift": (28, 45)},
    "to_float": {"dequantized": True},
    "wraps": {"bias": 2**31 - 1, "shift": 48},
}.items():
    _add(f"conv_{_name}", lambda g, m=_more: convolution(g, **{**SMALL, **m}))
for _name in ("zero_255", "clamped", "shift_31", "to_float"):
    _more = {"zero_255": {"zero": 255}, "clamped": {"ends": (4, 200)}, "shift_31": {"shift": 31}}.get(
        _name, {"dequantized": True}
    )
    _add(
        f"depthwise_{_name}",
        lambda g, m=_more: convolution(g, **{**SMALL, "outputs": 8, "groups": 8, **m}),
    )


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
        _add(f"{_kind}_{_name}", lambda g, k=_kind, s=_pair: _broad(g, k, *s))
_same = ((4, 5, 16), (4, 5, 16))
_add("add_subtracts", lambda g: _broad(g, "add", *_same, multipliers=(1 << 20, -(1 << 20)), shift=20))
_add("add_extreme", lambda g: _broad(g, "add", *_same, multipliers=(2**21 - 1, -(2**21 - 1)), shift=30))
_add("add_shift_1", lambda g: _broad(g, "add", *_same, multipliers=(1, -1), shift=1))
_add("add_relu", lambda g: _broad(g, "add", *_same, low=100, high=180))
_add("multiply_shift_31", lambda g: _broad(g, "multiply", *_same, requantize=requantize(g, 1, (31, 31), 100)))
_add("multiply_shift_33", lambda g: _broad(g, "multiply", *_same, requantize=requantize(g, 1, (33, 33), 100)))


def _regrid(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (3, 7, 5), "uint8", 0.1, 9), p.Tensor("y", (3, 7, 5), "uint8", 0.2, 200)
    fields: dict = {"multipliers": (1_200_000,), "shift": 21, "zero_point": 200, "low": 10, "high": 255}
    return single(p.Add, [x], y, g, **fields)


def _twice(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (3, 4, 5), "uint8", 0.1, 9), p.Tensor("y", (3, 4, 5), "uint8", 0.2, 20)
    fields: dict = {"multipliers": (700_000, 800_000), "shift": 21, "zero_point": 20, "low": 0, "high": 255}
    return single(p.Add, [x, x], y, g, **fields)


_add("add_of_one", _regrid)
_add("add_to_itself", _twice)


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
        _add(f"{_kind}_pool_{_name}", lambda g, k=_kind, a=_arguments: _pool(g, k, *a))
        _add(f"float_{_kind}_pool_{_name}", lambda g, k=_kind, a=_arguments: _pool(g, k, *a, floating=True))
_add("average_pool_each", lambda g: _pool(g, "average", (7, 9, 20), (3, 3), (2, 2), (1, 1, 1, 1), each=True))


def _joined(g: np.random.Generator, axis: int) -> Case:
    shapes = [[3, 4, 5] for _ in range(3)]
    for k, shape in enumerate(shapes):
        shape[axis] += 3 * k
    inputs = [p.Tensor(f"x{k}", tuple(shape), "uint8", 0.1, 5) for k, shape in enumerate(shapes)]
    whole = list(shapes[0])
    whole[axis] = sum(shape[axis] for shape in shapes)
    return single(p.Concatenate, inputs, p.Tensor("y", tuple(whole), "uint8", 0.1, 5), g, axis=axis)


for _axis in range(3):
    _add(f"concatenate_{_axis}", lambda g, a=_axis: _joined(g, a))


def _class_token(g: np.random.Generator) -> Case:
    """A constant in front of the tokens, as vision transformers have one."""
    c, x = p.Tensor("c", (1, 7), "uint8", 0.1, 5), p.Tensor("x", (4, 7), "uint8", 0.1, 5)
    y = p.Tensor("y", (5, 7), "uint8", 0.1, 5)
    ops = (p.Constant("token", (), "c", numbers(g, c)), p.Concatenate("join", ("c", "x"), "y", 0))
    return p.Program({t.name: t for t in (c, x, y)}, ops, ("x",), ("y",)), {"x": numbers(g, x)}


_add("class_token", _class_token)


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
    _add(f"copy_{_name}", lambda g, n=_name: _copied(g, n))
_add("copy_floats", lambda g: _copied(g, "padded", "float32"))


def _table(g: np.random.Generator, dtype: str = "uint8") -> Case:
    x, y = p.Tensor("x", (3, 5, 7), "uint8", 0.1, 5), p.Tensor("y", (3, 5, 7), dtype, 0.1, 5 if dtype == "uint8" else 0)
    table = numbers(g, p.Tensor("t", (256,), dtype))
    return single(p.Lookup, [x], y, g, table=table)


_add("lookup", _table)
_add("lookup_floats", lambda g: _table(g, "float32"))


def _softmax(g: np.random.Generator, shape: tuple[int, ...], scale: float, factor: int) -> Case:
    x, y = p.Tensor("x", shape, "uint8", scale, 5), p.Tensor("y", shape, "uint8", 1 / factor, 0)
    table = np.round(2.0**20 * np.exp(-np.arange(256) * scale)).astype(np.int32)
    return single(p.Softmax, [x], y, g, table=table, factor=factor, zero_point=0, low=0, high=255)


_add("softmax", lambda g: _softmax(g, (4, 6, 10), 0.05, 256))
_add("softmax_vector", lambda g: _softmax(g, (1000,), 0.2, 256))
_add("softmax_wide_products", lambda g: _softmax(g, (3, 40), 0.01, 1 << 14))


def _resize(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (4, 5, 6), "uint8", 0.1, 5), p.Tensor("y", (8, 9, 6), "uint8", 0.1, 6)

    def places(source: int, target: int) -> np.ndarray:
        where = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(where).astype(int)
        weight = np.round((where - low) * 1024).astype(int)
        return np.stack([low, np.minimum(low + 1, source - 1), weight], 1).astype(np.int32)

    fields = {"rows": places(4, 8), "columns": places(5, 9), "requantize": requantize(g, 1, (51, 51), 6)}
    return single(p.Resize, [x], y, g, **fields)


_add("resize", _resize)


def _matmul(g: np.random.Generator, lead: tuple[int, ...], m: int, k: int, n: int, scale: float | None = None) -> Case:
    a, b = p.Tensor("a", (*lead, m, k), "uint8", 0.1, 7), p.Tensor("b", (*lead, k, n), "uint8", 0.1, 250)
    out = p.Tensor("y", (*lead, m, n), "uint8" if scale is None else "float32", 0.1, 4 if scale is None else 0)
    how = requantize(g, 1, (44, 44), 4) if scale is None else None
    return single(p.MatMul, [a, b], out, g, requantize=how, scale=scale)


_add("matmul", lambda g: _matmul(g, (3,), 7, 16, 33))
_add("matmul_plain", lambda g: _matmul(g, (), 5, 3, 5))
_add("matmul_row", lambda g: _matmul(g, (2,), 1, 9, 70))
_add("matmul_to_float", lambda g: _matmul(g, (2,), 6, 8, 12, 0.01))


def _quantize(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (4, 5, 3), "float32"), p.Tensor("y", (4, 5, 3), "uint8", 0.013, 120)
    program, inputs = single(p.Quantize, [x], y, g, low=0, high=255)
    flat = inputs["x"].reshape(-1)
    flat[:8] = np.nan, np.inf, -np.inf, 1e30, 0.0065, 0.0195, -0.0065, -1e-30
    return program, inputs


def _dequantize(g: np.random.Generator) -> Case:
    x, y = p.Tensor("x", (4, 5, 3), "uint8", 0.0137, 120), p.Tensor("y", (4, 5, 3), "float32")
    return single(p.Dequantize, [x], y, g)


_add("quantize", _quantize)
_add("dequantize", _dequantize)


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


_add("chain", _chain)


def _elementwise(g: np.random.Generator, kind: str, constant: bool = False, swapped: bool = False) -> Case:
    a, b, y = (p.Tensor(n, (3, 5, 7), "float32") for n in "aby")
    unary = kind in UNARY
    fields: dict = {"kind": kind, "swapped": swapped}
    if kind == "clip":
        fields["constant"] = np.array([-0.5, 0.75], np.float32)
    elif constant:
        fields["constant"] = g.uniform(0.5, 2.0, (7,)).astype(np.float32)
    program, inputs = single(p.FloatElementwise, [a] if unary or constant else [a, b], y, g, **fields)
    x = inputs["a"]
    x *= np.float32(6)
    x.reshape(-1)[:9] = 0, -0.0, 30, -30, 1e-3, -1e-3, 1, 0.625, 5
    if kind in ("log", "sqrt", "pow"):
        inputs["a"] = np.abs(x) + (np.float32(0.01) if kind == "pow" else np.float32(0))
    if kind == "div":
        inputs["b"] = inputs["b"] + np.sign(inputs["b"]) if "b" in inputs else None
        inputs = {name: value for name, value in inputs.items() if value is not None}
    return program, inputs


UNARY = ("relu", "sigmoid", "tanh", "exp", "erf", "sqrt", "log", "neg", "abs", "reciprocal", "clip")
for _kind in (*UNARY, "add", "sub", "mul", "div", "max", "min", "pow"):
    _add(f"float_{_kind}", lambda g, k=_kind: _elementwise(g, k))
for _kind in ("sub", "div", "pow"):
    _add(f"float_{_kind}_constant", lambda g, k=_kind: _elementwise(g, k, True))
    _add(f"float_{_kind}_swapped", lambda g, k=_kind: _elementwise(g, k, True, True))


def _reduced(g: np.random.Generator, kind: str, axes: tuple[int, ...]) -> Case:
    shape = (4, 5, 19)
    out = tuple(1 if k in axes else size for k, size in enumerate(shape))
    return single(
        p.FloatReduce, [p.Tensor("x", shape, "float32")], p.Tensor("y", out, "float32"), g, kind=kind, axes=axes
    )


for _kind in ("mean", "sum", "max"):
    for _axes in ((2,), (0, 1), (1, 2), (0, 1, 2)):
        _name = f"float_reduce_{_kind}_{''.join(map(str, _axes))}"
        _add(_name, lambda g, k=_kind, a=_axes: _reduced(g, k, a))


def _float_pair(g: np.random.Generator, op: type, first: tuple, second: tuple | None, out: tuple) -> Case:
    inputs = [p.Tensor("a", first, "float32")] + ([p.Tensor("b", second, "float32")] if second else [])
    return single(op, inputs, p.Tensor("y", out, "float32"), g)


_add("float_softmax", lambda g: _float_pair(g, p.FloatSoftmax, (3, 4, 21), None, (3, 4, 21)))
_add("float_softmax_vector", lambda g: _float_pair(g, p.FloatSoftmax, (10,), None, (10,)))
_add("float_matmul", lambda g: _float_pair(g, p.FloatMatMul, (3, 7, 16), (3, 16, 37), (3, 7, 37)))
_add("float_matmul_plain", lambda g: _float_pair(g, p.FloatMatMul, (5, 3), (3, 5), (5, 5)))
