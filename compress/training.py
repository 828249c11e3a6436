"""Training and evaluation of float networks, and of quantization-aware ones that are ordinary modules.

Fine-tuning with ``teacher`` is knowledge distillation (Hinton, Vinyals and Dean 2015): the loss is
``(1 - a) * cross_entropy(student, labels) + a * T^2 * KL(softmax(teacher / T) || softmax(student / T))``
with ``a`` the recipe's ``distillation`` and ``T`` its ``temperature``. Reconstruction minimizes the
mean squared error to the target, and with a teacher also that to the teacher's output, in the same shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from compress.errors import BadInput
from compress.lending import lent, set_mode
from compress.lessons import AT_ONCE

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from compress.data import Augmentation, Split, Task
    from compress.lessons import Lessons
    from compress.types import Progress

    Forward = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of :func:`fit`.

    Attributes:
        epochs: passes over the training split; 0 changes nothing.
        lr: highest learning rate.
        batch_size: images a step.
        optimizer: ``"sgd"`` with Nesterov momentum, or ``"adamw"``.
        momentum: of SGD.
        epsilon: of AdamW: gradients far below it hold their parameters still.
        weight_decay: for tensors of two dimensions or more; biases and norms have none.
        warmup: share of all steps in which the learning rate rises from 0; then it falls as a cosine to 0.
        temperature: of distillation, above 0.
        distillation: weight of the teacher's part of the loss, in [0, 1].
        label_smoothing: of cross-entropy, in [0, 1).
        clip: largest norm of the gradient; None for no limit.
        averaged: share of all steps, at the end, over which the weights and the batch norms' statistics are
            averaged; 0 takes the last ones (Izmailov et al., *Averaging Weights Leads to Wider Optima*, UAI 2018).
    """

    epochs: int = 1
    lr: float = 0.02
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    epsilon: float = 1e-8
    weight_decay: float = 5e-4
    warmup: float = 0.05
    temperature: float = 4.0
    distillation: float = 0.7
    label_smoothing: float = 0.0
    clip: float | None = 5.0
    averaged: float = 0.0


def batch_size(n: int) -> int:
    """Images a step for fine-tuning on ``n``: few where there are few, so that an epoch has steps enough."""
    return min(64, max(16, n // 80))


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of step ``step`` (0 to ``steps`` - 1): a linear rise, then half a cosine down to 0."""
    rising = math.floor(recipe.warmup * steps)
    if step < rising:
        return recipe.lr * (step + 1) / (rising + 1)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def fit(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    device: str = "cpu",
    task: Task = "classification",
    teacher: nn.Module | None = None,
    augment: Augmentation | None = None,
    forward: Forward | None = None,
    rates: Callable[[str], float] | None = None,
    progress: Progress | None = None,
    lessons: Lessons | None = None,
) -> None:
    """Train ``model`` in place and leave it on ``device`` in evaluation mode.

    The same generator state, inputs, threads and versions give the same weights. Batches of one
    image are left out, for batch norm has no variance of them.

    Args:
        model: anything from images (N, C, H, W) to logits, or to images for reconstruction.
        split: what to train on.
        recipe: hyperparameters.
        generator: on the CPU; the order of images, augmentation and dropout come from it.
        device: ``"cpu"`` or ``"cuda"``.
        task: which loss.
        teacher: the network to distil from, used in evaluation mode and without gradients.
        augment: changes of the training images.
        forward: how to run the models; ``model(images)`` by default.
        rates: for a parameter's name, its learning rate as a factor of the recipe's; 1 for all by default.
        progress: told the loss after each epoch.
        lessons: draws the images and their augmentation in place of ``generator``, and keeps what ``teacher`` says of
            them; of this teacher and batch size.

    Raises:
        BadInput: the loss became NaN or infinite, or the module can't be trained.
    """
    import torch
    from torch import nn

    if recipe.epochs < 1:
        return
    run: Forward = forward or (lambda module, images: module(images))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    if not parameters:
        return
    model.to(device)
    optimizer = _optimizer(named, recipe, rates or (lambda name: 1.0))
    used = [min(recipe.batch_size, split.n - start) for start in range(0, split.n, recipe.batch_size)]
    steps = recipe.epochs * sum(size > 1 for size in used)
    step, average = 0, _Average(model)
    first_averaged = steps - round(recipe.averaged * steps)
    with _seeded(generator, device), lent(teacher, device):
        set_mode(model, True)
        drawing = generator if lessons is None else lessons.images()
        for epoch in range(recipe.epochs):
            total, seen = 0.0, 0
            for images, target in split.batches(recipe.batch_size, drawing, device, augment):
                if len(images) < 2:
                    continue
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * learning_rate(recipe, step, steps)
                output = run(model, images)
                loss = _loss(output, target, task, recipe)
                if teacher is not None and recipe.distillation > 0:
                    with torch.no_grad():
                        ask = partial(run, teacher, images)
                        wanted = ask() if lessons is None else lessons.output(step, ask)
                    share = recipe.distillation
                    loss = (1 - share) * loss + share * _distance(output, wanted, task, recipe)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if recipe.clip is not None:
                    nn.utils.clip_grad_norm_(parameters, recipe.clip)
                optimizer.step()
                total, seen, step = total + float(loss.detach()) * len(images), seen + len(images), step + 1
                if step > first_averaged:
                    average.add()
            mean = total / max(1, seen)
            if not math.isfinite(mean):
                raise BadInput(f"training diverged in epoch {epoch + 1} (loss {mean}); lower the learning rate")
            if progress is not None:
                progress(f"epoch {epoch + 1}/{recipe.epochs}, loss {mean:.4f}")
        average.put_back()
        set_mode(model, False)


def evaluate(
    model: nn.Module | Callable[[Tensor], Tensor],
    split: Split,
    *,
    device: str = "cpu",
    batch_size: int = 256,
    forward: Forward | None = None,
) -> tuple[int, int]:
    """Top-1: how many images of a classification split are right, and of how many.

    Args:
        model: a module, run in evaluation mode and put back, or any function from images
            (N, C, H, W) float32 to logits (N, classes).
        split: what to measure on, in order.
        device: where to compute.
        batch_size: images at a time.
        forward: how to run a module.
    """
    hits, totals = evaluate_by_class(model, split, device=device, batch_size=batch_size, forward=forward)
    return sum(hits), sum(totals)


def evaluate_by_class(
    model: nn.Module | Callable[[Tensor], Tensor],
    split: Split,
    *,
    device: str = "cpu",
    batch_size: int = 256,
    forward: Forward | None = None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Top-1 by class: for each label from 0, how many of its images are right, and of how many.

    Args:
        model, split, device, batch_size, forward: as in :func:`evaluate`.
    """
    import torch

    hits, totals = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    with _predictor(model, device, forward) as predict:
        for images, labels in split.batches(batch_size, device=device):
            right = predict(images).argmax(1) == labels
            n = max(len(totals), int(labels.max()) + 1)
            more = (
                torch.nn.functional.pad(totals, (0, n - len(totals))),
                torch.nn.functional.pad(hits, (0, n - len(hits))),
            )
            totals = more[0] + torch.bincount(labels.cpu(), minlength=n)
            hits = more[1] + torch.bincount(labels[right].cpu(), minlength=n)
    return tuple(hits.tolist()), tuple(totals.tolist())


@dataclass(frozen=True, slots=True)
class Quality:
    """Of reconstructed images, in their split's order: PSNR in dB, and SSIM (empty where they are too small for it)."""

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]


def evaluate_quality(
    model: nn.Module | Callable[[Tensor], Tensor],
    split: Split,
    *,
    device: str = "cpu",
    batch_size: int = 16,
    forward: Forward | None = None,
    similarity: bool = True,
) -> Quality:
    """PSNR and SSIM of every image of a reconstruction split (:mod:`compress.quality`).

    Outputs are clipped to the scale of pixels, 0 to 255. What a split has cut into tiles is put together first, so that
    the figures are those of whole images. The data set's PSNR and SSIM are the means.

    Args:
        model, split, device, batch_size, forward: as in :func:`evaluate`; the output has the target's shape.
        similarity: False leaves SSIM out.
    """
    import torch

    from compress import quality

    offset, scale = (
        torch.tensor(each, dtype=torch.float64).mul(quality.PEAK).view(1, -1, 1, 1) for each in (split.mean, split.std)
    )

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for images, target in split.batches(batch_size, device=device):
            made = (predict(images).double().cpu() * scale + offset).clamp(0, quality.PEAK)
            yield made, target.double().cpu() * scale + offset

    psnrs: list[float] = []
    ssims: list[float] = []
    with _predictor(model, device, forward) as predict:
        for made, wanted in split.whole(pairs()):
            psnrs += quality.psnr(made, wanted).tolist()
            found = quality.ssim(made, wanted) if similarity else None
            ssims += [] if found is None else found.tolist()
    if len(ssims) != len(psnrs):
        ssims = []  # a mean over some of the images would say nothing of the others
    return Quality(tuple(psnrs), tuple(ssims))


def evaluate_psnr(
    model: nn.Module | Callable[[Tensor], Tensor],
    split: Split,
    *,
    device: str = "cpu",
    batch_size: int = 16,
    forward: Forward | None = None,
) -> list[float]:
    """Peak signal-to-noise ratio of each reconstructed image in dB, in the split's order.

    Args:
        model, split, device, batch_size, forward: as in :func:`evaluate_quality`.
    """
    found = evaluate_quality(model, split, device=device, batch_size=batch_size, forward=forward, similarity=False)
    return list(found.psnr)


class _Average:
    """The running mean of a module's parameters and floating-point buffers over the calls of :meth:`add`."""

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self._tensors = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        self._means: list[Tensor] = []
        self._count = 0

    def add(self) -> None:
        """Count what the module has now."""
        self._count += 1
        if self._count == 1:
            self._means = [tensor.clone() for tensor in self._tensors]
        for mean, tensor in zip(self._means, self._tensors, strict=True):
            mean.lerp_(tensor, 1 / self._count)

    def put_back(self) -> None:
        """Give the module the means; without any it keeps what it has."""
        if self._means:
            for mean, tensor in zip(self._means, self._tensors, strict=True):
                tensor.copy_(mean)


def unexplained(
    model: nn.Module,
    teacher: nn.Module | Tensor,
    images: Tensor,
    forward: Forward | None = None,
) -> float:
    """The share of the variance of the teacher's output that the model's output misses, both in evaluation mode.

    ``sum (teacher - model)^2 / sum (teacher - mean of teacher over the images)^2``: 0 where they agree, 1 where a
    constant would do as well, and above it where the output is worse than that.

    Args:
        model, teacher: of the same output shape; in place of the teacher, its output on ``images``.
        images: (N, C, H, W), N at least 2.
        forward: how to run the models.
    """
    import torch

    found = _outputs(model, images, forward)
    wanted = teacher.double() if isinstance(teacher, torch.Tensor) else _outputs(teacher, images, forward)
    spread = float((wanted - wanted.mean(0)).square().sum())
    return float((wanted - found).square().sum()) / max(spread, 1e-30)


def _outputs(model: nn.Module, images: Tensor, forward: Forward | None) -> Tensor:
    import torch

    with _predictor(model, str(images.device), forward) as predict:
        return torch.cat([predict(part) for part in images.split(AT_ONCE)]).double()


def _optimizer(
    parameters: Mapping[str, nn.Parameter], recipe: Recipe, rates: Callable[[str], float]
) -> torch.optim.Optimizer:
    import torch

    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = recipe.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rates(name), decay), []).append(parameter)
    found = [{"params": members, "rate": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(found, lr=recipe.lr, eps=recipe.epsilon, fused=True)
    return torch.optim.SGD(found, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _loss(output: Tensor, target: Tensor, task: Task, recipe: Recipe) -> Tensor:
    from torch.nn import functional as F

    if task == "reconstruction":
        return F.mse_loss(output, target)
    return F.cross_entropy(output, target, label_smoothing=recipe.label_smoothing)


def _distance(output: Tensor, wanted: Tensor, task: Task, recipe: Recipe) -> Tensor:
    from torch.nn import functional as F

    if task == "reconstruction":
        return F.mse_loss(output, wanted)
    t = recipe.temperature
    student, teacher = F.log_softmax(output / t, 1), F.log_softmax(wanted / t, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * t * t


@contextmanager
def _seeded(generator: torch.Generator, device: str) -> Iterator[None]:
    """Dropout and the like draw from the global generators: seed those from ours, and put them back."""
    import torch

    seed = int(torch.randint(2**62, (1,), generator=generator))
    cuda = list(range(torch.cuda.device_count())) if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@contextmanager
def _predictor(
    model: nn.Module | Callable[[Tensor], Tensor], device: str, forward: Forward | None
) -> Iterator[Callable[[Tensor], Tensor]]:
    import torch
    from torch import nn

    with torch.no_grad():
        if not isinstance(model, nn.Module):
            yield model
            return
        module, run = model, forward
        with lent(module, device):
            yield module if run is None else (lambda images: run(module, images))
