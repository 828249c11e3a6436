"""Class-dependent compression: classes whose false negatives must not rise.

A stage that comes after any other, pruning, fine-tuning and quantization included. On the training split (the
evaluation split is never looked at) it counts the inputs of each protected class that the uncompressed network
finds, and those that the compressed one still finds. Where a class has lost some, the bias ``b`` of the output
layer is moved, weights and sizes staying as they are:

1. ``b = argmin_b mean cross_entropy(z + b, y) + RIDGE |b|^2`` over the logits z of the training split, which
   undoes the shift between classes that compression caused (the intercept of Platt's scaling, for all classes);
   convex, solved by L-BFGS.
2. for protected class c, the least rise of ``b_c`` with which as many of its inputs are found as before: with the
   margins ``m_i = max_{j != c} (z_ij + b_j) - (z_ic + b_c)`` of its n inputs in ascending order, and ``hits`` of them
   found before, ``b_c += m_hits``. Rises of several protected classes are repeated in turn, at most ROUNDS times,
   as they compete with one another; kept is the first ``b`` with which the fewest are lost.

This is a trade: what step 2 gives to the protected classes it takes from the precision of those classes and from
the recall of the others, which is why recall is reported for all. And it is a promise about the training split:
on other inputs recall has the error of an estimate from so many, and a network that found every training input
before it was compressed says little about them.

The choice of units stays what it is. Rejected after measurement (the built-in network on digits at half its MACs, not
fine-tuned, the recall of one or two protected classes restored on the training split in each case; overall accuracy
against choosing by magnitude or Taylor expansion as always and then moving the bias): a Taylor expansion of a loss
in which the protected classes weigh 3 or 8 times as much, 0.2 points better to 11 worse; their own Taylor score added
to the criterion's, 12 to 26 worse; more units for the groups that matter most to them, 19 to 56 worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from compress import data as datasets
from compress import targets
from compress.errors import BadInput
from compress.graph.module import in_evaluation_mode
from compress.graph.output import output_bias, with_output_bias
from compress.graph.qdq import insert
from compress.graph.traces import traced
from compress.prune.recall import Recall, class_indices, recall
from compress.types import Budget, Context, Note, State

ROUNDS = 20
RIDGE = 1e-4
STEP = 1e-3
"""By how much a margin is exceeded, as a share of the logits' standard deviation: what float rounding and the
grid of a quantized layer's accumulators may take back."""
BATCH = 256


@dataclass(frozen=True, slots=True)
class Protect:
    """Restore the recall of ``classes`` (indices) to that of the context's teacher.

    At most ``images`` training inputs are looked at. A state in which no protected class has lost an input
    comes back as it is; notes say what was moved and what couldn't be restored.
    """

    classes: tuple[int, ...]
    images: int = 10_000
    label: ClassVar[str] = "protect classes"

    def __call__(self, state: State, context: Context) -> State:
        """The state whose output layer's bias is moved where a protected class lost recall."""
        if context.teacher is None or not self.classes:
            return state
        example = context.data.train.inputs(2, context.generator)
        seed = int(torch.randint(2**62, (1,), generator=context.generator))
        names = context.data.classes

        def logits(of: State) -> tuple[torch.Tensor, torch.Tensor]:
            return self._logits(of, context, example, seed)

        before, labels = logits(State(context.teacher))
        after, _ = logits(state)
        needed = {c: hits(before, labels, c) for c in self.classes}
        if not shortfall(after, labels, needed):
            return state
        bias = output_bias(state.model, traced(state.model, (example,), context.shared), example)
        if bias is None:
            why = "its recall fell, and no bias moves the outputs alone: the output isn't that of a plain layer"
            return replace(state, notes=(*state.notes, *(Note(names[c], "protected class", why) for c in self.classes)))
        changed = replace(state, model=with_output_bias(state.model, bias, shift(after, labels, needed)))
        repaired, _ = logits(changed)
        notes = []
        for c, wanted in needed.items():
            was, found = hits(after, labels, c), hits(repaired, labels, c)
            total = int((labels == c).sum())
            why = (
                f"of {total} training inputs {wanted} were found before, {was} after, {found} with a moved output bias"
            )
            if found < wanted:
                why += "; no output bias was found that restores the rest: remove less, or fine-tune"
            notes.append(Note(names[c], "protected class", why))
        return replace(changed, notes=(*state.notes, *notes))

    def _logits(
        self, state: State, context: Context, example: torch.Tensor, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, K) and labels (n,) of a state, quantized or not; the same inputs for the same seed.

        Raises:
            BadInput: the network gives no row of logits an input.
        """
        network = traced(state.model, (example,), context.shared)
        model = state.model if state.quantization is None else insert(network, state.quantization)
        home = next((p.device for p in model.parameters()), torch.device("cpu"))
        model = model.to(context.device)
        outputs, labels, seen = [], [], 0
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            batches = context.data.train.batches(BATCH if network.dynamic_batch else 1, generator, context.device)
            for inputs, wanted in batches:
                outputs.append(model(inputs).cpu())
                labels.append(wanted.cpu())
                seen += len(inputs)
                if seen >= self.images:
                    break
        model.to(home)
        found = torch.cat(outputs).double()
        if found.dim() != 2:
            raise BadInput(
                f"protecting classes needs logits (batch, classes), the network returns {tuple(found.shape)}"
            )
        return found, torch.cat(labels)


@dataclass(frozen=True)
class Protected:
    """What :func:`protect_classes` returns: the network, recall of the reference and of it, and what was done."""

    model: nn.Module
    recall: Recall
    notes: tuple[Note, ...]


def protect_classes(
    model: nn.Module, reference: nn.Module, data: Any, classes: Sequence[int | str], *, seed: int = 0
) -> Protected:
    """Restore the recall of ``classes`` in a network that was made smaller before, by whatever means.

    Args:
        model: the smaller network, float; it is not changed.
        reference: the network whose recall is to be kept.
        data: as for :func:`compress.prune.prune`, with labels; a pair of splits is trained on and measured apart.
        classes: names or indices.
        seed: of the choice of training inputs where there are more than are looked at.

    Raises:
        BadInput: no class is given, one doesn't exist, the data have no labels, or the networks give no logits.
    """
    dataset = datasets.from_python(data, divisible=False)
    indices = class_indices(classes, dataset, "classes")
    if not indices:
        raise BadInput("classes is empty: name the classes to protect")
    before, after = in_evaluation_mode(reference), in_evaluation_mode(model)
    generator = torch.Generator().manual_seed(seed)
    context = Context(targets.load("cpu"), Budget(), dataset, generator, teacher=before)
    state = Protect(indices)(State(after), context)
    found = recall(before, state.model, dataset, indices)
    assert found is not None  # Protect has seen labels and logits
    return Protected(state.model, found, state.notes)


def hits(logits: torch.Tensor, labels: torch.Tensor, c: int) -> int:
    """How many inputs of class ``c`` are found."""
    return int((logits[labels == c].argmax(1) == c).sum())


def shortfall(logits: torch.Tensor, labels: torch.Tensor, needed: Mapping[int, int]) -> int:
    """How many inputs too few are found, over all classes of ``needed``."""
    return sum(max(0, wanted - hits(logits, labels, c)) for c, wanted in needed.items())


def shift(logits: torch.Tensor, labels: torch.Tensor, needed: Mapping[int, int]) -> torch.Tensor:
    """What to add to the logits, shape (K,), so that as many inputs of each class of ``needed`` are found as it says.

    Args:
        logits: (n, K), float64.
        labels: (n,), int64.
        needed: class -> inputs to find.
    """
    step = STEP * float(logits.std())
    found = prior_shift(logits, labels)
    best, missing = found, shortfall(logits + found, labels, needed)
    for _ in range(ROUNDS):
        if not missing:
            break
        for c, wanted in needed.items():
            found = raised(logits, labels, found, c, wanted, step)
        now = shortfall(logits + found, labels, needed)
        if now < missing:
            best, missing = found, now
    return best


def raised(
    logits: torch.Tensor, labels: torch.Tensor, shift: torch.Tensor, c: int, wanted: int, step: float
) -> torch.Tensor:
    """``shift`` with its entry ``c`` raised by what it takes, and ``step``, for ``wanted`` inputs of c to be found."""
    rows = logits[labels == c] + shift
    if wanted == 0 or int((rows.argmax(1) == c).sum()) >= wanted:
        return shift
    others = rows.clone()
    others[:, c] = -torch.inf
    margins = (others.max(1).values - rows[:, c]).sort().values
    higher = shift.clone()
    higher[c] += margins[wanted - 1] + step
    return higher


def prior_shift(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The shift of the logits with the least cross-entropy, (K,); 0 for classes that ``labels`` doesn't have."""
    there = labels.unique()
    free = torch.zeros(len(there), dtype=logits.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def whole() -> torch.Tensor:
        return torch.zeros(logits.shape[1], dtype=logits.dtype).index_put((there,), free)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits + whole(), labels) + RIDGE * free.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return whole().detach()
