"""CUDA through TVM: machine code for each device is inside, and the module computes what the reference does.

No GPU is needed: the module's own host code, TVM's virtual machine and the CUDA source of the kernels run on an
emulated CUDA, thread by thread (``emulated_cuda.py``). What that can't show is nvcc's machine code and a GPU's speed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from compress import targets
from compress.errors import BadInput
from compress.export import cuda, cuda_module, tvm
from compress.export.compiled import FLOAT_TOLERANCE
from compress.export.kernels.cuda_convolution import Words
from compress.export.lowering import lower
from compress.export.onnx import export, serialize
from compress.integer import reference
from compress.integer.program import Convolution, FloatConvolution
from compress.quantize import quantize
from compress.results import Unavailable
from compress.types import State
from tests.export import emulated_cuda
from tests.export.lowering import comparing
from tests.export.small_bundles import make_bundle
from tests.graph import transformers
from tests.graph.networks import (
    ARCHITECTURES,
    Attention,
    Dense,
    Depthwise,
    Grouped,
    Plain,
    Residual,
    Squeeze,
    UNet,
    build,
    images,
    inputs_of,
)
from tests.rosters import some

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("ptxas") is None, reason="needs nvcc and ptxas"
)


MACHINES = {
    "jetson-orin-nano": ("sm_87", 183),
    "jetson-agx-orin": ("sm_87", 183),
    "jetson-agx-thor": ("sm_110", 183),
    "gpu": ("sm_86", 62),
}
"""Each GPU target's architecture and its processor's number in an ELF file."""


@needs_nvcc
@some("name", MACHINES, quick=("jetson-orin-nano", "gpu"))
def test_machine_code_for_the_gpu_and_for_its_host(name, tmp_path):
    gpu, machine = MACHINES[name]
    target = targets.load(name)
    if machine == 183 and shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("needs g++-aarch64-linux-gnu")
    bundle = make_bundle(tmp_path / "bundle", runtimes=())
    try:
        made = cuda.write(bundle, target)
    except BadInput as error:
        if "does this CUDA know that GPU" in error.sentence:
            pytest.skip(error.sentence)
        raise
    content = made.path.read_bytes()
    assert int.from_bytes(content[18:20], "little") == machine
    assert cuda_module.architectures(content) == {gpu}
    assert b"__dp4a" in made.source.encode()


def test_architectures_are_read_from_the_cubins_alone():
    header = bytearray(64)
    header[:20] = b"\x7fELF\x02\x01\x01\x41\x08" + bytes(9) + (190).to_bytes(2, "little")
    header[48:52] = bytes([4, 87, 0, 6])
    other = bytearray(header)
    other[18:20] = (62).to_bytes(2, "little")
    assert cuda_module.architectures(bytes(other) + b"x" + bytes(header)) == {"sm_87"}
    assert cuda_module.architectures(b'extern "C" __global__ void f()') == set()


CASES = [
    pytest.param(Residual, 8, id="Residual-8"),
    pytest.param(Depthwise, 4, id="Depthwise-4", marks=pytest.mark.slow),
    pytest.param(Grouped, 8, id="Grouped-8", marks=pytest.mark.slow),
    pytest.param(Plain, 8, id="Plain-8", marks=pytest.mark.slow),
    pytest.param(Dense, 4, id="Dense-4", marks=pytest.mark.slow),
    pytest.param(Squeeze, 8, id="Squeeze-8", marks=pytest.mark.slow),
    pytest.param(Residual, 4, id="Residual-4", marks=pytest.mark.slow),
]


def narrowed(program, bits):
    """The program with weights of 1 or 2 bits, which no target asks for."""
    ops = []
    for op in program.ops:
        if isinstance(op, Convolution):
            weight = np.clip(op.weight, -2, 1) if bits == 2 else np.where(op.weight >= 0, 1, -1)
            op = replace(op, weight=weight.astype(np.int8), weight_bits=bits)
        ops.append(op)
    return replace(program, ops=tuple(ops))


@needs_nvcc
@some("bits", [2, 1], quick=[1])
@pytest.mark.slow
def test_narrow_weights_are_taken_apart_in_the_kernel(bits, tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "bundle", "raspberry-pi-5", Residual, 4, runtimes=())
    right = cuda.lower
    monkeypatch.setattr(cuda, "lower", lambda path: narrowed(right(path), bits))
    made = cuda.write(bundle, targets.load("gpu"))
    assert {op.weight_bits for op in made.program.ops if isinstance(op, Convolution)} == {bits}
    ended = emulated_cuda.run(bundle, made.source, made.gpu, tmp_path / "emulated")
    assert ended.returncode == 0, ended.stderr


@needs_nvcc
@pytest.mark.parametrize(("factory", "bits"), CASES)
def test_the_module_equals_the_reference_bit_for_bit(factory, bits, tmp_path):
    bundle = make_bundle(tmp_path / "bundle", "raspberry-pi-5", factory, bits, runtimes=())
    made = cuda.write(bundle, targets.load("gpu"))
    ended = emulated_cuda.run(bundle, made.source, made.gpu, tmp_path / "emulated")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "ok"


@needs_nvcc
@some("name", ["gpu", "jetson"], quick=["gpu"])
@pytest.mark.slow
def test_a_network_in_float(name, tmp_path):
    if name == "jetson" and shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("needs g++-aarch64-linux-gnu")
    bundle = make_bundle(tmp_path / "bundle", runtimes=())
    export(State(build(Residual)), images(2), bundle / "model.onnx")
    made = cuda.write(bundle, targets.load(name))
    assert cuda_module.architectures(made.path.read_bytes()) == {made.gpu}
    assert json.loads((bundle / "cuda" / "network.json").read_text())["tolerance"] == FLOAT_TOLERANCE
    if name == "gpu":
        ended = emulated_cuda.run(bundle, made.source, made.gpu, tmp_path / "emulated")
        assert ended.returncode == 0, ended.stderr


FLOATS = [f for f in ARCHITECTURES if f not in (transformers.Recurrent, transformers.Text, transformers.TwoInputs)]
"""All but those that can't be lowered, or whose module would take two inputs."""
SOME = (Plain, Attention)


@pytest.mark.parametrize(("factory", "layers"), [(Residual, 3), pytest.param(UNet, 1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_tensor_cores_take_float_networks_in_float16(factory, layers, tmp_path, monkeypatch):
    """The module is what its program says, and near the network: float16 errs by 2^-11 an operand."""
    monkeypatch.setattr(cuda_module, "find_compiler", lambda: "nvcc")
    monkeypatch.setattr(cuda_module, "cubin", emulated_cuda.empty_cubin)
    x = inputs_of(factory, 2)[0]
    file = serialize(State(build(factory)), x)
    module = cuda_module.build(lower(file), targets.load("gpu"), tmp_path / "module")
    assert sum(isinstance(op, FloatConvolution) and op.half for op in module.program.ops) >= layers
    assert module.source.count("compress_mma_f16(") > layers  # its definition comes first
    (tensor,) = (module.program.tensors[each] for each in module.program.inputs)
    given = comparing.laid(tensor, x[:1].numpy())
    found = emulated_cuda.outputs({"it": module}, {"it": [given]}, tmp_path)["it"]
    (wanted,) = reference.run(module.program, {module.program.inputs[0]: given}).values()
    assert np.abs(found - wanted.ravel()).max() <= FLOAT_TOLERANCE * np.abs(wanted).max()
    (exact,) = comparing.session(file).run(None, {"input": x[:1].numpy()})
    (end,) = (module.program.tensors[each] for each in module.program.outputs)
    right = comparing.laid(end, exact).ravel()
    error = np.abs(found - right).max() / np.abs(right).max()
    assert 1e-6 < error < 5e-3


@pytest.mark.parametrize(
    ("factory", "bits"), [(Residual, 8), pytest.param(UNet, None, marks=pytest.mark.slow), (Squeeze, None)]
)
@pytest.mark.slow
def test_a_batch_is_what_its_inputs_are_one_by_one(factory, bits, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_module, "find_compiler", lambda: "nvcc")
    monkeypatch.setattr(cuda_module, "cubin", emulated_cuda.empty_cubin)
    x = inputs_of(factory, 3)[0]
    model = build(factory)
    state = State(model) if bits is None else quantize(model, x, weight_bits=bits, target="gpu").state
    program = lower(serialize(state, x))
    one = cuda_module.build(program, targets.load("gpu"), tmp_path / "one")
    three = cuda_module.build(program, targets.load("gpu"), tmp_path / "three", batch=3)
    (name,), (result,) = one.program.inputs, one.program.outputs
    tensor = one.program.tensors[name]
    images = [comparing.laid(tensor, each[None].numpy()) for each in x]
    together = emulated_cuda.outputs({"three": three}, {"three": [np.stack(images)]}, tmp_path)["three"]
    wanted = np.stack([reference.run(one.program, {name: each})[result].ravel() for each in images])
    assert not np.array_equal(wanted[0], wanted[1])
    if bits is None:
        assert np.abs(together.reshape(wanted.shape) - wanted).max() <= FLOAT_TOLERANCE * np.abs(wanted).max()
    else:
        assert np.array_equal(together.reshape(wanted.shape), wanted)


@pytest.mark.parametrize(
    "factories", [pytest.param(SOME, id="some"), pytest.param(FLOATS, id="every", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_float_networks_agree_with_onnx_runtime(factories, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_module, "find_compiler", lambda: "nvcc")
    monkeypatch.setattr(cuda_module, "cubin", emulated_cuda.empty_cubin)
    modules, given, wanted = {}, {}, {}
    for factory in factories:
        name, x = factory.__name__, inputs_of(factory, 2)[0]
        file = serialize(State(build(factory)), x)
        modules[name] = cuda_module.build(lower(file), replace(targets.load("gpu"), gpu="sm_75"), tmp_path / name)
        (tensor,) = (modules[name].program.tensors[each] for each in modules[name].program.inputs)
        given[name] = [comparing.laid(tensor, x[:1].numpy())]
        (wanted[name],) = comparing.session(file).run(None, {"input": x[:1].numpy()})
    found = emulated_cuda.outputs(modules, given, tmp_path)
    for name, module in modules.items():
        (end,) = (module.program.tensors[each] for each in module.program.outputs)
        right = comparing.laid(end, wanted[name]).ravel()
        assert np.abs(found[name] - right).max() <= 1e-4 * np.abs(right).max(), name


@pytest.mark.slow
@needs_nvcc
def test_the_check_on_the_device_could_fail(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", runtimes=())
    made = cuda.write(bundle, targets.load("gpu"))
    wanted = np.load(bundle / "cuda" / "reference.npy")
    np.save(bundle / "cuda" / "reference.npy", wanted + 1)
    ended = emulated_cuda.run(bundle, made.source, made.gpu, tmp_path / "emulated")
    assert ended.returncode == 4
    assert "differ from the reference" in ended.stderr
    ended = emulated_cuda.run(bundle, made.source, "sm_75", tmp_path / "other")
    assert ended.returncode == 2
    assert "the module is for sm_86, this GPU is sm_75" in ended.stderr


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("channels", [4, 8, 20, 32])
def test_words_hold_the_weights(bits, channels):
    rng = np.random.default_rng(bits)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    weight = rng.integers(low, high + 1, (6, 9, channels)) if bits > 1 else rng.choice([-1, 1], (6, 9, channels))
    packed = Words.of(weight.astype(np.int8), bits)
    words = packed.words.astype(np.int64) & 0xFFFFFFFF
    for channel in range(channels):
        word, rest = divmod(channel, 4 * packed.groups)
        group, lane = divmod(rest, 4)
        field = (words[..., word] >> (group * packed.width + 8 * lane)) & ((1 << packed.width) - 1)
        found = field * (2 if bits == 1 else 1) - packed.offset
        if packed.width == 8:
            found = found.astype(np.uint8).astype(np.int8)
        assert np.array_equal(found, weight[..., channel])


def test_without_a_compiler_the_reason_is_there(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "bundle", runtimes=())
    monkeypatch.setenv("PATH", str(tmp_path))
    found = tvm.make(None, bundle, targets.load("jetson"))  # type: ignore[arg-type]
    assert isinstance(found, Unavailable)
    assert "needs nvcc with ptxas" in found.reason


@needs_nvcc
def test_a_gpu_that_the_compiler_does_not_know(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", runtimes=())
    with pytest.raises(BadInput, match="nvcc fails for sm_999.*does this CUDA know that GPU"):
        cuda.write(bundle, replace(targets.load("gpu"), gpu="sm_999"))
