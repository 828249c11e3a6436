"""The Pareto front of bits against a budget: sixty layers, a hundred budgets, every measure that can be limited.

The problem is drawn, not measured: sizes of a residual network's layers, five widths of weights and three of
activations, perturbations that fall by about four a bit with noise on top, additions that tie every second tensor to
the one before it. Each point of a front is the exact optimum under its budget.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from benchmarks import common

LAYERS, BUDGETS = 60, 100
WEIGHT_WIDTHS, ACTIVATION_WIDTHS = (1, 2, 3, 4, 8), (2, 4, 8)
SECONDS = 10.0
MEASURES = ("weight_bits", "weight_bytes", "bit_operations", "ram_bytes", "latency_s")


def problem(seed: int) -> Any:
    """A network's choices, from a seed."""
    from dataclasses import replace

    from compress.quantize.choices import LayerChoice, Problem, TensorChoice, options
    from compress.types import Precision

    draw = random.Random(seed)
    tensors, layers = [], []
    for i in range(LAYERS):
        channels = 16 * 2 ** (i * 3 // LAYERS)
        elements = channels * (512 // channels) ** 2
        loud = 10 ** draw.uniform(-3, 0)
        curve = {bits: loud * 4.0**-bits * draw.uniform(0.7, 1.4) for bits in ACTIVATION_WIDTHS}
        tensors.append(TensorChoice(f"tensor{i}", elements, i, i + 2, curve))
        weights = 9 * channels**2
        loud = 10 ** draw.uniform(-3, 0)
        costs = {
            Precision(w, a, "integer"): loud * 4.0**-w * draw.uniform(0.7, 1.4)
            for w in WEIGHT_WIDTHS
            for a in ACTIVATION_WIDTHS
        }
        made = options(weights, weights * elements // channels, costs)
        timed = tuple(replace(o, latency_s=1e-12 * o.bit_operations**0.9 * draw.uniform(0.9, 1.1)) for o in made)
        layers.append(LayerChoice(f"layer{i}", weights, (f"tensor{i}",), timed))
    ties = tuple((f"tensor{i - 1}", f"tensor{i}") for i in range(1, LAYERS, 2))
    return Problem(tuple(layers), tuple(tensors), ties)


def measure() -> list[common.Row]:
    from compress.quantize.allocation import frontier

    rows: list[common.Row] = []
    given = problem(0)
    for name in MEASURES:
        with common.others() as busy:
            start, own = time.perf_counter(), time.process_time()
            front = frontier(given, name, count=BUDGETS)
            seconds, core = time.perf_counter() - start, time.process_time() - own
        rows.append(
            {
                "measure": name,
                "layers": LAYERS,
                "budgets": BUDGETS,
                "points": len(front),
                "seconds": round(seconds, 2),
                "core_seconds": round(core, 2),
                "other_work_percent": busy.percent,
            }
        )
        print(rows[-1], flush=True)
    return rows


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    slowest = max(row["seconds"] for row in rows)
    return (
        f"{rows[0]['budgets']} budgets of {rows[0]['layers']} layers with {len(WEIGHT_WIDTHS)} widths of weights and "
        f"{len(ACTIVATION_WIDTHS)} of activations, every second tensor tied to the one before it; each point is the "
        f"exact optimum. Budgets with the same optimum are one point. Target: under {SECONDS:g} s: "
        f"{'kept' if slowest < SECONDS else 'missed'}, {slowest:.1f} s at the most.\n\n"
    ) + common.markdown_table(
        ["budget on", "points", "seconds", "of one core"],
        [
            [
                row["measure"],
                common.shown(row["points"]),
                common.shown(row["seconds"], 2),
                common.shown(row["core_seconds"], 2),
            ]
            for row in rows
        ],
    )


BENCHMARK = common.Benchmark(
    name="allocation_front",
    title="the Pareto front of bits against a budget, 60 layers and 100 budgets",
    needs=(),
    packages=("scipy", "numpy"),
    measure=measure,
    section=section,
    minutes=1,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
