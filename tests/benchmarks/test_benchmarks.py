"""The benchmarks' frame: results of one form, a page that is made from them, and a list of what there is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks import cifar10_ptq, common, default_job, page
from benchmarks.__main__ import main
from benchmarks.roster import BENCHMARKS

SCALAR = {"type": ["string", "number", "boolean", "null"]}
SCHEMA = {
    "type": "object",
    "required": ["benchmark", "command", "date", "load_average_before", "machine", "versions", "rows"],
    "additionalProperties": False,
    "properties": {
        "benchmark": {"type": "string"},
        "command": {"type": "string"},
        "date": {"type": "string"},
        "load_average_before": {"type": "number", "minimum": 0},
        "machine": {
            "type": "object",
            "required": ["cpu", "cores", "gpu", "os"],
            "additionalProperties": False,
            "properties": {
                "cpu": {"type": "string"},
                "cores": {"type": "integer", "minimum": 1},
                "gpu": {"type": ["string", "null"]},
                "os": {"type": "string"},
            },
        },
        "versions": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
        "rows": {"type": "array", "minItems": 1, "items": {"type": "object", "additionalProperties": SCALAR}},
    },
}
UNITS = re.compile(
    r"(^|_)(percent|points|ms|us|seconds|bytes|kib|bits|macs|parameters|gmac_per_s|gbytes_per_s|us_per_layer|psnr_db|ssim|ratio|electrons|"
    r"instructions|instructions_per_mac|cycles|layers|budgets|learning_rate|images|epochs|runs|probes|candidates|candidates_on_front|speedup(_\d_threads?)?|correlation|\w+_over_\w+)$"
)
"""How a key says what its number counts: by a unit, by the things that are counted, or as a ratio."""

FOUND = [
    pytest.param(benchmark, path, id=str(path.relative_to(common.RESULTS).with_suffix("")))
    for benchmark in BENCHMARKS.values()
    for path in (benchmark.results, *benchmark.elsewhere)
    if path.exists()
]


def document(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def test_every_program_in_the_folder_is_in_the_roster_and_every_result_has_a_program() -> None:
    frame = {
        "__init__",
        "__main__",
        "common",
        "compiled_networks",
        "page",
        "mlperf_tiny",
        "pruned",
        "pruners",
        "quantizers",
        "reconstruction",
        "roster",
    }
    programs = {path.stem for path in Path(common.__file__).parent.glob("*.py")} - frame
    assert programs == set(BENCHMARKS)
    assert {path.stem for path in common.RESULTS.rglob("*.json")} <= programs


@pytest.mark.parametrize(("benchmark", "path"), FOUND)
def test_a_results_file_has_the_form_of_all(benchmark: common.Benchmark, path: Path) -> None:
    found = document(path)
    jsonschema.validate(found, SCHEMA)
    assert found["benchmark"] == benchmark.name
    assert found["command"] == f"python -m benchmarks.{benchmark.name}"
    assert date.fromisoformat(found["date"]).isoformat() == found["date"]


@pytest.mark.parametrize(("benchmark", "path"), FOUND)
def test_rows_share_their_keys_and_every_number_names_its_unit(benchmark: common.Benchmark, path: Path) -> None:
    rows = document(path)["rows"]
    assert all(list(row) == list(rows[0]) for row in rows)
    numbers = {key for row in rows for key, value in row.items() if type(value) in (int, float)}
    assert [key for key in sorted(numbers) if not UNITS.search(key)] == []


def test_a_key_without_a_unit_is_noticed() -> None:
    assert [key for key in ("latency", "accuracy", "size", "wall_time") if UNITS.search(key)] == []


def test_the_page_of_the_docs_is_the_generated_one() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.markdown(), "run: python -m benchmarks --docs"


def test_the_list_names_each_benchmark_with_its_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "data_dir", lambda: None)
    assert main([]) == 0
    printed = capsys.readouterr().out
    for benchmark in BENCHMARKS.values():
        assert f"{benchmark.name}: {benchmark.title}" in printed
        assert all(need.name in printed for need in benchmark.needs)
    assert "can't run here: CIFAR-10: put cifar10 into the folder that COMPRESS_DATA_DIR names" in printed


def test_what_is_missing_is_skipped_with_its_reason_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(common, "data_dir", lambda: None)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert main(["--run", "cifar10_ptq"]) == 0
    assert "cifar10_ptq: skipped, CIFAR-10: put" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", "default_jop"]) == 2
    assert capsys.readouterr().err == "error: unknown benchmark 'default_jop'; nearest: default_job\n"


def benchmark(rows: list[common.Row], **more: Any) -> common.Benchmark:
    given: dict[str, Any] = {"needs": (), "packages": ("numpy",), "measure": lambda: rows, "minutes": 1}
    return common.Benchmark(name="made_up", title="nothing", section=lambda _: "", **{**given, **more})


def test_a_run_writes_a_document_of_that_form_and_prints_its_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    common.run(benchmark([{"case": "one", "latency_ms": 0.5, "file_bytes": None}]))
    written = json.loads((tmp_path / "results" / "made_up.json").read_text())
    jsonschema.validate(written, SCHEMA)
    assert written["rows"] == [{"case": "one", "latency_ms": 0.5, "file_bytes": None}]
    assert written["versions"]["numpy"]
    assert capsys.readouterr().out.split() == ["case", "latency_ms", "file_bytes", "one", "0.5000", "—"]


def test_results_of_another_kind_of_machine_lie_beside_the_first_and_come_after_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    made = replace(benchmark([{"case": "one"}]), section=lambda document: f"{document['rows'][0]['case']}\n")
    common.run(made)
    for name in list(BENCHMARKS):
        monkeypatch.delitem(BENCHMARKS, name)
    monkeypatch.setitem(BENCHMARKS, made.name, replace(made, measure=lambda: [{"case": "another"}]))
    assert main(["--run", "made_up", "--kind", "avx2"]) == 0
    cases = [document(path)["rows"][0]["case"] for path in (made.results, *made.elsewhere)]
    assert cases == ["one", "another"]
    assert re.search(r"\n\none\n\n### The same on avx2\n\n[^\n]+\n\nanother\n$", page.markdown())
    assert main(["--run", "made_up", "--kind", "../up"]) == 2
    assert "error: --kind ../up: give it lower-case letters" in capsys.readouterr().err
    assert main(["--docs", "--kind", "avx2"]) == 2
    assert capsys.readouterr().err == "error: --kind says where the results of --run go; give both\n"


def test_a_failing_benchmark_leaves_its_old_results_and_lets_the_next_one_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> list[common.Row]:
        raise RuntimeError("no such kernel")

    (tmp_path / "made_up.json").write_text("old")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    other = common.Benchmark("other", "something", (), (), lambda: [{"case": "one"}], lambda _: "", 1)
    for each in (benchmark([], measure=fail), other):
        monkeypatch.setitem(BENCHMARKS, each.name, each)
    assert main(["--run", "made_up", "other"]) == 1
    assert "error: made_up: RuntimeError: no such kernel" in capsys.readouterr().err
    assert (tmp_path / "made_up.json").read_text() == "old"
    assert (tmp_path / "other.json").exists()


def test_the_work_of_others_is_what_is_busy_less_our_own_without_idling_and_waiting() -> None:
    line = "cpu  1000 200 300 99999 88888 40 50 60 7 7"
    assert common.others_seconds(line, 100, 6.5) == pytest.approx((1000 + 200 + 300 + 40 + 50 + 60) / 100 - 6.5)


def test_of_several_measurements_the_quietest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([40.0, 12.0, 30.0])
    monkeypatch.setattr(common, "wait_until_quiet", lambda _: True)

    class Fake:
        def __enter__(self) -> common.Others:
            return common.Others(next(busy))

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(common, "others", Fake)
    values = iter(["first", "second", "third"])
    assert common.quietly(lambda: next(values), attempts=3) == ("second", 12.0)
    busy = iter([20.0, 1.0, 0.0])
    values = iter(["first", "second", "third"])
    assert common.quietly(lambda: next(values), attempts=3) == ("second", 1.0)


def test_a_target_is_shown_by_the_run_with_the_median_wall_time() -> None:
    runs: list[common.Row] = [
        {"target": "cpu", "wall_seconds": wall, "prune_seconds": wall / 2, "start_and_end_seconds": wall / 2}
        for wall in (90.0, 130.0, 100.0)
    ]
    row = default_job.median(runs)
    assert (row["wall_seconds"], row["fastest_wall_seconds"], row["slowest_wall_seconds"]) == (100.0, 90.0, 130.0)
    assert default_job.phases(row) == {"prune": 50.0, "start and end": 50.0}


def test_targets_without_a_phase_have_null_for_it() -> None:
    rows = default_job.aligned([{"target": "a"}, {"target": "b", "measure_latency_seconds": 1.0}])
    assert rows[0] == {"target": "a", "measure_latency_seconds": None}


def test_the_phases_of_the_default_job_add_up_to_its_wall_time() -> None:
    for row in document(BENCHMARKS["default_job"].results)["rows"]:
        phases = [seconds for seconds in default_job.phases(row).values() if seconds is not None]
        assert sum(phases) == pytest.approx(row["wall_seconds"], abs=0.01 * (len(phases) + 1))


def test_packed_weights_compute_the_same_with_and_without_their_cast(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    integers = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["packed"], ["wide"], to=TensorProto.INT8),
            helper.make_node("DequantizeLinear", ["wide", "scale"], ["weight"], axis=0),
            helper.make_node("MatMul", ["weight", "input"], ["output"]),
        ],
        "product",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [3, 1])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [4, 1])],
        [
            helper.make_tensor("packed", TensorProto.INT4, integers.shape, integers.ravel().tolist()),
            numpy_helper.from_array(np.array([0.5, 1, 2, 4], np.float32), "scale"),
        ],
    )
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    cifar10_ptq.without_casts(path)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["DequantizeLinear", "MatMul"]
    x = np.array([[1], [-2], [3]], np.float32)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"input": x})
    assert np.array_equal(found, (integers * np.array([[0.5], [1], [2], [4]])) @ x)
    with pytest.raises(RuntimeError, match="no packed 4-bit weights"):
        cifar10_ptq.without_casts(path)
