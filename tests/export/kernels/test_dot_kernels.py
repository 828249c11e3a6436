"""Dot-product kernels of x86 and 64-bit Arm: every case of the roster, and the networks' own forms, against the
reference."""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compress.export.kernels import aarch64, x86
from compress.export.kernels.code import Code
from compress.export.kernels.compiling import assembly, object_file
from compress.export.kernels.dot import pack
from compress.export.kernels.dot_blocks import choose, registers
from compress.export.kernels.dot_strategies import NARROW, strategies
from compress.export.kernels.dot_x86 import MaddBytes
from compress.export.kernels.fusion import ConvolutionAdd, fuse
from compress.export.kernels.isa import CORTEX_A72, CORTEX_A76, X86_AVX2, X86_AVX_VNNI, X86_VNNI, Isa
from compress.integer import program as p
from compress.integer import reference
from compress.integer.signedness import with_signedness
from tests.export.kernels import crossed
from tests.export.kernels.hosted import call_all, kernels
from tests.export.kernels.roster import CASES, case, numbers, requantize, weights
from tests.export.kernels.roster import convolution as roster_convolution

X86_VNNI_256 = replace(X86_VNNI, dot="vnni256")
FLAGS = {"vnni512": "avx512_vnni", "vnni256": "avx512_vnni", "avx2": "avx2"}
NAMES = [name for name in CASES if re.match("conv|depthwise|average_pool|max_pool|add_|chain", name)]


def can_run(isa: Isa) -> bool:
    info = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and info.exists() and FLAGS[isa.dot] in info.read_text().split()


def back_end(isa: Isa):
    return x86.assemble if isa.family == "x86" else aarch64.assemble


def run_all(codes: list[Code], isa: Isa, inputs: list, folder: Path, monkeypatch) -> list[dict[str, np.ndarray]]:
    """All pieces of code in one library, on this machine or emulated; skipped where neither is possible."""
    if isa.family == "aarch64":
        missing = crossed.missing(isa)
        if missing:
            pytest.skip(f"{missing} isn't installed")
        monkeypatch.setenv("QEMU_CPU", "cortex-a72" if isa.dot == "neon" else "max")
        return crossed.run_all(codes, isa, inputs)
    if not can_run(isa):
        pytest.skip(f"this processor has no {FLAGS[isa.dot]}")
    (folder / "kernels.o").write_bytes(object_file([k for code in codes for k in kernels(code)], isa))
    subprocess.run(["cc", "-shared", "-o", "kernels.so", "kernels.o"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "kernels.so"))
    return [call_all(library, code, values) for code, values in zip(codes, inputs, strict=True)]


def check(programs: dict[str, tuple[p.Program, dict]], isa: Isa, folder: Path, monkeypatch) -> list[Code]:
    """Every program's outputs are the reference's, bit for bit."""
    codes = [back_end(isa)(program, isa, f"case{i}_") for i, (program, _) in enumerate(programs.values())]
    found = run_all(codes, isa, [inputs for _, inputs in programs.values()], folder, monkeypatch)
    wrong = []
    for (name, (program, inputs)), outputs in zip(programs.items(), found, strict=True):
        wanted = reference.run(program, inputs)
        wrong += [name for out in program.outputs if not np.array_equal(wanted[out], outputs[out])]
    assert not wrong
    return codes


ISAS = [X86_VNNI, X86_VNNI_256, X86_AVX2, CORTEX_A76, CORTEX_A72]


@pytest.mark.parametrize(
    "isa",
    [pytest.param(isa, id=isa.dot, marks=() if isa.dot == "vnni512" else pytest.mark.slow) for isa in ISAS],
)
def test_every_case_of_the_roster(isa, tmp_path, monkeypatch):
    check({name: case(name, isa.signed) for name in NAMES}, isa, tmp_path, monkeypatch)


def tensor(name: str, shape: tuple[int, ...], isa: Isa, zero: int = 0) -> p.Tensor:
    return p.Tensor(name, shape, "int8" if isa.signed else "uint8", 0.1, zero - (128 if isa.signed else 0))


def moved(to: p.Requantize, isa: Isa) -> p.Requantize:
    by = 128 if isa.signed else 0
    return replace(to, zero_point=to.zero_point - by, low=to.low - by, high=to.high - by)


def convolution(
    g: np.random.Generator, tensors: dict[str, p.Tensor], x: str, y: p.Tensor, kernel: int, isa: Isa, **more
) -> p.Convolution:
    """A convolution from ``x`` to ``y`` whose results spread over all 256 integers."""
    groups, bits = more.get("groups", 1), more.pop("bits", 8)
    shape = (y.shape[2], kernel, kernel, tensors[x].shape[2] // groups)
    tensors[y.name] = y
    spread = np.sqrt(np.prod(shape[1:])) * 74 * 2.0 ** (bits - 1) / np.sqrt(3)
    shift = 31 + round(float(np.log2(spread / 60)))
    zero = y.zero_point + (128 if isa.signed else 0)
    to = moved(requantize(g, y.shape[2], (shift, shift + 1), zero), isa)
    margin = more.pop("padding", kernel // 2)
    bias = g.integers(-2000, 2000, y.shape[2]).astype(np.int32)
    return p.Convolution(
        f"to_{y.name}", (x,), y.name, weights(g, shape, bits), bits, bias, padding=(margin,) * 4, requantize=to, **more
    )


def residual(isa: Isa, *, swapped: bool = False, zero: int = 90, channels: int = 24) -> tuple[p.Program, dict]:
    """``y = clamp(conv(x) + x)``, the addition's operands in either order."""
    g = np.random.default_rng(5)
    tensors = {"x": tensor("x", (7, 9, channels), isa, 77)}
    conv = convolution(g, tensors, "x", tensor("t", (7, 9, channels), isa, 100), 3, isa)
    tensors["y"] = tensor("y", (7, 9, channels), isa, zero)
    by = 128 if isa.signed else 0
    names = ("x", "t") if swapped else ("t", "x")
    add = p.Add("add", names, "y", (1_500_000, -900_000), 21, zero - by, zero - by, 250 - by)
    program = p.Program(tensors, (conv, add), ("x",), ("y",))
    return program, {"x": numbers(g, tensors["x"])}


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.dot)
def test_an_addition_joined_to_its_convolution(isa, tmp_path, monkeypatch):
    programs = {
        f"{swapped}, {zero}, {channels}": residual(isa, swapped=swapped, zero=zero, channels=channels)
        for swapped in (False, True)
        for zero, channels in ((0, 64), (90, 24), (255, 17))
    }
    for program, _ in programs.values():
        joined = fuse(program)
        assert [type(op) for op in joined.ops] == [ConvolutionAdd]
        assert "t" not in joined.tensors
    codes = check(programs, isa, tmp_path, monkeypatch)
    for code in codes:
        assert sum("add" in call.kernel.symbol for call in code.calls) == 1


def test_an_addition_stays_apart_where_its_operand_is_read_again_or_given_out():
    program, _ = residual(X86_VNNI)
    more = replace(program, outputs=("y", "t"))
    assert [type(op) for op in fuse(more).ops] == [p.Convolution, p.Add]
    conv = program.ops[0]
    again = replace(conv, name="again", inputs=("t",), output="u")
    tensors = {**program.tensors, "u": replace(program.tensors["t"], name="u")}
    twice = replace(program, tensors=tensors, ops=(conv, again, program.ops[1]), outputs=("y", "u"))
    assert not any(isinstance(op, ConvolutionAdd) for op in fuse(twice).ops)


def network(isa: Isa, bits: int) -> tuple[p.Program, dict]:
    """Images with halos of several widths, read by several operators; strides, groups, 1x1, a pool, a linear layer."""
    g = np.random.default_rng(bits)
    tensors = {"x": tensor("x", (17, 15, 3), isa, 115)}
    ops: list[p.Op] = []

    def add(x: str, name: str, shape: tuple[int, int, int], kernel: int, **more) -> str:
        ops.append(convolution(g, tensors, x, tensor(name, shape, isa, 128), kernel, isa, bits=bits, **more))
        return name

    a = add("x", "a", (17, 15, 32), 3)
    b = add(a, "b", (17, 15, 32), 3, groups=32)
    c = add(b, "c", (17, 15, 48), 1)
    d = add(c, "d", (9, 8, 96), 5, strides=(2, 2))
    e = add(c, "e", (9, 8, 96), 1, strides=(2, 2))
    tensors["f"] = tensor("f", (9, 8, 96), isa, 120)
    by = 128 if isa.signed else 0
    ops.append(p.Add("f", (d, e), "f", (1_100_000, 1_200_000), 21, 120 - by, -by, 255 - by))
    h = add("f", "h", (9, 8, 64), 3, groups=4, dilations=(2, 2), padding=2)
    tensors["i"] = tensor("i", (1, 1, 64), isa, 128)
    ops.append(p.Pool("i", (h,), "i", "average", (9, 8), requantize=moved(requantize(g, 1, (35, 35), 128), isa)))
    add("i", "j", (1, 1, 10), 1)
    program = p.Program(tensors, tuple(ops), ("x",), ("j", "h"))
    return program, {"x": numbers(g, tensors["x"])}


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.dot)
@pytest.mark.slow
def test_a_network_of_every_width(isa, tmp_path, monkeypatch):
    programs = {str(bits): network(isa, bits) for bits in (8, 4, 2, 1)}
    codes = check(programs, isa, tmp_path, monkeypatch)
    sizes = [sum(c.nbytes for c in code.constants if c.dtype == np.int8) for code in codes]
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.35 * sizes[0]
    assert sizes[3] <= sizes[2]


@pytest.mark.parametrize(
    ("isa", "adds", "multiplies"),
    [(X86_AVX2, "vpsadbw", "vpmaddwd"), (CORTEX_A72, "uabd", "smull")],
    ids=["avx2", "neon"],
)
def test_one_bit_weights_are_added_and_subtracted(isa, adds, multiplies, tmp_path, monkeypatch):
    forms = {
        "padded": {"image": (6, 7, 16), "outputs": 8, "zero": 255},
        "grouped": {"image": (5, 9, 16), "outputs": 12, "groups": 2, "strides": (2, 1)},
        "dilated": {"image": (9, 5, 24), "outputs": 5, "padding": (2, 2, 2, 2), "dilations": (2, 2), "zero": 0},
        "pointwise": {"image": (3, 5, 40), "outputs": 17, "kernel": (1, 1), "padding": (0, 0, 0, 0), "ends": (7, 90)},
        "linear": {"image": (1, 1, 64), "outputs": 10, "kernel": (1, 1), "padding": (0, 0, 0, 0), "dequantized": True},
        "wraps": {"image": (5, 6, 8), "outputs": 12, "bias": 2**31 - 1, "shift": 48},
        "unfilled": {"image": (5, 6, 10), "outputs": 8},
    }
    g = np.random.default_rng(2)
    made = {name: roster_convolution(g, bits=1, **form) for name, form in forms.items()}
    programs = {
        name: (with_signedness(program, isa.signed), {"x": flipped(inputs["x"]) if isa.signed else inputs["x"]})
        for name, (program, inputs) in made.items()
    }
    codes = check(programs, isa, tmp_path, monkeypatch)
    products = {
        name: [product for product in (adds, multiplies) if product in assembly(kernels(code), isa)]
        for name, code in zip(programs, codes, strict=True)
    }
    assert products == {name: [adds] for name in forms} | {"unfilled": [multiplies]}


LARGEST = {64: 8, 32: 8, 9: 8, 8: 4, 4: 3, 2: 2}
"""Magnitudes of weights that ``vpmaddubsw`` takes, and the bits that hold them."""


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_no_sum_saturates_at_the_largest_weights_and_activations(kernel, tmp_path, monkeypatch):
    """Of one sign each, so that nothing cancels; 65 is too large for sums of two products in 16 bits.

    Sums come out as about -120 and 120 around the zero point, so that losing a hundredth of one shows.
    """
    programs = {}
    for largest, bits in {**LARGEST, 65: 8, 128: 8}.items():
        g = np.random.default_rng(largest)
        tensors = {"x": tensor("x", (kernel + 2, kernel + 3, 36), X86_AVX2)}
        conv = convolution(g, tensors, "x", tensor("y", (3, 4, 16), X86_AVX2, 128), kernel, X86_AVX2, padding=0)
        sign = np.where(np.arange(16) % 2, -largest, largest - (largest in (8, 4, 2, 128)))
        weight = np.broadcast_to(sign[:, None, None, None], conv.weight.shape).astype(np.int8)
        factor, exponent = np.frexp(120 / (255 * largest * weight[0].size))
        multiplier = np.full(16, round(factor * 2**31), np.int64).clip(max=2**31 - 1).astype(np.int32)
        to = replace(conv.requantize, multiplier=multiplier, shift=np.full(16, 31 - exponent), low=0, high=255)
        bias = np.zeros(16, np.int32)
        conv = replace(conv, weight=weight, weight_bits=bits, bias=bias, requantize=to)
        x = np.full(tensors["x"].shape, 255, np.uint8)
        x[0, 0, 0] = 254
        programs[str(largest)] = p.Program(tensors, (conv,), ("x",), ("y",)), {"x": x}
    codes = check(programs, X86_AVX2, tmp_path, monkeypatch)
    for name, code in zip(programs, codes, strict=True):
        assert ("vpmaddubsw" in assembly(kernels(code), X86_AVX2)) == (int(name) in LARGEST)


def test_the_narrower_the_weights_the_fewer_instructions_on_avx2():
    """By multiplication of bytes in the innermost loop, loads and unpacking included; 8 bits take the most."""
    taken = {}
    for largest, bits in {127: 8, 63: 8, 31: 8, 15: 8, 7: 4, 1: 2}.items():
        g = np.random.default_rng(0)
        tensors = {"x": tensor("x", (16, 16, 64), X86_AVX2, 3)}
        conv = convolution(g, tensors, "x", tensor("y", (16, 16, 64), X86_AVX2, 4), 3, X86_AVX2)
        conv = replace(conv, weight=g.integers(-largest, largest + 1, conv.weight.shape).astype(np.int8))
        code = x86.assemble(p.Program(tensors, (replace(conv, weight_bits=bits),), ("x",), ("y",)), X86_AVX2)
        text = assembly([call.kernel for call in code.calls if "convolution" in call.kernel.symbol], X86_AVX2)
        product, pieces = ("vpmaddubsw", 1) if largest < 64 else ("vpmaddwd", 2)
        taken[largest] = max(
            pieces * len(body) / sum(line.startswith(product) for line in body) for body in innermost(text, product)
        )
    assert taken[15] < taken[31] < taken[63] < taken[127]
    assert max(taken[7], taken[1]) < 0.75 * taken[127]


def flipped(x: np.ndarray) -> np.ndarray:
    """The int8 that stand for the same as uint8."""
    return (x ^ 0x80).view(np.int8)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("size", [64, 32, 16, 8])
def test_packing_keeps_every_weight(bits, size):
    g = np.random.default_rng(0)
    vectors = weights(g, (3, size), bits)
    packed = pack(vectors, bits)
    assert packed.shape == (3, size * bits // 8)
    # Slowly: repetition r of the packed bytes has its field r, counted from the highest bit.
    few, fields = size * bits // 8, np.zeros((3, size), int)
    for position in range(size):
        field = packed[:, position % few].view(np.uint8) >> (8 - bits * (1 + position // few)) & ((1 << bits) - 1)
        fields[:, position] = field
    signed = (fields + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1)) if bits > 1 else 1 - 2 * fields
    assert np.array_equal(signed, vectors)


INNER = {
    "vnni512": ("vpdpbusd", r"%zmm\d+, -?\d*\(%rsp|\(%rsp\S*, %zmm"),
    "vnni256": ("vpdpbusd", r"%ymm\d+, -?\d*\(%rsp|\(%rsp\S*, %ymm"),
    "avx2": ("vpmaddwd", r"%ymm\d+, -?\d*\(%rsp|\(%rsp\S*, %ymm"),
    "sdot": ("sdot", r"q\d+, (q\d+, )?\[sp"),
    "neon": ("sadalp", r"q\d+, (q\d+, )?\[sp"),
}


def innermost(text: str, product: str) -> list[list[str]]:
    """The instructions of each loop without another one inside it that has the product."""
    lines = [line.strip() for line in text.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.match(r"\.?L?BB\w+:$|\.LBB\w+:$", line)}
    loops = []
    for end, line in enumerate(lines):
        jump = re.match(r"(j\w+|b\.\w+|cbn?z|tbn?z)\s+(?:\S+,\s*)*(\.LBB\w+)", line)
        if jump and labels.get(jump[2], end) < end:
            body = [one for one in lines[labels[jump[2]] : end + 1] if one and not re.match(r"[.#;/]|\S+:$", one)]
            if any(one.startswith(product) for one in body):
                loops.append((labels[jump[2]], end, body))
    return [body for start, end, body in loops if not any(start < s and e <= end for s, e, _ in loops)]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.dot)
def test_the_inner_loop_keeps_its_sums_in_registers(isa):
    g = np.random.default_rng(0)
    tensors = {"x": tensor("x", (16, 16, 64), isa, 3)}
    conv = convolution(g, tensors, "x", tensor("y", (16, 16, 64), isa, 4), 3, isa)
    code = back_end(isa)(p.Program(tensors, (conv,), ("x",), ("y",)), isa)
    text = assembly([call.kernel for call in code.calls if "convolution" in call.kernel.symbol], isa)
    product, spill = INNER[isa.dot]
    loops = innermost(text, product)
    assert loops
    for body in loops:
        assert not [line for line in body if re.search(spill, line)]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.dot)
def test_blocks_fit_into_the_registers(isa):
    narrow = NARROW.get(isa.dot, ())
    narrower = [replace(dot, sums=sums) for dot in narrow if isinstance(dot, MaddBytes) for sums in (2, 8)]
    for dot in (*strategies(isa), *narrow, *narrower):
        for width in (1, 7, 8, 14, 32, 112):
            for vectors in (1, 2, 3, 6, 80):
                for kernel, stride, dilation in ((1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (7, 2, 1)):
                    block = choose(dot, width, vectors, kernel, stride, dilation, 9)
                    assert 1 <= block.pixels <= width
                    assert 1 <= block.vectors <= vectors
                    assert kernel % block.taps == 0
                    assert registers(dot, block) <= dot.registers


def test_avx_vnni_does_without_avx_512():
    program, _ = network(X86_AVX_VNNI, 4)
    code = x86.assemble(program, X86_AVX_VNNI)
    text = assembly(kernels(code), X86_AVX_VNNI)
    assert "vpdpbusd" in text
    assert not re.search(r"%zmm|[xy]mm(1[6-9]|2\d|3[01])\b|\{%k", text)
