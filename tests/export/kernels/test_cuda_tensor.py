"""Convolutions on tensor cores, on the emulated CUDA: a warp's lanes meet at the instruction, as the PTX ISA has it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compress import targets
from compress.errors import BadInput
from compress.export import cuda_module
from compress.export.kernels import backends, cuda, cuda_tensor
from compress.export.kernels.cuda_tensor import CHANNELS, PIXELS, TILES, WARP, Fragments
from compress.integer import reference
from compress.integer.half import spelled_out, with_half
from compress.integer.program import Convolution, FloatConvolution, Tensor
from compress.integer.signedness import with_signedness
from tests.export import emulated_cuda
from tests.export.kernels import laws, roster
from tests.rosters import some

WIDE = {
    "conv_wide_w8": (64, 32),
    "conv_wide_w4": (64, 32),
    "conv_wide_w3": (64, 32),
    "conv_wide_w2": (64, 32),
    "conv_wide_w1": (64, 32),
    "conv_plain_w8": (16, 16),
    "conv_plain_w4": (16, 16),
    "conv_plain_w2": (16, 16),
    "conv_plain_w1": (16, 16),
    "conv_stride_2_even_w8": (32, 16),
    "conv_zero_255": (12, 8),
    "conv_to_float": (12, 8),
    "conv_shifts_mixed": (12, 8),
    "conv_wraps": (12, 8),
}
"""Cases of the roster that fill tensor cores: outputs and inputs of their convolution."""


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(cuda_module, "find_compiler", lambda: "nvcc")
    monkeypatch.setattr(cuda_module, "cubin", emulated_cuda.empty_cubin)


def agree(names, folder):
    target, modules, cases = targets.load("gpu"), {}, {}
    for name in names:
        program, inputs = roster.case(name, True)
        modules[name] = cuda_module.build(program, target, folder / name)
        assert cuda_tensor.MMA in modules[name].source, name
        cases[name] = reference.run(program, inputs), [inputs[each] for each in program.inputs]
    found = emulated_cuda.outputs(modules, {name: inputs for name, (_, inputs) in cases.items()}, folder)
    for name, (wanted, _) in cases.items():
        (value,) = wanted.values()
        laws.agree({"y": value}, {"y": found[name].reshape(value.shape)})


FEW = ("conv_wide_w8", "conv_plain_w1")
EVERY = [pytest.param(tuple(WIDE), id="every", marks=pytest.mark.slow), pytest.param(FEW, id="few")]


@pytest.mark.parametrize("names", EVERY)
def test_kernels_equal_the_reference(names, emulated, tmp_path):
    for name in names:
        (op,) = (op for op in roster.case(name, True)[0].ops if isinstance(op, Convolution))
        assert (op.weight.shape[0], op.weight.shape[3]) == WIDE[name]
    agree(names, tmp_path)


def halves(outputs=12, inputs=6, kernel=(3, 3), **more):
    """A float convolution whose operands are rounded, some of them beyond float16."""
    rng = np.random.default_rng(5)
    x, y = Tensor("x", (7, 9, inputs), "float32"), Tensor("y", (7, 9, outputs), "float32")
    program, given = roster.single(
        FloatConvolution, [x], y, rng,
        weight=rng.standard_normal((outputs, *kernel, inputs)).astype(np.float32),
        bias=rng.standard_normal(outputs).astype(np.float32),
        padding=(kernel[0] // 2, kernel[1] // 2, kernel[0] // 2, kernel[1] // 2), **more,
    )  # fmt: skip
    given["x"].reshape(-1)[:4] = 1e6, -1e6, 6e-8, 65519
    return with_half(program, cuda_tensor.fills), given


HALVES = {
    "3x3": {},
    "whole tiles": {"outputs": 32, "inputs": 16},
    "1x1": {"outputs": 8, "inputs": 34, "kernel": (1, 1)},
    "clamped": {"low": 0.0, "high": 6.0},
}


@pytest.mark.slow
def test_float16_kernels_equal_the_reference(emulated, tmp_path):
    target, modules, given, wanted = targets.load("gpu"), {}, {}, {}
    for name, options in HALVES.items():
        program, inputs = halves(**options)
        assert program.ops[0].half
        modules[name] = cuda_module.build(program, target, tmp_path / name)
        assert cuda_tensor.HALF_MMA in modules[name].source
        given[name] = [inputs["x"]]
        (wanted[name],) = reference.run(program, inputs).values()
        exact = reference.run(replace(program, ops=(replace(program.ops[0], half=False),)), inputs)["y"]
        assert not np.allclose(exact, wanted[name], rtol=1e-5)
    found = emulated_cuda.outputs(modules, given, tmp_path)
    for name, value in wanted.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[name].reshape(value.shape) / scale, value / scale, rtol=2e-6, atol=2e-6)


def test_spelled_out_it_is_the_same():
    """For accuracy on a host, whose kernels know no ``half``: they refuse it."""
    program, inputs = halves()
    plain = spelled_out(program)
    assert not any(getattr(op, "half", False) for op in plain.ops)
    assert [type(op).__name__ for op in plain.ops] == ["FloatElementwise", "FloatConvolution"]
    np.testing.assert_array_equal(reference.run(plain, inputs)["y"], reference.run(program, inputs)["y"])
    host = backends.host()
    assert host is not None
    backends.assemble(plain, host)
    with pytest.raises(BadInput, match="no kernel for the operator FloatConvolution"):
        backends.assemble(program, host)


def test_operands_are_rounded_to_the_nearest_float16():
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1e6, -1e6, 2**-25, 65519.0], np.float32)
    assert reference.rounded(x).tolist() == [1.0, 1 + 2**-9, 65504.0, -65504.0, 0.0, 65504.0]


@some("tile", TILES, quick=[TILES[0]])
@pytest.mark.slow
def test_every_size_of_a_warps_part(emulated, tile, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_tensor, "TILES", (tile,))
    agree(["conv_wide_w8", "conv_wide_w2"], tmp_path)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize(("outputs", "depth"), [(8, 32), (12, 36), (17, 100), (64, 288)])
def test_lanes_find_their_weights(bits, outputs, depth):
    """By the PTX ISA's register numbers: word w of step s is byte 4 w + k of its 32, here in the order of memory."""
    rng = np.random.default_rng(bits)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    weight = rng.integers(low, high + 1, (outputs, depth)) if bits > 1 else rng.choice([-1, 1], (outputs, depth))
    packed = Fragments.of(weight.astype(np.int8), bits)
    assert packed.words.shape[0] == -(-outputs // CHANNELS)
    assert packed.words.shape[1] == -(-packed.steps // packed.steps_a_part)
    words = packed.words.astype(np.int64) & 0xFFFFFFFF
    count = 8 // bits
    for channel in range(outputs):
        for k in range(depth):
            step, byte = divmod(k, 32)
            part, within = divmod(step, packed.steps_a_part)
            t, e = divmod(byte // 4, 2)
            word = within * 2 + e
            held = int(words[channel // 8, part, channel % 8 * 4 + t, word // count])
            field = held >> (8 * (byte % 4) + bits * (word % count)) & ((1 << bits) - 1)
            found = (1 - 2 * field) if bits == 1 else field - (1 << bits) * (field >> (bits - 1))
            assert found == weight[channel, k]


def test_older_gpus_and_thin_layers_have_none():
    def kernels(name: str, gpu: str) -> str:
        code = cuda.assemble(with_signedness(roster.case(name, True)[0], True), gpu)
        return " ".join(str(call.kernel.function) for call in code.calls)

    assert cuda_tensor.MMA in kernels("conv_wide_w8", "sm_87")
    assert cuda_tensor.MMA not in kernels("conv_wide_w8", "sm_75")
    assert "dp4a" in kernels("conv_wide_w8", "sm_75")
    assert [cuda.capability(gpu) for gpu in ("sm_87", "sm_110", "sm_90a", "?")] == [87, 110, 90, 0]


def test_blocks_hold_whole_warps():
    assert cuda.BLOCK % WARP == 0
    code = cuda.assemble(with_signedness(roster.case("conv_wide_w8", True)[0], True), "sm_87")
    (rows,) = {call.kernel.rows for call in code.calls if cuda_tensor.MMA in str(call.kernel.function)}
    assert rows % WARP == 0
    assert rows >= WARP * (4 * 12 / (2 * PIXELS)) * (64 / (4 * CHANNELS))
