"""Networks, checkpoints, data, devices and folders that can't be used: exit 2, one line, nothing written."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_calls import QUICK, Call, Ended
from PIL import Image

JOB = (*QUICK, "--target", "cpu", "--candidates", "1", "-q")

NETWORKS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
    def forward(self, x):
        return self.conv(x)

class Net(nn.Module):
    input_shape = (1, 32, 32)
    def __init__(self, block=None):
        super().__init__()
        self.block = block or Block()
        self.head = nn.Linear(8, 10)
    def forward(self, x):
        return self.head(self.block(x).mean((2, 3)))

class Branching(Block):
    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else self.conv(-x)

def good(): return Net()
def branching(): return Net(Branching())
def nan():
    net = Net()
    net.head.weight.data[0, 0] = float("nan")
    return net
def raising(): raise RuntimeError("no such layer")
def leaving(): raise SystemExit(0)
def number(): return 5
"""


@pytest.fixture
def refused(inside: Call, tmp_path: Path) -> Any:
    """Run the command; it must say one line and write nothing."""

    def call(*arguments: object) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
        ended: Ended = inside(*arguments)
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
        assert ended.status == 2
        assert {p for p in after if after[p] != before.get(p)} - {tmp_path} == set()
        return ended.error

    return call


@pytest.fixture
def networks(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETWORKS)
    return "nets.py"


def resnet_weights() -> dict[str, torch.Tensor]:
    from compress import models

    return {name: tensor.clone() for name, tensor in models.load("resnet").model.state_dict().items()}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("resnt", "unknown model 'resnt'; nearest: resnet"),
        ("nowhere.py:net", "there is no file nowhere.py"),
        ("nets.py:goood", "nearest: good"),
        ("nets.py:raising", "no such layer"),
        ("nets.py:leaving", "SystemExit"),
        ("nets.py:number", "it gives a int; return a torch.nn.Module"),
        ("nets.py:nan", "head.weight"),
        ("nowhere.pt2", "there is no such file"),
        ("resnet20", "has no weights of its own; give --weights FILE"),
        ("mobilenetv2", "has no weights of its own; give --weights FILE"),
    ],
)
def test_models(refused: Any, networks: str, model: str, says: str) -> None:
    assert says in refused("--model", model, *JOB[2:], "--data", "digits")


def test_a_network_that_branches_on_its_values_is_named_by_operator_and_module(refused: Any, networks: str) -> None:
    error = refused("--model", "nets.py:branching", *JOB[2:], "--data", "digits")
    assert "can't be traced" in error
    assert "'block'" in error


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("digit", "unknown data 'digit'; nearest: digits"),
        ("cifar10", "put the folder cifar-10-batches-bin"),
        ("mnist:nowhere", "nothing found in nowhere"),
        ("./nowhere", "there is no such file or folder"),
        ("no.npz", "there is no such file or folder"),
        ("nets.py:goood", "nearest: good"),
    ],
)
def test_data(refused: Any, networks: str, data: str, says: str) -> None:
    assert says in refused(*JOB, "--data", data)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((40, 1, 16, 16), "images have 16x16 pixels, the network takes 32x32"),
        ((40, 3, 32, 32), "images have 3 channels, the network takes 1"),
    ],
)
def test_images_of_another_size_or_channel_count(
    refused: Any, tmp_path: Path, shape: tuple[int, ...], says: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(shape[0]) % 10)
    assert says in refused(*JOB, "--data", "images.npz")


def test_one_class_only(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "one" / "cats").mkdir(parents=True)
    for index in range(6):
        Image.new("L", (32, 32), 40 * index).save(tmp_path / "one" / "cats" / f"{index}.png")
    assert "class" in refused(*JOB, "--data", "one")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("linear.bias"), "linear.bias"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "extra"),
        (lambda weights: weights.update({"linear.bias": torch.zeros(7)}), "linear.bias"),
        (lambda weights: weights["linear.bias"].fill_(float("nan")), "linear.bias"),
    ],
    ids=["missing", "extra", "wrong shape", "NaN"],
)
def test_checkpoints_that_do_not_fit_name_the_key(refused: Any, tmp_path: Path, change: Any, named: str) -> None:
    weights = resnet_weights()
    change(weights)
    torch.save(weights, tmp_path / "weights.pt")
    error = refused(*JOB, "--weights", "weights.pt")
    assert error.startswith("weights weights.pt: ")
    assert named in error


class Harmful:
    """Leaves a mark in the working folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def test_a_checkpoint_that_would_execute_code_is_refused_unread(refused: Any, tmp_path: Path) -> None:
    torch.save({"linear.bias": Harmful()}, tmp_path / "weights.pt")
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(Harmful()))
    for name in ("weights.pt", "weights.pkl"):
        assert name in refused(*JOB, "--weights", name)
    assert not (tmp_path / "unpickled").exists()


def test_a_target_without_ram_for_any_candidate(refused: Any, tmp_path: Path) -> None:
    import compress.targets.loader as loader

    text = (Path(loader.__file__).parent / "cortex-m4.toml").read_text()
    old = next(line for line in text.partition("[ram_bytes]")[2].splitlines() if line.startswith("value"))
    (tmp_path / "tiny.toml").write_text(text.replace(f"[ram_bytes]\n{old}", "[ram_bytes]\nvalue = 1024"))
    error = refused(*QUICK, "--target", "tiny.toml", "-q")
    assert "1024 bytes of RAM" in error
    assert "choose a larger target" in error


def test_folders_that_are_taken_or_not_writable(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "other").touch()
    assert "it is a file; choose another --out" in refused(*JOB, "--out", "file")
    assert "file is a file; choose another --out" in refused(*JOB, "--out", "file/run")
    assert "it already holds other files; choose another --out" in refused(*JOB, "--out", "taken")
    # Not even root can write there.
    assert "can't be written" in refused(*JOB, "--out", "/proc/run")
    # Nor is a folder with other files taken over by --resume.
    assert "run.json" in refused(*JOB, "--out", "taken", "--resume")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "can't be written" in refused(*JOB, "--out", "locked/run")


def test_a_disk_that_is_full_is_one_line_and_leaves_no_file(
    inside: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress import serial

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(serial.os, "fsync", full)
        ended = inside(*JOB, "--out", "r")
    assert ended.status == 2
    assert ended.error == "output folder r: the disk is full; free some space, then go on with --resume"
    assert [path for path in (tmp_path / "r").rglob("*") if path.is_file()] == []
