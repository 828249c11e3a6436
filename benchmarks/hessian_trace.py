"""The Hessian's trace of ResNet-20: the time that our estimators and PyHessian's take to the same standard error.

All get the same float network, the same 128 training images and labels, and the same weights: those of the
convolutions and the linear layer. PyHessian estimates their sum; ours give every layer's trace. The standard error of
our sum is bounded by the sum of the layers' standard errors, whatever their correlation. A first call on two images,
which loads what torch.export needs, isn't timed; every timed call traces the network anew.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import common

NETWORK = "resnet20"
IMAGES = 128
RUNS = 3
PROBES = 20
"""Of PyHessian: for about 12%."""
PROMISED = 5.0
PEER = "PyHessian"

Found = dict[str, float | int | None]
"""Of one call: the sum of the traces, standard errors relative to it, probes."""


def measure(images: int = IMAGES, runs: int = RUNS, probes: int = PROBES) -> list[common.Row]:
    model, inputs, labels = subject(images)
    ways = methods(model, inputs, labels, probes)
    ours(model, inputs[:2], labels[:2], method="auto")
    exact = ours(model, inputs, labels, method="auto", tolerance=0.0, settled=False)["trace"]
    assert exact is not None
    found: dict[str, list[tuple[float, float | None, Found]]] = {name: [] for name in ways}
    for seed in range(runs):
        for name, way in ways.items():
            with common.others() as busy:
                start = time.perf_counter()
                value = way(seed)
                seconds = time.perf_counter() - start
            found[name].append((seconds, busy.percent, value))
    return rows(found, exact, images)


def subject(images: int) -> tuple[Any, Any, Any]:
    """ResNet-20 and some of its training images, with their labels."""
    import torch

    from compress import data, models

    weights = next((common.data_dir() or common.RESULTS).glob(f"weights/cifar10-akamaster/{NETWORK}-*.th"))
    loaded = models.load(NETWORK, weights=str(weights))
    with common.cifar10() as folder:
        whole = data.load(f"cifar10:{folder}", mean=loaded.mean, std=loaded.std)
        inputs, labels = next(iter(whole.train.batches(images, torch.Generator().manual_seed(0), "cpu")))
    return loaded.model.eval(), inputs[:images], labels[:images]


def methods(model: Any, inputs: Any, labels: Any, probes: int) -> dict[str, Callable[[int], Found]]:
    """What is timed, by name: from a seed what one call finds."""

    def way(**asked: Any) -> Callable[[int], Found]:
        return lambda seed: ours(model, inputs, labels, seed=seed, settled=False, **asked)

    return {
        PEER: lambda seed: peer(model, inputs, labels, probes, seed),
        "compress, auto, every layer to 12%": way(method="auto", tolerance=0.12),
        "compress, auto, every layer to 1%": way(method="auto", tolerance=0.01),
        "compress, auto, until the order is settled": lambda seed: ours(
            model, inputs, labels, seed=seed, method="auto", tolerance=0.01
        ),
        "compress, hutchinson": way(method="hutchinson", tolerance=0.0, most=probes),
        "compress, hutch++": way(method="hutch++", tolerance=0.0, most=probes),
    }


def ours(model: Any, inputs: Any, labels: Any, seed: int = 0, **asked: Any) -> Found:
    """One call of compress.quantize.hessian.traces."""
    import torch
    from torch.nn import functional as F

    from compress.quantize.hessian import traces

    found = traces(
        model, [(inputs, labels)], F.cross_entropy, generator=torch.Generator().manual_seed(seed), **asked
    ).values()
    total = sum(each.value for each in found)
    return {
        "trace": total,
        "error": sum(each.standard_error for each in found) / total,
        "worst": max(each.standard_error / abs(each.value) for each in found),
        "probes": max(each.probes for each in found),
    }


def peer(model: Any, inputs: Any, labels: Any, probes: int, seed: int) -> Found:
    """PyHessian's trace over the same weights, after a fixed number of probes."""
    import torch
    from pyhessian import hessian

    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("weight") and parameter.dim() > 1)
    with torch.random.fork_rng(), warnings.catch_warnings():
        # It calls backward(create_graph=True), which torch warns of.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        values = hessian(model, torch.nn.functional.cross_entropy, data=(inputs, labels), cuda=False).trace(probes, 0.0)
    model.zero_grad(set_to_none=True)
    mean = statistics.fmean(values)
    return {
        "trace": mean,
        "error": statistics.stdev(values) / len(values) ** 0.5 / mean,
        "worst": None,
        "probes": len(values),
    }


def rows(found: Mapping[str, list[tuple[float, float | None, Found]]], exact: float, images: int) -> list[common.Row]:
    """One row a method: medians over the calls."""
    result: list[common.Row] = []
    for name, calls in found.items():
        middle = {
            key: None if calls[0][2][key] is None else statistics.median(call[2][key] or 0.0 for call in calls)
            for key in ("error", "worst", "probes")
        }
        off = [abs((call[2]["trace"] or 0.0) / exact - 1) for call in calls]
        busy = [call[1] for call in calls if call[1] is not None]
        seconds = statistics.median(call[0] for call in calls)
        reference = result[0] if result else None
        row: common.Row = {
            "network": NETWORK,
            "method": name,
            "images": images,
            "runs": len(calls),
            "median_probes": round(middle["probes"] or 0),
            "median_seconds": round(seconds, 3),
            "slowest_seconds": round(max(call[0] for call in calls), 3),
            "standard_error_percent": _percent(middle["error"]),
            "worst_layer_standard_error_percent": _percent(middle["worst"]),
            "root_mean_square_error_percent": _percent((sum(each**2 for each in off) / len(off)) ** 0.5),
            "speedup": None,
            "other_work_percent": max(busy) if busy else None,
        }
        if reference is not None and (row["standard_error_percent"] or 0) <= reference["standard_error_percent"]:  # type: ignore[operator]  # numbers
            row["speedup"] = round(reference["median_seconds"] / seconds, 2)  # type: ignore[operator]  # numbers
        result.append(row)
    return result


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 3)


def section(document: Mapping[str, Any]) -> str:
    found = document["rows"]
    first, ours = found[0], found[1]
    reached = ours["speedup"] is not None and ours["speedup"] >= PROMISED
    header = [
        "method",
        "probes",
        "seconds, median",
        "slowest",
        "standard error of the sum, %",
        "of the worst layer, %",
        "distance from the exact trace, %",
        "times faster at no more error",
    ]
    table = common.markdown_table(
        header,
        (
            [
                row["method"],
                common.shown(row["median_probes"]),
                common.shown(row["median_seconds"], 2),
                common.shown(row["slowest_seconds"], 2),
                *(
                    common.shown(row[f"{key}_percent"], 2)
                    for key in ("standard_error", "worst_layer_standard_error", "root_mean_square_error")
                ),
                "—" if row["speedup"] is None else common.shown(row["speedup"], 1),
            ]
            for row in found
        ),
    )
    times = "not at less error" if ours["speedup"] is None else f"{ours['speedup']:.1f} times faster"
    return (
        f"The trace of the Hessian of the mean cross-entropy by the weights of {first['network']}'s convolutions and "
        f"linear layer, on {first['images']} training images; medians of {first['runs']} calls, in turns. Probes are "
        "Hessian-vector products, or single samples' gradients for `auto`. The exact trace is the sum over all "
        f"directions of the outputs. At {first['standard_error_percent']:.0f}% ours is {times} (aim: {PROMISED:g}"
        f"{'' if reached else ', not reached'}). Other programs used up to "
        f"{max(row['other_work_percent'] or 0.0 for row in found):.1f}% of the cores.\n\n{table}"
    )


BENCHMARK = common.Benchmark(
    name="hessian_trace",
    title="the Hessian's trace by layer, beside PyHessian",
    needs=(
        common.data("cifar10", "CIFAR-10"),
        common.data("weights/cifar10-akamaster", "ResNet weights for CIFAR-10"),
        common.package("PyHessian", "pyhessian"),
    ),
    packages=("torch", "numpy", "PyHessian"),
    measure=measure,
    section=section,
    minutes=3,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
