"""Option values: numbers, and quantities that need a unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # generic only since click 8.4

SECONDS: Mapping[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
BYTES: Mapping[str, float] = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)", re.DOTALL)


class Quantity(_Type):
    """A number above 0 with a unit.

    Args:
        name: what it is, for the help.
        units: unit to factor; the first of them is the one that the value is returned in.
        example: shown where the value is wrong.
        whole: round to a whole number of the first unit, which must then be at least 1.
    """

    def __init__(self, name: str, units: Mapping[str, float], example: str, whole: bool = False) -> None:
        self.name, self.units, self.example, self.whole = name, units, example, whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number in the first unit."""
        text = str(value).strip().replace("µ", "u").replace("μ", "u")
        allowed = f"give a number with one of {', '.join(self.units)}, such as {self.example}"
        match = _QUANTITY.fullmatch(text)
        if match is None:
            self.fail(f"{value!r}: not a quantity; {allowed}", param, ctx)
        number, unit = float(match[1]), match[2]
        if not unit:
            self.fail(f"{value!r}: it has no unit; {allowed}", param, ctx)
        factors = {name.lower(): factor for name, factor in self.units.items()}
        if unit.lower() not in factors:
            self.fail(f"{value!r}: unknown unit {unit!r}; {allowed}", param, ctx)
        result = number * factors[unit.lower()]
        if not 0 < result < math.inf or (self.whole and result < 1):
            self.fail(f"{value!r}: it must be above 0; {allowed}", param, ctx)
        return int(result) if self.whole else result


class Real(_Type):
    """A finite number."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r}: not a number; give one such as 0.5", param, ctx)
        return number


class Whole(_Type):
    """A whole number from 0 to 2^63 - 1."""

    name = "whole number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r}: not a whole number; give one such as 8", param, ctx)
        if not 0 <= number < 2**63:
            self.fail(f"{value!r}: it must be 0 or more, and below 2^63", param, ctx)
        return number


class Reals(_Type):
    """Finite numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = (math.nan,)
        if not all(map(math.isfinite, numbers)):
            self.fail(f"{value!r}: not numbers; give one a channel, such as 0.485,0.456,0.406", param, ctx)
        return numbers


class Names(_Type):
    """Names with commas between them."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names, without the blanks around them."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r}: a name is missing; give names such as 3,7", param, ctx)
        return names


class ImageSize(_Type):
    """Height and width, of ``WIDTHxHEIGHT`` or one number for both."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """(height, width) in pixels."""
        if isinstance(value, (tuple, list)):
            return int(value[0]), int(value[1])
        found = re.fullmatch(r"(\d{1,5})(?:[xX\u00d7](\d{1,5}))?", str(value).strip())
        sides = [int(each) for each in found.groups() if each] if found else [0]
        if not all(sides):
            self.fail(f"{value!r}: not a size; give width x height in pixels, such as 128x96", param, ctx)
        return sides[-1], sides[0]


LATENCY = Quantity("latency", SECONDS, "5ms")
SIZE = Quantity("size", BYTES, "256KiB", whole=True)
REAL, WHOLE, REALS, NAMES, PIXELS = Real(), Whole(), Reals(), Names(), ImageSize()
