"""A job: everything that was asked for, checked; what its candidates are made of, and what they cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from compress.data import Data
from compress.errors import BadInput
from compress.graph import costs
from compress.graph.operators import Operator
from compress.graph.trace import Network, trace
from compress.profiling import latency, memory
from compress.prune import roster as pruning
from compress.prune.finetune import FineTune
from compress.prune.goal import Goal
from compress.prune.protect import Protect
from compress.quantize import roster as quantizing
from compress.quantize.sensitivity import of_job
from compress.quantize.training import QuantizationAware
from compress.results import Estimate
from compress.search import Proposal, ladder
from compress.types import FLOAT32, Budget, Context, LayerSensitivity, Precision, Progress, Size, Stage, State, Target


@dataclass(frozen=True)
class Job:
    """What was asked for. ``prune`` and ``quantize`` are method names, None to leave that step out."""

    name: str
    model: nn.Module
    data: Data
    target: Target
    budget: Budget = Budget()
    seed: int = 0
    prune: str | None = pruning.DEFAULT
    quantize: str | None = quantizing.DEFAULT
    epochs: int = 0
    samples: int = 1024
    candidates: int = 8
    runtime: str | None = None
    device: str = "cpu"
    protect_classes: tuple[int, ...] = ()
    tune: float | None = None
    shared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def example(self) -> torch.Tensor:
        """Two training inputs, always the same ones."""
        return self.data.train.inputs(2, torch.Generator().manual_seed(0))

    @property
    def activation_bits(self) -> int:
        """Bits of activations in integer layers."""
        return self.budget.activation_bits or 8

    def proposals(self, least: tuple[float, float] = (0.0, 0.0)) -> tuple[Proposal, ...]:
        """The candidates to build; ``least`` are the smallest fractions of MACs and parameters that pruning reaches.

        Raises:
            BadInput: the target has no integer kernel with the activation bits that were asked for.
        """
        widths: tuple[int, ...] = ()
        if self.quantize is not None:
            integer = [
                p for p in self.target.precisions if p.kind == "integer" and p.activation_bits == self.activation_bits
            ]
            widths = tuple(sorted({p.weight_bits for p in integer}))
            if not widths:
                raise BadInput(
                    f"{self.target.name} has no integer kernels with {self.activation_bits}-bit activations; "
                    "choose another --activation-bits, or --quantize none"
                )
            widths = self._uniform_widths(widths)
        return ladder(
            self.candidates,
            prune=self.prune is not None,
            macs=self.budget.macs,
            params=self.budget.params,
            widths=widths,
            weight_bits=self.budget.weight_bits,
            least=least,
        )

    def _uniform_widths(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        cap = self.budget.weight_bits
        if cap is not None and cap < widths[0]:
            raise BadInput(
                f"an average of {cap:g} weight bits is out of reach: "
                f"{self.target.name}'s narrowest kernel takes {widths[0]}"
            )
        if self.quantize in quantizing.MIXING:
            return widths
        # One width for all layers: the widest within the cap.
        return (max(width for width in widths if cap is None or width <= cap),)

    def stages(self, proposal: Proposal) -> tuple[Stage, ...]:
        """The stages that make a proposal."""
        stages: list[Stage] = []
        shrinks = any(share is not None and share < 1 for share in (proposal.macs, proposal.params))
        if self.prune is not None and shrinks:
            stages.append(
                pruning.METHODS[self.prune](Goal(proposal.macs, proposal.params, tuned_after=self.epochs > 0))
            )
            if self.epochs:
                stages.append(FineTune(self.epochs))
        if self.quantize is not None and proposal.weight_bits is not None:
            # Training finds a place for one width everywhere by itself; only without it must rounding be good at once.
            plain = self.quantize in quantizing.MIXING and not proposal.mixed and self.epochs > 0
            method = "uniform" if plain else self.quantize
            stages.append(quantizing.METHODS[method](proposal.weight_bits, self.activation_bits))
            if self.epochs:
                stages.append(QuantizationAware(self.epochs))
        if stages and self.protect_classes:
            stages.append(Protect(self.protect_classes))
        return tuple(stages)

    def sensitivity(self, progress: Progress) -> tuple[LayerSensitivity, ...]:
        """That of the uncompressed network's layers; none where no candidate chooses widths by it."""
        chosen = (proposal.mixed for proposal in self.proposals())
        if self.quantize != quantizing.DEFAULT or not any(chosen):
            return ()
        return of_job(State(self.model), self.context("sensitivity", progress), self.activation_bits)

    def context(self, name: str, progress: Progress) -> Context:
        """What the stages of one candidate read. Its randomness depends on the seed and its own name
        only, so neither order nor interruptions change a candidate."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return Context(
            self.target,
            self.budget,
            self.data,
            generator,
            self.device,
            self.model,
            self.samples,
            progress,
            self.seed,
            self.shared,
        )


@dataclass(frozen=True)
class Assessment:
    """The cost models' word on one state."""

    network: Network
    operators: tuple[Operator, ...]
    precisions: dict[str, Precision]
    size: Size
    peak: memory.PeakMemory
    estimate: Callable[[int], Estimate]


def assess(state: State, target: Target, example: torch.Tensor) -> Assessment:
    """Sizes, peak memory and predicted latency of a state on a target."""
    network = trace(state.model, (example,))
    operators = costs.operators(network)
    quantization = state.quantization
    integer = {} if quantization is None else quantization.layer_bits
    precisions = {
        operator.path: state.plan.layer(operator.path).precision if operator.path in integer else FLOAT32
        for operator in operators
        if operator.weights
    }
    inputs = {name: example[0].numel() for name in network.inputs}
    size = costs.size(network, integer)
    weight_bytes = sum(-(-o.weights * precisions[o.path].weight_bits // 8) for o in operators if o.weights) + 4 * (
        size.params - sum(o.weights for o in operators)
    )
    tensor_bits: dict[str, int] = {}
    if quantization is not None:
        tensor_bits = {
            name: quantization.grid_of(name).bits for name in (*quantization.activations, *quantization.carried)
        }
    peak = memory.peak_ram(operators, tensor_bits, max(weight_bytes, 0), target, inputs=inputs)

    def estimate(flash_bytes: int) -> Estimate:
        return latency.predict(operators, precisions, target, peak.bytes, flash_bytes, inputs=inputs)

    return Assessment(network, operators, precisions, size, peak, estimate)


__all__ = ["Assessment", "Job", "assess"]
