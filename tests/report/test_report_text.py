# ruff: noqa: RUF001  # multiplication signs and dashes are what reports print
"""The front on a terminal and in Markdown."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from compress.report import gains
from compress.report import rows as rows_of
from compress.report.markdown import escape, front_markdown
from compress.report.terminal import front_table, rows_table
from compress.results import Candidate, ClassRecall, Front


def printed(renderable: object, width: int, **options: object) -> str:
    file = io.StringIO()
    Console(file=file, width=width, **options).print(renderable)  # type: ignore[arg-type]  # options are passed on
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def test_a_predicted_front_on_80_columns(fronts: dict[str, Front]) -> None:
    expected = """\
   candidate  accuracy  measured    predicted         size  MACs kept   bits
   float         98.6%         —  620 µs ±50%  1,067.4 KiB       100%  32/32
●  c8            88.2%         —  401 µs ±50%     40.0 KiB        10%    8/8
●  c6            92.6%         —  418 µs ±50%     61.5 KiB        17%    8/8
●  c5            95.6%         —  433 µs ±50%     89.8 KiB        24%    8/8
★  c4            98.0%         —  454 µs ±50%    125.0 KiB        36%    8/8
   c3            97.4%         —  468 µs ±50%    167.0 KiB        48%    8/8
●  c2            98.4%         —  481 µs ±50%    215.8 KiB        66%    8/8
   c1            97.8%         —  492 µs ±50%    261.7 KiB        81%    8/8
   c7            98.2%         —  499 µs ±50%    115.2 KiB        55%    8/8

★ best · ● on the front · bits: average of weights/activations

8.5× smaller, 1.4× faster (predicted), 0.6 points less accurate than the float
network.
c4 is the fastest candidate within 2 points of the float network. 2.8× fewer
MACs, but only 1.4× faster (predicted). Of its predicted time, 80% is the fixed
cost of starting each operator, which doesn't shrink with the network, 20% is
arithmetic.

TensorRT unavailable for every candidate: no NVIDIA GPU is in this machine, and
an engine can only be built on the device it is for: copy the bundle to the
Jetson and run trtexec --onnx=model.onnx there

Next:
  compress verify runs/first/bundle
"""
    assert printed(front_table(fronts["predicted"], ["compress verify runs/first/bundle"]), 80) == expected


def test_a_measured_front_on_120_columns(fronts: dict[str, Front]) -> None:
    header, *lines = printed(front_table(fronts["measured"]), 120).splitlines()
    titles = [
        "candidate",
        "accuracy",
        "95% interval",
        "measured",
        "predicted",
        "size",
        "RAM",
        "MACs",
        "MACs kept",
        "bits",
    ]
    assert header.split() == " ".join(titles).split()
    c4 = (
        "★  c4            98.0%     96.4–98.9  104.0 µs  126.9 µs ±40%    125.0 KiB    375 KiB"
        "  14.4 M        36%    8/8"
    )
    assert lines[4] == c4


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_nothing_is_cut_at_any_width(any_front: Front, width: int) -> None:
    command = "compress --model resnet --target jetson --out runs/a-folder --candidates 12"
    text = printed(front_table(any_front, [command]), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    squeezed = "".join(text.split())
    # A name that is folded within its column has other cells between its parts.
    for row in rows_of.rows(any_front):
        assert row.id[:4] in squeezed
    for skipped in rows_of.unavailable(any_front):
        assert "".join(skipped.why.split()) in squeezed
    assert all(word in squeezed for word in command.split())


def test_a_column_is_left_out_before_a_name_is_broken(fronts: dict[str, Front]) -> None:
    names = {row.id for row in rows_of.rows(fronts["crowded"])}
    for width in range(80, 141):
        assert names <= set(printed(front_table(fronts["crowded"]), width).split()), width


def test_a_command_that_is_too_long_can_still_be_pasted(fronts: dict[str, Front]) -> None:
    command = (
        "compress --model examples/network.py:make --target raspberry-pi-5 --out runs/another-folder --max-drop 0.5"
    )
    text = printed(front_table(fronts["single"], [command]), 80)
    typed = text.split("Next:\n")[1]
    assert len(typed.splitlines()) > 1
    assert all(line.endswith(" \\") for line in typed.splitlines()[:-1])
    assert " ".join(typed.replace("\\\n", " ").split()) == command


def test_there_is_no_colour_in_a_pipe_and_there_is_on_a_terminal(fronts: dict[str, Front]) -> None:
    assert "\x1b" not in printed(front_table(fronts["predicted"]), 80)
    assert "\x1b[1;32m" in printed(front_table(fronts["predicted"]), 80, force_terminal=True, color_system="standard")


def test_an_ascii_terminal_gets_ascii(any_front: Front) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Console(file=file, width=80).print(
        front_table(any_front, ["compress verify x"]), rows_table(["a", "b"], [["µ", "—"]])
    )
    file.flush()
    assert "best" in raw.getvalue().decode("ascii") or any_front.best() is None or not any_front.candidates


def test_a_simple_table_wraps_and_never_cuts() -> None:
    text = printed(rows_table(["name", "size", "what"], [["a", "1", "x " * 40], ["b" * 50, "200", "y"]], right=[1]), 40)
    assert text.split().count("x") == 40
    assert text.count("b") == 50
    assert "…" not in text
    pairs = printed(rows_table(["", ""], [["RAM", "8 GiB"], ["runtime", "tvm"]], title="A device"), 40)
    assert pairs == "A device\n\nRAM      8 GiB\nruntime  tvm\n"


def test_a_row_with_a_cell_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        rows_table(["a", "b"], [["x"]])


def test_markup_of_the_terminal_is_not_read_from_names() -> None:
    assert printed(rows_table(["[bold]a[/bold]"], [["[red]x[/red]"]]), 40) == "[bold]a[/bold]\n[red]x[/red]\n"


def test_a_front_in_markdown(fronts: dict[str, Front]) -> None:
    to = "\N{EN DASH}"
    assert front_markdown(fronts["single"]) == (
        "**resnet20 on cpu: No candidate meets the budget.** c1 comes nearest: latency is 31% over the limit.\n"
        "\n"
        "| Candidate | Accuracy (95% interval) | Measured | Predicted | File | MACs | Bits W/A |\n"
        "|:--|--:|--:|--:|--:|--:|--:|\n"
        f"| float | 98.6% (97.1{to}99.3) | 262 µs | — | 1,067.4 KiB | 40.6 M | 32/32 |\n"
        f"| c1 (front) | 95.6% (93.4{to}97.1) | 262 µs | — | 89.8 KiB | 9.89 M (24%) | 8/8 |\n"
    )


def test_recall_of_protected_classes_stands_beside_the_float_networks(fronts: dict[str, Front]) -> None:
    front = fronts["long"]
    subject = gains.subject(front)
    listed = rows_of.recalls(front, subject)
    assert [(row.before, row.after, row.n, row.protected) for row in listed] == [
        ("98.0%", "94.0%", "50", True),
        ("100.0%", "92.0%", "50", False),
        ("—", "—", "0", False),
    ]
    sentence = f"Recall of the protected classes, float → {subject.id}: {listed[0].name} 98.0% → 94.0%."
    assert rows_of.recall_sentence(front, subject) == sentence
    assert escape(sentence) in front_markdown(front).splitlines()
    assert sentence in printed(front_table(front), 1000)


def test_recall_is_left_out_where_no_class_is_protected(fronts: dict[str, Front]) -> None:
    front = fronts["measured"]
    assert rows_of.recalls(front, front.candidates[0]) == ()
    assert rows_of.recall_sentence(front, front.candidates[0]) is None


def test_of_many_classes_only_the_protected_ones_are_listed(fronts: dict[str, Front]) -> None:
    front = fronts["long"]

    def many(candidate: Candidate) -> Candidate:
        recall = ClassRecall(tuple(f"class {i}" for i in range(21)), (50.0,) * 21, (9,) * 21, ("class 4",))
        return replace(candidate, artifacts=tuple(replace(a, recall=recall) for a in candidate.artifacts))

    wide = replace(front, baseline=many(front.baseline), candidates=tuple(map(many, front.candidates)))
    assert [row.name for row in rows_of.recalls(wide, wide.candidates[0])] == ["class 4"]


def test_markdown_has_as_many_cells_in_every_row_whatever_the_names(any_front: Front) -> None:
    table = [line for line in front_markdown(any_front).splitlines() if line.startswith("|")]
    assert len(table) == 3 + len(any_front.candidates)
    assert {line.replace("\\|", "").count("|") for line in table} == {8}


def test_markdown_of_a_name_is_the_name(hostile: str) -> None:
    escaped = escape(hostile)
    assert escaped.replace("\\", "") == hostile
    assert all(escaped[i - 1] == "\\" for i, sign in enumerate(escaped) if sign in "<>|`*{}&")
    assert escape("a\nb") == "a b"


def test_structural_similarity_stands_beside_a_psnr(fronts: dict[str, Front]) -> None:
    # 0.9 + 33.12 / 1000, and for the best candidate 0.9 + 32.41 / 1000.
    wide, narrow = (printed(front_table(fronts["psnr"]), width) for width in (160, 60))
    assert "PSNR" in wide
    assert "SSIM" in wide
    assert "0.933" in wide
    assert "SSIM" not in narrow
    assert "| Candidate | PSNR (95% interval) |" in front_markdown(fronts["psnr"])
    assert "32.41 dB (31.61–33.21, SSIM 0.932)" in front_markdown(fronts["psnr"])
    assert "SSIM" not in printed(front_table(fronts["measured"]), 160)
    assert "SSIM" not in front_markdown(fronts["measured"])
