"""The report's table of the search: what was expected of each candidate before it was made, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.report import words
from compress.results import Front
from compress.search import Account


@dataclass(frozen=True)
class Row:
    """One candidate as text."""

    round: int
    id: str
    expected: str
    deviation: str
    found: str
    off: str


def section(front: Front, account: Account | None) -> dict[str, Any]:
    """What the template needs; ``search_rows`` is empty where nothing was expected."""
    by_id = {candidate.id: candidate for candidate in front.candidates}
    rows = []
    for each in account.expected if account is not None else ():
        accuracy = by_id[each.id].accuracy if each.id in by_id else None
        if accuracy is None:
            continue
        decimals, unit = words.accuracy_decimals(accuracy), accuracy.kind.sign
        rows.append(
            Row(
                each.round,
                each.id,
                f"{each.value:.{decimals}f}{unit}",
                f"± {each.deviation:.{decimals}f}",
                words.accuracy_text(accuracy),
                f"{accuracy.value - each.value:+.{decimals}f}",
            )
        )
    return {"search_rows": tuple(rows), "search_words": sentence(account) if rows and account is not None else ""}


def sentence(account: Account) -> str:
    """How well the order of the candidates' accuracies was expected."""

    def said(value: float | None) -> str:
        return "unknown, of fewer than three" if value is None else f"{value:.2f}"

    informed = sum(each.round > 1 for each in account.expected)
    return (
        "Rank correlation of expected and measured accuracy (Spearman's, 1 for the same order): "
        f"{said(account.rank_correlation)} over all {len(account.expected)} candidates, "
        f"{said(account.informed_rank_correlation)} over the {informed} after the first round, "
        "before which nothing was known of the network."
    )


__all__ = ["Row", "section", "sentence"]
