"""``run.py`` of a bundle: it needs numpy and onnxruntime and nothing else."""

from __future__ import annotations

import ast
import runpy
import shutil
import subprocess
import sys
import venv
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import pytest
import torch

import compress
from tests.graph.networks import Plain, build, images

TEMPLATE = resources.files("compress.export") / "templates" / "run.py"


def test_it_imports_numpy_onnxruntime_and_the_standard_library_only():
    found = set()
    for node in ast.walk(ast.parse(TEMPLATE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Call):
            assert "import" not in ast.unparse(node.func)
    # "measure" lies in the patterns/ of bundles that have any, and imports numpy alone.
    assert found - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "measure"}


@pytest.mark.parametrize(
    ("right", "taken"),
    [((True, True), (0, True)), ((True, False), (0, True)), ((False, True), (1, False)), ((False, False), (0, True))],
)
def test_it_runs_in_float_where_integer_kernels_alone_are_wrong(right, taken):
    """``right``: which of the two ways gives the golden outputs. Where neither does, it shows what integers gave."""
    template = runpy.run_path(str(TEMPLATE))
    inputs, outputs = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([[4.0], [2.0], [1.0]], np.float32)
    given = [outputs if each else outputs + 1 for each in right]

    def runner(integers):
        return lambda x: given[0 if integers else 1][np.flatnonzero((inputs == x).all(1))]

    found, integers = template["outputs_of"](np, {"inputs": inputs, "outputs": outputs}, 0.05, runner)
    assert np.array_equal(found, given[taken[0]])
    assert integers is taken[1]


@pytest.fixture(scope="module")
def lonely(tmp_path_factory) -> Path:
    """The Python of a fresh environment with numpy and onnxruntime, and what onnxruntime brings along."""
    folder = tmp_path_factory.mktemp("lonely")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = [f"{name}=={metadata.version(name)}" for name in ("numpy", "onnxruntime")]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"pip can't install here: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.slow
def test_it_runs_where_only_numpy_and_onnxruntime_are(lonely, tmp_path):
    data = (images(40), torch.arange(40) % 5)
    compress.run(build(Plain), data, target="jetson", out=tmp_path / "run", candidates=1, samples=16)
    bundle = shutil.copytree(tmp_path / "run" / "bundle", tmp_path / "device" / "bundle")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [lonely, "-I", bundle / "run.py", *arguments]
        return subprocess.run(command, cwd=tmp_path / "device", capture_output=True, text=True)

    absent = subprocess.run([lonely, "-I", "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in absent.stderr
    ended = run("--time")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0].startswith("golden inputs: 8 of 8 classes equal")
    assert ended.stdout.splitlines()[1] == "ok"
    assert ended.stdout.splitlines()[2].startswith("latency: median ")
    np.save(tmp_path / "device" / "image.npy", np.zeros((16, 16, 3), np.uint8))
    ended = run("--image", "image.npy")
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    golden = bundle / "golden.npz"
    golden.write_bytes(golden.read_bytes()[:-1])
    ended = run()
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr == "error: golden.npz has been changed: copy the bundle again\n"
    golden.unlink()
    for arguments in [(), ("--image", "image.npy")]:
        ended = run(*arguments)
        assert (ended.returncode, ended.stdout) == (4, "")
        assert ended.stderr == "error: golden.npz is missing: copy the bundle again\n"
