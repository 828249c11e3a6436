"""Pruning methods side by side, judged after the fine-tuning that the user asks for.

How accurate a network is right after pruning says little about how accurate it becomes: even an oracle that removes
the units whose loss costs least is not the best start for training (Huang et al., *Rethinking the Pruning Criteria
for Convolutional Neural Network*, NeurIPS 2021; Mittal et al., *Recovering from Random Pruning*, WACV 2018). So both
accuracies are taken, with Spearman's correlation of their ranks over the methods.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from compress import data as datasets
from compress import targets
from compress.errors import BadInput, UnknownName
from compress.graph import costs
from compress.graph.module import in_evaluation_mode
from compress.graph.trace import trace
from compress.metric import MetricName, by_key, of_task
from compress.prune import roster
from compress.prune.api import fractions, skipped
from compress.prune.finetune import FineTune
from compress.prune.goal import Goal
from compress.training import evaluate, evaluate_psnr
from compress.types import Budget, Context, State, Target


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One method. Figures are None where it failed, and ``reason`` says why.

    Attributes:
        method: its name.
        macs, params: fractions of the network's that it kept.
        pruned, tuned: accuracy right after pruning, and after the fine-tuning.
        prune_s, tune_s: wall time of each.
        reason: why there are no figures; empty where there are.
    """

    method: str
    macs: float | None = None
    params: float | None = None
    pruned: float | None = None
    tuned: float | None = None
    prune_s: float | None = None
    tune_s: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` returns; ``print`` shows it as a table.

    Attributes:
        rows: one a method, best after fine-tuning first, failed ones last.
        accuracy: of the network as it was.
        metric: of all accuracies.
        epochs: of fine-tuning.
        n: evaluation inputs.
    """

    rows: tuple[ComparisonRow, ...]
    accuracy: float
    metric: MetricName
    epochs: int
    n: int

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, in [-1, 1], between accuracy right after pruning and after fine-tuning, over the methods.

        None with fewer than three methods, or where one of the two accuracies is the same for all.
        """
        return spearman([(row.pruned, row.tuned) for row in self.rows])

    def __str__(self) -> str:
        """The table, with a sentence on the correlation."""
        unit = by_key(self.metric).sign
        head = ("method", "MACs", "params", "pruned", "tuned", "prune", "tune")
        table: list[tuple[str, ...]] = [head, ("(none)", "100.0%", "100.0%", "", f"{self.accuracy:.2f}{unit}", "", "")]
        for row in self.rows:
            shares = [f"{100 * share:.1f}%" if share is not None else "-" for share in (row.macs, row.params)]
            found = [f"{each:.2f}{unit}" if each is not None else "-" for each in (row.pruned, row.tuned)]
            spent = [f"{each:.1f} s" if each is not None else "-" for each in (row.prune_s, row.tune_s)]
            table.append((row.method, *shares, *found, *spent))
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]

        def shown(line: tuple[str, ...]) -> str:
            first, *rest = line
            return "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))])

        lines = [shown(line).rstrip() for line in table]
        lines += [f"{row.method}: {row.reason}" for row in self.rows if row.reason]
        correlation = self.rank_correlation
        if correlation is not None:
            lines.append(f"rank correlation of pruned and tuned (Spearman, {self.epochs} epochs): {correlation:+.2f}")
        return "\n".join(lines)


def compare(
    model: nn.Module,
    data: Any,
    *,
    macs: float | None = None,
    params: float | None = None,
    epochs: int = 1,
    methods: Sequence[str] | None = None,
    target: Target | str | None = None,
    skip: Sequence[str] | str = (),
    samples: int = 1024,
    seed: int = 0,
    device: str | None = None,
) -> Comparison:
    """Prune a network to one size by every method, fine-tune all alike, and measure both.

    Args:
        model: any traceable module with one input; it is not changed.
        data: as for :func:`compress.run`; of data that aren't divided, a fifth is held out to measure on.
        macs, params: fractions of the multiply-accumulates and parameters to keep, in (0, 1].
        epochs: of fine-tuning by distillation from ``model``, 0 for none.
        methods: names of ``compress.prune.roster.METHODS``; None for all.
        target: as for :func:`compress.prune.prune`.
        skip: module paths of layers whose channels stay, or one path.
        samples: training inputs that calibration looks at.
        seed: every method starts from it anew.
        device: where to train: ``"cpu"`` or ``"cuda"``; None takes a GPU where there is one.

    Raises:
        BadInput: a fraction outside (0, 1] or none given, an unknown method or layer, epochs below 0.
        BadData: the data can't be used.
    """
    fractions(macs=macs, params=params)
    if macs is None and params is None:
        raise BadInput("compare() needs macs= or params=, the fraction to keep")
    if epochs < 0:
        raise BadInput(f"epochs={epochs}: it must be 0 or more")
    for name in methods or ():
        if name not in roster.METHODS:
            raise UnknownName("pruning method", name, roster.METHODS)
    model = in_evaluation_mode(model)
    dataset = data if isinstance(data, datasets.Data) else datasets.from_python(data, seed=seed)
    aimed = targets.load("cpu") if target is None else targets.load(target) if isinstance(target, str) else target
    aimed = replace(aimed, channel_multiple=1) if target is None else aimed
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    example = dataset.train.inputs(2, torch.Generator().manual_seed(0))
    goal = Goal(macs, params, skip=skipped(skip, trace(model, (example,))))

    def context() -> Context:
        generator = torch.Generator().manual_seed(seed)
        return Context(aimed, Budget(), dataset, generator, device, model, samples)

    rows = [_row(name, goal, model, context(), epochs) for name in methods or roster.METHODS]
    rows.sort(key=lambda row: -math.inf if row.tuned is None else row.tuned, reverse=True)
    metric = of_task(dataset.task).key
    return Comparison(tuple(rows), accuracy(model, dataset, device), metric, epochs, dataset.evaluate.n)


def _row(name: str, goal: Goal, model: nn.Module, context: Context, epochs: int) -> ComparisonRow:
    example = (context.data.train.inputs(2, torch.Generator().manual_seed(0)),)
    before = costs.size(trace(model, example))
    start = time.perf_counter()
    try:
        state = roster.METHODS[name](goal)(State(model), context)
    except BadInput as error:
        return ComparisonRow(name, reason=error.sentence)
    prune_s = time.perf_counter() - start
    after = costs.size(trace(state.model, example))
    pruned = accuracy(state.model, context.data, context.device)
    start = time.perf_counter()
    tuned = FineTune(epochs)(state, context)
    tune_s = time.perf_counter() - start
    return ComparisonRow(
        name,
        after.macs / before.macs,
        after.params / before.params,
        pruned,
        accuracy(tuned.model, context.data, context.device) if epochs else pruned,
        prune_s,
        tune_s,
    )


def accuracy(model: nn.Module, data: datasets.Data, device: str) -> float:
    """Top-1 in percent, or mean PSNR in dB, on the evaluation split."""
    if data.task == "classification":
        correct, n = evaluate(model, data.evaluate, device=device)
        return 100 * correct / n
    values = evaluate_psnr(model, data.evaluate, device=device)
    return sum(values) / len(values)


def spearman(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Spearman's rank correlation of the pairs of which both are known; None where it isn't defined."""
    from scipy import stats

    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(known) < 3 or any(len({pair[side] for pair in known}) < 2 for side in (0, 1)):
        return None
    first, second = zip(*known, strict=True)
    return float(stats.spearmanr(first, second).statistic)
