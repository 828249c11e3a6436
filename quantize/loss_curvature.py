"""The loss as a function of a network's outputs: its gradient, its curvature, and the directions that make it up.

With outputs ``z_n`` of sample n and the mean loss L, the Gauss-Newton matrix is ``G = sum_n J_n^T A_n J_n``, where
``J_n = dz_n/dw`` and ``A_n = d2L/dz_n^2``. Written as ``A_n = sum_k lambda_nk v_nk v_nk^T``, the trace of a layer's
block is ``sum_nk lambda_nk |J_n^T v_nk|^2``: one weighted squared norm a direction. Two ways to write it so:

* the eigenvectors of each ``A_n``, up to :data:`MOST_OUTPUTS` outputs;
* for cross-entropy with more classes, ``A_n = (1/N) sum_c p_c (e_c - p)(e_c - p)^T``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.errors import BadData, BadInput
from compress.graph.interpret import Steps
from compress.graph.trace import kind
from compress.graph.traces import traced
from compress.quantize.sample_gradients import forward, twice_differentiable

Loss = Callable[[Tensor, Any], Tensor]
"""From the network's outputs and the targets of a batch, a scalar: the mean over the batch's samples."""

MOST_OUTPUTS = 64
"""Outputs a sample up to which each sample's output Hessian is formed."""


@dataclass(frozen=True)
class Batch:
    """One batch: the network's inputs, the targets that the loss takes, the number of samples."""

    inputs: tuple[Tensor, ...]
    targets: Any
    n: int


@dataclass(frozen=True)
class Problem:
    """A network, data and a loss.

    Attributes:
        steps: the network, in evaluation mode, on its own device.
        batches: the data; each of one sample where the network's code fixes the batch size.
        loss: mean over a batch.
        batched: False if the network's code fixes the batch size at 1.
        own: True if the loss compares the network with its own predictions, where its gradient is zero.
    """

    steps: Steps
    batches: tuple[Batch, ...]
    loss: Loss
    batched: bool
    own: bool

    @property
    def n(self) -> int:
        """The number of samples."""
        return sum(batch.n for batch in self.batches)

    def inputs(self) -> tuple[Tensor, ...]:
        """The samples of all batches."""
        return tuple(torch.cat(parts) for parts in zip(*(batch.inputs for batch in self.batches), strict=True))


def problem(
    model: nn.Module, batches: Iterable[Any], loss: Loss | None, shared: MutableMapping[Any, Any] | None = None
) -> Problem:
    """Trace ``model`` on the first of ``batches``, or take its trace from ``shared``, and check that all can be used.

    Raises:
        BadData: no batches, empty ones, ones of different shapes, NaN.
        Untraceable: the network can't be traced.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    given = [_batch(each, like) for each in ([batches] if isinstance(batches, Tensor) else batches)]
    if not given or any(batch.n == 0 for batch in given):
        raise BadData("for the Hessian", "it holds no samples", "give at least one batch of inputs")
    shapes = {tuple(x.shape[1:] for x in batch.inputs) for batch in given}
    if len(shapes) > 1:
        raise BadData("for the Hessian", "its batches have inputs of different shapes", "make them equal")
    if any(not torch.isfinite(x).all() for batch in given for x in batch.inputs if x.is_floating_point()):
        raise BadData("for the Hessian", "it holds NaN or infinity", "check the inputs")
    network = traced(model, tuple(x[:2] for x in given[0].inputs), {} if shared is None else shared)
    steps = Steps.of(network, _differentiable_twice)
    if not network.dynamic_batch:
        given = [one for batch in given for one in _single(batch)]
    return Problem(steps, tuple(given), loss or own_predictions, network.dynamic_batch, loss is None)


def hardsigmoid(x: Tensor) -> Tensor:
    """The same as torch's, whose derivative torch can't differentiate."""
    clipped: Tensor = F.relu6(x + 3)
    return clipped / 6


def _differentiable_twice(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and kind(node) == "hardsigmoid":
            node.target = hardsigmoid


def _batch(given: Any, like: Tensor) -> Batch:
    inputs, targets = given if isinstance(given, (tuple, list)) and len(given) == 2 else (given, None)
    if isinstance(inputs, (tuple, list)) and len(inputs) == 1 and targets is None:
        inputs = inputs[0]
    tensors = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not all(isinstance(x, Tensor) and x.dim() > 0 for x in tensors) or len({len(x) for x in tensors}) != 1:
        raise BadData(
            "for the Hessian",
            "a batch isn't a tensor of inputs or an (inputs, targets) pair",
            "give batches as a DataLoader does, several inputs as a tuple of tensors",
        )
    moved = tuple(x.to(like.device, like.dtype if x.is_floating_point() else x.dtype) for x in tensors)
    # What was made in inference mode can't take part in differentiation; a copy can.
    moved = tuple(x.clone() if x.is_inference() else x.detach() for x in moved)
    targets = targets.to(like.device) if isinstance(targets, Tensor) else targets
    return Batch(moved, targets.clone() if isinstance(targets, Tensor) else targets, len(moved[0]))


def _single(batch: Batch) -> list[Batch]:
    split = isinstance(batch.targets, Tensor) and batch.targets.dim() > 0
    return [
        Batch(tuple(x[i : i + 1] for x in batch.inputs), batch.targets[i : i + 1] if split else batch.targets, 1)
        for i in range(batch.n)
    ]


def own_predictions(outputs: Tensor, _: Any) -> Tensor:
    """Cross-entropy against the network's own predictive distribution: its Hessian is the Fisher information.

    ``outputs`` are logits, the classes along axis 1.
    """
    if outputs.dim() < 2:
        raise BadInput(
            f"outputs of shape {tuple(outputs.shape)} are no class scores; give a loss such as "
            "torch.nn.functional.mse_loss, and targets"
        )
    log = outputs.log_softmax(1)
    return -(log.detach().exp() * log).sum(1).mean()


class Head:
    """The loss over the outputs of all samples.

    Attributes:
        outputs: (N, ...), what the network gives.
        slopes: ``dL/dz``, float64, of the same shape.
    """

    def __init__(self, problem: Problem) -> None:
        self._parts: list[tuple[Tensor, Tensor | None]] = []
        outputs = []
        for batch in problem.batches:
            with torch.no_grad(), twice_differentiable():
                z = forward(problem.steps, batch.inputs)[problem.steps.output]
            outputs.append(z)
            self._parts.append(_slope(problem, batch, z))
        self.outputs = torch.cat(outputs)
        self.slopes = torch.cat([torch.zeros_like(z) if g is None else g.detach() for z, g in self._parts]).double()

    def curvature(self, direction: Tensor) -> Tensor:
        """``d2L/dz^2`` times ``direction``, which has the outputs' shape; float64."""
        result = []
        for (z, slope), part in zip(self._parts, direction.split([len(z) for z, _ in self._parts]), strict=True):
            product = None
            if slope is not None and slope.requires_grad:
                (product,) = torch.autograd.grad(slope, z, part.to(z.dtype), retain_graph=True, allow_unused=True)
            result.append(torch.zeros_like(z) if product is None else product)
        return torch.cat(result).double()


def _slope(problem: Problem, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
    # In float64 the curvature of a confident prediction, p - p^2, isn't lost to rounding.
    for dtype in (torch.float64, outputs.dtype):
        z = outputs.detach().to(dtype).requires_grad_()
        targets = batch.targets
        if isinstance(targets, Tensor) and targets.is_floating_point():
            targets = targets.to(dtype)
        with torch.enable_grad():
            try:
                value = problem.loss(z, targets)
            except BadInput:
                raise
            except Exception as error:
                if dtype == outputs.dtype:
                    line = (str(error).splitlines() or [""])[0][:160]
                    raise BadInput(
                        f"the loss can't be computed from outputs of shape {tuple(outputs.shape)}: "
                        f"{type(error).__name__}: {line}; check the loss and the targets"
                    ) from error
                continue
            check(value)
            (slope,) = torch.autograd.grad(value * (batch.n / problem.n), z, create_graph=True, allow_unused=True)
        if slope is not None and not torch.isfinite(slope).all():
            raise BadInput("the loss's gradient is NaN or infinite; check the loss and the targets")
        return z, slope
    raise AssertionError("unreachable")


def check(value: Any) -> None:
    """Raise BadInput unless ``value`` is a finite scalar with a gradient."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise BadInput("the loss must return one number, the mean over the batch (reduction='mean')")
    if not value.requires_grad:
        raise BadInput(
            "the loss gives no gradient with respect to the network's outputs; "
            "give a differentiable one such as torch.nn.functional.cross_entropy"
        )
    if not torch.isfinite(value):
        raise BadInput("the loss is NaN or infinite on these data; check the network's weights, inputs and targets")


@dataclass(frozen=True)
class Directions:
    """Directions in output space: what is summed is ``weights * signs * |J^T v|^2``, with ``|v| = 1``.

    Attributes:
        rows: (P,) which sample.
        weights: (P,) float64, at least 0.
        signs: (P,) 1, or -1 where the loss curves downwards.
        vectors: from indices (k,) the unit vectors (k, outputs of a sample).
    """

    rows: Tensor
    weights: Tensor
    signs: Tensor
    vectors: Callable[[Tensor], Tensor]


def directions(head: Head, generator: torch.Generator) -> Directions | None:
    """The directions that make up the loss's curvature; None where their number is too large.

    Raises:
        Coupled: the loss compares samples with one another.
    """
    z = head.outputs
    n, outputs = len(z), z[0].numel()
    random = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z.device)
    wanted = head.curvature(random).reshape(n, outputs)
    if outputs <= MOST_OUTPUTS:
        columns = []
        for i in range(outputs):
            unit = torch.zeros(n, outputs, dtype=torch.float64, device=z.device)
            unit[:, i] = 1
            columns.append(head.curvature(unit.reshape(z.shape)).reshape(n, outputs))
        blocks = torch.stack(columns, 2)
        _agree(wanted, (blocks @ random.reshape(n, outputs, 1)).squeeze(2))
        return _eigenvectors(blocks)
    p = z.reshape(n, outputs).double().softmax(1)
    flat = random.reshape(n, outputs)
    softmax = (p * flat - p * (p * flat).sum(1, keepdim=True)) / n
    if z.dim() == 2 and torch.allclose(wanted, softmax, rtol=1e-3, atol=1e-6 * float(softmax.abs().max() + 1e-300)):
        return _classes(p)
    # The curvature of single samples, one after another, is that of all only if samples don't meet.
    half = random.clone()
    half[n // 2 :] = 0
    if n > 1:
        _agree(wanted.reshape(n, -1)[: n // 2], head.curvature(half).reshape(n, -1)[: n // 2])
    return None


class Coupled(BadInput):
    """The loss compares the samples of a batch with one another."""

    def __init__(self) -> None:
        super().__init__(
            "the loss compares samples of a batch with one another, so it has no Gauss-Newton matrix by sample; "
            "use method='hutchinson'"
        )


def _agree(a: Tensor, b: Tensor) -> None:
    if not torch.allclose(a, b, rtol=1e-2, atol=1e-4 * float(a.abs().max() + 1e-300)):
        raise Coupled


def _eigenvectors(blocks: Tensor) -> Directions:
    values, vectors = torch.linalg.eigh((blocks + blocks.transpose(1, 2)) / 2)
    outputs = values.shape[1]
    flat, columns = values.reshape(-1), vectors.transpose(1, 2).reshape(-1, outputs)
    # What is left out sums up to less than rounding.
    kept = torch.nonzero(flat.abs() > 1e-12 * flat.abs().sum() / len(flat)).squeeze(1)
    rows = kept // outputs
    return Directions(rows, flat[kept].abs(), flat[kept].sign(), lambda index: columns[kept[index]])


def _classes(p: Tensor) -> Directions:
    n, classes = p.shape
    # |e_c - p|^2
    lengths = 1 - 2 * p + p.square().sum(1, keepdim=True)
    weights = (p * lengths / n).reshape(-1)
    kept = torch.nonzero(weights > 1e-12 * weights.sum() / len(weights)).squeeze(1)

    def vectors(index: Tensor) -> Tensor:
        rows, chosen = kept[index] // classes, kept[index] % classes
        found = -p[rows]
        found[torch.arange(len(index), device=p.device), chosen] += 1
        unit: Tensor = found / found.norm(dim=1, keepdim=True)
        return unit

    return Directions(kept // classes, weights[kept], torch.ones_like(weights[kept]), vectors)


def gradients(head: Head) -> Directions:
    """The directions of the empirical Fisher matrix, ``(1/N) sum_n g_n g_n^T`` with g_n the gradient of sample n's
    loss."""
    n = len(head.outputs)
    slopes = n * head.slopes.reshape(n, -1)
    lengths = slopes.norm(dim=1)
    rows: Sequence[int] = torch.nonzero(lengths > 0).squeeze(1).tolist()
    kept = torch.tensor(rows, dtype=torch.long, device=slopes.device)
    unit = slopes[kept] / lengths[kept, None]
    return Directions(kept, lengths[kept].square() / n, torch.ones_like(lengths[kept]), lambda index: unit[index])
