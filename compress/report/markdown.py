"""The front as a Markdown table, for a pull request's comment or a CI job's summary."""

from __future__ import annotations

import re

from compress.report import gains, narrow, words
from compress.report import rows as rows_of
from compress.results import Front


def front_markdown(front: Front) -> str:
    """Headline, table, narrow weights beside 8-bit ones, what is unavailable, in GitHub's Markdown; names are escaped.

    Args:
        front: what was found.
    """
    psnr = front.baseline.accuracy is not None and front.baseline.accuracy.metric == "psnr_db"
    accuracy = "PSNR" if psnr else "Accuracy"
    lines = [
        f"**{escape(front.model)} on {escape(front.target)}: {gains.headline(front)}.** {escape(gains.choice(front))}",
        "",
        f"| Candidate | {accuracy} (95% interval) | Measured | Predicted | File | MACs | Bits W/A |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows_of.rows(front):
        role = " (best)" if row.best else " (front)" if row.on_front else ""
        interval = f" ({row.interval})" if row.accuracy != words.DASH else ""
        cells = [
            f"**{escape(row.id)}**{role}" if row.best else f"{escape(row.id)}{role}",
            f"{row.accuracy}{interval}",
            row.measured,
            f"{row.predicted} {row.error}".strip(),
            row.size,
            row.macs if row.baseline else f"{row.macs} ({row.macs_share})",
            f"{row.weight_bits}/{row.activation_bits}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    subject = gains.subject(front)
    recall = rows_of.recall_sentence(front, subject) if subject is not None else None
    if recall:
        lines += ["", escape(recall)]
    compared = narrow.sentences(front)
    if compared:
        lines.append("")
        lines += [f"- {escape(sentence)}" for sentence in compared]
    missing = rows_of.unavailable(front)
    if missing:
        lines.append("")
        lines += [f"- {escape(s.what)} unavailable for {escape(s.candidates)}: {escape(s.why)}" for s in missing]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """``text`` so that Markdown shows it as it is, on one line, also within a table's cell."""
    return re.sub(r"([\\`*_{}\[\]<>|~$#&])", r"\\\1", " ".join(text.split()))
