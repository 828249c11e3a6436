"""Numbers in words: one way to write a latency, a size, a count, a ratio and an accuracy in every report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from compress.metric import TOP1, Metric
from compress.results import Accuracy
from compress.types import Budget

DASH = "—"
"""Stands where a figure isn't known."""
TO, TIMES, MINUS = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"

RUNTIMES = {"onnxruntime": "ONNX Runtime", "tvm": "TVM", "tensorrt": "TensorRT", "torch": "PyTorch (simulated)"}

_TO_ASCII = str.maketrans(
    {
        "—": "-",
        TO: "-",
        MINUS: "-",
        TIMES: "x",
        "±": "+/-",
        "★": "*",
        "●": "o",
        "→": "->",
        "µ": "u",
        "≤": "<=",
        "…": "...",
        "·": ",",
        "≈": "~",
    }
)


@dataclass(frozen=True)
class Unit:
    """A unit shared by a column or an axis: what one of it is, its symbol, and the decimals to show."""

    size: float
    symbol: str
    decimals: int

    def number(self, value: float | None) -> str:
        """``value`` in this unit without the symbol; a dash where unknown."""
        return DASH if value is None or not math.isfinite(value) else f"{value / self.size:,.{self.decimals}f}"

    def text(self, value: float | None) -> str:
        """``value`` in this unit with the symbol; a dash where unknown."""
        number = self.number(value)
        return number if number == DASH else f"{number} {self.symbol}".rstrip()


def latency_unit(values: Iterable[float | None]) -> Unit:
    """The unit for a column of seconds: the largest value is at least 1, the smallest keeps three digits."""
    known = [v for v in values if v is not None and math.isfinite(v) and v > 0]
    largest, smallest = max(known, default=1e-3), min(known, default=1e-3)
    size, symbol = next(
        ((s, name) for s, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if largest >= s), (1e-9, "ns")
    )
    return Unit(size, symbol, _decimals(smallest / size))


def byte_unit(values: Iterable[float | None]) -> Unit:
    """The unit for a column of bytes: the smallest value is at least 1, with one decimal below 100."""
    known = [v for v in values if v is not None and v > 0]
    smallest = min(known, default=1.0)
    size, symbol = next(
        ((s, name) for s, name in ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")) if smallest >= s), (1.0, "B")
    )
    return Unit(size, symbol, 0 if symbol == "B" or smallest / size >= 100 else 1)


PREFIXES = ("G", "M", "k")


def count_unit(values: Iterable[float | None]) -> Unit:
    """The unit for a column of counts: the smallest value is at least 1."""
    smallest = min((v for v in values if v is not None and v > 0), default=1.0)
    size, symbol = next(((s, n) for s, n in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if smallest >= s), (1.0, ""))
    return Unit(size, symbol, _decimals(smallest / size) if symbol else 0)


def energy_unit(values: Iterable[float | None]) -> Unit:
    """The unit for a column of joules: the largest value is at least 1, the smallest keeps three digits."""
    known = [v for v in values if v is not None and v > 0]
    largest, smallest = max(known, default=1e-3), min(known, default=1e-3)
    size, symbol = next(((s, n) for s, n in ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")) if largest >= s), (1e-9, "nJ"))
    return Unit(size, symbol, _decimals(smallest / size))


def _decimals(smallest: float) -> int:
    return max(0, min(3, 2 - math.floor(math.log10(smallest)))) if smallest > 0 else 0


def seconds(value: float | None) -> str:
    """Seconds in their own unit with three digits; minutes from two minutes on."""
    if value is None or not math.isfinite(value):
        return DASH
    if value >= 120:
        return f"{int(round(value) // 60)} min {round(value) % 60:02d} s"
    if value <= 0:
        return "0 s"
    unit = latency_unit([value])
    # Wall times carry no more than a tenth of a second's meaning.
    return f"{value:.1f} s" if unit.symbol == "s" else unit.text(value)


def size(value: float | None) -> str:
    """Bytes in their own unit."""
    return DASH if value is None else byte_unit([value]).text(value)


def count(value: float | None) -> str:
    """A count with three digits: 272 k, 40.8 M, 1.02 G."""
    if value is None:
        return DASH
    for step, symbol in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= step:
            return f"{value / step:.{_decimals(value / step)}f} {symbol}"
    return f"{value:,.0f}"


def percent(fraction: float, decimals: int = 0) -> str:
    """A fraction in percent."""
    return f"{100 * fraction:.{decimals}f}%"


def share(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent; a dash where there is no whole."""
    return DASH if whole <= 0 else percent(part / whole, 1 if part / whole < 0.1 else 0)


def times(ratio: float) -> str:
    """A ratio above 1: 3.1×, 12×."""
    return f"{ratio:.{0 if ratio >= 10 else 1}f}{TIMES}"


def bits(value: float) -> str:
    """Average bits: 8, 4.2."""
    return f"{value:.1f}".removesuffix(".0")


def runtime(name: str) -> str:
    """A runtime's name for people."""
    return RUNTIMES.get(name, name)


def accuracy_decimals(accuracy: Accuracy) -> int:
    """The decimals that an accuracy can bear."""
    return accuracy.kind.decimals(accuracy.n)


def accuracy_text(accuracy: Accuracy | None) -> str:
    """An accuracy with its unit: 97.8%, 31.42 dB."""
    if accuracy is None:
        return DASH
    return f"{accuracy.value:.{accuracy_decimals(accuracy)}f}{accuracy.kind.sign}"


def interval_text(accuracy: Accuracy | None) -> str:
    """The 95% interval of an accuracy: 96.1–98.8."""
    if accuracy is None:
        return DASH
    decimals = accuracy_decimals(accuracy)
    return f"{accuracy.low:.{decimals}f}{TO}{accuracy.high:.{decimals}f}"


def points(difference: float, accuracy: Accuracy) -> str:
    """A difference of accuracies, without its sign: 0.2 points, 0.31 dB."""
    return accuracy.kind.difference(difference, accuracy_decimals(accuracy))


def ssim_text(accuracy: Accuracy | None) -> str:
    """The structural similarity beside a PSNR: 0.912; empty where there is none."""
    return "" if accuracy is None or accuracy.ssim is None else f"{accuracy.ssim:.3f}"


def accuracy_detail(accuracy: Accuracy | None) -> str:
    """What qualifies an accuracy: its interval, and an SSIM where there is one; empty where none is known."""
    if accuracy is None:
        return ""
    similar = ssim_text(accuracy)
    return interval_text(accuracy) + (f", SSIM {similar}" if similar else "")


def budget_text(budget: Budget, metric: Metric = TOP1) -> tuple[str, ...]:
    """Every limit that was asked for, one entry each; empty where nothing was."""
    asked: list[tuple[str, str | None]] = [
        ("latency", seconds(budget.latency_s) if budget.latency_s is not None else None),
        ("RAM", size(budget.ram_bytes) if budget.ram_bytes is not None else None),
        ("file", size(budget.flash_bytes) if budget.flash_bytes is not None else None),
        ("MACs kept", percent(budget.macs, 1) if budget.macs is not None else None),
        ("parameters kept", percent(budget.params, 1) if budget.params is not None else None),
        ("average weight bits", bits(budget.weight_bits) if budget.weight_bits is not None else None),
        ("activation bits", str(budget.activation_bits) if budget.activation_bits is not None else None),
        ("bit operations", f"{budget.bit_operations:,}" if budget.bit_operations is not None else None),
        (
            f"{metric.name} drop",
            metric.difference(budget.max_accuracy_drop) if budget.max_accuracy_drop is not None else None,
        ),
    ]
    return tuple(f"{name} ≤ {limit}" for name, limit in asked if limit is not None)


def shorten(text: str, most: int) -> str:
    """``text`` in at most ``most`` characters, its middle left out: the ends of a name tell it apart."""
    if len(text) <= most:
        return text
    head = (most - 1) // 3
    return f"{text[:head]}…{text[-(most - 1 - head) :]}"


def to_ascii(text: str) -> str:
    """``text`` for a terminal that can print ASCII only."""
    return text.translate(_TO_ASCII).encode("ascii", "replace").decode()
