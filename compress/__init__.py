"""Hardware-aware compression and deployment of PyTorch networks.

Public names are resolved when they are first used, so that ``import compress`` and ``compress --help``
load neither torch nor any runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from compress.api import run, save_bundle
    from compress.attaching import attach
    from compress.errors import BadInput, BudgetUnreachable, CompressError
    from compress.explaining.runs import explain
    from compress.explanation import Explanation
    from compress.results import Accuracy, Artifact, Candidate, Estimate, Front, Measurement, Unavailable
    from compress.types import Budget, Context, LayerPlan, Plan, Precision, Stage, State, Target

_WHERE = {
    "compress.api": ("run", "save_bundle"),
    "compress.attaching": ("attach",),
    "compress.errors": ("BadInput", "BudgetUnreachable", "CompressError"),
    "compress.explaining.runs": ("explain",),
    "compress.explanation": ("Explanation",),
    "compress.results": ("Accuracy", "Artifact", "Candidate", "Estimate", "Front", "Measurement", "Unavailable"),
    "compress.types": ("Budget", "Context", "LayerPlan", "Plan", "Precision", "Stage", "State", "Target"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Accuracy",
    "Artifact",
    "BadInput",
    "Budget",
    "BudgetUnreachable",
    "Candidate",
    "CompressError",
    "Context",
    "Estimate",
    "Explanation",
    "Front",
    "LayerPlan",
    "Measurement",
    "Plan",
    "Precision",
    "Stage",
    "State",
    "Target",
    "Unavailable",
    "attach",
    "explain",
    "run",
    "save_bundle",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'compress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
