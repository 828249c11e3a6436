"""The project's words as frozen values: what a device is, what is asked for, and what is planned.

Units stand in the field names (``_s`` seconds, ``_bytes`` bytes); ratios are fractions kept, in
(0, 1]. What was *found* (accuracy, latency, candidates, the front) is in :mod:`compress.results`.
Everything that reaches a disk goes through :mod:`compress.serial` and comes back equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from compress.calibration import Calibration

if TYPE_CHECKING:
    import torch

    from compress.data import Data

Kind = Literal["integer", "binary", "float"]
Signedness = Literal["unsigned", "signed"]
Evidence = Literal["datasheet", "measured", "derived", "assumed"]


@dataclass(frozen=True, order=True, slots=True)
class Precision:
    """Number format of one layer: bits of its weights, bits of its input activations."""

    weight_bits: int = 32
    activation_bits: int = 32
    kind: Kind = "float"

    def __str__(self) -> str:
        if self.kind == "float":
            return f"float{self.weight_bits}"
        return f"W{self.weight_bits}A{self.activation_bits}" + (" binary" if self.kind == "binary" else "")


FLOAT32, FLOAT16 = Precision(), Precision(16, 16, "float")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a number about a device comes from.

    ``evidence`` says how much it is worth: a data sheet's figure, a measurement, derived from data
    sheet figures (``source`` says how), or assumed.
    """

    source: str
    date: str
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory of a device. ``bandwidth_bytes_per_s`` is None where unknown."""

    name: str
    bytes: int
    bandwidth_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """Peak multiply-accumulates a second at one precision; ``efficiency`` is the share of the peak
    that real convolutions reach, in (0, 1]."""

    precision: Precision
    macs_per_s: float
    efficiency: float


@dataclass(frozen=True)
class Target:
    """A device and the way code reaches it, read from ``targets/NAME.toml``.

    Attributes:
        name: canonical name; ``aliases`` are accepted for it.
        title: the device's full name, for people.
        runtime: the runtime that its figures stand for; one of ``runtimes``.
        runtimes: every runtime that a bundle for it may hold, best first.
        host: True where the device is the machine that this runs on.
        memories: name, size and bandwidth of each memory.
        macs_per_s: peak rates by precision; a precision that isn't listed has no fast kernel.
        bandwidth_bytes_per_s: of the memory that weights and activations stream from.
        launch_overhead_s: fixed time of one operator.
        ram_bytes: limit for activations, and for weights too where ``weights_in_ram``.
        flash_bytes: limit for the shipped file; None where storage is no limit.
        weights_in_ram: True where the weights are loaded to RAM, False where they are read in place.
        channel_multiple: channel counts that the device's kernels like.
        activations: of the files: unsigned with a zero point, or signed symmetric. What a library computes with is the
            instruction set's affair: integers and zero points less 128 are the same.
        triple, cpu: what compiled code is made for; None where the runtime decides.
        gpu: NVIDIA's name of the GPU's architecture (``"sm_87"``), which CUDA code is compiled for; None without one.
        accelerators: what else runs networks there: ``"dla"``.
        prediction_error: relative half-width of an uncalibrated latency prediction.
        sources: for each field that is a number, where it comes from.
        measured_on: date of the last measurement on the real device; None if nobody measured there.
        calibration: prices that were fitted on a device of this kind; None where predictions rest on the numbers above.
    """

    name: str
    title: str
    runtime: str
    runtimes: tuple[str, ...]
    host: bool
    memories: tuple[Memory, ...]
    macs_per_s: tuple[Rate, ...]
    bandwidth_bytes_per_s: float
    launch_overhead_s: float
    ram_bytes: int
    flash_bytes: int | None
    weights_in_ram: bool
    channel_multiple: int
    activations: Signedness
    triple: str | None
    cpu: str | None
    prediction_error: float
    sources: Mapping[str, Source]
    measured_on: str | None
    aliases: tuple[str, ...] = ()
    gpu: str | None = None
    accelerators: tuple[str, ...] = ()
    calibration: Calibration | None = None

    @property
    def bare_metal(self) -> bool:
        """Whether it has no operating system, so that compiled code is all that runs there."""
        return self.triple is not None and "linux" not in self.triple

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that the device has kernels for."""
        return tuple(rate.precision for rate in self.macs_per_s)


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits that a candidate must meet; None is unconstrained.

    Attributes:
        latency_s: seconds for one input.
        ram_bytes, flash_bytes: peak working memory, size of the shipped file.
        macs, params: fractions kept, in (0, 1].
        weight_bits: average over every convolution and linear layer, first and last included:
            ``sum(bits * weights) / sum(weights)``. A cap, in [1, 32].
        activation_bits: bits of activations at most, in [1, 32].
        bit_operations: for one input: the sum over every convolution and linear layer of multiply-accumulates times
            weight bits times activation bits.
        max_accuracy_drop: points (percent, or dB) below the float network.
    """

    latency_s: float | None = None
    ram_bytes: int | None = None
    flash_bytes: int | None = None
    macs: float | None = None
    params: float | None = None
    weight_bits: float | None = None
    activation_bits: int | None = None
    max_accuracy_drop: float | None = None
    bit_operations: int | None = None

    def on(self, target: Target) -> Budget:
        """The same, and no more memory than the device has."""
        return replace(
            self,
            ram_bytes=_least(self.ram_bytes, target.ram_bytes),
            flash_bytes=_least(self.flash_bytes, target.flash_bytes),
        )


def _least(limit: int | None, there: int | None) -> int | None:
    return min((each for each in (limit, there) if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        name: module path of the layer in the user's network.
        keep: indices of the output channels that stay, ascending; None keeps all.
        precision: its number format.
    """

    name: str
    keep: tuple[int, ...] | None = None
    precision: Precision = FLOAT32


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of every layer, in the order in which they run, and the seed it came from."""

    layers: tuple[LayerPlan, ...] = ()
    seed: int = 0

    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, in hexadecimal: equal plans, equal digests."""
        from compress.serial import to_json

        text = json.dumps(to_json(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def layer(self, name: str) -> LayerPlan:
        """The plan of one layer; one that isn't listed stays as it is."""
        return next((layer for layer in self.layers if layer.name == name), LayerPlan(name))

    def updated(self, *layers: LayerPlan) -> Plan:
        """A new plan in which each of ``layers`` replaces its namesake or is added at the end."""
        new = {layer.name: layer for layer in self.layers} | {layer.name: layer for layer in layers}
        return replace(self, layers=tuple(new.values()))


@dataclass(frozen=True, slots=True)
class Grid:
    """An affine integer grid: ``real = scale * (integer - zero_point)``.

    Attributes:
        scale: one number a tensor, or one an index of ``axis``; above 0.
        zero_point: the integer that stands for 0.0; 0 for weights.
        bits: width; integers lie in [-2^(bits-1), 2^(bits-1) - 1] if signed, else [0, 2^bits - 1]. One signed bit
            is -1 or 1, never 0.
        signed: see ``bits``.
        axis: the axis that ``scale`` runs along; None for one scale a tensor.
        narrow: True leaves out the most negative integer, so that weights are symmetric.
    """

    scale: tuple[float, ...]
    zero_point: int
    bits: int
    signed: bool
    axis: int | None = None
    narrow: bool = False

    @property
    def low(self) -> int:
        """The smallest integer of the grid."""
        if self.signed and self.bits == 1:
            return -1
        return -(1 << (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def high(self) -> int:
        """The largest integer of the grid."""
        if self.signed and self.bits == 1:
            return 1
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True)
class Quantization:
    """The grids of a quantized network.

    Attributes:
        weights: by parameter name (``"layers.0.conv1.weight"``).
        activations: by the name of the traced node that makes the tensor.
        carried: node -> the node in ``activations`` whose grid it takes, as it only moves its values.
    """

    weights: Mapping[str, Grid] = field(default_factory=dict)
    activations: Mapping[str, Grid] = field(default_factory=dict)
    carried: Mapping[str, str] = field(default_factory=dict)

    @property
    def layer_bits(self) -> dict[str, int]:
        """Bits of each layer's weights, by module path: ``"layers.0.conv1"``."""
        return {name.removesuffix(".weight"): grid.bits for name, grid in self.weights.items()}

    def grid_of(self, node: str) -> Grid:
        """The grid of a node's tensor, its own or the one it carries."""
        return self.activations[self.carried.get(node, node)]


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a network: multiply-accumulates for one input, parameters, average bits."""

    macs: int
    params: int
    weight_bits: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something left alone, skipped or approximated: ``where`` (a module path or node), ``what``
    (the operator or the parameter) and ``why``."""

    where: str
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """How much a network's loss depends on one layer's weights.

    Attributes:
        name: module path of the layer.
        kind: ``"conv2d"``, ``"linear"``...
        weights: elements of its weight.
        trace: of its block of the Hessian, by its weights.
        trace_error: the trace's standard error.
        eigenvalue: the block's largest, on a quarter of the trace's inputs.
        perturbations: (bits, expected increase of the loss by rounding this layer alone), narrowest first; in nats for
            classification, else of half the squared error over the output's mean square.
    """

    name: str
    kind: str
    weights: int
    trace: float
    trace_error: float
    eigenvalue: float
    perturbations: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What one stage did: its name and settings, for how long, the sizes before and after."""

    stage: str
    settings: Mapping[str, Any]
    seconds: float
    before: Size
    after: Size
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class State:
    """What flows from stage to stage. Stages return a new one and never change the model in place."""

    model: torch.nn.Module
    plan: Plan = Plan()
    records: tuple[Record, ...] = ()
    quantization: Quantization | None = None
    notes: tuple[Note, ...] = ()


FIRST = "first network"
"""The key of :attr:`Context.shared` for the state that every candidate of a job begins with, where stages make it."""


@dataclass(frozen=True)
class Context:
    """What every stage may read.

    Attributes:
        target: the device.
        budget: what was asked for.
        data: training and calibration inputs (the evaluation split is not for stages).
        generator: the only source of randomness, on the CPU.
        device: where to compute: ``"cpu"`` or ``"cuda"``.
        teacher: the uncompressed network, for distillation and reconstruction.
        samples: how many training inputs calibration may look at.
        progress: called with a short line about what is happening.
        seed: of the job; what all its candidates share is drawn from it, not from ``generator``.
        shared: what stages keep for the other candidates of the same job; never part of a result.
        file_bytes: the size of the file that a state is shipped as; None where nobody ships it.
    """

    target: Target
    budget: Budget
    data: Data
    generator: torch.Generator
    device: str = "cpu"
    teacher: torch.nn.Module | None = None
    samples: int = 1024
    progress: Progress = lambda message: None
    seed: int = 0
    shared: dict[Any, Any] = field(default_factory=dict)
    file_bytes: Callable[[State], int] | None = None


class Progress(Protocol):
    """Told what is happening, in a short line."""

    def __call__(self, message: str, /) -> None:
        """Tell it."""


class Stage(Protocol):
    """A frozen dataclass whose fields are its hyperparameters, called on a state."""

    def __call__(self, state: State, context: Context, /) -> State:
        """The state after this stage."""
