"""What weights narrower than 8 bits gain over 8-bit ones: bytes and time of the same network, runtime by runtime.

A network is smaller for real where its files are; whether it is faster too is another question, since processors
multiply 8-bit numbers and narrower weights have to be widened first.
"""

from __future__ import annotations

from compress.report import gains, words
from compress.report.points import unit
from compress.results import Artifact, Candidate, EightBits, Front


def against_8_bits(front: Front, candidate: Candidate) -> str | None:
    """Bytes and time of a candidate's files beside those of the same network with 8-bit weights, in a sentence.

    Latencies are compared if both were measured on one device, else if both are predicted, which is said; instructions
    that an emulator counted stand apart, as a count. None where no weight is narrower than 8 bits.
    """
    said = [_clause(front, artifact, eight) for artifact in candidate.artifacts if (eight := artifact.at_8_bits)]
    return f"{candidate.id} beside itself with 8-bit weights: {'; '.join(said)}." if said else None


def sentences(front: Front) -> tuple[str, ...]:
    """:func:`against_8_bits` of every candidate that has narrower weights."""
    found = (against_8_bits(front, candidate) for candidate in front.candidates)
    return tuple(sentence for sentence in found if sentence is not None)


def foremost(front: Front) -> str | None:
    """:func:`against_8_bits` of the candidate that the report is about, else of the most accurate narrow one."""
    subject = gains.subject(front)
    ranked = sorted(front.candidates, key=lambda c: (subject is None or c.id != subject.id, -c.value, c.id))
    return next((sentence for c in ranked if (sentence := against_8_bits(front, c)) is not None), None)


def _clause(front: Front, artifact: Artifact, eight: EightBits) -> str:
    said = f"{words.runtime(artifact.runtime)}'s file {_bytes(front, artifact, eight)}, {_time(front, artifact, eight)}"
    if artifact.instructions is None or eight.instructions is None:
        return said
    ratio = gains.ratio_text(eight.instructions / artifact.instructions, "fewer", "more")
    now, before = words.count(artifact.instructions), words.count(eight.instructions)
    return f"{said}, {now} instructions instead of {before} ({ratio}, counted by an emulator: no time)"


def _bytes(front: Front, artifact: Artifact, eight: EightBits) -> str:
    files = unit(front, "size")
    smaller = gains.ratio_text(eight.bytes / artifact.bytes, "smaller", "larger")
    return f"{files.text(artifact.bytes)} instead of {files.text(eight.bytes)} ({smaller})"


def _time(front: Front, artifact: Artifact, eight: EightBits) -> str:
    both = gains.latencies(eight, artifact)
    if both is None:
        return "speed unknown"
    before, now, kind = both
    known: str = kind
    if kind == "predicted" and eight.estimate is not None and artifact.estimate is not None:
        known = f"predicted, ± {100 * max(eight.estimate.error, artifact.estimate.error):.0f}%"
    if kind == "measured" and any(
        m is not None and m.conditions.get("noisy") for m in (eight.measurement, artifact.measurement)
    ):
        known = "measured while the machine was busy"
    latency, faster = unit(front, "latency"), gains.ratio_text(before / now, "faster", "slower")
    return f"{latency.text(now)} instead of {latency.text(before)} ({faster}, {known})"
