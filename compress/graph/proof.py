"""Proof by trying: which groups and blocks the network's own code lets go, and what must follow in it.

A size that is a literal in the source (``x.view(-1, 512)``, ``groups=8``) or an attribute
(``self.num_heads``) looks in the trace like one that follows from a shape. So it is tried: units are
removed, the smaller network is run, and its outputs must equal those of the original in which what reads
the removed units is zeroed (:mod:`compress.graph.reference`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from compress.graph.blocks import Block
from compress.graph.copies import copied
from compress.graph.cut import remove, remove_blocks
from compress.graph.groups import Dependencies, Group, Unit
from compress.graph.reference import zeroed
from compress.graph.sizes import Rewrite, candidates
from compress.types import Note

TRIES = 40
"""Sets of attributes that are tried for a group at most."""

TOLERANCE = 2e-3
"""Largest difference that counts as equal, relative to the largest output: float32 over a deep network."""

Rewrites = Mapping[int, tuple[Rewrite, ...]]


def proven(
    model: nn.Module, dependencies: Dependencies, example: torch.Tensor | tuple[torch.Tensor, ...] | None = None
) -> Dependencies:
    """The dependencies with which the network's own code goes along.

    Of every group, one unit, half of them and all but one are removed, all groups together; where that
    fails, kinds of groups and then single ones. Integers in the attributes of the user's modules that equal
    a size that changes are lowered with it where that helps (``Group.rewrites``). A group that fails
    nevertheless is left alone and noted, and a block that doesn't compute ``x + branch(x)`` is none.

    Args:
        model: in evaluation mode; it is not changed.
        dependencies: of its trace.
        example: a batch of its inputs; those of the trace by default. Only shapes and integers matter.

    Returns:
        ``dependencies`` itself if all of it holds.
    """
    trial = _Trial(model, dependencies, example)
    groups = list(range(len(dependencies.groups)))
    held = dependencies
    if (reason := trial.obstacle(groups, {})) is not None:
        rewrites, reasons = _kinds(trial, groups, reason)
        free = _together(trial, [i for i in groups if i not in reasons], rewrites, reasons)
        notes = tuple(
            Note(layer, "output channels", f"the network's code fixes their number: {why}")
            for i, why in sorted(reasons.items())
            for layer in dependencies.groups[i].name.split("+")
        )
        held = replace(
            dependencies,
            groups=tuple(replace(dependencies.groups[i], rewrites=rewrites.get(i, ())) for i in free),
            left_alone=dependencies.left_alone + tuple(dict.fromkeys(notes)),
        )
    blocks = trial.removable(dependencies.blocks)
    return held if blocks == dependencies.blocks else replace(held, blocks=blocks)


def _kinds(trial: _Trial, groups: Sequence[int], reason: str) -> tuple[dict[int, tuple[Rewrite, ...]], dict[int, str]]:
    """What each group needs, found for one of a kind and then tried for all of it; and why others stay."""
    rewrites: dict[int, tuple[Rewrite, ...]] = {}
    reasons: dict[int, str] = {}
    kinds: dict[object, list[int]] = {}
    for i in groups:
        kinds.setdefault(trial.kind(i), []).append(i)
    for kind in kinds.values():
        obstacle = trial.obstacle(kind, {}) if len(kinds) > 1 else reason
        if obstacle is None:
            continue
        chosen = trial.search(kind[0])
        if chosen is not None:
            wanted = {trial.key(rewrite) for rewrite in chosen}
            same = {i: tuple(r for r in trial.candidates(i) if trial.key(r) in wanted) for i in kind}
            same[kind[0]] = chosen
            if trial.obstacle(kind, same) is None:
                rewrites |= same
                continue
        for i in kind:
            # What fails for one of a kind is not searched for again in the others, only tried.
            single = trial.obstacle([i], {})
            if single is None:
                continue
            found = trial.search(i) if chosen is not None else None
            if found is None:
                reasons[i] = single
            else:
                rewrites[i] = found
    return rewrites, reasons


def _together(trial: _Trial, free: list[int], rewrites: Rewrites, reasons: dict[int, str]) -> list[int]:
    """The groups that can go at the same time; the others get a reason."""
    if trial.obstacle(free, rewrites) is None:
        return free
    agreed: list[int] = []
    for i in free:
        why = trial.obstacle([*agreed, i], rewrites)
        if why is None:
            agreed.append(i)
        else:
            reasons[i] = why
    return agreed


class _Trial:
    """The network with telling parameters, and what it computes without some units."""

    def __init__(
        self, model: nn.Module, dependencies: Dependencies, example: torch.Tensor | tuple[torch.Tensor, ...] | None
    ) -> None:
        self._dependencies = dependencies
        network = dependencies.network
        if example is None or (network is not None and isinstance(example, torch.Tensor) and len(network.inputs) > 1):
            assert network is not None
            example = network.example_inputs
        given = (example,) if isinstance(example, torch.Tensor) else example
        generator = torch.Generator().manual_seed(0)
        self._inputs = tuple(
            torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) if x.is_floating_point() else x
            for x in given
        )
        self._wanted: dict[object, list[Any] | None] = {}
        for telling in (True, False):
            self._model = copied(model).eval()
            if telling:
                _tell(self._model, generator)
            plain = self._run(self._model)
            if all(bool(x.isfinite().all()) for x in plain if x.is_floating_point()):
                break
        self._shapes = [x.shape for x in plain]
        # The reference must be the network itself where nothing is removed; else only shapes are compared.
        reference = self._reference([], ()) if network is not None else None
        self._exact = reference is not None and _difference(plain, reference) is None

    def _run(self, model: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            return [x for x in tree_flatten(model(*self._inputs))[0] if isinstance(x, torch.Tensor)]

    def _reference(self, units: Sequence[Unit], blocks: Iterable[Block]) -> list[torch.Tensor]:
        outputs = zeroed(self._model, self._dependencies, units, self._inputs, blocks)
        return [x for x in outputs if isinstance(x, torch.Tensor)]

    def obstacle(self, groups: Sequence[int], rewrites: Rewrites) -> str | None:
        """Why units of ``groups`` can't go, None if they can."""
        chosen = tuple(replace(self._dependencies.groups[i], rewrites=rewrites.get(i, ())) for i in groups)
        dependencies = replace(self._dependencies, groups=chosen)
        for pattern, units in _patterns(chosen):
            try:
                outputs = self._run(remove(self._model, dependencies, units))
            except Exception as error:  # the user's code may raise anything where a size isn't what it expects
                return _line(error)
            if [x.shape for x in outputs] != self._shapes:
                return f"the output becomes {', '.join(str(tuple(x.shape)) for x in outputs)}"
            if self._exact:
                key = (tuple(groups), pattern)
                if key not in self._wanted:
                    self._wanted = {k: v for k, v in self._wanted.items() if k[0] == key[0]}  # type: ignore[index]
                    self._wanted[key] = self._reference(units, ())
                why = _difference(outputs, self._wanted[key] or [])
                if why is not None:
                    return why
        return None

    def candidates(self, group: int) -> list[Rewrite]:
        """The integers that may have to follow a group."""
        return candidates(self._model, self._dependencies.groups[group].resizes)

    def key(self, rewrite: Rewrite) -> object:
        """The same for the same attribute of another module of the same class."""
        return (type(self._model.get_submodule(rewrite.path)), rewrite.attribute, rewrite.item, rewrite.step)

    def kind(self, group: int) -> object:
        """The same for groups that stand in the same way in modules of the same classes."""
        slots = self._dependencies.groups[group].slots
        names = {(*name.rsplit(".", 2)[-2:], axis) for name, axis in slots}
        return (frozenset(names), frozenset(self.key(rewrite) for rewrite in self.candidates(group)))

    def search(self, group: int) -> tuple[Rewrite, ...] | None:
        """The smallest set of integers that has to follow a group, None if none of those tried is right."""
        every = self.candidates(group)
        inner = [r for r in every if r.path == every[0].path]
        singles = [(r,) for r in every]
        for tried in itertools.islice(
            dict.fromkeys([(), tuple(inner), tuple(every), *singles, *itertools.combinations(every, 2)]), TRIES
        ):
            if _twice(tried) or self.obstacle([group], {group: tried}) is not None:
                continue
            for rewrite in reversed(tried) if len(tried) > 1 else ():
                fewer = tuple(r for r in tried if r != rewrite)
                if self.obstacle([group], {group: fewer}) is None:
                    tried = fewer
            return tried
        return None

    def removable(self, blocks: Sequence[Block]) -> tuple[Block, ...]:
        """The blocks in whose place an identity computes the same as their branches giving zero."""
        kept = []
        for level in sorted({block.path.count(".") for block in blocks}):
            here = [block for block in blocks if block.path.count(".") == level]
            kept += here if self._removable(here) else [block for block in here if self._removable([block])]
        return tuple(block for block in blocks if block in kept)

    def _removable(self, blocks: Sequence[Block]) -> bool:
        if not self._exact:
            return False
        try:
            outputs = self._run(remove_blocks(self._model, blocks))
        except Exception:  # as above: then these aren't blocks
            return False
        return _difference(outputs, self._reference([], blocks)) is None


def _patterns(groups: Sequence[Group]) -> Iterable[tuple[str, list[Unit]]]:
    """Of every group one unit; all but one; about half."""
    yield "one", [group.units[-1] for group in groups if len(group.units) > 1]
    if any(len(group.units) > 2 for group in groups):
        yield "all but one", [unit for group in groups for unit in group.units[1:]]
        yield "half", [unit for group in groups for unit in group.units[1::2]]


def _tell(model: nn.Module, generator: torch.Generator) -> None:
    """Change parameters that would hide a mistake: a gain of zero, a bias of zero, weights that are tiny."""
    with torch.no_grad():
        for parameter in {id(p): p for p in model.parameters()}.values():
            if not parameter.is_floating_point() or parameter.numel() == 0:
                continue
            size = float(parameter.square().mean().sqrt())
            wanted = (parameter[0].numel() if parameter.dim() > 1 else 1) ** -0.5
            if size < 1e-2 * wanted:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.copy_(0.5 * wanted * noise.to(parameter.device))
            elif parameter.dim() > 1 and size < wanted:
                parameter.mul_(wanted / size)


def _difference(outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> str | None:
    if len(outputs) != len(wanted):
        return f"it gives {len(outputs)} outputs in place of {len(wanted)}"
    for ours, theirs in zip(outputs, wanted, strict=True):
        if ours.shape != theirs.shape:
            return f"the output becomes {tuple(ours.shape)}"
        limit = TOLERANCE * float(theirs.abs().max()) + 1e-6 if theirs.numel() else 0.0
        if not torch.allclose(ours.double(), theirs.double(), rtol=0.0, atol=limit, equal_nan=True):
            return "without them it computes something else than when nothing reads them"
    return None


def _twice(rewrites: Sequence[Rewrite]) -> bool:
    places = [(r.path, r.attribute, r.item) for r in rewrites]
    return len(set(places)) != len(places)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
