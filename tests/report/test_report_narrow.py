# ruff: noqa: RUF001  # the multiplication sign is what reports print
"""Weights narrower than 8 bits beside 8-bit ones, in words."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from compress.report import gains, narrow
from compress.report.facts import RunFacts
from compress.report.html import render
from compress.report.markdown import escape, front_markdown
from compress.report.schema import front_schema
from compress.report.terminal import front_table
from compress.results import Candidate, EightBits, Estimate, Front, Measurement

CPU = "x86-64, 2 cores"


def estimate(latency_s: float, error: float) -> Estimate:
    return Estimate(latency_s, 1, 1, (), error)


def measurement(latency_s: float, device: str = CPU) -> Measurement:
    return Measurement(latency_s, 1.08 * latency_s, 300, device, {"threads": 2})


def beside(candidate: Candidate, eight: EightBits, **known: Any) -> Candidate:
    """The candidate with what its only artifact is compared with."""
    (artifact,) = candidate.artifacts
    return replace(candidate, artifacts=(replace(artifact, at_8_bits=eight, **known),))


def front_with(front: Front, eight: EightBits, **known: Any) -> Front:
    """``c7``, the narrow candidate (115.2 KiB; 149 µs measured, 199.7 µs ± 40% predicted), is compared."""
    changed = tuple(beside(c, eight, **known) if c.id == "c7" else c for c in front.candidates)
    return replace(front, candidates=changed)


def said(front: Front) -> str | None:
    return narrow.against_8_bits(front, next(c for c in front.candidates if c.id == "c7"))


def test_both_measured_on_one_device(fronts: dict[str, Front]) -> None:
    eight = EightBits("p", 177_000, estimate(0.2e-3, 0.4), measurement(0.1192e-3), None)
    assert said(front_with(fronts["measured"], eight)) == (
        "c7 beside itself with 8-bit weights: ONNX Runtime's file 115.2 KiB instead of 172.9 KiB (1.5× smaller), "
        "149.0 µs instead of 119.2 µs (1.2× slower, measured)."
    )


def test_times_of_a_busy_machine_say_so(fronts: dict[str, Front]) -> None:
    busy = replace(measurement(0.1192e-3), conditions={"noisy": True})
    eight = EightBits("p", 177_000, estimate(0.2e-3, 0.4), busy, None)
    assert str(said(front_with(fronts["measured"], eight))).endswith(
        "149.0 µs instead of 119.2 µs (1.2× slower, measured while the machine was busy)."
    )


@pytest.mark.parametrize("other", [None, measurement(0.1e-3, "a board")])
def test_else_both_predicted_with_the_larger_error(fronts: dict[str, Front], other: Measurement | None) -> None:
    """Neither a missing measurement nor one from elsewhere is set against one from here."""
    eight = EightBits("p", 118_000, estimate(0.4e-3, 0.6), other, None)
    assert said(front_with(fronts["measured"], eight)) == (
        "c7 beside itself with 8-bit weights: ONNX Runtime's file 115.2 KiB instead of 115.2 KiB (no smaller), "
        "199.7 µs instead of 400.0 µs (2.0× faster, predicted, ± 60%)."
    )


def test_what_an_emulator_counted_is_called_a_count(fronts: dict[str, Front]) -> None:
    eight = EightBits("p", 100_000, None, None, 12_000_000)
    front = front_with(fronts["measured"], eight, runtime="tvm", instructions=15_000_000)
    assert said(front) == (
        "c7 beside itself with 8-bit weights: TVM's file 115.2 KiB instead of 97.7 KiB (1.2× larger), speed unknown, "
        "15.0 M instructions instead of 12.0 M (1.2× more, counted by an emulator: no time)."
    )
    uncounted = front_with(fronts["measured"], replace(eight, instructions=None), instructions=15_000_000)
    assert "instructions" not in str(said(uncounted))


def test_every_file_is_compared_with_that_of_its_own_runtime(fronts: dict[str, Front]) -> None:
    eight = EightBits("p", 177_000, None, None, None)
    front = front_with(fronts["measured"], eight)
    c7 = next(c for c in front.candidates if c.id == "c7")
    (artifact,) = c7.artifacts
    compiled = replace(artifact, runtime="tvm", bytes=59_000, at_8_bits=replace(eight, bytes=118_000))
    alone = replace(artifact, runtime="tensorrt", at_8_bits=None)
    assert narrow.against_8_bits(front, replace(c7, artifacts=(artifact, compiled, alone))) == (
        "c7 beside itself with 8-bit weights: ONNX Runtime's file 115.2 KiB instead of 172.9 KiB (1.5× smaller), "
        "speed unknown; TVM's file 57.6 KiB instead of 115.2 KiB (2.0× smaller), speed unknown."
    )


def test_nothing_is_said_where_no_weight_is_narrower(any_front: Front) -> None:
    assert narrow.sentences(any_front) == ()
    assert narrow.foremost(any_front) is None


def test_the_subject_comes_first_then_the_most_accurate(fronts: dict[str, Front]) -> None:
    """By hand: c4 is the best; of the others c2 has the most correct (492), c8 the fewest."""
    front, eight = fronts["measured"], EightBits("p", 177_000, None, None, None)

    def narrowed(*names: str) -> Front:
        return replace(front, candidates=tuple(beside(c, eight) if c.id in names else c for c in front.candidates))

    assert gains.subject(front).id == "c4"  # type: ignore[union-attr]  # it has candidates
    for names, first in ((("c8", "c2"), "c2"), (("c8", "c4", "c2"), "c4"), (("c8",), "c8")):
        found = narrowed(*names)
        assert str(narrow.foremost(found)).startswith(f"{first} beside itself")
        assert len(narrow.sentences(found)) == len(names)


def test_every_report_holds_it(fronts: dict[str, Front], facts: Callable[[Front], RunFacts]) -> None:
    eight = EightBits("p", 177_000, estimate(0.2e-3, 0.4), measurement(0.1192e-3), None)
    front = front_with(fronts["measured"], eight)
    sentence = str(said(front))
    assert f"- {escape(sentence)}" in front_markdown(front).splitlines()
    assert sentence.replace("'", "&#39;") in render(front, facts(front))
    file = io.StringIO()
    Console(file=file, width=1000).print(front_table(front))
    assert sentence in file.getvalue()


def test_it_is_read_back_from_front_json_as_it_was(fronts: dict[str, Front]) -> None:
    eight = EightBits("p", 177_000, estimate(0.2e-3, 0.4), measurement(0.1192e-3), 12)
    front = front_with(fronts["measured"], eight)
    document = json.loads(json.dumps(front.document()))
    assert Draft202012Validator(front_schema()).is_valid(document)
    assert Front.from_document(document) == front
    (artifact,) = next(c for c in document["candidates"] if c["id"] == "c7")["artifacts"]
    del artifact["at_8_bits"]["bytes"]
    assert not Draft202012Validator(front_schema()).is_valid(document)
    del artifact["at_8_bits"]  # a run of before has none
    (old,) = next(c for c in Front.from_document(document).candidates if c.id == "c7").artifacts
    assert old.at_8_bits is None
