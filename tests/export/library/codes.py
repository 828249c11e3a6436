"""Hand-made codes of trivial kernels, with what they compute in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.export.kernels.building import function, store
from compress.export.kernels.code import Buffer, Call, Code, Constant, Kernel
from compress.integer.program import Tensor

H, W, C = 6, 5, 3
N = H * W * C


def weighted(symbol: str = "kernel1_weighted") -> Kernel:
    """``y[i] = x[i] * w[i] + 5`` row by row, int8 to int32."""
    from tvm.tirx.script import builder as T

    with function(symbol, [("x", "int8", N), ("y", "int32", N), ("w", "int32", N)], rows=H) as body:
        x, y, w = body.buffers
        with T.serial(body.first, body.last) as row, T.serial(W * C) as i:
            store(y, T.cast(x[row * (W * C) + i], "int32") * w[row * (W * C) + i] + 5, row * (W * C) + i)
    return body.done


def doubled(symbol: str = "kernel2_doubled") -> Kernel:
    """``y[i] = 2 * x[i]``, int32, in place if one likes."""
    from tvm.tirx.script import builder as T

    with function(symbol, [("x", "int32", N), ("y", "int32", N)], rows=H) as body:
        x, y = body.buffers
        with T.serial(body.first, body.last) as row, T.serial(W * C) as i:
            store(y, x[row * (W * C) + i] * 2, row * (W * C) + i)
    return body.done


def summed(symbol: str = "kernel3_summed") -> Kernel:
    """``y[c] = float(sum over pixels) * scale[c]``, with scratch memory of int32."""
    from tvm.tirx.script import builder as T

    pointers = [("x", "int32", N), ("y", "float32", C), ("scale", "float32", C), ("scratch", "int32", C)]
    with function(symbol, pointers) as body:
        x, y, scale, scratch = body.buffers
        with T.serial(C) as c:
            store(scratch, T.int32(0), c)
        with T.serial(H * W) as i, T.serial(C) as c:
            store(scratch, scratch[c] + x[i * C + c], c)
        with T.serial(C) as c:
            store(y, T.cast(scratch[c], "float32") * scale[c], c)
    return body.done


def weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, N).astype(np.int32)


SCALE = np.array([0.5, 0.25, 3.0], np.float32)


def small_code(seed: int = 0, more: Sequence[np.ndarray] = ()) -> Code:
    """An int8 image in, three floats out: weighted, doubled in place, summed."""
    sizes = {"x": N, "a": 4 * N, "b": 4 * N, "scratch": 4 * C, "y": 4 * C}
    buffers = {name: Buffer(name, size, 1 if name == "x" else 16) for name, size in sizes.items()}
    calls = (
        Call(weighted(), ("x", "a", Constant(0)), ("x",), ("a",), op="first"),
        Call(doubled(), ("a", "b"), ("a",), ("b",), (("b", "a"),), op="a/*odd*/ name\\"),
        Call(summed(), ("b", "y", Constant(1), "scratch"), ("b",), ("y", "scratch"), op="last"),
    )
    tensors = {"x": Tensor("x", (H, W, C), "int8", 0.05, -3), "y": Tensor("y", (C,), "float32")}
    return Code(buffers, calls, (weights(seed), SCALE, *more), ("x",), ("y",), tensors)


def expected(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """What :func:`small_code` gives for int8 (N, H, W, C): float32 (N, C)."""
    a = x.reshape(len(x), N).astype(np.int64) * weights(seed) + 5
    return (2 * a).reshape(len(x), H * W, C).sum(1).astype(np.int32).astype(np.float32) * SCALE


def images(count: int = 4, seed: int = 1) -> np.ndarray:
    """float32 (count, C, H, W), some of them beyond what the input's grid holds."""
    return np.random.default_rng(seed).normal(0, 4, (count, C, H, W)).astype(np.float32)


def many_ended_code() -> Code:
    """Two int8 images in, whose names are one in C; out come int32 of the first, read again, and floats of both."""
    sizes = {"x:0": N, "x.0": N, "a": 4 * N, "b/1": 4 * N, "c": 4 * N, "y": 4 * C, "z": 4 * C, "scratch": 4 * C}
    buffers = {name: Buffer(name, size, 1 if name[0] == "x" else 4) for name, size in sizes.items()}
    one, two, three = weighted(), doubled(), summed()
    calls = (
        Call(one, ("x:0", "a", Constant(0)), ("x:0",), ("a",)),
        Call(two, ("a", "b/1"), ("a",), ("b/1",)),
        Call(one, ("x.0", "c", Constant(0)), ("x.0",), ("c",)),
        Call(three, ("b/1", "y", Constant(1), "scratch"), ("b/1",), ("y", "scratch")),
        Call(three, ("c", "z", Constant(1), "scratch"), ("c",), ("z", "scratch")),
    )
    tensors = {name: Tensor(name, (H, W, C), "int8", 0.05, -3) for name in ("x:0", "x.0")}
    tensors |= {"b/1": Tensor("b/1", (H, W, C), "int32", 0.125), "y": Tensor("y", (C,), "float32")}
    tensors["z"] = Tensor("z", (C,), "float32")
    return Code(buffers, calls, (weights(), SCALE), ("x:0", "x.0"), ("b/1", "y", "z"), tensors)


def expected_of_many(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What :func:`many_ended_code` gives for two int8 (N, H, W, C)."""
    b = (2 * (first.reshape(len(first), N).astype(np.int64) * weights() + 5)).astype(np.int32)
    c = second.reshape(len(second), N).astype(np.int64) * weights() + 5
    z = c.reshape(len(second), H * W, C).sum(1).astype(np.int32).astype(np.float32) * SCALE
    return b.reshape(len(first), H, W, C), expected(first), z
