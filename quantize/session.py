"""A session: what ``compress.attach`` returns where it quantizes, beside a user's optimizer.

The session listens to the optimizer's steps. In the warm-up the network trains in float, and the session keeps the
inputs that it is called with. Then the network is quantized as :func:`compress.quantize.quantize` does it, and from
there on the user's own module computes with quantizers (:mod:`compress.quantize.substitute`). The scales are the
session's, and take steps of Adam's; everything else is the user's.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress import data as datasets
from compress.data import Data
from compress.errors import BadInput
from compress.graph import costs
from compress.graph.fold import fold_batch_norm, foldable
from compress.graph.qdq import insert
from compress.graph.trace import Network, trace
from compress.graph.traces import traced
from compress.quantize import roster
from compress.quantize.api import Quantized
from compress.quantize.progressive import activate, groups, quantized_groups
from compress.quantize.quantizers import FOLDER, SCALE_RATE, learned, with_quantizers
from compress.quantize.ranges import rounded_, unrounded_
from compress.quantize.substitute import Substitute
from compress.serial import from_json, to_json
from compress.types import Budget, Context, Note, Plan, Quantization, Record, State, Target

LABEL = "quantize while training"

SAMPLES = 1024
"""Calibration inputs at most."""


@dataclass(frozen=True)
class Asked:
    """What :func:`compress.quantize.attach.attach` was asked for; ``warmup`` in steps."""

    weight_bits: float
    activation_bits: int
    method: str
    steps: int
    warmup: int
    progressive: bool
    target: Target
    seed: int


@dataclass
class Running:
    """What there is once the network is quantized.

    Attributes:
        substitute: what the user's model computes.
        network: the trace of the folded network.
        plan, quantization, notes: as the quantization before training gave them.
        order: the quantized weights by block, one group if not progressive.
        scales: the optimizer of the scales.
        rate: the user's highest learning rate so far.
        example: two inputs, for traces.
    """

    substitute: Substitute
    network: Network
    plan: Plan
    quantization: Quantization
    notes: tuple[Note, ...]
    order: tuple[tuple[str, ...], ...]
    scales: torch.optim.Optimizer
    rate: float
    example: Tensor


class Session:
    """A training run that quantizes; a context manager, made by :func:`compress.attach`.

    Inside the ``with`` block, :meth:`step` takes the place of ``optimizer.step()`` (which does the same). With
    ``torch.amp.GradScaler`` use ``scaler.step(session)``, or the optimizer. After the block the model computes in float
    again, with the parameters that training found.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, asked: Asked, data: Data | None) -> None:
        self.model, self.optimizer, self.asked = model, optimizer, asked
        self._data = data
        self._seen: list[Tensor] = []
        self._hooks: list[Any] = []
        self._catching: Any = None
        self._open = False
        self._running: Running | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._steps, self._seconds = 0, 0.0

    # --- the training loop's side -------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        self._open = True
        self._hooks.append(self.optimizer.register_step_post_hook(self._stepped))
        if self._loaded is not None:
            self._resume(self._loaded)
        if self._running is not None:
            self._running.substitute.attach()
        elif self._steps >= self.asked.warmup:
            self._begin()
        elif self._data is None:
            self._catching = self.model.register_forward_pre_hook(self._catch)
        return self

    def __exit__(self, *details: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._stop_catching()
        if self._running is not None:
            self._running.substitute.detach()
        self._open = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The optimizer's step and the scales'. Returns what the optimizer's does.

        Raises:
            BadInput: outside the ``with`` block; at the end of the warm-up, what :func:`compress.quantize.quantize`
                raises.
        """
        if not self._open:
            raise BadInput("the session isn't open: with compress.attach(...) as session, and step inside the block")
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The optimizer's, and that of the scales."""
        self.optimizer.zero_grad(set_to_none)
        if self._running is not None:
            self._running.scales.zero_grad()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self.optimizer.param_groups

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return self._steps

    @property
    def quantized_layers(self) -> int:
        """How many layers' weights are quantized in training now."""
        if self._running is None:
            return 0
        return sum(len(names) for names in self._running.order[: self._groups(self._running)])

    @property
    def notes(self) -> tuple[Note, ...]:
        """What stays float or is treated in another way, and why; empty in the warm-up."""
        return self._running.notes if self._running is not None else ()

    # --- the optimizer's side -----------------------------------------------------------------------------------------

    def _catch(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        # What a user evaluates on must not become calibration data.
        if module.training and torch.is_grad_enabled() and arguments and isinstance(arguments[0], Tensor):
            self._seen.append(arguments[0].detach().cpu())
            while sum(len(x) for x in self._seen[1:]) >= SAMPLES:
                self._seen.pop(0)

    def _stop_catching(self) -> None:
        if self._catching is not None:
            self._catching.remove()
            self._catching = None

    def _stepped(self, *unused: Any) -> None:
        clock = time.perf_counter()
        self._steps += 1
        running = self._running
        if running is None:
            if self._steps >= self.asked.warmup:
                self._begin()
        else:
            self._step_scales(running)
            activate(running.substitute.student, running.order, self._groups(running))
        self._seconds += time.perf_counter() - clock

    def _step_scales(self, running: Running) -> None:
        now = max((float(group["lr"]) for group in self.optimizer.param_groups), default=0.0)
        running.rate = max(running.rate, now)
        parameters = [p for group in running.scales.param_groups for p in group["params"] if p.grad is not None]
        # A gradient scaler's overflow reaches the scales' gradients too.
        if all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
            for group in running.scales.param_groups:
                group["lr"] = SCALE_RATE * now / running.rate if running.rate > 0 else 0.0
            running.scales.step()
        running.scales.zero_grad()

    def _groups(self, running: Running) -> int:
        asked = self.asked
        return quantized_groups(self._steps - asked.warmup, asked.steps - asked.warmup, len(running.order))

    # --- from float to quantized --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Calibrate, choose widths, round; from here on the user's model computes with quantizers."""
        self._stop_catching()
        asked = self.asked
        data = self._data
        if data is None:
            if not self._seen:
                raise BadInput(
                    "the model has not been called in training mode with a tensor before the first step; give data="
                )
            data = datasets.from_python(torch.cat(self._seen), divisible=False)
        self._seen.clear()
        generator = torch.Generator().manual_seed(asked.seed)
        device = next(self.model.parameters()).device
        context = Context(asked.target, Budget(), data, generator, device=device.type, samples=SAMPLES, seed=asked.seed)
        inputs = data.train.inputs(SAMPLES, torch.Generator().manual_seed(asked.seed))
        plain = _without_gradients(self.model)
        whole = traced(plain, (inputs[:2],), context.shared)
        stage = roster.METHODS[asked.method](asked.weight_bits, asked.activation_bits)
        state = stage(State(plain, Plan(seed=asked.seed)), context)
        assert state.quantization is not None
        network, student = _student(state.model, state.quantization, inputs[:2])
        weights: tuple[tuple[str, ...], ...] = (tuple(state.quantization.weights),)
        if asked.progressive:
            weights = groups(state.model, network, state.quantization, inputs, generator, context.progress)
        folds, _ = foldable(plain, whole)
        substitute = Substitute(self.model, student.to(device), folds)
        start = copy.deepcopy(state.model)
        unrounded_(start, fold_batch_norm(plain, whole)[0], state.quantization.weights)
        substitute.put(start)
        self._start(substitute, network, state.plan, state.quantization, state.notes, weights, inputs[:2].clone())

    def _start(
        self,
        substitute: Substitute,
        network: Network,
        plan: Plan,
        quantization: Quantization,
        notes: tuple[Note, ...],
        order: tuple[tuple[str, ...], ...],
        example: Tensor,
    ) -> None:
        scales = torch.optim.Adam(substitute.student.get_submodule(FOLDER).parameters(), lr=SCALE_RATE)
        self._running = Running(substitute, network, plan, quantization, notes, order, scales, 0.0, example)
        activate(substitute.student, order, self._groups(self._running))
        if self._open:
            substitute.attach()

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model's and the optimizer's own ``state_dict``."""
        running = self._running
        if running is None:
            if self._loaded is not None:
                return dict(self._loaded)
            return {"steps": self._steps, "seen": list(self._seen)}
        return {
            "steps": self._steps,
            "plan": to_json(running.plan),
            "quantization": to_json(running.quantization),
            "notes": [to_json(note) for note in running.notes],
            "order": [list(names) for names in running.order],
            "example": running.example,
            "rate": running.rate,
            "quantizers": running.substitute.student.get_submodule(FOLDER).state_dict(),
            "scales": running.scales.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, after the model's and the optimizer's own ``load_state_dict``.

        Raises:
            BadInput: the session has taken steps already, or the checkpoint is of another network.
        """
        if self._steps:
            raise BadInput("the session has taken steps already; load the checkpoint into a fresh one")
        self._resume(state)
        if self._open and self._running is not None:
            self._stop_catching()

    def _resume(self, state: Mapping[str, Any]) -> None:
        self._loaded, self._steps = None, int(state["steps"])
        if "plan" not in state:
            self._seen = list(state["seen"])
            return
        plan, quantization = from_json(Plan, state["plan"]), from_json(Quantization, state["quantization"])
        example = state["example"]
        plain = _without_gradients(self.model)
        whole = trace(plain, (example,))
        folds, _ = foldable(plain, whole)
        folded, _ = fold_batch_norm(plain, whole)
        names = {name for name, _ in folded.named_parameters(remove_duplicate=False)}
        if not set(quantization.weights) <= names:
            raise BadInput("the session's checkpoint is of another network; attach to the one it was made with")
        network, student = _student(folded, quantization, example)
        substitute = Substitute(self.model, student.to(next(self.model.parameters()).device), folds)
        notes = tuple(from_json(Note, note) for note in state["notes"])
        order = tuple(tuple(names) for names in state["order"])
        self._start(substitute, network, plan, quantization, notes, order, example)
        assert self._running is not None
        student.get_submodule(FOLDER).load_state_dict(state["quantizers"])
        self._running.scales.load_state_dict(copy.deepcopy(state["scales"]))
        self._running.rate = float(state["rate"])

    # --- the result ---------------------------------------------------------------------------------------------------

    def result(self) -> Quantized:
        """The quantized network, as :func:`compress.quantize.quantize` returns it; the trained one is not changed.

        Its weights lie on the grids that training found; its simulation computes what the model computed in training,
        bit for bit, if every group of weights has been reached.

        Raises:
            BadInput: the warm-up isn't over.
        """
        running = self._running
        if running is None:
            raise BadInput(
                f"nothing is quantized after {self._steps} steps, the warm-up is {self.asked.warmup}; "
                "call session.step() in the training loop, or give data= and warmup=0"
            )
        asked = self.asked
        plain = _without_gradients(self.model)
        whole = trace(plain, (running.example,))
        model, _ = fold_batch_norm(plain, whole)
        student = copy.deepcopy(running.substitute.student).cpu()
        quantization = learned(student, running.quantization)
        rounded_(model.eval(), quantization.weights)
        network = trace(model, (running.example,))
        notes = running.notes
        reached = self._groups(running)
        if reached < len(running.order):
            left = sum(len(names) for names in running.order[reached:])
            why = f"not yet quantized in training after {self._steps} steps, rounded all the same"
            notes = (*notes, Note("", f"{left} of {len(quantization.weights)} weights", why))
        settings = {
            "weight_bits": asked.weight_bits,
            "activation_bits": asked.activation_bits,
            "method": asked.method,
            "steps": self._steps,
            "warmup": asked.warmup,
            "progressive": asked.progressive,
        }
        before, after = costs.size(whole), costs.size(network, quantization.layer_bits)
        report = Record(LABEL, settings, self._seconds, before, after, notes)
        state = State(model, running.plan, (report,), quantization, notes)
        return Quantized(model, insert(network, quantization), running.plan, report, state)


def _student(folded: nn.Module, quantization: Quantization, example: Tensor) -> tuple[Network, fx.GraphModule]:
    network = trace(folded, (example,))
    return network, with_quantizers(network, quantization).train()


def _without_gradients(model: nn.Module) -> nn.Module:
    """A float copy of the user's module, on the CPU and in evaluation mode."""
    forward = model.__dict__.pop("forward", None)
    try:
        made = copy.deepcopy(model).cpu().eval()
    finally:
        if forward is not None:
            model.__dict__["forward"] = forward
    for parameter in made.parameters():
        parameter.grad = None
    return made
