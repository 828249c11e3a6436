"""The published schema of front.json accepts what a front writes, and nothing that breaks its promises."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from compress.report.schema import front_schema
from compress.results import Front

REQUIRED = {
    (): ["schema", "model", "target", "dataset", "baseline", "candidates", "best"],
    ("dataset",): ["name", "sha256", "n_eval"],
    ("baseline",): [
        "id", "plan_digest", "accuracy", "latency", "ram_bytes", "flash_bytes", "macs", "params", "weight_bits",
        "activation_bits", "on_front", "artifacts", "unavailable",
    ],
    ("baseline", "accuracy"): ["value", "low", "high", "n", "measured_on"],
    ("baseline", "latency"): ["predicted_s", "error", "measured_s", "device"],
    ("baseline", "artifacts", 0): ["runtime", "path", "sha256", "bytes", "accuracy", "latency", "ram_bytes"],
    ("candidates", 0, "unavailable", 0): ["runtime", "reason"],
}  # fmt: skip
"""Every key that the design promises, by where it stands."""


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def valid(document: Any) -> bool:
    return bool(Draft202012Validator(front_schema()).is_valid(document))


def written(front: Front) -> Any:
    return json.loads(json.dumps(front.document(), allow_nan=False))


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(front_schema())
    assert front_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_docs_hold_the_schema_that_is_shipped() -> None:
    root = Path(__file__).parent.parent.parent
    shipped = root / "compress" / "report" / "front.schema.json"
    assert (root / "docs" / "front.schema.json").read_bytes() == shipped.read_bytes()


def test_what_a_front_writes_is_valid(any_front: Front) -> None:
    errors = [error.message for error in Draft202012Validator(front_schema()).iter_errors(written(any_front))]
    assert errors == []


@pytest.mark.parametrize(("path", "key"), [(path, key) for path, keys in REQUIRED.items() for key in keys])
def test_every_promised_key_is_required(fronts: dict[str, Front], path: tuple[str | int, ...], key: str) -> None:
    document = written(fronts["predicted"])
    assert valid(document)
    del at(document, path)[key]
    assert not valid(document)


def test_additions_are_fine(fronts: dict[str, Front]) -> None:
    document = written(fronts["measured"])
    for path in REQUIRED:
        if path[-2:] != ("unavailable", 0):
            at(document, path)["an_addition"] = [1]
    assert valid(document)


Break = Callable[[Any], None]


def put(*path: Any) -> Break:
    *where, key, value = path

    def change(document: Any) -> None:
        at(document, tuple(where))[key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("schema", 2),
        put("schema", None),
        put("candidates", None),
        put("best", 3),
        put("dataset", "n_eval", "500"),
        put("baseline", None),
        put("baseline", "plan_digest", "xyz"),
        put("baseline", "accuracy", "value", "98%"),
        put("baseline", "accuracy", "value", 150),
        put("baseline", "accuracy", "measured_on", None),
        put("baseline", "on_front", None),
        put("baseline", "weight_bits", 0),
        put("baseline", "macs", 1.5),
        put("candidates", 0, "latency", "error", None),  # a prediction without its error
        put("candidates", 0, "latency", "measured_s", 1e-3),  # a measurement without its device
        put("candidates", 0, "latency", "device", "a board"),  # a device that measured nothing
        put("candidates", 0, "latency", "predicted_s", -1),
        put("candidates", 0, "latency", None),
        put("candidates", 0, "unavailable", 0, "reason", ""),
        put("candidates", 0, "artifacts", 0, "sha256", "0"),
    ],
)
def test_a_broken_front_is_refused(fronts: dict[str, Front], change: Break) -> None:
    document = written(fronts["predicted"])
    broken = copy.deepcopy(document)
    change(broken)
    assert broken != document
    assert not valid(broken)


@pytest.mark.parametrize(
    "path", [("best",), ("baseline", "accuracy"), ("baseline", "ram_bytes"), ("baseline", "artifacts", 0, "accuracy")]
)
def test_what_may_be_unknown_may_be_null(fronts: dict[str, Front], path: tuple[Any, ...]) -> None:
    document = written(fronts["measured"])
    at(document, path[:-1])[path[-1]] = None
    assert valid(document)
