"""The explanation of a state that a job made: its layers against the roofline, reasons, and what would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.explaining.reasons import reasons
from compress.explaining.remedies import remedies
from compress.explanation import Explanation, LayerWork
from compress.graph.groups import find
from compress.graph.operators import Operator
from compress.job import Assessment
from compress.profiling import latency, roofline
from compress.prune.counter import Counter
from compress.types import Note, Precision, Target


def explain(
    assessed: Assessment, reference: Assessment | None, target: Target, notes: Sequence[Note] = ()
) -> Explanation:
    """Why a network takes the time that the latency model predicts.

    Args:
        assessed: the network, as it was assessed for the target.
        reference: the uncompressed one; None if this is it, of which nothing is asked.
        target: the device.
        notes: what quantization and lowering left in float, and why.
    """
    estimate = assessed.estimate(0)
    layers = _works(assessed, target, notes)
    multiple = target.channel_multiple
    if reference is None:
        return Explanation(layers, multiple, estimate.error)
    layers = roofline.beside(layers, _works(reference, target, ()))
    # What a runtime needs for every call belongs to no layer.
    rest = max(0.0, estimate.latency_s - sum(layer.predicted_s for layer in layers))
    found = reasons(layers, multiple, rest)

    def predict(operators: Sequence[Operator], precisions: Mapping[str, Precision]) -> float:
        return latency.predict(operators, precisions, target, 0, 0, inputs=assessed.inputs).latency_s

    def counter() -> Counter | None:
        return Counter.of(assessed.network, find(assessed.network))

    helps = remedies(
        assessed.operators, assessed.precisions, layers, found, target.precisions, multiple, predict, counter
    )
    return Explanation(layers, multiple, estimate.error, found, helps)


def _works(assessed: Assessment, target: Target, notes: Sequence[Note]) -> tuple[LayerWork, ...]:
    return roofline.works(
        assessed.operators,
        assessed.precisions,
        target,
        assessed.estimate(0),
        inputs=assessed.inputs,
        grids=assessed.grids,
        notes=notes,
    )


__all__ = ["explain"]
