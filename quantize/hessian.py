"""Second-order sensitivity of a network's layers: traces and top eigenvalues of the Hessian's blocks.

Dong et al., *HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision*, ICCV 2019, rank blocks of
layers by the Hessian's top eigenvalue; *HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks*,
NeurIPS 2020, layers by the average trace ``Tr(H_l) / n_l``, for weights and for activations, found by Hutchinson's
estimator (its equation 9) on Hessian-vector products.

Here the Hessian is split as ``H = G + R``, with the Gauss-Newton matrix ``G = sum_n J_n^T A_n J_n`` of the loss's
curvature ``A_n`` at the outputs, and ``R = sum_n sum_c (dL/dz_nc) d2z_nc/dw2``. Tr(G_l) is a sum of squared norms of
single samples' gradients (:mod:`compress.quantize.sample_gradients`): it needs no second derivative and has far less
variance than ``z^T H z``. The block R_l is zero where the outputs are piecewise linear in the layer's weights
(:mod:`compress.quantize.piecewise`), and everywhere where the loss compares the network with its own predictions.
Elsewhere its trace is found by Hutchinson's estimator, of each layer by itself, and added.

Departures from HAWQ-V2: this split; and the estimate ends when the order of the layers is settled, not after a fixed
number of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.errors import BadInput, UnknownName
from compress.quantize.eigenvalues import Eigenvalue, top_eigenvalues
from compress.quantize.hessian_products import HessianProducts
from compress.quantize.loss_curvature import Coupled, Directions, Head, Loss, Problem, directions, gradients, problem
from compress.quantize.piecewise import Layer, layers, linear_layers, node_tensors, piecewise_linear
from compress.quantize.sample_gradients import SampleGradients, forward, twice_differentiable
from compress.quantize.trace_estimators import Apart, Estimator, Hutchinson, HutchPlusPlus, Paired, Sampled, Squares
from compress.types import Progress

Method = Literal["auto", "gauss-newton", "fisher", "hutchinson", "hutch++"]
METHODS: tuple[Method, ...] = ("auto", "gauss-newton", "fisher", "hutchinson", "hutch++")
APART = 2.0
"""Two layers' order is settled once their scores are this many standard errors of the difference apart."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A trace.

    Attributes:
        value: of the block of the mean loss's Hessian.
        standard_error: of ``value`` as an estimate of the trace on the batches that were given: the spread of the
            random vectors and draws. That other data would give another trace isn't in it. 0 if it is exact.
        probes: the work: Hessian-vector products that saw this layer, gradients of single samples, or both added up.
        method: what was added up: ``"gauss-newton"``, ``"fisher"``, ``"hutchinson"``, ``"hutch++"``, or
            ``"gauss-newton + hutchinson"``.
    """

    value: float
    standard_error: float
    probes: int
    method: str


def traces(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    of: Literal["weights", "activations"] = "weights",
    generator: torch.Generator,
    method: Method = "auto",
    tolerance: float = 0.05,
    settled: bool = True,
    order: Mapping[str, float] | None = None,
    tensors: Sequence[str] | None = None,
    most: int = 200,
    progress: Progress | None = None,
    shared: MutableMapping[Any, Any] | None = None,
) -> Mapping[str, Estimate]:
    """The trace of each layer's block of the Hessian of the mean loss.

    It ends as soon as one of these holds: every relative standard error is at most ``tolerance``; ``settled``, and
    every two layers' scores ``order * trace`` are :data:`APART` standard errors of their difference apart, or both
    known to ``tolerance``; the work has reached ``most``. Ending on what the estimates themselves say favours
    differences that chance made large, so the least of the differences are a little less certain than the factor says.

    Args:
        model: any traceable module; it is not changed. It is looked at in evaluation mode, on the device it is on; of
            several outputs the first counts.
        batches: (inputs, targets) pairs, or inputs alone; inputs are a tensor (N, ...), or a tuple of them.
        loss: from outputs and targets the mean over the batch; None for cross-entropy against the network's own
            predictions, which needs no targets: then the Hessian is the Fisher information. Outputs are class
            scores then, the classes along axis 1.
        of: the Hessian by the weights of each convolution and linear layer, or by the activations that it reads.
            Weights that the network computes from others are left out. The activations of each sample are
            variables of their own, so the trace is the mean over samples of each sample's own.
        generator: the source of all randomness, on the CPU.
        method: ``"auto"`` for the Hessian by way of the Gauss-Newton matrix; ``"gauss-newton"`` for that matrix
            alone; ``"fisher"`` for the empirical Fisher matrix, the mean outer product of single samples' gradients;
            ``"hutchinson"`` and ``"hutch++"`` for the Hessian by Hessian-vector products.
        tolerance: relative standard error that is enough.
        settled: whether to end once the layers' order is settled.
        order: what a layer's trace is multiplied by for the order, such as its squared perturbation; 1 over the number
            of its weights (of its activations of one sample) by default, as in HAWQ-V2.
        tensors: of activations, names of traced nodes to look at instead; they are the keys then.
        most: products, or passes over the data, at most; where each layer has products of its own, of each.
        progress: told after every round.
        shared: of a job, whose traced networks are taken and kept there (:attr:`compress.types.Context.shared`).

    Returns:
        By layer (module path) in the order in which they run. A weight that several layers share is under the
        first's name; of a layer that runs several times, the activations' traces are summed.

    Raises:
        BadInput: the loss gives no gradient or no curvature, or NaN; a method or a tensor that doesn't exist.
        BadData: no samples, NaN, batches that can't be used.
        Untraceable: the network can't be traced.
    """
    _known("method", method, METHODS)
    _known("kind of trace", of, ("weights", "activations"))
    task = problem(model, batches, loss, shared)
    found = layers(task.steps)
    weights = found if of == "weights" else ()
    read = {} if of == "weights" else _tensors(task, found, tensors)
    names = (*(layer.name for layer in weights), *read)
    if not names:
        raise BadInput("the network has no convolution or linear layer with a weight of its own")
    head = Head(task)
    parts = _parts(task, head, weights, read, method, generator, most)
    scale = order if order is not None else _sizes(task, weights, read)
    unknown = [name for name in scale if name not in names]
    if unknown:
        raise UnknownName("layer", unknown[0], names)
    factors = torch.tensor([float(scale.get(name, 0.0)) for name in names], dtype=torch.float64)
    return _run(names, parts, factors, tolerance, settled, progress or (lambda message: None))


def _known(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise UnknownName(what, given, known)


def _tensors(task: Problem, found: Sequence[Layer], asked: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    if asked is None:
        return {name: read for name, read in node_tensors(task.steps, found).items() if read}
    known = (*task.steps.inputs, *(node.name for node in task.steps.nodes))
    for name in asked:
        _known("traced node", name, known)
    return {name: (name,) for name in asked}


def _sizes(task: Problem, weights: Sequence[Layer], read: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """1 over the number of weights, or of activations of one sample."""
    if weights:
        return {layer.name: 1 / task.steps.parameters[layer.parameters[0]].numel() for layer in weights}
    with torch.no_grad(), twice_differentiable():
        every = {tensor for names in read.values() for tensor in names}
        values = forward(task.steps, [x[:1] for x in task.batches[0].inputs], keep=every)
    return {name: 1 / sum(values[each].numel() for each in names) for name, names in read.items()}


@dataclass(frozen=True)
class _Part:
    """An estimator, and which of all names its blocks are."""

    estimator: Estimator
    places: Tensor


def _parts(
    task: Problem,
    head: Head,
    weights: Sequence[Layer],
    read: Mapping[str, tuple[str, ...]],
    method: Method,
    generator: torch.Generator,
    most: int,
) -> list[_Part]:
    """What has to be added up for each name."""
    names = [*(layer.name for layer in weights), *read]
    every = torch.arange(len(names))
    if method in ("hutchinson", "hutch++"):
        kind = Hutchinson if method == "hutchinson" else HutchPlusPlus
        return [_Part(kind(HessianProducts(task, weights, read), generator, most), every)]
    try:
        first = _first_order(task, head, weights, read, method, generator, most)
    except Coupled:
        if method != "auto":
            raise
        return [_Part(Hutchinson(HessianProducts(task, weights, read), generator, most), every)]
    parts = [_Part(first, every)]
    if method == "auto" and not task.own and bool((head.slopes != 0).any()):
        linear = linear_layers(task.steps, weights) | {
            name for name, each in read.items() if all(piecewise_linear(task.steps, tensor) for tensor in each)
        }
        bent = torch.tensor([i for i, name in enumerate(names) if name not in linear], dtype=torch.long)
        if len(bent):
            some = [layer for layer in weights if layer.name not in linear]
            others = {name: each for name, each in read.items() if name not in linear}
            products = HessianProducts(task, some, others, residual=head)
            parts.append(_Part(Apart(products, generator, most), bent))
    return parts


def _first_order(
    task: Problem,
    head: Head,
    weights: Sequence[Layer],
    read: Mapping[str, tuple[str, ...]],
    method: Method,
    generator: torch.Generator,
    most: int,
) -> Estimator:
    inputs = task.inputs()
    gradient = SampleGradients(task.steps, weights, read, [x[:2] for x in inputs], task.batched)
    shape = head.outputs.shape[1:]

    def squares(rows: Tensor, left: Tensor, right: Tensor | None) -> Tensor:
        some = [x[rows] for x in inputs]
        sides = [None if side is None else side.reshape(len(rows), *shape) for side in (left, right)]
        assert sides[0] is not None
        return gradient.inner(some, sides[0], sides[1])

    if method == "fisher":
        if task.own:
            raise BadInput(
                "the empirical Fisher matrix needs a loss and targets; "
                "without them method='gauss-newton' is the expected one"
            )
        found = _sampled(gradients(head), squares, generator, most * task.n, gradient.rows, "gradient")
        found.name = "fisher"
        return found
    listed = directions(head, generator)
    if listed is None:
        return Paired(head.curvature, head.outputs, squares, generator, most, gradient.rows)
    return _sampled(listed, squares, generator, most * task.n, gradient.rows, "curvature")


def _sampled(
    listed: Directions,
    squares: Squares,
    generator: torch.Generator,
    most: int,
    rows: int,
    lacking: str,
) -> Sampled:
    if not len(listed.weights):
        raise BadInput(
            f"the loss has no {lacking} on these data, so every layer's trace is 0; "
            "give another loss" + (", or use method='fisher'" if lacking == "curvature" else "")
        )
    return Sampled(listed, squares, generator, most, rows)


def _run(
    names: Sequence[str],
    parts: Sequence[_Part],
    factors: Tensor,
    tolerance: float,
    settled: bool,
    progress: Callable[[str], None],
) -> dict[str, Estimate]:
    for part in parts:
        part.estimator.advance()
    while True:
        value, variance = (torch.zeros(len(names), dtype=torch.float64) for _ in range(2))
        shares = []
        for part in parts:
            values, errors = part.estimator.estimate()
            if not torch.isfinite(values).all():
                raise BadInput("the Hessian is NaN or infinite on these data; check the network's weights and inputs")
            value[part.places] += values
            variance[part.places] += errors.square()
        error = variance.sqrt()
        relative = torch.where(error > 0, error / value.abs(), 0.0)
        progress(f"Hessian traces: relative standard error at most {float(relative.max()):.1%}")
        waiting = [part for part in parts if not part.estimator.done]
        if not waiting or bool((relative <= tolerance).all()):
            break
        if settled and order_settled(value * factors, error * factors, relative <= tolerance):
            break
        # The part that leaves most open goes on.
        for part in waiting:
            _, errors = part.estimator.estimate()
            shares.append(float((errors / value[part.places].abs().clamp_min(1e-300)).square().sum()))
        part = waiting[shares.index(max(shares))]
        part.estimator.advance(relative[part.places] > tolerance)
    result = {}
    for i, name in enumerate(names):
        mine = [part.estimator for part in parts if i in part.places.tolist()]
        method, probes = " + ".join(each.name for each in mine), sum(each.probes for each in mine)
        result[name] = Estimate(float(value[i]), float(error[i]), probes, method)
    return result


def order_settled(scores: Tensor, errors: Tensor, known: Tensor) -> bool:
    """True if every two scores are :data:`APART` standard errors apart, or both are known well enough.

    Args:
        scores: (layers,).
        errors: their standard errors.
        known: (layers,) bool, those whose own error is small enough.
    """
    differences = (scores[:, None] - scores[None, :]).abs()
    together = (errors[:, None].square() + errors[None, :].square()).sqrt()
    fine = (differences >= APART * together) | (known[:, None] & known[None, :])
    return bool((fine | torch.eye(len(scores), dtype=torch.bool)).all())


__all__ = ["METHODS", "Eigenvalue", "Estimate", "order_settled", "top_eigenvalues", "traces"]
