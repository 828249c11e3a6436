r"""Activating-while-Pruning (AP): beside any criterion, remove first what keeps neurons silent.

Liu, Ghosh, Tan and Motani, *AP: Selective Activation for De-sparsifying Pruned Networks*, TMLR 2023. A neuron (an
element of what a ReLU puts out) is *dead* for an input for which it is zero; *statically* dead if it is so for all
inputs, *dynamically* if only for some. The dynamic dead neuron rate is the share of (neuron, input) pairs that are
dynamically dead. The paper finds that a pruned network does better with a low rate, and lowers it while it prunes;
what is unimportant another criterion says.

It removes single weights, those that push dynamically dead neurons further down. Here whole channels go, so the
question is put to a channel: by how much does it push them down? With :math:`z` the inputs of the ReLUs, :math:`D`
the dynamically dead pairs and :math:`s_u` a factor on all weights that read channel u, its dependence is

.. math:: c_u = \max\Bigl(0, -\frac{\partial}{\partial s_u} \sum_l \frac{1}{N_l \sigma_l}
          \sum_{(i, x) \in D_l} z_{l,i}(x)\Bigr)\Big|_{s_u = 1},

with :math:`N_l` the pairs of ReLU l and :math:`\sigma_l` the root mean square of its inputs. As z is linear in
:math:`s_u` (each ReLU's output counts as a constant further down), removing the channel raises the sum by exactly
:math:`c_u`. Scores fall by ``strength`` times their group's mean for the channel with the largest dependence, by the
same share less for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.errors import BadInput
from compress.graph.groups import Dependencies
from compress.graph.trace import Network
from compress.prune.dhspg import Blocks, Part
from compress.prune.prepared import evaluating
from compress.prune.ranking import Criterion, Scores
from compress.types import Context

MOST = 256
"""Inputs that are looked at, in one batch, at most."""


@dataclass(frozen=True, slots=True)
class DeadNeurons:
    """Shares of all (neuron, input) pairs, in [0, 1]: dead for this input but not for all; dead for all."""

    dynamic: float
    static: float


@dataclass(frozen=True)
class Activating:
    """A criterion that lets channels go first that keep neurons silent.

    Attributes:
        criterion: what says how important a unit is; a name of :mod:`compress.prune.saliency` in a training session.
        inputs: a batch (N, ...) of training inputs, N at least 2; by default the context's data.
        strength: how much of a group's mean score the largest dependence is worth, at least 0; 0 changes nothing.
    """

    criterion: str | Criterion
    inputs: Tensor | None = None
    strength: float = 0.5

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise BadInput(f"strength={self.strength:g}: how much activating counts is at least 0")

    def __call__(self, model: nn.Module, network: Network, dependencies: Dependencies, context: Context) -> Scores:
        """As a criterion of :mod:`compress.prune.ranking`."""
        if isinstance(self.criterion, str):
            raise BadInput(f"criterion={self.criterion!r} is gathered while training; give a function here")
        scores = self.criterion(model, network, dependencies, context)
        return self.weighed(scores, model, dependencies, self.batch(context))

    def batch(self, context: Context) -> Tensor:
        """The inputs to look at."""
        if self.inputs is not None:
            return self.inputs[:MOST]
        return context.data.train.inputs(min(MOST, context.samples), context.generator)

    def weighed(self, scores: Scores, model: nn.Module, dependencies: Dependencies, inputs: Tensor) -> Scores:
        """``scores`` less what the dependence of each unit is worth."""
        found = dependence(model, dependencies, inputs)
        return [
            score.double().cpu() - self.strength * score.double().abs().mean().cpu() * _share(each)
            for score, each in zip(scores, found, strict=True)
        ]


def _share(values: Tensor) -> Tensor:
    return values / values.max().clamp_min(torch.finfo(values.dtype).tiny)


def dead_neurons(model: nn.Module, inputs: Tensor) -> DeadNeurons:
    """How many of a network's neurons are dead on a batch of inputs (N, ...), in evaluation mode.

    Raises:
        BadInput: the network has no ReLU, or there is only one input.
    """
    with torch.no_grad():
        found = _look(model, inputs)
    pairs = sum(z.numel() for z, _ in found)
    dynamic = sum(int(dead.sum()) for _, dead in found)
    dead = sum(int((z <= 0).sum()) for z, _ in found)
    return DeadNeurons(dynamic / pairs, (dead - dynamic) / pairs)


def dependence(model: nn.Module, dependencies: Dependencies, inputs: Tensor) -> list[Tensor]:
    """How far each unit pushes dynamically dead neurons down: a group's values are float64 (units,), at least 0."""
    with torch.enable_grad():
        found = [(z, dead) for z, dead in _look(model, inputs) if z.requires_grad]
        total = torch.zeros((), device=inputs.device)
        for z, dead in found:
            spread = z.detach().square().mean().sqrt().clamp_min(torch.finfo(z.dtype).tiny)
            total = total + (z * dead).sum() / (z.numel() * spread)
        names = dict.fromkeys(name for group in dependencies.groups for name, _ in group.consumers)
        weights = {name: model.get_parameter(name) for name in names}
        free = [weight for weight in weights.values() if weight.requires_grad]
        gradients: dict[int, Tensor | None] = {}
        if total.requires_grad and free:
            slopes = torch.autograd.grad(total, free, allow_unused=True)
            gradients = {id(weight): slope for weight, slope in zip(free, slopes, strict=True)}
    result = []
    for group in dependencies.groups:
        parts = []
        for slot in group.consumers:
            pairs = [(i, n) for n, unit in enumerate(group.units) for i in unit.members[slot]]
            weight = weights[slot[0]]
            indices, owners = torch.tensor(pairs, device=weight.device).unbind(1)
            parts.append(Part(weight, slot[1], indices, owners))
        blocks = Blocks(tuple(parts), len(group.units))
        slope = blocks.dot(blocks.gather(), blocks.gather(lambda weight: gradients.get(id(weight))))
        result.append((-slope).clamp_min(0).cpu())
    return result


def _look(model: nn.Module, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each ReLU's input, and where it is dynamically dead."""
    if len(inputs) < 2:
        raise BadInput("a neuron is dynamically dead if it is so for some inputs; give at least two")
    home = next(model.parameters()).device
    with evaluating(model), _Relus() as seen:
        model(inputs[:MOST].to(home))
    if not seen.inputs:
        raise BadInput("activating while pruning is about ReLUs, and the network has none")
    return [(z, (z <= 0) & (z > 0).any(0)) for z in seen.inputs]


class _Relus(TorchFunctionMode):
    """Keeps what goes into each ReLU, and cuts the gradient behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __enter__(self) -> _Relus:
        super().__enter__()  # type: ignore[no-untyped-call]  # torch annotates neither end
        return self

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_relu(function, args, kwargs):
            return function(*args, **kwargs)
        # A copy, as the ReLU may work in place.
        self.inputs.append(args[0].clone() if args else kwargs["input"].clone())
        return function(*args, **kwargs).detach()


def _is_relu(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    name = getattr(function, "__name__", "")
    if name in ("hardtanh", "hardtanh_"):
        return bool((args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)) == 0)
    return name in ("relu", "relu_", "relu6")
