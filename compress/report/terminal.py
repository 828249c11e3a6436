"""The front, and simple lists, as tables on a terminal: nothing is cut, with and without colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Column, Table
from rich.text import Text

from compress.report import explanation, gains, narrow, words
from compress.report import rows as rows_of
from compress.results import Candidate, Front

_GAP = 2
_ID_WIDTH = 21
"""A candidate's id gets at least this much before columns are left out; longer ones are folded."""
_LAYOUTS = (
    (
        "",
        "candidate",
        "accuracy",
        "95% interval",
        "SSIM",
        "measured",
        "predicted",
        "size",
        "RAM",
        "MACs",
        "MACs kept",
        "bits",
    ),
    ("", "candidate", "accuracy", "SSIM", "measured", "predicted", "size", "MACs kept", "bits"),
    ("", "candidate", "accuracy", "measured", "predicted", "size"),
)
"""Columns by how much room there is; SSIM only where images are compared."""


@dataclass(frozen=True)
class FrontTable:
    """A front as it is printed at the end of a run; fits itself to the console's width.

    Attributes:
        front: what was found.
        next_commands: what to type next, printed below.
    """

    front: Front
    next_commands: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, the headline, what is unavailable and the next commands, one below the other."""
        ascii_only = options.ascii_only
        yield _front_table(self.front, options.max_width, ascii_only)
        yield ""
        for text in _closing(self.front):
            yield _printable(text, ascii_only)
        for skipped in rows_of.unavailable(self.front):
            yield ""
            sentence = Text.assemble(
                (f"{skipped.what} unavailable", "yellow"), f" for {skipped.candidates}: {skipped.why}"
            )
            yield _printable(sentence, ascii_only)
        if self.next_commands:
            yield ""
            yield Text("Next:")
            for command in self.next_commands:
                yield Text(_command(command, options.max_width), style="bold", overflow="fold")


def front_table(front: Front, next_commands: Sequence[str] = ()) -> RenderableType:
    """The front as a table: the baseline first, then the candidates, fastest first.

    Measured and predicted latency are two columns. Below stand the headline, the runtimes that are
    unavailable with their reasons, and what to type next.

    Args:
        front: what was found.
        next_commands: commands to print below.
    """
    return FrontTable(front, tuple(next_commands))


def _front_table(front: Front, width: int, ascii_only: bool) -> Table:
    listed = rows_of.rows(front)
    cells = [{name: words.to_ascii(text) if ascii_only else text for name, text in _cells(r).items()} for r in listed]
    similar = any(row.ssim for row in listed)
    for layout in (tuple(name for name in each if similar or name != "SSIM") for each in _LAYOUTS):
        numbers = [name for name in layout if name != "candidate"]
        needed = sum(max(cell_len(text) for text in (name, *(c[name] for c in cells))) for name in numbers)
        fits = needed + min(_ID_WIDTH, max(cell_len(c["candidate"]) for c in cells)) + _GAP * (len(layout) - 1) <= width
        if fits:
            break
    columns = []
    for name in layout:
        title = front.metric.name if name == "accuracy" else name
        if name == "candidate":
            columns.append(Column(title, overflow="fold"))
        else:
            # Where not even the fewest columns fit, numbers are folded too: nothing is ever cut.
            columns.append(Column(title, justify="right" if name else "left", no_wrap=fits, overflow="fold"))
    table = Table(*columns, box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for row, texts in zip(listed, cells, strict=True):
        style = "bold green" if row.best else "default" if row.on_front else "dim"
        table.add_row(*(Text(texts[name]) for name in layout), style=style)
    return table


def _cells(row: rows_of.Row) -> dict[str, str]:
    return {
        "": "★" if row.best else "●" if row.on_front else "",
        "candidate": row.id,
        "accuracy": row.accuracy,
        "95% interval": row.interval,
        "SSIM": row.ssim,
        "measured": row.measured,
        "predicted": f"{row.predicted} {row.error.replace(' ', '')}".strip(),
        "size": row.size,
        "RAM": row.ram,
        "MACs": row.macs,
        "MACs kept": row.macs_share,
        "bits": f"{row.weight_bits}/{row.activation_bits}",
    }


def _closing(front: Front) -> tuple[Text, ...]:
    listed = rows_of.rows(front)
    keys = ["★ best"] * any(row.best for row in listed) + ["● on the front"] * any(row.on_front for row in listed)
    keys.append("bits: average of weights/activations")
    subject = gains.subject(front)
    why = gains.why_not_faster(front, subject) if subject is not None else None
    recall = rows_of.recall_sentence(front, subject) if subject is not None else None
    compared = narrow.foremost(front)
    return (
        Text(" · ".join(keys), style="dim"),
        Text(),
        Text(f"{gains.headline(front)}.", style="bold"),
        Text(" ".join([gains.choice(front), *([why] if why else [])])),
        *(part for sentence in (compared, recall) if sentence for part in (Text(), Text(sentence))),
    )


_WIDE, _MIDDLE = 118, 92
"""Columns from which on an explanation's table has all of its columns, and most of them."""


def explanation_blocks(
    front: Front, candidate: Candidate, found: explanation.View, width: int
) -> tuple[RenderableType, ...]:
    """An explanation: a table of the layers, then the reasons, then what would help.

    Args:
        front: what was found.
        candidate: of which.
        found: what is shown of it.
        width: columns of the terminal.
    """
    names = ["layer", "MACs", "before", "moves", "MACs/byte", "from", "bits", "time", "float", "share", "why"]
    cells = [
        {
            "layer": row.name,
            "MACs": row.macs,
            "before": row.macs_before,
            "moves": row.bytes,
            "MACs/byte": row.intensity,
            "from": row.ridge,
            "bits": row.precision,
            "time": row.time,
            "float": row.before,
            "share": row.share_text,
            "why": ", ".join(row.whys or (row.bound,)),
        }
        for row in found.rows
    ]
    left_out = {"before", "from"} if width < _WIDE else set()
    if width < _MIDDLE:
        left_out |= {"moves", "MACs/byte", "float"}
    if not found.has_before:
        left_out |= {"before", "float"}
    shown = [name for name in names if name not in left_out]
    right = [i for i, name in enumerate(shown) if name not in ("layer", "bits", "why")]
    known = "measured" if found.measured else "predicted"
    title = f"{candidate.id} of {front.model} on {front.target}, layer by layer ({known})"
    key = "from: MACs a byte from which on the device computes for longer than it moves" if "from" in shown else ""
    blocks: list[RenderableType] = [
        rows_table(shown, [[row[name] for name in shown] for row in cells], title=title, right=right),
        _Paragraph(" ".join(part for part in (found.known, found.rest or "", f"{key}." if key else "") if part)),
    ]
    reasons = [(f"{each.why}, {each.share}", _told(each)) for each in found.reasons]
    if reasons:
        blocks.append(rows_table(["", ""], reasons, title="Why it isn't faster"))
    helps = [(sentence,) for sentence in found.remedies]
    if helps:
        blocks.append(rows_table([""], helps, title="What would help (what it does to accuracy isn't predicted)"))
    elif candidate.id != front.baseline.id:
        blocks.append(_Paragraph("No single change that the model knows of would save 1% of the time or more."))
    return tuple(blocks)


def _told(each: explanation.Grouped) -> str:
    others = each.layers[1:]
    if not others:
        return each.text
    listed = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    return f"{each.text}. Also {listed}"


@dataclass(frozen=True)
class _Paragraph:
    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _printable(Text(self.text), options.ascii_only)


def _command(command: str, width: int) -> str:
    """A command indented by two; one that is too long goes on in further lines that a shell joins again."""
    if cell_len(command) + 2 <= width:
        return f"  {command}"
    return "  " + " \\\n    ".join(re.split(r" (?=--)", command))


def rows_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None, right: Sequence[int] = ()
) -> RenderableType:
    """Rows of text as a plain table; long cells are wrapped, never cut.

    Args:
        headings: one a column; all empty for a table of names and values.
        rows: each with one text a heading.
        title: a line above.
        right: indices of the columns that hold numbers.

    Raises:
        ValueError: a row has another number of cells than there are headings.
    """
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"a row has {len(row)} cells under {len(headings)} headings: {list(row)}")
    return _RowsTable(tuple(headings), tuple(tuple(row) for row in rows), title, frozenset(right))


@dataclass(frozen=True)
class _RowsTable:
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str | None
    right: frozenset[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def cell(text: str) -> Text:
            return _printable(Text(text), options.ascii_only)

        if self.title:
            yield _printable(Text(self.title, style="bold"), options.ascii_only)
            yield ""
        columns = [
            Column(
                cell(name),
                overflow="fold",
                justify="right" if i in self.right else "left",
                style="bold" if i == 0 else "",
            )
            for i, name in enumerate(self.headings)
        ]
        table = Table(
            *columns,
            box=None,
            pad_edge=False,
            padding=(0, _GAP, 0, 0),
            show_header=any(self.headings),
            header_style="dim",
        )
        for row in self.rows:
            table.add_row(*(cell(text) for text in row))
        yield table


def _printable(text: Text, ascii_only: bool) -> Text:
    """``text``, with the signs that an ASCII terminal lacks replaced; styles within it are then lost."""
    return Text(words.to_ascii(text.plain), style=text.style) if ascii_only else text
