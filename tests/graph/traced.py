"""Traces of the architectures and what follows from them, made once: nobody changes them."""

from __future__ import annotations

from functools import cache

from torch import nn

from compress.graph.groups import Dependencies, find
from compress.graph.surgery import proven
from compress.graph.trace import Network, trace
from tests.graph.networks import build, inputs_of


@cache
def traced(factory: type[nn.Module]) -> tuple[nn.Module, Network]:
    """An architecture and its trace."""
    model = build(factory)
    return model, trace(model, inputs_of(factory, 2))


@cache
def groups_of(factory: type[nn.Module]) -> tuple[nn.Module, Dependencies]:
    """An architecture and its groups."""
    model, network = traced(factory)
    return model, proven(model, find(network))
