"""build_engine.py of a bundle, against recorded behaviour of TensorRT: engines run in ONNX Runtime on fake GPU
memory."""

from __future__ import annotations

import importlib.util
import json
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.export.fake_tensorrt import FakeCuda, module
from tests.export.small_bundles import make_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle", "jetson-agx-orin")


@pytest.fixture
def bundle(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def script(bundle: Path):
    spec = importlib.util.spec_from_file_location("build_engine_under_test", bundle / "build_engine.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def run(bundle, monkeypatch):
    """Calls the script in this process; gives its exit status and the module that it saw."""

    def call(*arguments: str, version: str = "10.3.0", **behaviour):
        cuda = FakeCuda()
        trt = module(version, cuda, **behaviour)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        builder = script(bundle)
        monkeypatch.setattr(builder, "Cuda", lambda: cuda)
        monkeypatch.setattr(builder, "WARM_UP_S", 0.01)
        values = iter(behaviour.get("clocks", [{}, {}]))
        monkeypatch.setattr(builder, "clocks", lambda: next(values))
        return builder.main(["--seconds", "0.01", *arguments]), trt

    return call


def measured(bundle: Path) -> dict:
    return json.loads((bundle / "measured.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1", "11.4.0"])
def test_it_builds_checks_and_times(bundle, run, capsys, version):
    status, trt = run(version=version)
    assert (status, capsys.readouterr().err) == (0, "")
    found = measured(bundle)
    assert found["golden_equal"]
    assert 0 < found["golden"]["difference"] < 0.02
    assert found["latency_s"] > 0
    assert found["latency_s"] <= found["latency_p90_s"] <= found["latency_p99_s"]
    assert found["gpu_s"] == pytest.approx(0.25e-3)
    assert found["cuda_graph"] is True
    assert found["runs"] >= 10
    assert found["layers"] == [{"Name": "conv", "Precision": "INT8"}]
    assert found["layer_times"] == [{"name": "conv", "ms": 0.25}, {"name": "head", "ms": 0.125}]
    assert "profiled" in trt.log
    assert found["arena_bytes"] == 4096
    assert found["conditions"]["runtime"] == f"tensorrt {version}"
    assert "workspace 1024" in trt.log


def test_a_second_call_loads_the_engine_and_another_release_builds_it_again(bundle, run, capsys):
    assert "built" in run()[1].log
    assert "built" not in run()[1].log
    capsys.readouterr()
    status, trt = run(version="10.16.1")
    assert status == 0
    assert "built" in trt.log
    assert "built with tensorrt 10.3.0, not 10.16.1" in capsys.readouterr().out
    assert "built" in run("--rebuild", version="10.16.1")[1].log


def test_the_timing_cache_is_kept_and_one_of_another_release_is_dropped(bundle, run):
    run()
    length = len((bundle / "engine" / "timing.cache").read_bytes())
    assert f"cache of {length}" in run("--rebuild")[1].log
    assert run("--rebuild", version="11.4.0")[1].log[1:3] == [f"cache of {length}", "cache of 0"]


def test_batches_and_accuracy(bundle, run, tmp_path):
    golden = np.load(bundle / "golden.npz")
    right = golden["outputs"].argmax(1)
    labels = np.where(np.arange(8) < 6, right, (right + 1) % 5)
    np.savez(tmp_path / "data.npz", inputs=golden["inputs"], labels=labels)
    assert run("--batch", "3", "--data", str(tmp_path / "data.npz"))[0] == 0
    assert measured(bundle)["accuracy"] == {"value": 75.0, "n": 8, "metric": "top1_percent"}
    assert measured(bundle)["conditions"]["batch"] == 3


def test_runs_with_a_profiler_are_none_of_those_that_are_timed(run):
    log = run()[1].log
    assert log.count("profiled") == 20
    assert log[-20:] == ["profiled"] * 20
    assert log.count("ran") > 20


DATA = {
    "nothing.npz": (None, "No such file or directory"),
    "text.npz": (b"inputs, labels", "must be an .npz with the arrays inputs and labels"),
    "one.npy": ({"": np.zeros(3)}, "must be an .npz with the arrays inputs and labels"),
    "other.npz": ({"inputs": np.zeros((2, 3, 16, 16))}, "must be an .npz with the arrays inputs and labels"),
    "small.npz": (
        {"inputs": np.zeros((2, 3, 4, 4)), "labels": np.zeros(2)},
        "inputs of (3, 4, 4), the network takes (3, 16, 16)",
    ),
    "short.npz": ({"inputs": np.zeros((2, 3, 16, 16)), "labels": np.zeros(3)}, "labels of (3,) for 2 inputs"),
    "empty.npz": ({"inputs": np.zeros((0, 3, 16, 16)), "labels": np.zeros(0)}, "labels of (0,) for 0 inputs"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cant_be_used_is_refused_before_anything_is_built(bundle, run, capsys, tmp_path, name):
    content, says = DATA[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None and name.endswith("npy"):
        np.save(tmp_path / name, content[""])
    elif content is not None:
        np.savez(tmp_path / name, **content)
    status, trt = run("--data", str(tmp_path / name))
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1
    assert "built" not in trt.log


def test_networks_that_give_no_classes_have_no_accuracy(bundle, run, capsys, tmp_path):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "task": "regression"}), encoding="utf-8")
    assert run("--data", str(tmp_path / "data.npz"))[0] == 2
    assert "--data is for classes, and this network's task is regression" in capsys.readouterr().err


def test_a_full_disk_is_one_line(bundle, run, capsys, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        if path.name == "model.engine":
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run()[0] == 2
    assert capsys.readouterr().err == f"error: {bundle / 'engine' / 'model.engine'}: No space left on device\n"
    assert not (bundle / "measured.json").exists()


def test_a_manifest_that_is_cut_off_is_one_line(bundle, run, capsys):
    path = bundle / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert run()[0] == 2
    assert capsys.readouterr().err == "error: manifest.json has been changed: copy the bundle again\n"


def test_wrong_outputs_exit_with_4(bundle, run, capsys):
    assert run(noise=10.0)[0] == 4
    assert "differ from the golden ones" in capsys.readouterr().out
    assert measured(bundle)["golden_equal"] is False


def test_what_a_dla_does_not_take_is_listed(bundle, run, capsys):
    import onnx

    names = [node.name for node in onnx.load(bundle / "engine" / "model.dla.onnx").graph.node]
    status, trt = run("--dla", "0", on_dla=names[:-2])
    assert status == 0
    assert measured(bundle)["dla_fallback"] == names[-2:]
    assert f"not on the DLA: {names[-1]}" in capsys.readouterr().out
    assert "GPU_FALLBACK" in trt.log
    assert run("--dla", "0")[0] == 0
    assert measured(bundle)["dla_fallback"] == names[-2:]  # of the engine that was kept


def test_clocks_that_move_are_reported(bundle, run, capsys):
    run(
        clocks=[{"gpu": 1000.0, "cpu": 2000.0, "celsius gpu": 40.0}, {"gpu": 600.0, "cpu": 2010.0, "celsius gpu": 60.0}]
    )
    assert measured(bundle)["conditions"]["moved"] == ["gpu"]
    assert "the clock gpu moved" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"parse_error": "no importer for Frob"}, "TensorRT 10.3.0 can't read model.onnx: no importer for Frob"),
        ({"builds": False}, "could not build the engine"),
        ({"loads": False}, "built for another TensorRT or GPU; give --rebuild"),
        ({"version": "8.6.1"}, "this is TensorRT 8.6.1, and the file needs 10 or later"),
    ],
)
def test_what_goes_wrong_is_one_line(run, capsys, behaviour, says):
    assert run(**behaviour)[0] == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1


def test_a_damaged_bundle_is_not_built(bundle, run, capsys):
    with (bundle / "engine" / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert run()[0] == 4
    assert "engine/model.onnx has been changed" in capsys.readouterr().err


def test_without_tensorrt_one_line_says_how_to_get_it(bundle, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    builder = script(bundle)
    monkeypatch.setattr(builder, "trtexec", lambda: None)
    for tegra, says in ((True, "apt install python3-libnvinfer-dev"), (False, "pip install tensorrt")):
        monkeypatch.setattr(builder.os.path, "exists", lambda path, tegra=tegra: tegra)
        monkeypatch.setattr(builder.platform, "machine", lambda: "x86_64")
        assert builder.main([]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1


TRTEXEC = """#!{python}
import json, pathlib, sys
given = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:] if "=" in a)
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{version}]")
if "onnx" in given:
    import numpy as np, onnxruntime
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    name, _, path = given["loadInputs"].partition(":")
    shape = [int(n) for n in given["shapes"].partition(":")[2].split("x")]
    x = np.fromfile(path, np.float32).reshape(shape)
    y = onnxruntime.InferenceSession(given["onnx"], options).run(None, {{name: x}})[0]
    pathlib.Path(given["exportOutput"]).write_text(json.dumps([{{"name": "output", "values": y.ravel().tolist()}}]))
    pathlib.Path(given["exportTimes"]).write_text(json.dumps([{{"latencyMs": 2.0, "computeMs": 1.5}}] * 20))
    pathlib.Path(given["exportLayerInfo"]).write_text(json.dumps({{"Layers": ["a"]}}))
    pathlib.Path(given["saveEngine"]).write_bytes(b"engine")
    pathlib.Path("{seen}").write_text(" ".join(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "strongly"), [("100300", True), ("110400", False)])
def test_trtexec_takes_over_where_there_are_no_bindings(bundle, monkeypatch, tmp_path, capsys, number, strongly):
    program, seen = tmp_path / "trtexec", tmp_path / "seen"
    program.write_text(TRTEXEC.format(python=sys.executable, version=number, seen=seen), encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    golden = np.load(bundle / "golden.npz")
    np.savez(tmp_path / "data.npz", inputs=golden["inputs"], labels=golden["outputs"].argmax(1))
    assert script(bundle).main(["--batch", "2", "--version-compatible", "--data", str(tmp_path / "data.npz")]) == 0
    assert "trtexec runs one batch, so there will be no accuracy" in capsys.readouterr().out
    assert ("--stronglyTyped" in seen.read_text()) is strongly
    assert "--versionCompatible" in seen.read_text()
    found = measured(bundle)
    assert found["golden_equal"]
    assert (found["latency_s"], found["gpu_s"]) == (2e-3, 1.5e-3)
    assert found["golden"]["n"] == 2
    assert found["accuracy"] is None
