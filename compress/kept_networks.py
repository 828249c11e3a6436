"""Networks between stages, kept for other candidates that begin with the same stages.

The last few stay in memory. With a cache, the network before it is quantized and the finished one are kept there too,
as tensors and JSON: the module is made again from the user's own network by the plan's cuts. That is tried when a
network is kept, and one that doesn't come back equal, bit for bit, isn't kept.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.cache import Cache
from compress.graph.copies import copied
from compress.graph.groups import Dependencies
from compress.graph.surgery import blocks_of, remove, remove_blocks, units_of
from compress.graph.traces import traced
from compress.identity import network_key
from compress.job import Job
from compress.pipeline import described
from compress.prune.prunable import prunable
from compress.serial import from_json, to_json, write_json
from compress.types import FIRST, Note, Plan, Progress, Quantization, Record, Stage, State

IN_MEMORY = 2
"""Networks of a job that stay in memory; proposals of one size follow one another."""
STATE, TENSORS = "state.json", "tensors.safetensors"


@dataclass
class KeptNetworks:
    """The :class:`compress.pipeline.Known` of one candidate.

    Attributes:
        job: whose ``shared`` holds the networks in memory.
        stages: all of the candidate.
        cache: where networks outlive the process; None for nowhere.
        progress: told of what the cache says.
        ran: the records of the stages that were really run.
    """

    job: Job
    stages: Sequence[Stage]
    cache: Cache | None
    progress: Progress
    ran: list[Record] = field(default_factory=list)

    def find(self, stages: Sequence[Stage], /) -> State | None:
        """See :class:`compress.pipeline.Known`."""
        first: State | None = self.job.shared.get(FIRST)
        if first is not None and tuple(stages) == self.job.first:
            return first
        held = self._held()
        name = json.dumps(described(stages))
        if name in held:
            return held[name]
        key = network_key(self.job, stages) if self.cache is not None else None
        if self.cache is None or key is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            if not self.cache.take(key, Path(folder), self.progress):
                return None
            state = read(self.job, Path(folder))
        if state is not None:
            self._hold(name, state)
            self._hold_first(stages, state)
        return state

    def keep(self, stages: Sequence[Stage], state: State, /) -> None:
        """See :class:`compress.pipeline.Known`."""
        self.ran.append(state.records[-1])
        last = len(stages) == len(self.stages)
        self._hold_first(stages, state)
        if not last:
            self._hold(json.dumps(described(stages)), state)
        key = None
        if self.cache is not None and (last or self._quantized_next(stages, state)):
            key = network_key(self.job, stages)
        if self.cache is None or key is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            if write(self.job, state, Path(folder)):
                about = {"model": self.job.name, "data": self.job.data.name, "after": state.records[-1].stage}
                self.cache.keep(key, "network", about, Path(folder), self.progress)

    def _quantized_next(self, stages: Sequence[Stage], state: State) -> bool:
        following = self.stages[len(stages)]
        return state.quantization is None and ".quantize." in type(following).__module__

    def _hold_first(self, stages: Sequence[Stage], state: State) -> None:
        """Keep what every candidate begins with for the whole job."""
        if self.job.first and tuple(stages) == self.job.first:
            self.job.shared[FIRST] = state

    def _held(self) -> dict[str, State]:
        held: dict[str, State] = self.job.shared.setdefault("networks", {})
        return held

    def _hold(self, name: str, state: State) -> None:
        held = self._held()
        held.pop(name, None)
        held[name] = state
        while len(held) > IN_MEMORY:
            del held[next(iter(held))]


def write(job: Job, state: State, folder: Path) -> bool:
    """Write a state to ``folder``; False if it can't be made again from that, so that there is nothing to keep."""
    from safetensors.torch import save_file

    own = state.model.state_dict()
    if not all(isinstance(value, Tensor) for value in own.values()):
        return False
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in own.items()}
    gone = sorted(name for name, module in state.model.named_modules() if type(module) is nn.Identity)
    trained = {name: parameter.requires_grad for name, parameter in state.model.named_parameters()}
    document = {
        "plan": to_json(state.plan),
        "records": to_json(state.records),
        "quantization": to_json(state.quantization),
        "notes": to_json(state.notes),
        "identities": gone,
        "trained": trained,
        "training": state.model.training,
    }
    try:
        # Through JSON, as it will be read.
        again = _state(job, json.loads(json.dumps(document)), tensors)
    except Exception:  # the user's module may be of any kind, and take any offence
        return False
    if again is None or not _equal(again, state, job.example):
        return False
    save_file(tensors, folder / TENSORS)
    write_json(folder / STATE, document)
    return True


def read(job: Job, folder: Path) -> State | None:
    """The state that :func:`write` wrote; None if it isn't of this network."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        document = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return _state(job, document, load_file(folder / TENSORS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError):
        return None


def _state(job: Job, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State | None:
    plan = from_json(Plan, document["plan"])
    model = _cut(job, plan)
    for path in document["identities"]:
        parent, _, name = path.rpartition(".")
        if type(model.get_submodule(path)) is not nn.Identity:
            setattr(model.get_submodule(parent), name, nn.Identity())
    for name, value in tensors.items():
        path, _, attribute = name.rpartition(".")
        holder = model.get_submodule(path)
        if attribute in holder._parameters and holder._parameters[attribute] is None:
            # A bias that a folded batch norm has left.
            holder.register_parameter(attribute, nn.Parameter(torch.empty_like(value)))
    model.load_state_dict(dict(tensors), strict=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(document["trained"][name])
    quantization = document["quantization"]
    return State(
        model.train(document["training"]),
        plan,
        tuple(from_json(Record, record) for record in document["records"]),
        None if quantization is None else from_json(Quantization, quantization),
        tuple(from_json(Note, note) for note in document["notes"]),
    )


def _cut(job: Job, plan: Plan) -> nn.Module:
    """A copy of the job's network without the channels and blocks that ``plan`` doesn't keep."""
    if all(layer.keep is None for layer in plan.layers):
        return copied(job.model)
    if "dependencies" not in job.shared:
        job.shared["dependencies"] = prunable(job.model, traced(job.model, (job.example,), job.shared))
    dependencies: Dependencies = job.shared["dependencies"]
    model = remove_blocks(job.model, blocks_of(plan, dependencies))
    return remove(model, dependencies, units_of(plan, dependencies))


def _equal(one: State, other: State, example: Tensor) -> bool:
    """Whether two states are the same in everything that a stage or an exporter sees."""
    if to_json(replace(one, model=None)) != to_json(replace(other, model=None)):  # type: ignore[arg-type]
        return False
    if repr(one.model) != repr(other.model) or one.model.training != other.model.training:
        return False
    first, second = one.model.state_dict(), other.model.state_dict()
    if list(first) != list(second):
        return False
    if not all(first[n].dtype == second[n].dtype and torch.equal(first[n], second[n].cpu()) for n in first):
        return False
    with torch.no_grad():
        outputs = [copied(each.model).cpu().eval()(example) for each in (one, other)]
    return torch.equal(*outputs)


__all__ = ["KeptNetworks", "read", "write"]
