"""A calibration: prices that were fitted to measurements on one device, and how far its predictions are off.

It is a value, kept as a file of JSON; the hash of its content goes into each run that predicts by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["float", "integer"]
Unit = Literal["s", "instructions"]
SCHEMA = 1
COVERAGE = 0.9
"""The share of networks that a prediction's interval is to hold."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Prices of one runtime's kernels for one kind of numbers.

    Attributes:
        runtime: ``onnxruntime`` or ``tvm``.
        kind: of the layers' numbers.
        prices: seconds (or instructions) of each unit of a term; see :mod:`compress.profiling.features`.
        error: relative half-width of the interval that holds :data:`COVERAGE` of the networks that the fit hasn't seen.
        median_error, p90_error: of the relative errors on those networks.
        fitted, checked: how many networks were fitted, and how many of them the errors come from.
        pace_s: geometric mean of the reference networks' seconds (:mod:`compress.profiling.pace`) at the pace that the
            prices are for; None where none was timed.
    """

    runtime: str
    kind: Kind
    prices: Mapping[str, float]
    error: float
    median_error: float
    p90_error: float
    fitted: int
    checked: int
    pace_s: float | None = None


@dataclass(frozen=True)
class Calibration:
    """What was fitted for one target on one device.

    Attributes:
        schema: of this file.
        terms: version of the terms that prices are for.
        target: canonical name.
        device: in words; the machine's own where it was local.
        address: ``local``, ``qemu``, or the SSH address.
        date: when, ISO 8601.
        versions: of compress and of the runtimes there.
        threads: that each run was given.
        unit: of the prices.
        fits: one a runtime and kind of numbers.
        seconds: that it took.
        warnings: what disturbed it: other programs, a falling clock.
    """

    schema: int
    terms: int
    target: str
    device: str
    address: str
    date: str
    versions: Mapping[str, str]
    threads: int
    unit: Unit
    fits: tuple[Fit, ...]
    seconds: float
    warnings: tuple[str, ...] = ()

    def fit(self, runtime: str, kind: str) -> Fit | None:
        """The fit for a runtime and a kind of numbers; binary weights are integers. None where there is none."""
        wanted = "float" if kind == "float" else "integer"
        return next((each for each in self.fits if (each.runtime, each.kind) == (runtime, wanted)), None)

    def digest(self) -> str:
        """SHA-256 of its canonical JSON, in hexadecimal."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        # Asked for by every estimate, of which a search makes thousands.
        from compress.serial import to_json

        text = json.dumps(to_json(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


__all__ = ["COVERAGE", "SCHEMA", "Calibration", "Fit"]
