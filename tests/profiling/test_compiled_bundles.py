"""Bundles that hold a compiled library: run here, emulated, refused where they should be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

import compress
from compress import targets
from compress.errors import BadInput, CheckFailed
from compress.profiling import emulated, local
from compress.serial import write_json
from tests.graph.networks import Plain, build, images
from tests.rosters import some

KEYS = {
    "device",
    "runtime",
    "golden_equal",
    "latency_s",
    "latency_p90_s",
    "instructions",
    "macs",
    "arena_bytes",
    "flash_bytes",
    "conditions",
}


def run(folder, target, model=None, **arguments):
    data = (images(60), torch.arange(60) % 5)
    settings = {"candidates": 1, "prune": "none", "quantize": "uniform", "epochs": 0, "samples": 16, **arguments}
    return compress.run(model or build(Plain), data, target=target, out=folder, **settings)


@pytest.fixture(scope="module")
def microcontroller(tmp_path_factory):
    for program in ("qemu-system-arm", "arm-none-eabi-gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} isn't installed")
    out = tmp_path_factory.mktemp("m7") / "run"
    return run(out, "cortex-m7"), out


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    out = tmp_path_factory.mktemp("cpu") / "run"
    return run(out, "cpu"), out


def test_the_bundle_of_a_microcontroller_is_right_in_the_emulator(microcontroller):
    front, out = microcontroller
    found = emulated.profile(out / "bundle")
    artifact = front.best().best
    assert found.golden_equal
    assert found.latency_s is None
    assert found.latency_p90_s is None
    assert 0.3 * found.macs < found.instructions < 20 * found.macs
    assert found.instructions == artifact.instructions
    assert "byte for byte" in found.conditions["library"]
    assert "not a time" in found.conditions["instructions"]
    assert set(local.document(found)) == KEYS
    assert "8 golden inputs equal the reference bit for bit in qemu-system-arm" in artifact.checked


def test_the_microcontrollers_figures_are_those_of_its_library(microcontroller):
    front, out = microcontroller
    described = json.loads((out / "bundle" / "library" / "library.json").read_text())
    artifact = front.best().best
    assert artifact.bytes == described["flash_bytes"]
    assert artifact.path.endswith(described["linked"])
    ends = described["interface"]["inputs"] + described["interface"]["outputs"]
    assert artifact.ram_bytes > described["arena_bytes"]
    assert [end["dtype"] for end in ends] == ["int8", "float32"]
    kept = next(r for r in front.best().records if r.stage == "compile")
    assert kept.settings == {"runtime": "tvm"}


def test_here_the_library_takes_what_the_file_takes_and_is_timed_beside_it(here):
    _, out = here
    described = json.loads((out / "bundle" / "library" / "library.json").read_text())
    assert [end["dtype"] for end in described["interface"]["inputs"]] == ["float32"]
    for runtime in ("onnxruntime", "tvm"):
        found = local.profile(out / "bundle", runtime)
        assert found.runtime == runtime
        assert found.golden_equal
        assert found.latency_s > 0
    both = local.profile(out / "bundle")
    assert any(key.startswith("latency_s in ") for key in both.conditions)


def test_a_runtime_that_does_not_run_here_is_named(microcontroller):
    _, out = microcontroller
    with pytest.raises(BadInput, match=r"--runtime tvm: .* onnxruntime, and --device qemu for other processors"):
        local.profile(out / "bundle", "tvm")


def test_a_bundle_without_a_library_has_nothing_to_emulate(here, tmp_path):
    _, out = here
    bundle = tmp_path / "bundle"
    shutil.copytree(out / "bundle", bundle)
    shutil.rmtree(bundle / "library")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = [entry for entry in manifest["files"] if not entry["path"].startswith("library/")]
    write_json(bundle / "manifest.json", manifest)
    with pytest.raises(BadInput, match="holds no compiled library"):
        emulated.profile(bundle)


def test_a_changed_library_is_refused(microcontroller, tmp_path):
    _, out = microcontroller
    bundle = tmp_path / "bundle"
    shutil.copytree(out / "bundle", bundle)
    kernels = bundle / "library" / "lib" / "model_kernels.o"
    kernels.write_bytes(kernels.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckFailed, match=r"model_kernels.o has been changed"):
        emulated.profile(bundle)


class WithLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.relu(self.conv(x)).mean(3).transpose(1, 2)
        return self.head(self.lstm(steps)[0][:, -1])


class WithRunningSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cumsum(torch.relu(self.conv(x)).mean((2, 3)), 1))


@some(("network", "operator"), [(WithRunningSum, "CumSum"), (WithLstm, "LSTM")], quick=[(WithRunningSum, "CumSum")])
def test_an_operator_that_cannot_be_compiled_is_named_with_its_node(network, operator, tmp_path):
    front = run(tmp_path / "run", "cpu", network())
    for candidate in (front.baseline, *front.candidates):
        assert [artifact.runtime for artifact in candidate.artifacts] == ["onnxruntime"]
        (missing,) = candidate.unavailable
        assert missing.runtime == "tvm"
        assert f"({operator}): the compiled library has no such operator" in missing.reason


@pytest.mark.parametrize(("target", "arguments"), [("cortex-m7", {}), ("cpu", {"runtime": "tvm"})])
def test_where_nothing_else_would_do_that_ends_the_run_and_leaves_nothing(tmp_path, target, arguments):
    reason = rf"no code for {target}: node '[^']+' \(CumSum\): the compiled library has no such operator"
    with pytest.raises(BadInput, match=reason) as raised:
        run(tmp_path / "run", target, WithRunningSum(), candidates=3, **arguments)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_library_that_is_too_large_says_by_how_much_and_names_the_largest_tensors(tmp_path):
    device = targets.load("cortex-m4")
    flash = {"flash_bytes": 1 << 20}
    wanted = run(tmp_path / "one", replace(device, **flash)).candidates[0].best.ram_bytes
    with pytest.raises(
        BadInput, match=r"compiled, it needs \d+ bytes of RAM, \d+ more than cortex-m4 has; the largest"
    ):
        run(tmp_path / "two", replace(device, ram_bytes=wanted - 400, **flash))


@pytest.mark.slow
def test_without_a_compiler_the_bundle_holds_the_object_and_says_what_to_install(tmp_path, monkeypatch):
    from compress.errors import MissingCompiler
    from compress.export.library import toolchain

    def none(isa):
        raise MissingCompiler(isa.triple, "gcc-arm-none-eabi", "ziglang", "embedded")

    monkeypatch.setattr(toolchain, "find", none)
    front = run(tmp_path / "run", "cortex-m7")
    artifact = front.best().best
    assert artifact.runtime == "tvm"
    assert artifact.path.endswith("lib/model_kernels.o")
    assert "gcc-arm-none-eabi" in artifact.checked
