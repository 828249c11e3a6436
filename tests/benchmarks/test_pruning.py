"""The pruning benchmarks: a fair peer, rows of one form, and pages that say what the rows hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import common, prune_cifar10, prune_finetune, prune_imagenet, pruned, pruners
from compress import data as datasets
from compress.graph import costs, traces
from compress.graph.trace import trace
from compress.training import Recipe


class Small(nn.Module):
    """Two convolutions with batch norms, the second of which a linear layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.second_norm = nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, 10)."""
        x = F.relu(self.first_norm(self.first(x)))
        return self.head(F.relu(self.second_norm(self.second(x))).mean((2, 3)))  # type: ignore[no-any-return]  # Any


@pytest.fixture
def subject() -> pruners.Subject:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Small().eval()
    with torch.no_grad():
        for norm in (model.first_norm, model.second_norm):
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-1, 1, generator=generator)
    images = torch.randn(64, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 10, (64,), generator=generator)
    labels[:10] = torch.arange(10)
    calibration, data = (datasets.from_python(given, divisible=False) for given in (images, (images, labels)))
    return pruners.Subject("small", model, calibration, data)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "quietly", lambda measure, **_: (measure(), 0.0))
    monkeypatch.setattr(pruners, "PRUNING_THREADS", 1)


def test_multiply_accumulates_are_those_that_the_product_counts(subject: pruners.Subject) -> None:
    by_formula = 16 * 3 * 9 * 64 + 16 * 16 * 9 * 16 + 16 * 10
    assert pruners.macs(subject.model, subject.images[:1]) == by_formula
    assert costs.size(trace(subject.model, (subject.images[:2],))).macs == by_formula


def test_the_peers_ratio_is_the_one_that_comes_closest() -> None:
    tried: list[float] = []

    def at(ratio: float) -> tuple[Any, int]:
        tried.append(ratio)
        return f"{16 - int(16 * ratio)} channels", (16 - int(16 * ratio)) * 100

    assert pruners.searched(at, 820.0) == "8 channels"
    assert pruners.searched(at, 880.0) == "9 channels"
    assert pruners.searched(at, 1600.0) == "16 channels"
    assert all(0 < ratio < 1 for ratio in tried)


def test_a_network_with_statistics_computes_the_same_and_holds_those_of_the_images(subject: pruners.Subject) -> None:
    made = pruners.with_statistics(subject.model, subject.images, batch=24)
    with torch.no_grad():
        assert torch.allclose(made(subject.images), subject.model(subject.images), atol=1e-5)
        seen = subject.model.first(subject.images)
    assert torch.allclose(made.first_norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(made.first_norm.running_var, seen.var((0, 2, 3), unbiased=False), rtol=1e-4)
    assert torch.equal(subject.model.first_norm.running_mean, torch.zeros(16)), "the given network is unchanged"


@pytest.mark.slow
def test_rows_of_our_pruners_share_their_keys_and_reach_what_was_asked(
    subject: pruners.Subject, at_once: None, tmp_path: Path
) -> None:
    using = [
        pruners.Pruner(pruners.OURS, "", pruners.ours("reconstruct")),
        pruners.Pruner(pruners.NORM, "", pruners.ours("norm")),
    ]
    rows = pruners.measured(subject, (2.0,), tmp_path, using, rounds=1, tell=lambda _: None)
    assert [row["pruner"] for row in rows] == [pruners.ORIGINAL, pruners.OURS, pruners.NORM]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert rows[0]["speedup_1_thread"] == 1.0
    assert rows[0]["prune_seconds"] is None
    for row in rows[1:]:
        assert 2.0 <= float(row["macs_original_over_pruned"] or 0) < 2.4
        assert (row["parameters"] or 0) < (rows[0]["parameters"] or 0)
        assert 0 < float(row["latency_1_thread_ms"] or 0) <= float(row["latency_1_thread_p90_ms"] or 0)


def test_a_peer_that_fails_has_a_row_that_says_why_and_ours_may_not_fail(
    subject: pruners.Subject, at_once: None, tmp_path: Path
) -> None:
    def fail(subject: pruners.Subject, share: float) -> Any:
        raise RuntimeError("shapes don't fit\nand more")

    peer = pruners.Pruner(pruners.PEER, pruners.UNIFORM, fail)
    rows = pruners.measured(subject, (2.0,), tmp_path, [peer], rounds=1, tell=lambda _: None)
    assert rows[1]["failed"] == "RuntimeError: shapes don't fit"
    assert {rows[1][key] for key in ("macs", "accuracy_percent", "latency_1_thread_ms", "speedup_2_threads")} == {None}
    assert "doesn't run" in pruned.table(rows)
    with pytest.raises(RuntimeError, match="shapes don't fit"):
        pruners.measured(subject, (2.0,), tmp_path, [replace(peer, name=pruners.OURS)], rounds=1)


def test_torch_pruning_comes_close_and_new_statistics_are_those_of_the_images_as_in_training(
    subject: pruners.Subject,
) -> None:
    pytest.importorskip("torch_pruning")
    full = pruners.macs(subject.model, subject.images[:1])
    made = pruners.torch_pruning(pruners.UNIFORM, anew=True)(subject, 0.5)
    assert abs(pruners.macs(made, subject.images[:1]) / full - 0.5) < 0.06
    assert made.head.out_features == 10
    with torch.no_grad():
        seen = made.first(subject.images)
    assert torch.allclose(made.first_norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    gray = replace(subject.calibration, augment=lambda images, _: torch.full_like(images, 0.5))
    made = pruners.torch_pruning(pruners.UNIFORM, anew=True)(replace(subject, calibration=gray), 0.5)
    with torch.no_grad():
        seen = made.first(torch.full((1, 3, 8, 8), 0.5))
    assert torch.allclose(made.first_norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    held = pruners.torch_pruning(pruners.UNIFORM)(replace(subject, fixed=("first",)), 0.7)
    assert held.first.out_channels == 16
    assert held.second.out_channels < 16


def test_ours_is_the_same_whether_or_not_it_learns_of_the_network_anew(subject: pruners.Subject) -> None:
    shared: dict[Any, Any] = {}
    anew, first, again = (
        prune(subject, 0.5).state_dict()
        for prune in (pruners.ours("reconstruct"), pruners.ours_sharing(shared), pruners.ours_sharing(shared))
    )
    assert shared.keys() == {"pruning", traces.KEY}
    assert all(torch.equal(anew[name], first[name]) and torch.equal(anew[name], again[name]) for name in anew)


@pytest.mark.slow
def test_fine_tuning_gives_every_pruner_the_same_recipe_and_leaves_the_teacher_alone(
    subject: pruners.Subject, at_once: None
) -> None:
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    ours = pruners.Pruner(pruners.OURS, "", pruners.ours("norm"))
    again = pruners.Pruner(pruners.PEER, "the same again", pruners.ours("norm"))
    rows = prune_finetune.rows(subject, 2.0, lambda *_: Recipe(epochs=2, batch_size=16), [ours, again])
    assert rows[0]["accuracy_tuned_percent"] == rows[1]["accuracy_tuned_percent"]
    assert rows[0]["epochs"] == 2
    assert rows[0]["training_images"] == 64
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.model.state_dict().items())
    words = prune_finetune.words(rows, 101.0)
    assert "Target: at least 101.0%: missed" in words
    assert "Target: at least 0.0%: kept" in prune_finetune.words(rows, 0.0)


def test_no_image_is_calibrated_on_and_evaluated_on(tmp_path: Path) -> None:
    lines = ["index,wnid,file,orig_w,orig_h", *(f"{i},n{i},{i}.jpg,1,1" for i in range(5))]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    calibrate, evaluate = prune_imagenet.split(tmp_path)
    assert [index for _, index in calibrate] == [0, 2, 4]
    assert [index for _, index in evaluate] == [1, 3]
    assert calibrate[1][0] == tmp_path / "val256" / "2.jpg"


def made_up(network: str, pruner: str, asked: float | None, accuracy: float | None, **more: Any) -> dict[str, Any]:
    row = {
        "network": network,
        "pruner": pruner,
        "amounts": None,
        "scope": "whole network",
        "macs_original_over_asked": asked,
        "macs_original_over_pruned": asked or 1.0,
        "failed": None,
        "macs": int(1e6 / (asked or 1)),
        "parameters": 1000,
        "accuracy_percent": accuracy,
        "accuracy_low_percent": accuracy,
        "accuracy_high_percent": accuracy,
        "test_images": 10_000,
        "calibration_images": 1024,
        "prune_seconds": None if asked is None else 10.0,
    }
    for unit in ("1_thread", "2_threads"):
        row |= {f"latency_{unit}_ms": 1.0, f"latency_{unit}_p90_ms": 1.1, f"speedup_{unit}": 1.25}
        row |= {f"other_work_{unit}_percent": 0.5}
    return row | more


def test_the_cifar_page_says_which_targets_were_kept_and_what_the_macs_bought() -> None:
    rows = [
        made_up("resnet56", pruners.ORIGINAL, None, 93.39),
        made_up("resnet56", pruners.OURS, 2.0, 91.5),
        made_up("resnet56", pruners.OURS, 2.0, 91.0, amounts=pruners.LIKED, speedup_1_thread=1.6),
        made_up("resnet56", pruners.PEER, 2.0, 40.0, amounts=pruners.UNIFORM),
        made_up("resnet56", pruners.PEER, 2.0, None, amounts=pruners.GLOBAL, failed="RuntimeError: shapes"),
        made_up("resnet56", pruners.OURS, 3.0, 85.0, prune_seconds=70.0),
    ]
    page = prune_cifar10.section({"rows": rows})
    assert "at least 91.4% at 2 times fewer MACs: kept, 91.50%" in page
    assert "at least 86.0% at 3 times fewer MACs: missed, 85.00%" in page
    assert "92.8%" not in page, "a factor that wasn't measured has no verdict"
    assert "under 60 s: missed, at most 70.0 s" in page
    assert "the best of Torch-Pruning's has 40.00% (one ratio), ours 91.50%" in page
    assert "1.60 and 1.25 times, with 91.00% instead of 91.50%" in page
    assert "`RuntimeError: shapes`" in page


def test_the_imagenet_page_is_made_of_such_rows_too() -> None:
    rows = [
        made_up("squeezenet1_1", pruners.ORIGINAL, None, 60.0, test_images=500),
        made_up("squeezenet1_1", pruners.OURS, 1.5, 50.0, test_images=500),
        made_up("squeezenet1_1", pruners.PEER, 1.5, 1.0, amounts=pruners.GLOBAL, test_images=500),
    ]
    page = prune_imagenet.section({"rows": rows})
    assert "all 500 images of the odd classes" in page
    assert "the best of Torch-Pruning's has 1.00% (ranked globally), ours 50.00%" in page
