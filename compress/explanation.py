"""Where a network's time goes on a device, layer by layer, and why: what ``compress explain`` prints.

Times are predicted, or measured where somebody measured them by layer; a layer has both, apart, and
:attr:`LayerWork.time_s` says which one counts. What would help is always a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress.types import Precision

Why = Literal[
    "memory-bound",
    "launch-bound",
    "misaligned",
    "unfused",
    "no fast kernel",
    "float island",
    "dominated",
    "compute-bound",
]
Change = Literal["bits", "channels", "block", "runtime"]


@dataclass(frozen=True, slots=True)
class LayerWork:
    """One operator, with what is fused into it, against the device's roofline, for one input.

    Attributes:
        name: module path, or the traced operator where several share one.
        operator: the traced operator; :class:`~compress.results.LayerCost` has the same name.
        kind: ``"conv2d"``, ``"linear"``, ``"add"``...
        in_channels, out_channels: of a layer with weights, else 0.
        macs: multiply-accumulates; ``padded_macs`` are those that kernels carry out when they fill channels up.
        bytes: weights, inputs and output, once each, as they move.
        precision: planned; ``computed_as`` is that of the kernel which the device has for it.
        macs_per_s: what that kernel reaches.
        wider_macs_per_s: what the kernel of the next wider precision reaches; None where there is none.
        compute_s, memory_s, launch_s: the roofline's three times, by the target's numbers.
        predicted_s: by the latency model.
        unfused: an activation or a batch norm that runs by itself, as the layer in front of it has other readers.
        float_island: in float32 though the layers around it are integers; ``float_because`` is what was noted when that
            was decided, empty where nothing was.
        macs_before, predicted_before_s: of the same layer of the float network; None where there was none.
        measured_s, measured_before_s: by the runtime's own clock; None where nobody measured.
    """

    name: str
    operator: str
    kind: str
    in_channels: int
    out_channels: int
    macs: int
    padded_macs: int
    bytes: int
    precision: Precision
    computed_as: Precision
    macs_per_s: float
    wider_macs_per_s: float | None
    compute_s: float
    memory_s: float
    launch_s: float
    predicted_s: float
    unfused: bool = False
    float_island: bool = False
    float_because: str = ""
    macs_before: int | None = None
    predicted_before_s: float | None = None
    measured_s: float | None = None
    measured_before_s: float | None = None

    @property
    def time_s(self) -> float:
        """Measured if it was, else predicted."""
        return self.predicted_s if self.measured_s is None else self.measured_s

    @property
    def before_s(self) -> float | None:
        """The float network's time, known in the same way as :attr:`time_s`; None where it isn't."""
        return self.predicted_before_s if self.measured_s is None else self.measured_before_s

    @property
    def intensity(self) -> float:
        """Multiply-accumulates for each byte that moves."""
        return self.macs / self.bytes if self.bytes else 0.0

    @property
    def ridge(self) -> float:
        """The intensity from which on the device computes for longer than it moves."""
        return self.macs_per_s * self.memory_s / self.bytes if self.bytes else 0.0

    @property
    def bound(self) -> Why:
        """Which of the roofline's three times is the longest."""
        if self.launch_s >= max(self.compute_s, self.memory_s):
            return "launch-bound"
        return "compute-bound" if self.compute_s >= self.memory_s else "memory-bound"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a layer (or the whole network, where ``layer`` is empty) isn't faster.

    Attributes:
        layer: as :attr:`LayerWork.name`.
        why: which of the known reasons.
        share: of the network's time, of the layers that it is about.
        text: in words.
    """

    layer: str
    why: Why
    share: float
    text: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes the network faster, by the latency model; what it does to accuracy isn't predicted.

    Attributes:
        layer: what to change: a layer, a block or the whole network.
        change: what is changed.
        text: in words, without the saving.
        saves_s: seconds for one input.
        saves: share of the network's time.
        known: how the saving is known.
    """

    layer: str
    change: Change
    text: str
    saves_s: float
    saves: float
    known: Literal["predicted", "measured"] = "predicted"


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Who measured by layer, and what fits no layer.

    Attributes:
        device, runtime: where and by what.
        runs: over how many runs.
        rest_s: operators that the runtime adds: quantizing, reordering.
        rest: what they are, most time first.
    """

    device: str
    runtime: str
    runs: int
    rest_s: float
    rest: tuple[str, ...]
    noisy: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """A network on a device, layer by layer.

    Attributes:
        layers: in the order in which they run.
        channel_multiple: what the device's kernels fill channels up to.
        error: relative half-width of the predicted times.
        reasons: largest share first.
        remedies: largest saving first.
        measured: None where the times are predicted.
    """

    layers: tuple[LayerWork, ...]
    channel_multiple: int
    error: float
    reasons: tuple[Reason, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    measured: LayerTimes | None = None

    @property
    def total_s(self) -> float:
        """All layers, and what the runtime adds."""
        return sum(layer.time_s for layer in self.layers) + (self.measured.rest_s if self.measured else 0.0)

    @property
    def known(self) -> Literal["predicted", "measured"]:
        """How the layers' times are known."""
        return "predicted" if self.measured is None else "measured"
