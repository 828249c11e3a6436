"""The page in a real browser: at the widths of a desktop and a phone, by mouse and by keyboard."""

from __future__ import annotations

import html as escaping
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.report.facts import RunFacts
from compress.report.html import render, render_two
from compress.report.runs import Side, beside
from compress.results import Front
from tests.rosters import crossed

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]
Facts = Callable[[Front], RunFacts]

# Headless Chromium's window has a least width, so the page is laid out in a frame as wide as a phone.
HARNESS = """<!doctype html><body style="margin:0">
<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe><pre id="result"></pre>
<script>
document.querySelector("iframe").addEventListener("load", (event) => {{
  const window_ = event.target.contentWindow, page = event.target.contentDocument;
  let found;
  try {{ found = (() => {{ {script} }})(); }} catch (error) {{ found = {{error: String(error)}}; }}
  document.getElementById("result").textContent = JSON.stringify(found);
}});
</script>"""


def chromium(tmp_path: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
    ]  # fmt: skip
    done = subprocess.run([CHROMIUM, *options, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def ask(tmp_path: Path, page: str, width: int, script: str) -> Any:
    """What ``script`` (JavaScript with ``page`` and ``window_``) returns about ``page`` laid out at ``width``."""
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(width=width, page=escaping.escape(page), script=script), encoding="utf-8")
    dom = chromium(tmp_path, "--window-size=1500,950", "--dump-dom", harness.as_uri())
    result = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert result is not None
    answer = json.loads(escaping.unescape(result.group(1)))
    assert not (isinstance(answer, dict) and "error" in answer), answer
    return answer


@crossed(("name", "width"), ["long", "measured"], [390, 820, 1440])
def test_nothing_runs_out_of_the_page(
    tmp_path: Path, fronts: dict[str, Front], facts: Facts, name: str, width: int
) -> None:
    script = """
      const root = page.documentElement;
      const outside = [...page.querySelectorAll("body *")].filter((e) => {
        const box = e.getBoundingClientRect();
        return box.width && box.right > window_.innerWidth + 1 && !e.closest(".scroll-x, .scroll, svg, .sr, thead");
      });
      const found = outside.map((e) => e.outerHTML.slice(0, 80));
      return {scroll: root.scrollWidth, inner: window_.innerWidth, outside: found};
    """
    found = ask(tmp_path, render(fronts[name], facts(fronts[name])), width, script)
    assert found["inner"] == width
    assert found["scroll"] <= width
    assert found["outside"] == []


@pytest.mark.parametrize(("width", "shown", "hidden"), [(390, "narrow", "wide"), (1440, "wide", "narrow")])
def test_each_width_has_its_own_pictures(
    tmp_path: Path, fronts: dict[str, Front], facts: Facts, width: int, shown: str, hidden: str
) -> None:
    script = """
      const drawn = (e) => e.getBoundingClientRect().width > 0;
      const count = (size) => [...page.querySelectorAll("svg." + size)].filter(drawn).length;
      return {wide: count("wide"), narrow: count("narrow")};
    """
    found = ask(tmp_path, render(fronts["measured"], facts(fronts["measured"])), width, script)
    assert found == {shown: 2, hidden: 0}  # one plot and one picture of layers


def test_a_point_tells_about_itself_and_chooses_its_candidate(
    tmp_path: Path, fronts: dict[str, Front], facts: Facts
) -> None:
    script = """
      const tip = page.getElementById("tip"), before = tip.hidden;
      const marks = [...page.querySelectorAll(".chart.wide .mark")];
      const mark = marks.find((m) => m.getAttribute("aria-label").startsWith("c7"));
      mark.focus();
      const text = tip.innerText, lit = page.querySelectorAll("tr.lit").length;
      mark.dispatchEvent(new window_.KeyboardEvent("keydown", {key: "Enter", bubbles: true, cancelable: true}));
      const panel = [...page.querySelectorAll(".panel")].filter((p) => p.getBoundingClientRect().height > 0);
      page.dispatchEvent(new window_.KeyboardEvent("keydown", {key: "Escape"}));
      return {before, text, lit, panels: panel.map((p) => p.querySelector("b").textContent), after: tip.hidden,
              titles: page.querySelectorAll("svg title").length};
    """
    found = ask(tmp_path, render(fronts["measured"], facts(fronts["measured"])), 1440, script)
    assert found["before"] is True
    assert found["text"].splitlines()[0] == "c7"
    assert "149.0 µs measured" in found["text"]
    assert found["lit"] == 1
    assert found["panels"] == ["c7"]
    assert found["after"] is True
    assert found["titles"] == 0


def test_the_plot_against_size_is_one_key_away(tmp_path: Path, fronts: dict[str, Front], facts: Facts) -> None:
    script = """
      const shown = () => [...page.querySelectorAll("svg.chart")].filter((e) => e.getBoundingClientRect().width > 0)
        .map((e) => e.getAttribute("aria-label"));
      const before = shown();
      page.getElementById("by-size").click();
      return {before, after: shown()};
    """
    found = ask(tmp_path, render(fronts["measured"], facts(fronts["measured"])), 1440, script)
    assert found == {
        "before": ["Accuracy (top-1, %) against latency"],
        "after": ["Accuracy (top-1, %) against file size"],
    }


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_stands_out_from_its_ground(tmp_path: Path, fronts: dict[str, Front], facts: Facts, mode: str) -> None:
    """The contrast of text (WCAG 2.2, 1.4.3) is at least 4.5 in both modes."""
    script = """
      const style = getComputedStyle(page.documentElement), root = page.documentElement;
      const tokens = ["--paper", "--ink", "--soft", "--accent", "--best", "--raised", "--best-wash",
        "--b32", "--b16", "--b8", "--b4", "--b2", "--b1",
        "--b32-text", "--b16-text", "--b8-text", "--b4-text", "--b2-text", "--b1-text"];
      return Object.fromEntries(tokens.map((name) => {
        const probe = page.createElement("i");
        probe.style.color = `var(${name})`;
        root.append(probe);
        return [name.slice(2), getComputedStyle(probe).color];
      }));
    """
    page = render(fronts["measured"], facts(fronts["measured"]))
    if mode == "dark":
        page = page.replace("@media screen and (prefers-color-scheme: dark)", "@media screen")
    colours = {
        name: [int(v) for v in re.findall(r"\d+", rgb)[:3]] for name, rgb in ask(tmp_path, page, 1440, script).items()
    }

    def luminance(colour: list[int]) -> float:
        parts = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(colours[a]), luminance(colours[b])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    pairs = [
        ("ink", "paper"),
        ("soft", "paper"),
        ("accent", "paper"),
        ("best", "paper"),
        ("ink", "raised"),
        ("soft", "best-wash"),
    ]
    pairs += [(f"b{bits}-text", f"b{bits}") for bits in (32, 16, 8, 4, 2, 1)]
    assert {pair: round(contrast(*pair), 2) for pair in pairs if contrast(*pair) < 4.5} == {}
    assert luminance(colours["paper"]) > 0.9 if mode == "light" else luminance(colours["paper"]) < 0.02


@pytest.mark.parametrize(("width", "height"), [(1440, 1200), (390, 844)])
def test_a_screenshot_can_be_taken(
    tmp_path: Path, fronts: dict[str, Front], facts: Facts, width: int, height: int
) -> None:
    from PIL import Image

    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(render(fronts["predicted"], facts(fronts["predicted"])), encoding="utf-8")
    chromium(tmp_path, f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri())
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    # White paper, ink, and the blue of the front: the page has been drawn.
    assert max(colours)[1] == (255, 255, 255)
    assert {colour for _, colour in colours} >= {(24, 32, 42), (11, 99, 176)}


def test_other_pairs_are_one_key_away_and_hidden_before(tmp_path: Path, fronts: dict[str, Front], facts: Facts) -> None:
    script = """
      const drawn = (e) => e.getBoundingClientRect().width > 0;
      const charts = () => [...page.querySelectorAll("svg.chart")].filter(drawn);
      const shown = () => charts().map((e) => e.getAttribute("aria-label"));
      const labels = () => [...page.querySelectorAll(".switch label.other")].filter(drawn).length;
      const before = labels();
      page.getElementById("other-pairs").click();
      const after = labels();
      page.getElementById("by-latency-ram").click();
      const chosen = shown();
      page.getElementById("other-pairs").click();
      return {before, after, chosen, kept: shown(), left: labels()};
    """
    found = ask(tmp_path, render(fronts["measured"], facts(fronts["measured"])), 1440, script)
    # Latency against size, RAM and MACs; size against RAM and MACs; RAM against MACs.
    assert (found["before"], found["after"]) == (0, 6)
    assert found["chosen"] == found["kept"] == ["Latency against RAM"]
    assert found["left"] == 1


def test_columns_side_by_side_come_and_go(tmp_path: Path, fronts: dict[str, Front], facts: Facts) -> None:
    script = """
      const drawn = (e) => e.getBoundingClientRect().width > 0;
      const all = () => [...page.querySelectorAll(".columns-table thead th")];
      const heads = () => all().filter(drawn).map((e) => e.firstChild.textContent);
      const before = heads();
      page.getElementById("with-k0").click();
      page.getElementById("with-k1").click();
      const cells = [...page.querySelectorAll(".columns-table tbody tr:not(.part)")].map(
        (row) => [...row.children].filter(drawn).length);
      return {before, after: heads(), cells: [...new Set(cells)]};
    """
    found = ask(tmp_path, render(fronts["measured"], facts(fronts["measured"])), 1440, script)
    # At first the float network, the best, and the fastest others of the front: c8, c6, c5, c4 and c2 are on it.
    assert found["before"] == ["float", "c8", "c6", "c4"]
    assert found["after"] == ["c6", "c4"]
    assert found["cells"] == [3]


@crossed(("other", "width"), ["measured", "predicted", "long"], [390, 1440])
def test_nothing_runs_out_of_the_page_of_two_runs(
    tmp_path: Path, fronts: dict[str, Front], facts: Facts, other: str, width: int
) -> None:
    sides = [Side(name, fronts[name], facts(fronts[name])) for name in ("measured", other)]
    script = "return {scroll: page.documentElement.scrollWidth};"
    assert ask(tmp_path, render_two(beside(*sides)), width, script)["scroll"] <= width
