"""What accuracy is for a task: the one place that knows how it is called, in which unit, and how much of it may go.

Everything else (limits, reports, figures, checks) asks the :class:`Metric` of an accuracy, and never the task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "reconstruction"]
MetricName = Literal["top1_percent", "psnr_db"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A measure of accuracy; higher is better.

    Attributes:
        key: its name in files, with the unit.
        task: what is measured by it.
        name: within a sentence.
        title: at an axis.
        sign: behind a value.
        symbol: the unit alone.
        one, many: what a difference of one, and any other difference, is counted in.
        more, less: how a network with a higher or lower value is called, behind the difference.
        ceiling: the highest value there is.
        drop: what the chosen candidate may lose where the user named no limit.
    """

    key: MetricName
    task: Task
    name: str
    title: str
    sign: str
    symbol: str
    one: str
    many: str
    more: str
    less: str
    ceiling: float
    drop: float

    @property
    def heading(self) -> str:
        """``name`` at the beginning of a line."""
        return self.name[:1].upper() + self.name[1:]

    def decimals(self, n: int) -> int:
        """The decimals that a value over ``n`` inputs can bear: of a share, a step is a unit of the last at least."""
        if self.ceiling == math.inf:
            return 2
        return 1 if n <= 2000 else 2

    def difference(self, value: float, decimals: int | None = None) -> str:
        """A difference with its unit, without its sign: 0.2 points, 0.31 dB; all its digits without ``decimals``."""
        text = f"{abs(value):g}" if decimals is None else f"{abs(value):.{decimals}f}"
        return f"{text} {self.one if decimals is None and abs(value) == 1 else self.many}"


TOP1 = Metric(
    key="top1_percent",
    task="classification",
    name="accuracy",
    title="Accuracy (top-1, %)",
    sign="%",
    symbol="%",
    one="point",
    many="points",
    more="more accurate",
    less="less accurate",
    ceiling=100.0,
    drop=1.0,
)
PSNR = Metric(
    key="psnr_db",
    task="reconstruction",
    name="PSNR",
    title="PSNR (dB)",
    sign=" dB",
    symbol="dB",
    one="dB",
    many="dB",
    more="higher PSNR",
    less="lower PSNR",
    ceiling=math.inf,
    # Half a decibel is about the least that is seen in a photograph.
    drop=0.5,
)
METRICS = (TOP1, PSNR)


def by_key(key: MetricName) -> Metric:
    """The metric of a value in a file."""
    return next(metric for metric in METRICS if metric.key == key)


def of_task(task: Task) -> Metric:
    """The metric that a task is measured by."""
    return next(metric for metric in METRICS if metric.task == task)


__all__ = ["METRICS", "PSNR", "TOP1", "Metric", "MetricName", "Task", "by_key", "of_task"]
