"""The roster's convolutions: every form in every width of weights and in float32, and what requantization meets."""

from __future__ import annotations

import numpy as np

from compress.integer import program as p
from tests.export.kernels.cases import Case, add, requantize, single, weights


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


for _shape, _fields in SHAPES.items():
    for _bits in (8, 4, 3, 2, 1):
        add(f"conv_{_shape}_w{_bits}", lambda g, f=_fields, b=_bits: convolution(g, bits=b, **f))
    add(f"float_conv_{_shape}", lambda g, f=_fields: convolution(g, floating=True, **f))

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
    add(f"conv_{_name}", lambda g, m=_more: convolution(g, **{**SMALL, **m}))
for _name in ("zero_255", "clamped", "shift_31", "to_float"):
    _more = {"zero_255": {"zero": 255}, "clamped": {"ends": (4, 200)}, "shift_31": {"shift": 31}}.get(
        _name, {"dequantized": True}
    )
    add(
        f"depthwise_{_name}",
        lambda g, m=_more: convolution(g, **{**SMALL, "outputs": 8, "groups": 8, **m}),
    )
