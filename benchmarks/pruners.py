"""What the pruning benchmarks share: the pruners that are set side by side, their rows and their latencies.

Every pruner gets the same float network, the same calibration images and the same number of multiply-accumulates. Peers
know a ratio of channels only, so theirs is searched for; where all layers step at once, it comes close, not nearer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import common

THREADS = (1, 2)
PRUNING_THREADS = 2
ROUNDS = 30
SEARCH_STEPS = 12
ORIGINAL, OURS, NORM, PEER = "not pruned", "compress, reconstruct", "compress, norm", "Torch-Pruning"
LIKED = "counts that the target `cpu` likes"
UNIFORM, GLOBAL = "one ratio", "ranked globally"
ANEW = "statistics anew"


@dataclass(frozen=True)
class Subject:
    """A network that is pruned.

    Attributes:
        name: of the network.
        model: the float network.
        calibration: the images to prune with, without labels, and how the network's training changed them.
        data: what accuracy is measured on.
        fixed: module paths whose output channels the peer has to leave, as its result doesn't run otherwise.
    """

    name: str
    model: Any
    calibration: Any
    data: Any
    fixed: tuple[str, ...] = ()

    @cached_property
    def images(self) -> Any:
        """The calibration images (N, C, H, W), normalized, as they are."""
        images, _ = next(iter(self.calibration.train.batches(self.calibration.train.n)))
        return images


@dataclass(frozen=True)
class Pruner:
    """A way to prune: ``prune(subject, share of the MACs to keep)`` gives the smaller network."""

    name: str
    amounts: str
    prune: Callable[[Subject, float], Any]
    scope: str = "whole network"

    @property
    def label(self) -> str:
        """Its name with what distinguishes it from others of that name."""
        return f"{self.name}, {self.amounts}" if self.amounts else self.name


# --- pruners ---------------------------------------------------------------------------------------------------------


def ours(method: str, target: str | None = None) -> Callable[[Subject, float], Any]:
    """The product's call, with images alone: no label is given.

    Args:
        method: of :data:`compress.prune.roster.METHODS`.
        target: the device whose channel multiples are kept to; None allows any count.
    """

    def prune(subject: Subject, share: float) -> Any:
        from compress.prune import prune

        return prune(
            subject.model, subject.images[:2], macs=share, method=method, target=target, data=subject.calibration
        ).model

    return prune


def ours_sharing(shared: dict[Any, Any], target: str | None = None) -> Callable[[Subject, float], Any]:
    """The default method as a job runs it: what it learns of the whole network is kept in ``shared`` for the next."""

    def prune(subject: Subject, share: float) -> Any:
        import torch

        from compress import targets
        from compress.prune import roster
        from compress.prune.goal import Goal
        from compress.types import Budget, Context, State

        device = targets.load("cpu")
        aimed = device if target == device.name else replace(device, channel_multiple=1)
        context = Context(aimed, Budget(), subject.calibration, torch.Generator().manual_seed(0), shared=shared)
        return roster.METHODS[roster.DEFAULT](Goal(share))(State(subject.model), context).model

    return prune


def torch_pruning(ranked: str, *, anew: bool = False, whole: bool = False) -> Callable[[Subject, float], Any]:
    """Torch-Pruning's group magnitude at the channel ratio that comes closest to the MACs asked for.

    Args:
        ranked: :data:`UNIFORM`, the same ratio in every layer, or :data:`GLOBAL`, all channels in one ranking.
        anew: estimate batch-norm statistics anew on the calibration images, changed as in the network's training.
        whole: prune ``subject.fixed`` too.
    """

    def prune(subject: Subject, share: float) -> Any:
        import torch
        import torch_pruning as tp
        from torch import nn

        from compress.prune.recalibrate import as_in_training, recalibrate

        x = subject.images[:1]
        wanted = share * macs(subject.model, x)

        def at(ratio: float) -> tuple[Any, int]:
            model = copy.deepcopy(subject.model)
            layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
            left = [list(layers.values())[-1], *([] if whole else [layers[name] for name in subject.fixed])]
            tp.pruner.BasePruner(
                model,
                x,
                importance=tp.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                global_pruning=ranked == GLOBAL,
                ignored_layers=left,
            ).step()
            return model, macs(model, x)

        model = searched(at, wanted)
        if anew:
            recalibrate(model, as_in_training(subject.calibration, subject.images, torch.Generator().manual_seed(0)))
        return model.eval()

    return prune


def searched(at: Callable[[float], tuple[Any, int]], wanted: float, steps: int = SEARCH_STEPS) -> Any:
    """The network closest to ``wanted`` that bisection over the ratio meets.

    Args:
        at: ratio of channels to remove, 0 to 1 -> the network and its multiply-accumulates, which fall as it rises.
        wanted: multiply-accumulates.
        steps: of bisection.
    """
    low, high = 0.0, 1.0
    best: tuple[float, Any] | None = None
    for _ in range(steps):
        middle = (low + high) / 2
        model, count = at(middle)
        low, high = (middle, high) if count > wanted else (low, middle)
        if best is None or abs(count - wanted) < best[0]:
            best = abs(count - wanted), model
    assert best is not None
    return best[1]


def macs(model: Any, x: Any) -> int:
    """Multiply-accumulates of convolutions and linear layers for the batch ``x``, by torch's counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2


def with_statistics(model: Any, images: Any, batch: int = 50) -> Any:
    """A network that computes the same as ``model`` in evaluation mode, with the statistics of ``images`` in its norms.

    With a norm's input of mean ``m`` and variance ``v``, which ``gamma (x - mean) / sqrt(var + eps) + beta`` maps,

        gamma' = gamma sqrt((v + eps) / (var + eps)),   beta' = beta + gamma (m - mean) / sqrt(var + eps).

    Args:
        model: any module; it is not changed.
        images: (N, C, H, W).
        batch: images at a time.
    """
    import torch
    from torch import nn

    made = copy.deepcopy(model).eval()
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    sums: dict[int, list[Any]] = {}

    def watch(number: int) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            flat = inputs[0].movedim(1, 0).flatten(1).double()
            found = [flat.sum(1), flat.square().sum(1), flat.shape[1]]
            sums[number] = [a + b for a, b in zip(sums.get(number, (0.0, 0.0, 0)), found, strict=True)]

        return hook

    hooks = [norm.register_forward_pre_hook(watch(number)) for number, norm in enumerate(norms)]
    with torch.no_grad():
        for part in images.split(batch):
            made(part)
        for hook in hooks:
            hook.remove()
        for number, norm in enumerate(norms):
            mean, var = norm.running_mean, norm.running_var
            total, squares, count = sums[number]
            new_mean = total / count
            new_var = (squares / count - new_mean.square()).clamp_min(0)
            deviation = (var.double() + norm.eps).sqrt()
            gamma, beta = norm.weight.double(), norm.bias.double()
            norm.bias.copy_(beta + gamma * (new_mean - mean) / deviation)
            norm.weight.copy_(gamma * (new_var + norm.eps).sqrt() / deviation)
            norm.running_mean.copy_(new_mean)
            norm.running_var.copy_(new_var)
    return made


def pruners(subject: Subject, shared: dict[Any, Any] | None = None) -> list[Pruner]:
    """Ours, our baseline and the peer: the same ratio everywhere or one ranking, with and without new statistics.

    With ``shared`` ours learns of the whole network once, as in a job; without, anew for each row.
    """
    from torch import nn

    inside = "inside the blocks" if subject.fixed else "whole network"
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in subject.model.modules())
    found = [
        Pruner(OURS, "", ours("reconstruct") if shared is None else ours_sharing(shared)),
        Pruner(OURS, LIKED, ours("reconstruct", "cpu") if shared is None else ours_sharing(shared, "cpu")),
        Pruner(NORM, "", ours("norm")),
    ]
    for ranked in (UNIFORM, GLOBAL):
        found.append(Pruner(PEER, ranked, torch_pruning(ranked), inside))
        if has_norms:
            found.append(Pruner(PEER, f"{ranked}, {ANEW}", torch_pruning(ranked, anew=True), inside))
    if subject.fixed:
        found += [Pruner(PEER, ranked, torch_pruning(ranked, whole=True)) for ranked in (UNIFORM, GLOBAL)]
    return found


# --- rows ------------------------------------------------------------------------------------------------------------


@contextmanager
def pruning_threads() -> Iterator[None]:
    """Torch on :data:`PRUNING_THREADS` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(PRUNING_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured(
    subject: Subject,
    factors: Sequence[float],
    folder: Path,
    using: Sequence[Pruner] | None = None,
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = print,
) -> list[common.Row]:
    """One row for the network itself and one for each pruner at each factor.

    Args:
        subject: what to prune.
        factors: how many times fewer multiply-accumulates.
        folder: where the ONNX files go.
        using: the pruners; all of :func:`pruners` by default.
        rounds: turns that each file gets in a timing.
        tell: called with a line for each row.
    """
    rows, files = [], {}
    with pruning_threads():
        cases = [(None, Pruner(ORIGINAL, "", lambda subject, _: subject.model))]
        cases += [(factor, pruner) for factor in factors for pruner in using or pruners(subject)]
        for number, (factor, pruner) in enumerate(cases):
            path = folder / f"{subject.name}-{number}.onnx"
            row = _row(subject, pruner, factor, path)
            if path.exists():
                files[number] = path
            rows.append(row)
            said = row["failed"] or f"{row['accuracy_percent']}% at {row['macs']} MACs in {row['prune_seconds']} s"
            tell(f"{subject.name}, {factor or 1:g} times fewer, {pruner.label}: {said}")
    reference = rows[0]
    for row in rows:
        row["macs_original_over_pruned"] = None if row["macs"] is None else round(reference["macs"] / row["macs"], 3)  # type: ignore[operator]  # numbers
    for threads in THREADS:
        _time(rows, files, threads, subject.images[:1].numpy(), rounds)
    return rows


def accuracy(model: Any, subject: Subject, path: Path) -> Any:
    """Accuracy of a network of the subject's kind in ONNX Runtime, of the float file that is written to ``path``."""
    from compress.export import onnx as interchange
    from compress.profiling import evaluate
    from compress.types import Plan, State

    interchange.export(State(model, Plan()), subject.images[:2], path)
    return evaluate.accuracy(path, subject.data)


def _row(subject: Subject, pruner: Pruner, factor: float | None, path: Path) -> common.Row:
    """What a pruner makes of the subject, without latency; ``failed`` says why it made nothing."""
    row: common.Row = {
        "network": subject.name,
        "pruner": pruner.name,
        "amounts": pruner.amounts or None,
        "scope": pruner.scope,
        "macs_original_over_asked": factor,
        "failed": None,
        "macs": None,
        "parameters": None,
        "accuracy_percent": None,
        "accuracy_low_percent": None,
        "accuracy_high_percent": None,
        "test_images": None,
        "calibration_images": len(subject.images),
        "file_bytes": None,
        "prune_seconds": None,
    }
    start = time.perf_counter()
    try:
        model = pruner.prune(subject, 1 / (factor or 1))
    except Exception as error:  # a peer's network that doesn't run is a result
        if pruner.name != PEER:
            raise
        row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        return row
    seconds = time.perf_counter() - start
    found = accuracy(model, subject, path)
    return {
        **row,
        "macs": macs(model, subject.images[:1]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "accuracy_percent": round(found.value, 2),
        "accuracy_low_percent": round(found.low, 2),
        "accuracy_high_percent": round(found.high, 2),
        "test_images": found.n,
        "file_bytes": path.stat().st_size,
        "prune_seconds": None if factor is None else round(seconds, 1),
    }


def _time(rows: list[common.Row], files: Mapping[int, Path], threads: int, x: Any, rounds: int) -> None:
    """Add the latencies with ``threads`` threads, all files in turns."""
    from compress.profiling import session, timer

    def job(path: Path) -> Callable[[], Any]:
        run = session.runner(session.open_session(path, threads))
        return lambda: run(x)

    jobs = {path.name: job(path) for path in files.values()}
    unit = f"{threads}_thread{'s' if threads > 1 else ''}"
    found, other_work = common.quietly(
        lambda: timer.interleaved(jobs, session.machine(), {}, rounds=rounds), attempts=3, wait_s=30
    )
    reference = found[files[0].name].latency_s
    for number, row in enumerate(rows):
        one = found[files[number].name] if number in files else None
        row[f"latency_{unit}_ms"] = None if one is None else round(one.latency_s * 1e3, 4)
        row[f"latency_{unit}_p90_ms"] = None if one is None else round(one.latency_p90_s * 1e3, 4)
        row[f"speedup_{unit}"] = None if one is None else round(reference / one.latency_s, 3)
        row[f"other_work_{unit}_percent"] = other_work
