"""A CUDA module on a device over SSH: a real OpenSSH server, on its far side TVM's runtime and an emulated CUDA."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compress import targets
from compress.errors import BadInput, CheckFailed
from compress.export import cuda, cuda_module
from compress.profiling import device_cuda, remote
from compress.profiling.device_address import parse
from tests.export import emulated_cuda
from tests.export.small_bundles import make_bundle
from tests.profiling.servers import Sshd, left_behind
from tests.profiling.test_devices import SECONDS, wrapper

LOADED = """
import sys
if any(each.endswith("run_cuda.py") for each in sys.orig_argv):
    import ctypes, pathlib, tvm
    library = pathlib.Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
"""
"""TVM loads its CUDA by itself where there is a driver."""

OF_A_VERSION = """
import importlib.metadata as m
own = m.version
def version(name):
    if name == "apache-tvm":
        FOUND
    return own(name)
m.version = version
"""


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """Stands for nvcc."""
    monkeypatch.setattr(cuda_module, "find_compiler", lambda: "nvcc")
    monkeypatch.setattr(cuda_module, "cubin", emulated_cuda.empty_cubin)


@pytest.fixture
def bundle(tmp_path) -> Path:
    return make_bundle(tmp_path / "bundle", "gpu", runtimes=("tvm",))


def gpu(folder: Path, bundle: Path, architecture: str = "sm_86") -> str:
    """An interpreter on a device with that GPU."""
    site, emulated, again = folder / "site", folder / "emulated", folder / "again"
    for each in (site, emulated, again):
        each.mkdir()
    (site / "sitecustomize.py").write_text(LOADED, encoding="utf-8")
    for name in ("model.onnx", "golden.npz"):
        (again / name).write_bytes((bundle / name).read_bytes())
    emulated_cuda.runtime(emulated, architecture)
    emulated_cuda.kernels(cuda.write(again, targets.load("gpu")).source, emulated / "kernels.so")
    names = {"PYTHONPATH": site, "LD_LIBRARY_PATH": emulated, "EMULATED_KERNELS": emulated / "kernels.so"}
    return str(wrapper(folder, "\n".join(f"{name}='{value}'; export {name}" for name, value in names.items())))


def measured(bundle: Path, server: Sshd, python: str = sys.executable, runtime: str | None = "tvm") -> remote.Remote:
    return remote.profile(bundle, parse(server.address(python)), runtime, seconds=SECONDS)


@pytest.mark.slow
def test_it_is_checked_and_timed_there(server, bundle, tmp_path):
    found = measured(bundle, server, gpu(tmp_path, bundle), runtime=None)
    assert found.profile.runtime == "tvm"
    assert found.profile.golden_equal
    assert found.profile.device == "emulated (compute capability 8.6)"
    assert found.profile.latency_s is not None
    assert found.profile.latency_p90_s is not None
    assert 0 < found.profile.latency_s <= found.profile.latency_p90_s
    assert found.profile.conditions["library"] == device_cuda.HOW
    assert found.profile.conditions["runtime"].startswith("CUDA module on TVM")
    assert found.profile.flash_bytes == (bundle / "cuda" / "network.so").stat().st_size
    assert left_behind(server) == []


def test_nothing_of_the_bundle_but_its_onnx_file_is_run(bundle, tmp_path):
    sent = {each.path: each for each in device_cuda.files(bundle, _made(tmp_path / "files"))}
    assert set(sent) == {"run_cuda.py", "golden.npz", "cuda/network.so", "cuda/network.json", "cuda/reference.npy"}
    assert not any(isinstance(each.content, Path) and bundle in each.content.parents for each in sent.values())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_a_gpu_of_another_architecture(server, bundle, tmp_path):
    with pytest.raises(BadInput, match="the module is for sm_86, this GPU is sm_75: make the bundle for it"):
        measured(bundle, server, gpu(tmp_path, bundle, "sm_75"))
    assert left_behind(server) == []


@pytest.mark.slow
def test_other_outputs_are_no_measurement(server, bundle, tmp_path, monkeypatch):
    python = gpu(tmp_path, bundle)
    right = cuda.outputs_of
    monkeypatch.setattr(cuda, "outputs_of", lambda p, x: {k: v + 1 for k, v in right(p, x).items()})
    with pytest.raises(CheckFailed, match="the outputs differ from the reference"):
        measured(bundle, server, python)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ("raise m.PackageNotFoundError(name)", "isn't installed there: .* -m pip install numpy apache-tvm=="),
        ('return "0.1"', "there is 0.1: .* -m pip install apache-tvm=="),
    ],
)
def test_a_device_without_its_runtime(server, bundle, tmp_path, found, says):
    site = _made(tmp_path / "site")
    (site / "sitecustomize.py").write_text(OF_A_VERSION.replace("FOUND", found), encoding="utf-8")
    with pytest.raises(BadInput, match=says):
        measured(bundle, server, str(wrapper(tmp_path, f"PYTHONPATH='{site}'; export PYTHONPATH")))


def test_a_machine_that_cant_compile_it_again(server, bundle, monkeypatch):
    def none() -> str:
        raise BadInput("compiling CUDA needs nvcc with ptxas")

    monkeypatch.setattr(cuda_module, "find_compiler", none)
    with pytest.raises(BadInput, match="compiled again here, and compiling CUDA needs nvcc with ptxas"):
        measured(bundle, server)
    assert measured(bundle, server, runtime=None).profile.runtime == "onnxruntime"
