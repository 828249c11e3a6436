"""``compress report``: a run's page drawn again, two runs on one page, and both as Markdown or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from compress import runfolder
from compress.cli import screen
from compress.errors import BadInput
from compress.finished import read
from compress.report import explanation, gains
from compress.results import Front
from compress.serial import to_json, write_atomic

Form = Literal["page", "markdown", "json"]


def one(run: str, form: Form) -> int:
    """Draw a finished run's report again, or print it.

    Raises:
        BadInput: it isn't the folder of a finished run, or can't be written.
    """
    path = Path(run)
    front, facts = read(path)
    if form == "markdown":
        from compress.report.markdown import front_markdown

        click.echo(front_markdown(front), nl=False)
        return 0
    from compress.execution import write_documents

    with runfolder.disk_errors(path):
        write_documents(path, front, facts)
    written = [str(path / name) for name in ("report.html", "front.svg")]
    if form == "json":
        screen.emit({"written": written, **document(front), "facts": to_json(facts)})
    else:
        screen.show(f"wrote {' and '.join(written)}")
    return 0


def document(front: Front) -> dict[str, Any]:
    """What a report says, as JSON: the headline, the front, and each candidate's explanation."""
    subject = gains.subject(front)
    return {
        "headline": gains.headline(front),
        "choice": gains.choice(front),
        "subject": subject.id if subject is not None else None,
        "front": front.document(),
        "explanations": [
            explanation.document(front, each) for each in front.candidates if each.explanation is not None
        ],
    }


def two(first: str, second: str, out: str | None, form: Form) -> int:
    """Two finished runs on one page, or printed.

    Raises:
        BadInput: one isn't the folder of a finished run, both are the same, or the page can't be written.
    """
    from compress.report import runs
    from compress.report.markdown import runs_markdown

    paths = Path(first), Path(second)
    if paths[0].resolve() == paths[1].resolve():
        raise BadInput(f"{first} and {second} are the same run; give another one to set beside it")
    sides = tuple(runs.Side(str(path), *read(path)) for path in paths)
    both = runs.beside(*sides)
    if form == "markdown":
        click.echo(runs_markdown(both), nl=False)
        return 0
    target = Path(out) if out is not None else Path(f"{paths[0].resolve().name}-beside-{paths[1].resolve().name}.html")
    if target.is_dir():
        raise BadInput(f"--out {target}: it is a folder; give the name of a file")
    from compress.report.html import render_two

    try:
        write_atomic(target, render_two(both).encode())
    except OSError as error:
        raise BadInput(f"--out {target}: it can't be written ({error.strerror}); give another file") from None
    if form == "json":
        screen.emit({"written": [str(target)], **runs.document(both)})
        return 0
    from compress.report.terminal import rows_table

    rows = [(row.name, row.first, row.second, row.difference) for row in both.rows]
    blocks: list[Any] = [
        rows_table(["", both.first.name, both.second.name, "second to first"], rows, right=[1, 2, 3]),
    ]
    if both.settings:
        settings = [(row.name, row.first, row.second) for row in both.settings]
        blocks.append(rows_table(["asked for or run with", both.first.name, both.second.name], settings))
    if both.notes:
        blocks.append(rows_table([""], [(note,) for note in both.notes], title="What isn't compared, and why"))
    screen.show(*blocks, f"wrote {target}")
    return 0


__all__ = ["Form", "document", "one", "two"]
