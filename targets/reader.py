"""Strict reading of one TOML table: every key is asked for, checked, and none is left over.

Each complaint is one line that names the file, the key and what belongs there.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any, cast, get_args

from compress.errors import BadInput, nearest_names
from compress.types import Evidence, Source

DETECT = "detect"
"""What a file may give for a number that the operating system is asked for when it is loaded."""


class Reader:
    """One table of a file.

    Args:
        file: the file as the user named it, for the complaints.
        table: what the TOML parser made of it.
        path: the key that leads to this table, ``""`` for the whole file.
    """

    def __init__(self, file: str, table: Any, path: str = "") -> None:
        self.file, self.path = file, path
        if not isinstance(table, dict):
            raise self.bad("", f"must be a table, not {_shown(table)}")
        self._table: dict[str, Any] = dict(table)
        self._asked: list[str] = []

    def bad(self, key: str, problem: str) -> BadInput:
        """The complaint about ``key``."""
        name = ".".join(part for part in (self.path, key) if part)
        return BadInput(f"target file {self.file}: {name!r} {problem}")

    def _take(self, key: str, what: str, required: bool) -> Any:
        self._asked.append(key)
        value = self._table.pop(key, None)
        if value is None and required:
            raise self.bad(key, f"is missing; it must be {what}")
        return value

    def text(self, key: str) -> str:
        """A line of text that isn't empty."""
        value = self.optional_text(key, required=True)
        assert value is not None
        return value

    def optional_text(self, key: str, *, required: bool = False) -> str | None:
        """A line of text, or None where the key isn't there."""
        value = self._take(key, "text in quotes", required)
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise self.bad(key, f"must be text in quotes, not {_shown(value)}")
        return value

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of ``choices``."""
        value = self._take(key, f"one of {', '.join(choices)}", required=True)
        if value not in choices:
            raise self.bad(key, f"must be one of {', '.join(choices)}, not {_shown(value)}")
        return cast(str, value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._take(key, "true or false", required=True)
        if not isinstance(value, bool):
            raise self.bad(key, f"must be true or false, not {_shown(value)}")
        return value

    def texts(self, key: str, *, required: bool) -> tuple[str, ...]:
        """A list of different texts; empty only if the key may be left out."""
        value = self._take(key, "a list of texts", required)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.bad(key, f"must be a list of texts, not {_shown(value)}")
        if (required and not value) or len(set(value)) < len(value):
            raise self.bad(key, "must name at least one, and each once")
        return tuple(value)

    def date(self, key: str, *, required: bool = True) -> str | None:
        """A day, as a TOML date or as text; given back as ``YYYY-MM-DD``."""
        value = self._take(key, "a date such as 2026-11-20", required)
        if value is None:
            return None
        if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
            return value.isoformat()
        try:
            if not isinstance(value, str):
                raise ValueError
            return datetime.date.fromisoformat(value).isoformat()
        except ValueError:
            raise self.bad(key, f"must be a date such as 2026-11-20, not {_shown(value)}") from None

    def bare(self, key: str, *, low: float = 0.0, high: float = math.inf, detected: int | None = None) -> float:
        """A number above ``low`` (0 is never allowed) and at most ``high``.

        Where ``detected`` is given, the text ``"detect"`` stands for it.
        """
        what = f"a number above {low:g}" + (f" and at most {high:g}" if math.isfinite(high) else "")
        value = self._take(key, what, required=True)
        if value == DETECT and detected is not None:
            return detected
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
            raise self.bad(key, f"must be {what}, not {_shown(value)}")
        if not math.isfinite(value):
            raise self.bad(key, f"must be finite, not {_shown(value)}")
        return value

    def whole(self, key: str, *, high: int | None = None, detected: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self.bare(key, high=math.inf if high is None else high, detected=detected)
        if not isinstance(value, int):
            raise self.bad(key, f"must be a whole number, not {_shown(value)}")
        return value

    def source(self) -> Source:
        """The ``source``, ``date`` and ``evidence`` of this table's number."""
        text, day = self.text("source"), self.date("date")
        assert day is not None
        return Source(text, day, cast(Evidence, self.choice("evidence", get_args(Evidence))))

    def table(self, key: str) -> Reader:
        """The table behind ``key``."""
        value = self._take(key, "a table with value, source, date and evidence", required=True)
        return Reader(self.file, value, ".".join(part for part in (self.path, key) if part))

    def has(self, key: str) -> bool:
        """True if the key is there."""
        self._asked.append(key)
        return key in self._table

    def tables(self, key: str) -> list[Reader]:
        """The tables of a list of at least one."""
        value = self._take(key, f"at least one [[{key}]] table", required=True)
        if not isinstance(value, list) or not value:
            raise self.bad(key, f"must be one or more [[{key}]] tables")
        return [Reader(self.file, item, f"{key}[{index}]") for index, item in enumerate(value)]

    def finish(self) -> None:
        """Complain about a key that nobody asked for."""
        for key in self._table:
            near = nearest_names(key, self._asked, most=1)
            raise self.bad(key, "is no key of a target" + (f"; did you mean {near[0]!r}?" if near else "; remove it"))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
