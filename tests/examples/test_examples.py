"""Every example runs as it stands, from another directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(*command: str, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_own_network(tmp_path):
    said = run(sys.executable, str(EXAMPLES / "own_network.py"), str(tmp_path / "out"), cwd=tmp_path)
    assert "the file:" in said
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 40_000


@pytest.mark.slow
def test_pruning_while_training(tmp_path):
    said = run(sys.executable, str(EXAMPLES / "pruning_while_training.py"), cwd=tmp_path).splitlines()
    epochs = [line.split() for line in said if line.startswith("epoch")]
    zero = [int(words[3]) for words in epochs]
    assert zero[0] == 0
    assert zero == sorted(zero)
    assert zero[-1] == int(epochs[-1][5]) > 0
    before, after = (int(word.strip(",")) for word in (said[-2].split()[1], said[-2].split()[3]))
    assert 0.4 * before < after <= 0.5 * before
    # The smaller network classifies as the trained one did after the last epoch.
    assert said[-3].split()[-1] == epochs[-1][2].strip(",")
    assert float(said[-1].split()[-1]) < 1e-5


@pytest.mark.slow
def test_quantizing_while_training(tmp_path):
    said = run(sys.executable, str(EXAMPLES / "quantizing_while_training.py"), cwd=tmp_path).splitlines()
    epochs = [line.split() for line in said if line.startswith("epoch")]
    assert all(words[3] == "4" for words in epochs)
    assert float(said[-1].split()[-1]) == 4.0
    # The exported network classifies as the one in training did after the last epoch.
    assert said[-2].split()[-1] == epochs[-1][2].strip(",")
    assert float(said[-2].split()[-1].strip("%")) > 90


@pytest.mark.slow
def test_quickstart(tmp_path):
    said = run(sys.executable, str(EXAMPLES / "quickstart.py"), str(tmp_path / "out"), cwd=tmp_path)
    assert "predicted" in said
    assert (tmp_path / "out" / "bundle" / "manifest.json").is_file()
    assert "ok" in run(sys.executable, str(tmp_path / "out" / "bundle" / "run.py"), cwd=tmp_path)


@pytest.mark.slow
def test_a_factory_from_the_command_line(tmp_path):
    factory = EXAMPLES / "factory.py"
    options = ["--model", f"{factory}:network", "--data", f"{factory}:stripes", "--target", "raspberry-pi-4"]
    said = run(sys.executable, "-m", "compress", *options, "--candidates", "2", "--out", "run", cwd=tmp_path)
    assert "float" in said
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_sensing(tmp_path):
    said = run(sys.executable, str(EXAMPLES / "sensing.py"), str(tmp_path / "out"), cwd=tmp_path).splitlines()
    assert said[0].startswith("41 measurements: ")
    assert float(said[0].split()[2].rstrip("%")) > 80
    assert int(said[0].split()[-3]) > 0  # patterns were learned, not only chosen
    assert len(list((tmp_path / "out" / "patterns" / "frames").glob("*.png"))) == 82
    assert float(said[2].split()[-1].rstrip("%")) > 80
    assert run(sys.executable, str(tmp_path / "out" / "patterns" / "measure.py"), cwd=tmp_path).endswith("ok\n")


def test_every_example_is_tested():
    here = Path(__file__).read_text()
    assert all(example.name in here for example in EXAMPLES.glob("*.py"))
