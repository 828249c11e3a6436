"""The roster's operators in float32."""

from __future__ import annotations

import numpy as np

from compress.integer import program as p
from tests.export.kernels.cases import Case, add, single


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
    if kind == "half":
        x.reshape(-1)[9:18] = (
            1e6,
            -65519,
            2**-25,
            3 * 2**-25,
            -(2**-14),
            2**-14 * (1 - 2**-12),
            1 + 2**-11,
            np.nan,
            6e-8,
        )
    if kind == "div":
        inputs["b"] = inputs["b"] + np.sign(inputs["b"]) if "b" in inputs else None
        inputs = {name: value for name, value in inputs.items() if value is not None}
    return program, inputs


UNARY = ("relu", "sigmoid", "tanh", "exp", "erf", "sqrt", "log", "neg", "abs", "reciprocal", "clip", "half")
for _kind in (*UNARY, "add", "sub", "mul", "div", "max", "min", "pow"):
    add(f"float_{_kind}", lambda g, k=_kind: _elementwise(g, k))
for _kind in ("sub", "div", "pow"):
    add(f"float_{_kind}_constant", lambda g, k=_kind: _elementwise(g, k, True))
    add(f"float_{_kind}_swapped", lambda g, k=_kind: _elementwise(g, k, True, True))


def _reduced(g: np.random.Generator, kind: str, axes: tuple[int, ...]) -> Case:
    shape = (4, 5, 19)
    out = tuple(1 if k in axes else size for k, size in enumerate(shape))
    return single(
        p.FloatReduce, [p.Tensor("x", shape, "float32")], p.Tensor("y", out, "float32"), g, kind=kind, axes=axes
    )


for _kind in ("mean", "sum", "max"):
    for _axes in ((2,), (0, 1), (1, 2), (0, 1, 2)):
        _name = f"float_reduce_{_kind}_{''.join(map(str, _axes))}"
        add(_name, lambda g, k=_kind, a=_axes: _reduced(g, k, a))


def _float_pair(g: np.random.Generator, op: type, first: tuple, second: tuple | None, out: tuple) -> Case:
    inputs = [p.Tensor("a", first, "float32")] + ([p.Tensor("b", second, "float32")] if second else [])
    return single(op, inputs, p.Tensor("y", out, "float32"), g)


add("float_softmax", lambda g: _float_pair(g, p.FloatSoftmax, (3, 4, 21), None, (3, 4, 21)))
add("float_softmax_vector", lambda g: _float_pair(g, p.FloatSoftmax, (10,), None, (10,)))
add("float_matmul", lambda g: _float_pair(g, p.FloatMatMul, (3, 7, 16), (3, 16, 37), (3, 7, 37)))
add("float_matmul_plain", lambda g: _float_pair(g, p.FloatMatMul, (5, 3), (3, 5), (5, 5)))
