"""A user's module that computes with quantizers while it stays what it is.

The module's ``forward`` is replaced by the traced network with quantizers, which reads the module's own parameters at
each call: a batch norm is folded into the layer in front of it on the way, with its running statistics as they are and
with gradients for all parameters of the two. So the optimizer goes on holding the same tensors, and the weights that
are rounded in training are the ones that are exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.errors import BadInput
from compress.graph.fold import Front, folded_parameters, put_folded
from compress.quantize.quantizers import FOLDER


class Substitute:
    """What stands in for ``model.forward``.

    A copy of the model (``copy.deepcopy``, an average of weights) has a copy of this, with quantizers of its own.

    Args:
        model: the user's.
        student: the folded network with quantizers; only its quantizers' parameters are its own.
        folds: batch norm -> the layer that it is folded into, as :func:`compress.graph.fold.foldable` gives them.
    """

    def __init__(self, model: nn.Module, student: fx.GraphModule, folds: Mapping[str, Front]) -> None:
        self.model, self.student, self.folds = model, student, dict(folds)
        own = (*student.named_parameters(remove_duplicate=False), *student.named_buffers(remove_duplicate=False))
        self.names = frozenset(name for name, _ in own if not name.startswith(f"{FOLDER}."))

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        """The quantized network's output.

        Raises:
            BadInput: called with something else than the tensors that it was traced with.
        """
        if named or not all(isinstance(each, Tensor) for each in arguments):
            raise BadInput("a model that is being quantized takes its tensors by position, and nothing else")
        result: Tensor = torch.func.functional_call(self.student, self.values(), arguments)
        return result

    def values(self) -> dict[str, Tensor]:
        """Name -> tensor of all parameters and buffers of the folded network, made of the model's own."""
        found: dict[str, Tensor] = dict(self.model.named_parameters(remove_duplicate=False))
        found |= dict(self.model.named_buffers(remove_duplicate=False))
        for norm, layer in self.folds.items():
            parts = (self.model.get_submodule(layer.path), self.model.get_submodule(norm))
            found[f"{layer.path}.weight"], found[f"{layer.path}.bias"] = folded_parameters(*parts, layer.axis)
        return {name: found[name] for name in self.names if name in found}

    def put(self, folded: nn.Module) -> None:
        """Give the model the parameters of ``folded``, a folded network, in place."""
        named = dict(folded.named_parameters(remove_duplicate=False))
        done: set[str] = set()
        for norm, layer in self.folds.items():
            names = (f"{layer.path}.weight", f"{layer.path}.bias")
            parts = (self.model.get_submodule(layer.path), self.model.get_submodule(norm))
            home = next(parts[0].parameters()).device
            put_folded(*parts, layer.axis, *(named[name].detach().to(home) for name in names))
            done |= {*names, f"{norm}.weight", f"{norm}.bias"}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name not in done and name in named:
                    parameter.copy_(named[name])

    def attach(self) -> None:
        """From here on the model computes this."""
        # Not a module's attribute: the model's state_dict and parameters stay what they are.
        self.model.__dict__["forward"] = self

    def detach(self) -> None:
        """From here on the model computes what its class says."""
        self.model.__dict__.pop("forward", None)
