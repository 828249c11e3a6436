"""The front as a Markdown table, for a pull request's comment or a CI job's summary."""

from __future__ import annotations

import re

from compress.report import explanation, gains, narrow, runs, words
from compress.report import rows as rows_of
from compress.results import Front


def front_markdown(front: Front) -> str:
    """Headline, table, narrow weights beside 8-bit ones, what is unavailable, in GitHub's Markdown; names are escaped.

    Args:
        front: what was found.
    """
    lines = [
        f"**{escape(front.model)} on {escape(front.target)}: {gains.headline(front)}.** {escape(gains.choice(front))}",
        "",
        f"| Candidate | {front.metric.heading} (95% interval) | Measured | Predicted | File | MACs | Bits W/A |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows_of.rows(front):
        role = " (best)" if row.best else " (front)" if row.on_front else ""
        interval = f" ({row.accuracy_detail})" if row.accuracy_detail else ""
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
    if subject is not None and (found := explanation.view(front, subject)) is not None:
        lines += ["", *_explained(found)]
    return "\n".join(lines) + "\n"


def _explained(found: explanation.View) -> list[str]:
    """Where a candidate's time goes, why it isn't less, and what would help."""
    known = "measured" if found.measured else "predicted"
    lines = [
        f"### Where the time of {escape(found.candidate)} goes",
        "",
        escape(found.known),
        "",
        f"| Layer | Time ({known}) | Share | MACs | Moves | MACs/byte (computes from) | Bits | Why |",
        "|:--|--:|--:|--:|--:|--:|:--|:--|",
    ]
    for row in found.rows:
        ratio = row.intensity if row.ridge == words.DASH else f"{row.intensity} ({row.ridge})"
        cells = [row.name, row.time, row.share_text, row.macs, row.bytes, ratio, row.precision]
        lines.append(f"| {' | '.join(map(escape, [*cells, ', '.join(row.whys or (row.bound,))]))} |")
    if found.reasons:
        lines += ["", *(f"- **{each.why}**, {each.share} of the time: {escape(each.text)}." for each in found.reasons)]
    if found.remedies:
        lines += ["", "What would help (what it does to accuracy isn't predicted):", ""]
        lines += [f"- {escape(sentence)}" for sentence in found.remedies]
    return lines


def runs_markdown(both: runs.Beside) -> str:
    """Two runs side by side, in GitHub's Markdown."""
    names = escape(both.first.name), escape(both.second.name)
    lines = [f"**{names[0]} beside {names[1]}**", ""]
    for side in (both.first, both.second):
        where = f"{escape(side.front.model)} on {escape(side.front.target)}"
        lines.append(f"- {escape(side.name)}: {where}: {gains.headline(side.front)}.")
    tables = [(both.rows, "second to first"), (both.shared, "what differs"), (both.settings, "")]
    for listed, last in tables:
        if listed:
            lines += ["", f"| | {names[0]} | {names[1]} | {last} |", "|:--|--:|--:|--:|"]
            for row in listed:
                cells = (row.name, row.first, row.second, row.difference)
                lines.append(f"| {' | '.join(map(escape, cells))} |")
    if both.notes:
        lines += ["", "Not compared:", "", *(f"- {escape(note)}" for note in both.notes)]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """``text`` so that Markdown shows it as it is, on one line, also within a table's cell."""
    return re.sub(r"([\\`*_{}\[\]<>|~$#&])", r"\\\1", " ".join(text.split()))
