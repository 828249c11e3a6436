"""A device whose times are known: each network takes its terms at known prices, give or take a known share."""

from __future__ import annotations

import numpy as np

from compress.calibration import SCHEMA, Calibration, Fit
from compress.profiling import calibrating, features, fitting, session

PRICES = {
    "run": 9e-6,
    "input": 5e-10,
    "dense.launch": 1e-6,
    "dense.filled_macs": 5e-12,
    "dense.taps": 1e-9,
    "pointwise.launch": 1e-6,
    "pointwise.filled_macs": 6e-12,
    "depthwise.tiles": 2e-9,
    "depthwise.edge_macs": 2e-11,
    "linear.weights": 5e-11,
    "linear.launch": 2e-6,
    "elementwise.written": 6e-11,
    "pool.read": 1e-10,
    "mean.read": 1e-10,
    "dense misaligned.patches": 3e-11,
}
"""Seconds a unit."""


class Synthetic:
    """Measures by :data:`PRICES`.

    Args:
        spread: times vary by up to this share, up and down, from a fixed generator.
        lost: how many of the networks it can't run.
    """

    device, address, unit, threads = "a synthetic device", "local", "s", 2

    def __init__(self, spread: float = 0.0, lost: int = 0) -> None:
        self.spread, self.lost = spread, lost
        self.versions = calibrating.versions()
        self.warnings: list[str] = []

    def groups(self):
        return [("onnxruntime", "float"), ("onnxruntime", "integer"), ("tvm", "integer")]

    def measure(self, drawn, runtime, tell):
        random = np.random.default_rng(3)
        found = {}
        for number, each in enumerate(drawn[self.lost :], start=1):
            exact = fitting.predicted(calibrating.terms_of(each), PRICES)
            found[each.name] = exact * (1 + self.spread * random.uniform(-1, 1))
            tell(number)
        return found


def calibration(**changed) -> Calibration:
    """One that holds for ``cpu`` here, at :data:`PRICES`."""
    fits = [
        Fit(runtime, kind, PRICES, 0.25, 0.05, 0.2, 80, 20)
        for runtime in ("onnxruntime", "tvm")
        for kind in ("float", "integer")
    ]
    given = {
        "schema": SCHEMA,
        "terms": features.VERSION,
        "target": "cpu",
        "device": session.machine(),
        "address": "local",
        "date": "2026-11-27 03:00:00 +0000",
        "versions": calibrating.versions(),
        "threads": session.threads(),
        "unit": "s",
        "fits": tuple(fits),
        "seconds": 100.0,
    }
    return Calibration(**(given | changed))
