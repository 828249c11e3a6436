"""The benchmark of GPUs: its networks are those of the papers, its table from rows whose figures are known."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cuda_networks
from benchmarks.cuda_networks import BEST_PEER, OURS, row


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_networks_have_the_published_sizes(depth: int, parameters: int) -> None:
    network = cuda_networks.resnet(depth)
    assert sum(each.numel() for each in network.parameters()) == parameters
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_the_target_is_kept_or_missed_by_the_faster_of_ours() -> None:
    rows = []
    for network, ours in (("ResNet-18", 0.5e-3), ("ResNet-50", 2e-3)):
        times = {BEST_PEER: 1e-3, OURS[0]: ours, OURS[1]: 4e-3, "torch, float32": 5e-3}
        rows += [row(network, 1, way, seconds, 1e-3) for way, seconds in times.items()]
    measured = row("ResNet-20 on CIFAR-10", 100, OURS[0], None, None)
    rows.append(measured | {"accuracy_percent": 92.5, "other_outputs_images": 0})
    text = cuda_networks.section({"rows": rows})
    assert f"ResNet-18, batch 1: 2.00 times as fast as {BEST_PEER} (target 1): kept" in text
    assert f"ResNet-50, batch 1: 0.50 times as fast as {BEST_PEER} (target 1): missed" in text
    assert "int8: 92.50%; outputs other than the reference's: 0 of those compared" in text
    assert text.count("| ResNet-") == 8


def test_turns_give_each_its_median() -> None:
    calls: list[str] = []
    found = cuda_networks.interleaved({name: lambda name=name: calls.append(name) for name in "ab"})
    assert set(found) == {"a", "b"}
    assert calls.count("a") == calls.count("b") == cuda_networks.WARM_UP + cuda_networks.ROUNDS * cuda_networks.CALLS
