"""A job: everything that was asked for, checked; what its candidates are made of, and what they cost."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from compress.data import Data
from compress.errors import BadInput
from compress.export import onnx as interchange
from compress.export.onnxruntime import weight_storage
from compress.graph import costs
from compress.graph.operators import Operator
from compress.graph.trace import Network
from compress.graph.traces import traced
from compress.profiling import latency, memory
from compress.prune import roster as pruning
from compress.prune.depth import Depth, depths
from compress.prune.finetune import FineTune
from compress.prune.goal import Goal
from compress.prune.protect import Protect
from compress.quantize import roster as quantizing
from compress.quantize.choices import stored_bits
from compress.quantize.mixed import default_activation_bits, integer_precisions, integer_widths
from compress.quantize.sense import Sense
from compress.quantize.sensitivity import of_job
from compress.quantize.training import ENOUGH, QuantizationAware
from compress.results import Estimate
from compress.search import Proposal, ladder
from compress.types import (
    FLOAT32,
    Budget,
    Context,
    LayerSensitivity,
    Note,
    Precision,
    Progress,
    Size,
    Stage,
    State,
    Target,
)

COMPILED = "tvm"
"""The runtime whose instructions are counted."""


@dataclass(frozen=True)
class Job:
    """What was asked for. ``prune`` and ``quantize`` are method names, None to leave that step out.

    ``sense`` gives the network's sensing layer its patterns, in front of everything else and for the float network
    too; ``teacher`` is what every candidate learns from: by default the network itself, if ``sense`` doesn't train it.
    """

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
    notes: tuple[Note, ...] = ()
    sense: Sense | None = None
    teacher: nn.Module | None = None
    shared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def example(self) -> torch.Tensor:
        """Two training inputs, always the same ones."""
        return self.data.train.inputs(2, torch.Generator().manual_seed(0))

    def proposals(self, least: tuple[float, float] = (0.0, 0.0)) -> tuple[Proposal, ...]:
        """The candidates to build; ``least`` are the smallest fractions of MACs and parameters that pruning reaches.

        Raises:
            BadInput: the target has no integer kernel with the activation bits that were asked for.
        """
        return ladder(
            self.candidates,
            prune=self.prune is not None,
            macs=self.budget.macs,
            params=self.budget.params,
            widths=self.search_widths(),
            weight_bits=self.budget.weight_bits,
            least=least,
            limited=self.limited,
        )

    @property
    def activation_bits(self) -> int:
        """Bits of activations in integer layers, at most: 8, or the most that the target runs, if none were given."""
        if self.budget.activation_bits is not None:
            return self.budget.activation_bits
        return default_activation_bits(self.target)

    @property
    def limited(self) -> bool:
        """True if candidates choose bits under the budget's limits on file, RAM, latency or bit operations."""
        budget = self.budget
        limits = (budget.flash_bytes, budget.ram_bytes, budget.latency_s, budget.bit_operations)
        return (
            self.quantize in quantizing.LIMITED
            and any(limit is not None for limit in limits)
            and len(integer_precisions(self.target, self.activation_bits)) > 1
        )

    def widths(self) -> tuple[int, ...]:
        """The weight widths that candidates can have, narrowest first.

        Raises:
            BadInput: the target has no integer kernel with the activation bits that were asked for.
        """
        if self.quantize in quantizing.LIMITED:
            found = {precision.weight_bits for precision in integer_precisions(self.target, self.activation_bits)}
            return tuple(sorted(found))
        return integer_widths(self.target, self.activation_bits)

    def search_widths(self) -> tuple[int, ...]:
        """The weight widths that averages lie between, narrowest first; none where networks stay in float.

        Raises:
            BadInput: the average that was asked for is below the target's narrowest, or as :meth:`widths`.
        """
        if self.quantize is None:
            return ()
        widths = self.widths()
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

    @property
    def first(self) -> tuple[Stage, ...]:
        """The stages that every candidate begins with: all that make the float network."""
        return () if self.sense is None else (self.sense,)

    def stages(self, proposal: Proposal) -> tuple[Stage, ...]:
        """The stages that make a proposal."""
        stages: list[Stage] = [*self.first]
        if self.prune is not None and proposal.shrinks:
            goal = self.goal(proposal)
            stages.append(Depth(goal, proposal.blocks) if proposal.blocks else pruning.METHODS[self.prune](goal))
            if self.epochs:
                stages.append(FineTune(self.epochs))
        if self.quantize is not None and proposal.weight_bits is not None:
            # Training finds a place for one width everywhere by itself; only without it must rounding be good at once.
            plain = self.quantize in quantizing.MIXING and not proposal.mixed and self.epochs > 0
            method = "uniform" if plain else self.quantize
            stages.append(quantizing.METHODS[method](proposal.weight_bits, self.activation_bits, nearest=True))
            if self.epochs:
                stages.append(QuantizationAware(self.epochs, enough=ENOUGH))
        if stages and self.protect_classes:
            stages.append(Protect(self.protect_classes))
        return tuple(stages)

    def goal(self, proposal: Proposal) -> Goal:
        """What pruning has to reach for a proposal; its latency is that of the precision and runtime to come."""
        goal = Goal(proposal.macs, proposal.params, tuned_after=self.epochs > 0)
        if proposal.latency is None:
            return goal
        precision, runtime = self.precision, self.judged_runtime
        whole = reference(self)
        seconds = self.seconds(whole.operators, whole.inputs, precision, runtime)
        return replace(goal, latency_s=proposal.latency * seconds, precision=precision, runtime=runtime)

    def depths(self, progress: Progress) -> tuple[int, ...]:
        """The numbers of residual blocks that candidates may lack; none where pruning isn't by reconstruction, which
        alone makes up for them."""
        if self.prune != pruning.DEFAULT or self.sense is not None:
            return ()
        return depths(State(self.model), Goal(), self.context("outlook", progress))

    def depth(self, blocks: int) -> Depth:
        """The stage that leaves out so many blocks and no channel."""
        return Depth(Goal(tuned_after=self.epochs > 0), blocks)

    @property
    def precision(self) -> Precision:
        """The widest one that candidates' layers have."""
        if self.quantize is None:
            return FLOAT32
        return Precision(self.widths()[-1], self.activation_bits, "integer")

    @property
    def judged_runtime(self) -> str:
        """The runtime by whose latency pruning chooses: of those that are compared the fastest by prediction."""
        whole, precision = reference(self), self.precision
        return min(
            self.compared_runtimes, key=lambda name: self.seconds(whole.operators, whole.inputs, precision, name)
        )

    @property
    def compared_runtimes(self) -> tuple[str, ...]:
        """The runtimes whose predictions tell one from another: the one that was asked for, or those that were
        calibrated in seconds; else the target's own, as the data sheet's numbers are the same for all."""
        if self.runtime is not None:
            return (self.runtime,)
        known, kind = self.target.calibration, self.precision.kind
        fitted = () if known is None or known.unit != "s" else self.target.runtimes
        return tuple(name for name in fitted if known and known.fit(name, kind) is not None) or (self.target.runtime,)

    @property
    def guesses_overhead(self) -> bool:
        """Whether what a runtime spends on starting operators and moving tensors is unknown: nothing was measured on
        the device, and a runtime of the job takes operators one by one, as compiled code doesn't."""
        known = self.target.calibration
        runtimes = (self.runtime,) if self.runtime is not None else self.target.runtimes
        return (known is None or known.unit != "s") and any(name != COMPILED for name in runtimes)

    def seconds(
        self,
        operators: Sequence[Operator],
        inputs: Mapping[str, int],
        precision: Precision | Mapping[str, Precision],
        runtime: str,
    ) -> float:
        """Predicted for one input of a network, with all layers in one precision or each in its own."""
        if isinstance(precision, Precision):
            precision = {each.path: precision for each in operators if each.weights}
        return latency.predict(operators, precision, self.target, 0, 0, inputs=inputs, runtime=runtime).latency_s

    @property
    def chooses_by_sensitivity(self) -> bool:
        """Whether candidates choose their layers' widths by the network's sensitivity."""
        return self.quantize == quantizing.DEFAULT and any(proposal.mixed for proposal in self.proposals())

    def sensitivity(self, progress: Progress) -> tuple[LayerSensitivity, ...]:
        """That of the uncompressed network's layers; none where no candidate chooses widths by it."""
        if not self.chooses_by_sensitivity or self.sense is not None:
            return ()  # before the patterns are there, it says nothing
        return of_job(State(self.model), self.context("sensitivity", progress), self.activation_bits)

    def context(self, name: str, progress: Progress) -> Context:
        """What stages read. Outside of :func:`compress.pipeline.run`, which gives each stage randomness of its own,
        its generator depends on the seed and ``name``."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return Context(
            self.target,
            self.budget,
            self.data,
            generator,
            self.device,
            self.teacher if self.teacher is not None or self.sense is not None else self.model,
            self.samples,
            progress,
            self.seed,
            self.shared,
            lambda state: len(interchange.serialize(state, self.example, weights=weight_storage(self.target))),
        )


class Estimator(Protocol):
    """Predicts for one file of a state."""

    def __call__(self, flash_bytes: int, runtime: str | None = None) -> Estimate:
        """The estimate of a file of so many bytes in a runtime, the target's own by default."""


@dataclass(frozen=True)
class Assessment:
    """The cost models' word on one state.

    Attributes:
        precisions: of each layer with weights, by module path.
        inputs: elements of each of the network's inputs.
        grids: the traced nodes whose results are integers.
        estimate: the prediction for a file of so many bytes.
    """

    network: Network
    operators: tuple[Operator, ...]
    precisions: dict[str, Precision]
    size: Size
    peak: memory.PeakMemory
    estimate: Estimator
    inputs: dict[str, int]
    grids: frozenset[str]


def assess(
    state: State, target: Target, example: torch.Tensor, shared: MutableMapping[Any, Any] | None = None
) -> Assessment:
    """Sizes, peak memory and predicted latency of a state on a target; ``shared`` is what a job's candidates share."""
    network = traced(state.model, (example,), {} if shared is None else shared)
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
    weights = {operator.path: operator.weights for operator in operators if operator.weights}
    weight_bytes = sum(-(-n * stored_bits(precisions[path].weight_bits) // 8) for path, n in weights.items()) + 4 * (
        size.params - sum(weights.values())
    )
    tensor_bits: dict[str, int] = {}
    if quantization is not None:
        tensor_bits = {
            name: quantization.grid_of(name).bits for name in (*quantization.activations, *quantization.carried)
        }
    peak = memory.peak_ram(operators, tensor_bits, max(weight_bytes, 0), target, inputs=inputs)

    def estimate(flash_bytes: int, runtime: str | None = None) -> Estimate:
        found = latency.predict(operators, precisions, target, peak.bytes, flash_bytes, inputs=inputs, runtime=runtime)
        if target.calibration is None or (runtime or target.runtime) != COMPILED:
            return found
        counted = latency.predicted_instructions(operators, precisions, target.calibration, inputs=inputs)
        if counted is None:
            return found
        # The seconds stay those of the target's own numbers: a count of instructions is no time.
        return replace(found, instructions=counted[0], instructions_error=counted[1])

    grids = frozenset(name for name, bits in tensor_bits.items() if bits < FLOAT32.activation_bits)
    return Assessment(network, operators, precisions, size, peak, estimate, inputs, grids)


def reference(job: Job) -> Assessment:
    """That of the uncompressed network, found once a job."""
    if "reference" not in job.shared:
        job.shared["reference"] = assess(State(job.model), job.target, job.example, job.shared)
    found: Assessment = job.shared["reference"]
    return found


__all__ = ["Assessment", "Job", "assess", "reference"]
