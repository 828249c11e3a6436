"""The program that makes the weights that ship, at tiny size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from compress.networks import train_sensing
from compress.networks.sensing import sensing
from compress.networks.sensing_weights import file_name, load_packed


def test_it_writes_a_file_that_the_network_takes(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    for name in ("BSD400", "Set11"):
        folder = tmp_path / "recon" / name
        folder.mkdir(parents=True)
        for i in range(3):
            coarse = Image.fromarray(generator.integers(0, 256, (16, 16), dtype=np.uint8))
            coarse.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    monkeypatch.setenv("COMPRESS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert train_sensing.main(["0.01", "--out", str(tmp_path), "--steps", "2"]) == 0
    path = tmp_path / file_name(0.01)
    assert f"{path}: {path.stat().st_size} bytes" in capsys.readouterr().out
    assert not path.with_suffix(".pt").exists()
    network = sensing(ratio=0.01)
    load_packed(network, path)
    assert network.sensing.level > 0


def test_without_images_it_says_what_to_put_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPRESS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert train_sensing.main(["0.01"]) == 2
    assert "name their folder in COMPRESS_DATA_DIR" in capsys.readouterr().err


@pytest.mark.parametrize(("ratio", "name"), [(0.01, "sensing-01.safetensors"), (0.25, "sensing-25.safetensors")])
def test_files_are_named_by_the_ratio(ratio, name):
    assert file_name(ratio) == name
