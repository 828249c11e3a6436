"""Networks that differ in nothing but the values of their tensors are traced once.

A job makes many copies of one network: trained, rounded, cut to the same channels. torch.export takes long for each,
and finds the same operators.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Hashable, MutableMapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from compress.graph.trace import Network, trace

KEY = "traces"
"""Under which the traces stand in what the candidates of a job share."""

MOST = 16
"""How many graphs are kept, the last that were asked for."""

_HELD = frozenset({"training", "_parameters", "_buffers", "_modules"})
"""Attributes of a module that its graph's key has in another form, or that a trace doesn't depend on."""

_PLAIN = (bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.memory_format)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


class _Unknown(Exception):
    """A module holds something of which it can't be said whether another one's is equal."""


def traced(model: nn.Module, example_inputs: tuple[torch.Tensor, ...], shared: MutableMapping[Any, Any]) -> Network:
    """As :func:`~compress.graph.trace.trace`; the graph of an equal network is taken from ``shared`` if it is there.

    Networks are equal if their modules have the same names, classes and attributes, and their tensors the same names,
    shapes and types. A network that holds anything else, such as an object of a class of the user's, is traced anew.

    Args:
        model: see there.
        example_inputs: see there; their sizes but for the batch's are part of what is compared.
        shared: of a job (:attr:`compress.types.Context.shared`).

    Raises:
        Untraceable: as there.
    """
    try:
        key = _key(model, example_inputs)
    except _Unknown:
        return trace(model, example_inputs)
    known: OrderedDict[Hashable, Network] = shared.setdefault(KEY, OrderedDict())
    if key in known:
        known.move_to_end(key)
        return known[key].of(model, example_inputs)
    network = trace(model, example_inputs)
    known[key] = _without_tensors(network)
    if len(known) > MOST:
        known.popitem(last=False)
    return network


def _without_tensors(network: Network) -> Network:
    """A copy that keeps no parameter in memory; :meth:`Network.of` gives it those of another network."""
    program = copy.copy(network.program)
    program._state_dict = dict.fromkeys(program.state_dict)
    return replace(network, program=program, example_inputs=())


def _key(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> Hashable:
    kept = set(model.state_dict(keep_vars=True))
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    modules = model.named_modules(remove_duplicate=False)
    return (
        tuple((tuple(x.shape[1:]), x.dtype, x.device) for x in example_inputs),
        tuple((path, type(module), _attributes(module)) for path, module in modules),
        tuple((name, tuple(t.shape), t.dtype, t.device) for name, t in tensors),
        # One tensor under two names is another network than two.
        tuple(first.setdefault(id(t), name) for name, t in tensors),
        # What no checkpoint has is a constant of the trace.
        tuple(_bytes(t) for name, t in tensors if name not in kept),
    )


def _attributes(module: nn.Module) -> Hashable:
    return tuple((name, _plain(value)) for name, value in sorted(vars(module).items()) if name not in _HELD)


def _plain(value: Any) -> Hashable:
    """``value`` in a form by which equal ones are told.

    Raises:
        _Unknown: there is none.
    """
    if value is None or isinstance(value, _PLAIN):
        return type(value).__name__, value
    if isinstance(value, _FUNCTIONS) and getattr(value, "__self__", None) is None:
        return "function", value
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(map(_plain, value))
    if isinstance(value, (set, frozenset)):
        return "set", frozenset(map(_plain, value))
    if isinstance(value, dict):
        return "dict", tuple((_plain(name), _plain(each)) for name, each in value.items())
    if isinstance(value, functools.partial):
        return "partial", _plain(value.func), _plain(value.args), _plain(value.keywords)
    if is_dataclass(value):
        return type(value), tuple(_plain(getattr(value, each.name)) for each in fields(value))
    raise _Unknown


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


__all__ = ["KEY", "MOST", "traced"]
