"""The programs of sensing at tiny size: rows, cases that are kept, sections from rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import common, reconstruction, sensing, sensing_compiled, sensing_noise, sensing_recognition
from compress import data as datasets
from compress import models
from tests.rosters import some


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of a few small photographs, a folder for cases, two steps of training."""
    generator = np.random.default_rng(0)
    for name, count in (("BSD400", 5), ("T91", 1), ("Set11", 2)):
        folder = tmp_path / "data" / "recon" / name
        folder.mkdir(parents=True)
        for i in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (16, 16), dtype=np.uint8))
            coarse.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    monkeypatch.setenv("COMPRESS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv(reconstruction.FOLDER, str(tmp_path / "kept"))
    monkeypatch.setenv(reconstruction.STEPS, "2")
    return tmp_path


def document(benchmark: common.Benchmark, rows: list[common.Row]) -> dict[str, Any]:
    return common.document(benchmark, rows, 0.0)


@pytest.mark.slow
def test_one_case_of_reconstruction_has_its_rows_and_is_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensing, "CALIBRATION", 16)
    monkeypatch.setattr(sensing, "QUANTIZED", {"W8A8": (8.0, "cpu"), sensing.SYMMETRIC: (8.0, "gpu")})
    monkeypatch.setenv(reconstruction.CASES, "0.01 recursive,0.01 searched")
    with pytest.raises(ValueError, match=r"there is no case '0.01 searched'; there are: 0.01 linear Hadamard"):
        sensing.measure()
    monkeypatch.setenv(reconstruction.CASES, "0.01 recursive")
    rows = sensing.measure()
    ours = [row for row in rows if row["device"] is not None]
    assert [(row["network"], row["weights"]) for row in ours] == [
        ("recursive", "float"),
        ("recursive", "W8A8"),
        ("recursive", "W8A8 symmetric"),
    ]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert ours[0]["pattern_bits"] == 10 * 1024
    first, *others = (float(row["psnr_db"] or 0) for row in ours)
    for row, other in zip(ours[1:], others, strict=True):
        assert row["lost_psnr_db"] == pytest.approx(first - other, abs=0.011)
        assert row["average_weight_bits"] == 8
    assert (tiny / "kept" / "recursive-sensing-01.safetensors").is_file()
    monkeypatch.setattr(sensing, "made", lambda case: pytest.fail("made again"))
    assert sensing.measure() == rows
    assert "| 1% | recursive | W8A8 |" in sensing.section(document(sensing.BENCHMARK, rows))


@pytest.mark.slow
def test_a_network_that_is_trained_is_measured_again_without_training(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is its file; of another schedule it is refused."""
    monkeypatch.setattr(sensing, "QUANTIZED", {})
    monkeypatch.setenv(reconstruction.CASES, "0.01 recursive")
    rows = sensing.measure()
    (tiny / "kept" / "sensing" / "0.01-recursive.json").unlink()
    monkeypatch.setattr(reconstruction, "trained", lambda *_, **__: pytest.fail("trained again"))
    assert sensing.measure() == rows
    (tiny / "kept" / "sensing" / "0.01-recursive.json").unlink()
    monkeypatch.setenv(reconstruction.STEPS, "3")
    with pytest.raises(ValueError, match="recursive-sensing-01.safetensors is of 2 steps, not 3; remove it"):
        sensing.measure()


def test_the_peers_have_a_row_a_ratio() -> None:
    rows = sensing.peers()
    assert len(rows) == 12
    assert {row["network"] for row in rows if row["binary"]} == {"OPINE-Net+ (published)"}
    assert next(row["psnr_db"] for row in rows if row["ratio"] == 0.1) == 29.81


def test_targets_are_judged_by_the_best_network_within_the_time() -> None:
    def row(network: str, psnr: float, seconds: float, weights: str = "float", lost: float | None = None) -> common.Row:
        found = sensing.row(0.1, network, weights, True, (psnr, 0.8))
        return {**found, "train_seconds": seconds, "lost_psnr_db": lost, "parameters": 1, "macs": 1}

    rows = [row("recursive", 27.9, 1000), row("unfolded", 29.0, 2000), row("recursive", 27.6, 1000, "W8A8", 0.3)]
    text = sensing.section({"rows": rows})
    assert "10%: 27.90 dB by the recursive network in 17 minutes; target 28 within 30: missed" in text
    assert "at most 0.30 dB lost at 8 bits; target 0.2: missed" in text
    rows.append(row("recursive", 27.8, 1000, sensing.SYMMETRIC, 0.1))
    text = sensing.section({"rows": rows})
    assert "at most 0.10 dB lost at 8 bits with symmetric activations, as TensorRT takes them; target 0.2: kept" in text
    assert "at most 0.30 dB lost at 8 bits; target 0.2: missed" in text
    rows[1]["train_seconds"] = 1700
    assert "29.00 dB by the unfolded network in 28 minutes; target 28 within 30: kept" in sensing.section(
        {"rows": rows}
    )


def test_scores_are_those_of_the_clipped_image() -> None:
    picture = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    error = 0.1 * torch.ones(32, 32)
    psnr, ssim = reconstruction.score(lambda x: x + error, [picture])
    by_hand = 10 * np.log10(1 / float(((picture + error).clamp(0, 1) - picture).square().mean()))
    assert psnr == pytest.approx(by_hand, rel=1e-5)
    assert 0 < ssim < 1


@pytest.mark.slow
@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("arm-none-eabi-gcc", "qemu-system-arm")), reason="needs an emulator"
)
def test_compiled_networks_have_a_row_a_runtime_and_are_checked(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "RATIOS", (0.01,))
    monkeypatch.setattr(sensing, "CALIBRATION", 8)
    for name, value in {"SIDE": 64, "COMPARED": 1, "ROUNDS": 2, "ATTEMPTS": 1, "WAIT_S": 0.0}.items():
        monkeypatch.setattr(sensing_compiled, name, value)
    x86, peer, micro = sensing_compiled.measure()
    assert [row["runtime"] for row in (x86, peer, micro)] == ["compress", "onnxruntime", "compress"]
    assert [(row["compared_images"], row["different_images"]) for row in (x86, micro)] == [(1, 0), (1, 0)]
    assert x86["macs"] == micro["macs"] == reconstruction.macs(models.load("sensing", sensing=0.01).model, 64)[0]
    text = sensing_compiled.section(document(sensing_compiled.BENCHMARK, [x86, peer, micro]))
    assert "2 of 2 compared images equal" in text
    assert f"| {micro['instructions']:,} | {micro['instructions_per_mac']:.3f} |" in text


@some("case", ["linear random", "recursive learnt"], quick=["linear random"])
def test_noise_has_a_row_a_level(case: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensing_noise, "NOISES", ((None, 0.0), (1, 100)))
    monkeypatch.setattr(sensing_noise, "STEPS", 2)
    monkeypatch.setenv(reconstruction.CASES, case)
    quiet, loud = sensing_noise.measure()
    assert quiet["psnr_db"] > loud["psnr_db"]
    assert list(quiet) == list(loud)
    text = sensing_noise.section(document(sensing_noise.BENCHMARK, [quiet, loud]))
    assert f"| none | 0 | {quiet['psnr_db']:.2f} |" in text


def test_recognition_learns_its_patterns_and_counts_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    task = sensing_recognition.Task("made", "made", (0.5,), (0.5,), (1, 12, 12), {"epochs": 1, "batch_size": 16})
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 1, 12, 12, generator=generator)
    made = datasets.from_python((images, torch.arange(64) % 4), divisible=False)
    monkeypatch.setattr(datasets, "load", lambda spec, **_: made)
    monkeypatch.setattr(sensing_recognition, "CLOSED_FORM_IMAGES", 32)
    for text, of in (("0.25", "36 of 144"), ("images", None)):
        row = sensing_recognition.measured(task, "made", text)
        assert row["measurements_of_values"] == of
        assert 0 <= float(row["accuracy_percent"] or 0) <= 100
    text = sensing_recognition.section({"rows": [row]})
    assert "| made | images | all |" in text


def test_cases_are_the_ones_that_the_program_names(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sensing_recognition.case_names()[:2] == ["mnist 0.01", "mnist 0.04"]
    asked: list[str] = []

    def make(case: str) -> list[common.Row]:
        asked.append(case)
        return [{"case": case}]

    monkeypatch.setenv(reconstruction.CASES, "b")
    assert reconstruction.each_case("x", ["a", "b"], make) == [{"case": "b"}]
    monkeypatch.delenv(reconstruction.CASES)
    assert reconstruction.each_case("x", ["a", "b"], make) == [{"case": "a"}, {"case": "b"}]
    assert asked == ["b", "a"]
    assert json.loads((tiny / "kept" / "x" / "a.json").read_text()) == [{"case": "a"}]
