"""The page: escaped, self-contained, the same for the same front, measured and predicted apart."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compress.report.facts import RunFacts
from compress.report.html import _settings, render
from compress.results import Front
from compress.serial import from_json, to_json

Facts = Callable[[Front], RunFacts]
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """The page as elements: (tag, attributes, text within), and whatever doesn't nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.wrong: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            self.elements.append((tag, dict(attrs), ""))
        else:
            self.open.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1][0] != tag:
            self.wrong.append(tag)
            return
        name, attributes, text = self.open.pop()
        self.elements.append((name, attributes, "".join(text)))

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def all(self, tag: str, **wanted: str) -> list[str]:
        """The texts of the elements of ``tag`` that have every attribute in ``wanted`` (``class_`` for class)."""
        keys = {name.rstrip("_").replace("_", "-"): value for name, value in wanted.items()}
        return [t for name, at, t in self.elements if name == tag and all(at.get(k) == v for k, v in keys.items())]


def test_the_page_nests_and_every_id_is_there_once(any_front: Front, facts: Facts) -> None:
    page = Page(render(any_front, facts(any_front)))
    assert page.wrong == []
    assert page.open == []
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = [attributes["for"] for tag, attributes, _ in page.elements if tag == "label"]
    assert set(labelled) <= set(ids)


def test_the_page_refers_to_nothing_outside_itself(any_front: Front, facts: Facts) -> None:
    html = render(any_front, facts(any_front))
    page = Page(html)
    assert not [a for _, a, _ in page.elements if {"src", "href", "srcset", "xlink:href", "action"} & set(a)]
    style, script = page.all("style")[0], page.all("script")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "fetch" not in script
    assert "default-src 'none'" in next(a["content"] or "" for _, a, _ in page.elements if "http-equiv" in a)


def test_equal_fronts_give_equal_pages_also_in_another_process(fronts: dict[str, Front], facts: Facts) -> None:
    front = fronts["measured"]
    once = render(front, facts(front))
    assert render(front, facts(front)) == once
    here = Path(__file__).parent
    program = (
        f"import sys, hashlib; sys.path.insert(0, {str(here)!r}); import conftest as c; "
        "from compress.report.html import render; f = c.measured_front(); "
        "print(hashlib.sha256(render(f, c.run_facts(f)).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(here.parent.parent)}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(once.encode()).hexdigest()


def test_a_front_that_was_written_and_read_gives_the_same_page(any_front: Front, facts: Facts) -> None:
    run = facts(any_front)
    read = Front.from_document(any_front.document())
    assert render(read, from_json(RunFacts, to_json(run))) == render(any_front, run)


def test_names_are_shown_as_they_are_and_never_as_markup(fronts: dict[str, Front], facts: Facts, hostile: str) -> None:
    front = fronts["long"]
    html = render(front, facts(front))
    page = Page(html)
    assert len(page.all("script")) == 1
    assert "<script>alert" not in html
    assert "49" not in html.split("alert(1)", 1)[1][:40]  # {{7*7}} isn't computed
    assert hostile in page.all("span", class_="id")
    assert any(hostile in text for text in page.all("dd"))  # as the name of the data set
    assert hostile in page.all("p")  # as a reason


def test_measured_and_predicted_stand_in_their_own_columns(any_front: Front, facts: Facts) -> None:
    page = Page(render(any_front, facts(any_front)))
    everyone = {c.id: c for c in (any_front.baseline, *any_front.candidates)}
    columns = [
        (c, page.all("td", data_label=label)) for c, label in (("measured", "Measured"), ("predicted", "Predicted"))
    ]
    names = page.all("span", class_="id")
    assert sorted(names) == sorted(everyone)
    for kind, cells in columns:
        assert len(cells) == len(names)
        for name, cell in zip(names, cells, strict=True):
            best = everyone[name].best
            known = best.measurement if kind == "measured" else best.estimate
            if known is None:
                assert cell == "—"
            else:
                number, symbol = cell.split()[0].replace(",", ""), cell.split()[1][:2]
                value = float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6}[symbol]
                assert value == pytest.approx(known.latency_s, rel=6e-3)
        assert all(("±" in cell) == (kind == "predicted" and cell != "—") for cell in cells)


def test_the_headline_says_measured_or_predicted(fronts: dict[str, Front], facts: Facts) -> None:
    for name, said, unsaid in (("measured", "(measured)", "(predicted)"), ("predicted", "(predicted)", "(measured)")):
        [headline] = Page(render(fronts[name], facts(fronts[name]))).all("h1")
        assert said in headline
        assert unsaid not in headline


def test_without_a_measurement_the_page_says_that_there_is_none(fronts: dict[str, Front], facts: Facts) -> None:
    page = Page(render(fronts["predicted"], facts(fronts["predicted"])))
    assert any(text.startswith("Nothing: the target isn't this machine") for text in page.all("dd"))
    marks = [a for tag, a, _ in page.elements if tag == "g" and "mark" in (a.get("class") or "").split()]
    predicted = [a for a in marks if "predicted" in (a["class"] or "").split()]
    # Two widths of each pair of accuracy, latency, size, RAM and MACs; sizes and MACs are counted, so those marks are
    # filled: of ten pairs seven have latency or RAM.
    assert len(predicted) == 7 * 2 * 9
    assert len(marks) == 10 * 2 * 9
    latency = [a for a in marks if "latency" in (a["aria-label"] or "") or "±" in (a["aria-label"] or "")]
    assert len(latency) == 4 * 2 * 9
    assert all("predicted" in (a["class"] or "").split() for a in latency)


def test_every_skipped_runtime_and_every_note_is_there_once(fronts: dict[str, Front], facts: Facts) -> None:
    front = fronts["predicted"]
    page = Page(render(front, facts(front)))
    reason = front.baseline.unavailable[0].reason
    assert page.all("p").count(reason) == 1
    assert any(text.split() == ["TensorRT", "no", "artifact", "for", "every", "candidate"] for text in page.all("h3"))
    measured = fronts["measured"]
    texts = Page(render(measured, facts(measured))).all("p")
    notes = {n.why for c in measured.candidates for r in c.records for n in r.notes} | {
        n.why for n in facts(measured).notes
    }
    assert len(notes) == 3
    assert [texts.count(why) for why in sorted(notes)] == [1, 1, 1]


def test_every_layer_of_every_candidate_is_in_the_pictures_and_in_the_table(
    fronts: dict[str, Front], facts: Facts
) -> None:
    front = fronts["measured"]
    page = Page(render(front, facts(front)))
    layers = sum(len(c.layers) for c in front.candidates)
    pictured = [t for t in page.all("title") if "weights" in t and "activations" in t]
    assert len(pictured) == 2 * layers
    best = front.best()
    assert best is not None
    for fact in best.layers:
        line = f"{fact.channels} of {fact.channels_before} channels"
        assert any(t.startswith(f"{fact.name} · {fact.kind}\n{line}") for t in pictured)


def test_the_run_is_described(fronts: dict[str, Front], facts: Facts) -> None:
    front = fronts["psnr"]
    run = facts(front)
    page = Page(render(front, run))
    assert run.command in page.all("code")
    assert set(run.next_commands) <= set(page.all("code"))
    assert [name for name, _ in run.seconds] == page.all("th", scope="row")[-len(run.seconds) :]
    assert "Where 74.1 s went" in page.all("h3")  # 1.9 + 0.8 + 21.4 + 30.2 + 6.3 + 4.4 + 9.1
    versions = page.all("span", class_="version")
    assert sorted(versions) == sorted(f"{name} {version}" for name, version in run.versions.items())
    assert "latency ≤ 5.0 s" not in page.all("dd")
    assert "latency ≤ 5.00 ms, PSNR drop ≤ 1 dB" in page.all("dd")
    assert "PSNR against" in page.all("span", class_="against")


def test_a_simulated_accuracy_is_called_one(fronts: dict[str, Front], facts: Facts) -> None:
    front = fronts["psnr"]
    page = Page(render(front, facts(front)))
    assert page.all("td", data_label="PSNR by").count("PyTorch (simulated)") == 1
    assert any("the figure is a simulation" in text for text in page.all("dd"))


def test_a_run_without_candidates_still_has_a_page(fronts: dict[str, Front], facts: Facts) -> None:
    page = Page(render(fronts["empty"], facts(fronts["empty"])))
    assert page.all("h1") == ["No candidate was made."]
    assert page.all("span", class_="id") == ["float"]


def test_the_page_needs_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys, compress.report.html, compress.report.terminal, compress.report.markdown, compress.report.schema; "
        "print(sorted({'torch', 'onnx', 'matplotlib', 'onnxruntime', 'tvm'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.strip() == "[]"


def test_each_layers_sensitivity_stands_beside_its_bits(fronts: dict[str, Front], facts: Facts) -> None:
    from dataclasses import replace

    measured = fronts["measured"]
    page = Page(render(measured, facts(measured)))
    cells = page.all("td")
    assert {"20.5 ± 0.9", "0.0003", "1.5e-06", "1.1"} <= set(cells)
    # The share of all layers' cost at the narrowest width: 3e-4 of 4e-4.
    assert "75%" in [cell.strip() for cell in cells]
    without = replace(facts(measured), sensitivity=())
    assert "Sensitivity" not in Page(render(measured, without)).all("h2")


def test_a_setting_that_is_a_record_shows_what_was_given() -> None:
    goal = {"macs": 0.06, "params": None, "skip": [], "sees_data": True}
    assert _settings({"goal": goal, "iterations": 60, "lr": None, "tuned_blocks": ()}) == (
        "goal (macs 0.06, sees data True), iterations 60, tuned blocks none"
    )
