"""``compress explain`` and ``compress report`` of one run and of two, as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Call, Finished


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.path, tmp_path / "run"))


def edit(run: Path, name: str, **changes: Any) -> None:
    path = run / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_explain_measures_here_and_brings_the_times_home(inside: Call, run: Path) -> None:
    ended = inside("explain", "run", "--json")
    assert (ended.status, ended.err) == (0, "")
    found = ended.json
    front = json.loads((run / "front.json").read_text())
    assert found["candidate"] == front["best"]
    assert found["known"] == "measured"
    assert found["measured"]["runtime"] == "onnxruntime"
    assert found["measured"]["runs"] >= 20
    assert found["home"] == "in run/front.json and run/report.html"
    best = next(c for c in front["candidates"] if c["id"] == front["best"])
    weighted = {fact["name"] for fact in best["layers"]}
    assert {layer["name"] for layer in found["layers"] if layer["measured_s"]} >= weighted
    shares = sum(layer["share"] for layer in found["layers"]) + found["measured"]["rest_s"] / found["total_s"]
    assert shares == pytest.approx(1.0)
    assert best["explanation"]["layers"] == [
        {key: layer[key] for key in best["explanation"]["layers"][0]} for layer in found["layers"]
    ]
    candidate = json.loads((run / "candidates" / front["best"] / "candidate.json").read_text())
    assert candidate["candidate"]["explanation"] == best["explanation"]
    assert "Times by layer are measured" in (run / "report.html").read_text()


def test_times_of_another_machine_do_not_come_home(inside: Call, run: Path) -> None:
    front = json.loads((run / "front.json").read_text())
    for candidate in (front["baseline"], *front["candidates"]):
        for artifact in candidate["artifacts"]:
            artifact["latency"]["device"] = "another machine"
    (run / "front.json").write_text(json.dumps(front))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ended = inside("explain", "run", "--json")
    assert ended.json["known"] == "measured"
    assert ended.json["home"].startswith("printed only: the run's latencies were measured on another machine")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_explain_predicted_changes_nothing(inside: Call, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ended = inside("explain", "run", "--predicted", "--json")
    assert ended.status == 0
    assert (ended.json["known"], ended.json["home"]) == ("predicted", None)
    assert ended.json["total_s"] == pytest.approx(sum(layer["predicted_s"] for layer in ended.json["layers"]))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_explain_prints_a_table_with_every_layer(inside: Call, run: Path, finished: Finished) -> None:
    name = finished.front["candidates"][-1]["id"]
    ended = inside("explain", "run", name, "--predicted")
    assert (ended.status, ended.err) == (0, "")
    assert f"{name} of resnet on cpu, layer by layer (predicted)" in ended.out
    for fact in finished.front["candidates"][-1]["layers"]:
        assert fact["name"] in ended.out
    assert "What would help" in ended.out or "No single change" in ended.out
    assert inside("explain", "run", "float", "--predicted").status == 0


def test_from_python_it_is_the_same(run: Path, inside: Call) -> None:
    import compress

    found = compress.explain(run)
    document = inside("explain", "run", "--predicted", "--json").json
    assert [layer.predicted_s for layer in found.layers] == [layer["predicted_s"] for layer in document["layers"]]
    assert compress.explain(run, "float").reasons == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "nowhere"], "holds no readable run.json"),
        (["explain", "run", "macs46"], "unknown candidate 'macs46'; nearest: "),
        (["explain"], "missing RUN"),
        (["report", "run", "run"], "are the same run"),
        (["report", "run", "nowhere"], "holds no readable run.json"),
        (["report", "run", "--out", "x.html"], "--out is for the page of two runs"),
        (["report", "run", "--json", "--markdown"], "leave one out"),
        (["report", "run", "run2", "--out", "run"], "it is a folder"),
        (["report", "run", "run2", "--out", "no/such/x.html"], "it can't be written"),
    ],
)
def test_bad_input_is_one_line(inside: Call, run: Path, arguments: list[str], said: str) -> None:
    shutil.copytree(run, run.parent / "run2")
    ended = inside(*arguments)
    assert ended.status == 2
    assert said in ended.error


def test_an_unfinished_run_and_one_of_another_schema(inside: Call, run: Path) -> None:
    edit(run, "run.json", status="running")
    for command in ("explain", "report"):
        assert "its run isn't finished; go on with it: compress --resume --out run" in inside(command, "run").error
    edit(run, "run.json", status="finished", schema=9)
    for command in ("explain", "report"):
        assert "run.json has schema 9, this version reads 1" in inside(command, "run").error


def test_a_run_from_before_there_were_explanations(inside: Call, run: Path) -> None:
    front = json.loads((run / "front.json").read_text())
    for candidate in (front["baseline"], *front["candidates"]):
        del candidate["explanation"]
    (run / "front.json").write_text(json.dumps(front))
    assert "nothing was recorded of where" in inside("explain", "run").error
    assert inside("report", "run").status == 0


def test_a_file_that_was_changed_is_not_measured(inside: Call, run: Path) -> None:
    best = json.loads((run / "front.json").read_text())["best"]
    file = run / "candidates" / best / "model.onnx"
    content = file.read_bytes()
    file.write_bytes(content + b"x")
    ended = inside("explain", "run")
    assert ended.status == 4
    assert "it isn't the file that the run made" in ended.error
    file.unlink()
    ended = inside("explain", "run")
    assert ended.status == 2
    assert "model.onnx is missing" in ended.error
    assert inside("explain", "run", "--predicted").status == 0


def test_another_target_is_predicted_and_says_so(inside: Call, run: Path) -> None:
    edit(run, "front.json", target="jetson-orin-nano")
    ended = inside("explain", "run")
    assert ended.status == 0
    assert "Not measured here: the target, jetson-orin-nano, isn't this machine." in ended.out.replace("\n", " ")


def test_two_runs_on_one_page(inside: Call, run: Path) -> None:
    shutil.copytree(run, run.parent / "other run")
    edit(run.parent / "other run", "front.json", model="another")
    ended = inside("report", "run", "other run")
    assert (ended.status, ended.err) == (0, "")
    page = run.parent / "run-beside-other run.html"
    assert "wrote run-beside-other run.html" in ended.out
    assert "Two runs side by side" in page.read_text()
    assert "shares of the float network" in " ".join(ended.out.split())
    ended = inside("report", "run", "other run", "--json", "--out", "b.html")
    assert ended.json["written"] == ["b.html"]
    assert [each["run"] for each in ended.json["runs"]] == ["run", "other run"]
    ended = inside("report", "run", "other run", "--markdown")
    assert ended.out.startswith("**run beside other run**")


def test_a_report_as_markdown(inside: Call, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    ended = inside("report", "run", "--markdown")
    assert ended.out.startswith("**resnet on cpu: ")
    assert "### Where the time of" in ended.out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
