"""The published JSON Schema (2020-12) of ``front.json``."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, cast


@cache
def _text() -> str:
    from importlib.resources import files

    return (files("compress.report") / "front.schema.json").read_text(encoding="utf-8")


def front_schema() -> dict[str, Any]:
    """The schema as a JSON value; a new one every time, so that a caller may change it."""
    return cast(dict[str, Any], json.loads(_text()))
