"""Train a reconstruction network, its patterns with it, on random patches of images.

Not :func:`compress.training.fit`, since what counts here is how much can be learned in half an hour on a processor:
patches are drawn afresh at every step, convolutions are in bfloat16 where the processor has instructions for it (the
weights, the loss, the measurements and the linear estimate stay float32), weights are averaged as they come, the
patterns' latent weights have a rate and an estimator of their own that follow the schedule, and an interrupted training
goes on from its last checkpoint.

The loss is the mean squared error, which is what PSNR measures, plus the constraint's penalty. AdamW with a linear rise
and half a cosine down to 0 (Loshchilov and Hutter, ICLR 2019), no decay of weights: the networks are small.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import BadInput
from compress.networks.sensing import Reconstruction
from compress.quantize.binary import ADAM_EPSILON, Estimator
from compress.quantize.sensing_start import Statistics, closed_form
from compress.serial import write_atomic

FOLLOWED_EVERY = 10
"""Steps from one look at the patterns to the next, for the linear estimate to follow them."""


SETTLING = 64
"""Patches by which a trained network is settled."""


@dataclass(frozen=True)
class Schedule:
    """Hyperparameters of :func:`train`.

    Attributes:
        steps: of the optimizer.
        batch: patches a step.
        patch: side of a patch in pixels, whole blocks.
        lr: highest learning rate of the convolutions.
        estimate_rate: of the linear estimate, as a factor of ``lr``.
        pattern_rate: of the patterns' latent weights, as a factor of ``lr``; 0 leaves the patterns as they are.
        estimator: of the patterns' gradient.
        margin: how large latent weights are at the start.
        warmup: share of the steps in which the rates rise.
        clip: largest norm of the gradient.
        averaging: decay of the running mean of the weights, which is what the network has at the end.
        penalty: weight of the constraint's penalty.
        half: compute in bfloat16; None where the processor or GPU has it.
    """

    steps: int
    batch: int = 16
    patch: int = 96
    lr: float = 2e-3
    estimate_rate: float = 0.1
    pattern_rate: float = 0.5
    estimator: Estimator = "clipped"
    margin: float = 0.3
    warmup: float = 0.03
    clip: float = 0.05
    averaging: float = 0.999
    penalty: float = 1.0
    half: bool | None = None


@dataclass(frozen=True)
class Trained:
    """What a training was.

    Attributes:
        seconds: of all its parts together.
        turned: share of the patterns' pixels that aren't what they were at the start.
        loss: mean squared error over the last tenth of the steps.
    """

    seconds: float
    turned: float
    loss: float


def train(
    network: Reconstruction,
    images: Sequence[Tensor],
    schedule: Schedule,
    *,
    seed: int = 0,
    device: str = "cpu",
    statistics: Statistics | None = None,
    checkpoint: Path | None = None,
    every_s: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> Trained:
    """Train ``network`` in place, from where its sensing layer's closed form has put it; leaves it in evaluation mode.

    The same seed, images, threads and versions give the same weights, interrupted or not.

    Args:
        network: its patterns are learned, then fixed.
        images: (H, W) each, light in [0, 1]; those smaller than a patch aren't used.
        schedule: hyperparameters.
        seed: of the patches, and of the noise if the layer has any.
        device: ``"cpu"`` or ``"cuda"``.
        statistics: what :func:`compress.quantize.sensing_start.start` found: with it the linear estimate follows the
            patterns in closed form while they are learned, and what is trained is its difference from that.
        checkpoint: where to keep the state on the way; a file of the same schedule and seed is gone on from, and
            removed at the end.
        every_s: seconds between checkpoints.
        progress: told the loss now and then.

    Raises:
        BadInput: no image as large as a patch, a patch of broken blocks, or a loss that isn't finite.
    """
    sensing = network.sensing
    if schedule.patch % (sensing.block or schedule.patch):
        raise BadInput(f"patches of {schedule.patch} pixels aren't whole blocks of {sensing.block}; choose a multiple")
    patches = Patches(images, schedule.patch, sensing.channels, seed)
    begun = sensing.signs()
    network.to(device)
    if schedule.pattern_rate > 0 and sensing.learning is None:
        sensing.learn(estimator=schedule.estimator, margin=schedule.margin)
    state = _State(network, schedule, statistics)
    where = {**asdict(schedule), "seed": seed}
    found = _read(checkpoint, where)
    if found is not None:
        state.load(found, patches)
    half = has_bfloat16(device) if schedule.half is None else schedule.half
    network.train()
    began, spent, saved = time.perf_counter(), state.seconds, time.perf_counter()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        if found is not None:
            torch.set_rng_state(found["noise"])
        while state.step < schedule.steps:
            state.advance(patches(schedule.batch).to(device), half)
            state.seconds = spent + time.perf_counter() - began
            if progress is not None and state.step % max(1, schedule.steps // 20) == 0:
                progress(f"step {state.step}/{schedule.steps}, loss {state.recent():.3e}, {state.seconds:.0f} s")
            if checkpoint is not None and time.perf_counter() - saved > every_s:
                _write(checkpoint, {**state.save(patches), "where": where, "noise": torch.get_rng_state()})
                saved = time.perf_counter()
    state.finish()
    state.follow()
    sensing.fix()
    network.eval()
    network.settle(Patches(images, schedule.patch, sensing.channels, seed)(SETTLING).to(device))
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    turned = float((sensing.signs().cpu() != begun.cpu()).float().mean())
    return Trained(state.seconds, turned, state.recent())


class Patches:
    """Random patches of images, each turned and mirrored in one of eight ways; called with how many.

    An image is drawn in proportion to its pixels. All randomness is the generator's.
    """

    def __init__(self, images: Sequence[Tensor], side: int, channels: int, seed: int) -> None:
        planes = [image.view(1, *image.shape) if image.dim() == 2 else image for image in images]
        self.images = [p for p in planes if min(p.shape[-2:]) >= side and p.shape[0] == channels]
        if not self.images:
            raise BadInput(f"no image has {channels} channels and {side}x{side} pixels; give larger images")
        self.side, self.channels = side, channels
        self.weights = torch.tensor([float(image[0].numel()) for image in self.images])
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, count: int) -> Tensor:
        """(count, channels, side, side) float32."""
        made = torch.empty(count, self.channels, self.side, self.side)
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=self.generator)
        places = torch.rand(count, 2, generator=self.generator)
        ways = torch.randint(8, (count,), generator=self.generator)
        for i, (which, way) in enumerate(zip(chosen.tolist(), ways.tolist(), strict=True)):
            image = self.images[which]
            top, left = (int(places[i, k] * (image.shape[k + 1] - self.side + 1)) for k in (0, 1))
            patch = image[:, top : top + self.side, left : left + self.side]
            patch = patch.flip([axis for axis, bit in ((1, 1), (2, 2)) if way & bit])
            made[i] = patch.transpose(1, 2) if way & 4 else patch
        return made


class _State:
    """The optimizer, the running mean and the counters of one training."""

    def __init__(self, network: Reconstruction, schedule: Schedule, statistics: Statistics | None) -> None:
        self.network, self.schedule, self.statistics = network, schedule, statistics
        self.followed = network.sensing.signs().cpu()
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(named.values())
        self.others = [p for name, p in named.items() if _rate(name, schedule) == 1]
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in named.items():
            groups.setdefault(_rate(name, schedule), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": members, "rate": rate} for rate, members in groups.items()],
            lr=schedule.lr,
            betas=(0.9, 0.99),
            eps=ADAM_EPSILON,
            weight_decay=0.0,
        )
        self.means = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []

    def advance(self, images: Tensor, half: bool) -> None:
        """One step on ``images`` (N, C, H, W)."""
        schedule, sensing = self.schedule, self.network.sensing
        done = self.step / schedule.steps
        rising = min(1.0, (self.step + 1) / (1 + schedule.warmup * schedule.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.lr * group["rate"] * rising * 0.5 * (1 + math.cos(math.pi * done))
        if sensing.learning is not None:
            sensing.learning.progress = done
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            made = self.network(images)
        error = F.mse_loss(made.float(), images)
        loss = error + schedule.penalty * sensing.penalty() if sensing.constraint is not None else error
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.others, schedule.clip)
        self.optimizer.step()
        self.losses.append(float(error.detach()))
        if not math.isfinite(self.losses[-1]):
            raise BadInput(f"training diverged at step {self.step + 1} (loss {self.losses[-1]}); lower lr")
        self.step += 1
        if self.step % FOLLOWED_EVERY == 0:
            self.follow()
        keep = min(schedule.averaging, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.means, [p.detach() for p in self.parameters], 1 - keep)

    def follow(self) -> None:
        """Move the linear estimate by what its closed form has moved since, on account of patterns that changed."""
        sensing = self.network.sensing
        if sensing.learning is None or self.statistics is None:
            return
        now = sensing.signs()
        if not torch.equal(now.cpu(), self.followed):
            before, after = (closed_form(sensing, self.statistics, rows) for rows in (self.followed.to(now), now))
            with torch.no_grad():
                sensing.expand.weight += (after - before)[:, :, None, None]
            self.followed = now.cpu()

    def recent(self) -> float:
        """The mean loss of the last tenth of the schedule."""
        last = self.losses[-max(1, self.schedule.steps // 10) :]
        return sum(last) / max(1, len(last))

    def finish(self) -> None:
        """Give the network the means."""
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.means, strict=True):
                parameter.copy_(mean)

    def save(self, patches: Patches) -> dict[str, Any]:
        """All that going on needs, tensors and plain values only."""
        return {
            "parameters": [p.detach() for p in self.parameters],
            "means": self.means,
            "optimizer": self.optimizer.state_dict(),
            "generator": patches.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "followed": self.followed,
        }

    def load(self, found: dict[str, Any], patches: Patches) -> None:
        """Go on from what :meth:`save` gave."""
        with torch.no_grad():
            for own, kept in ((self.parameters, found["parameters"]), (self.means, found["means"])):
                for parameter, value in zip(own, kept, strict=True):
                    parameter.copy_(value)
        self.optimizer.load_state_dict(found["optimizer"])
        patches.generator.set_state(found["generator"])
        self.step, self.seconds, self.losses = found["step"], found["seconds"], found["losses"]
        self.followed = found["followed"]


def _rate(name: str, schedule: Schedule) -> float:
    if name.startswith("sensing.learning"):
        return schedule.pattern_rate
    return schedule.estimate_rate if name.startswith("sensing.expand") else 1.0


def _read(path: Path | None, where: dict[str, Any]) -> dict[str, Any] | None:
    """A checkpoint of the same training; None where there is none, or another's."""
    if path is None or not path.is_file():
        return None
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found if found["where"] == where else None


def _write(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies in bfloat16 faster than in float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())
