"""The Python API: one small run on random images, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import compress
import compress.errors
from compress import targets
from compress.export import bundle
from compress.export.manifest import read_manifest, sha256
from compress.graph.trace import trace
from compress.job import Job
from compress.preflight import check
from compress.profiling.session import open_session, runner
from compress.prune.counter import Counter
from compress.prune.prunable import prunable
from compress.report.schema import front_schema
from compress.results import Accuracy, Front
from compress.search import ladder
from compress.watch import Silent
from tests.graph.networks import Plain, Residual, build, images
from tests.rosters import some
from tests.support import random_data


def pair(n: int = 80):
    return images(n), torch.arange(n) % 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("api") / "run"
    front = compress.run(build(Residual), pair(), target="cpu", out=out, candidates=4, epochs=1)
    return front, out


def test_every_candidate_is_a_measured_file_beside_a_measured_baseline(made):
    front, out = made
    assert len(front.candidates) == 4
    for candidate in (front.baseline, *front.candidates):
        best = candidate.best
        assert best.measurement is not None
        assert best.measurement.device == front.baseline.best.measurement.device
        assert [a.runtime for a in candidate.artifacts] == ["onnxruntime", "tvm"]
        for artifact in candidate.artifacts:
            assert artifact.measurement is not None
            assert artifact.accuracy.measured_on == artifact.runtime
            assert sha256(out / artifact.path) == artifact.sha256
        assert "golden inputs equal the reference" in candidate.artifacts[1].checked
        assert {each.runtime for each in candidate.unavailable} | {a.runtime for a in candidate.artifacts} == set(
            targets.load("cpu").runtimes
        )
    assert len({candidate.plan.digest() for candidate in front.candidates}) == 4


def test_the_document_on_disk_is_the_front_and_follows_the_schema(made):
    import jsonschema

    front, out = made
    document = json.loads((out / "front.json").read_text())
    jsonschema.validate(document, front_schema())
    assert Front.from_document(document) == front
    assert document == json.loads(json.dumps(front.document()))


def test_stages_say_what_they_did(made):
    front, _ = made
    smallest = min(front.candidates, key=lambda candidate: candidate.macs)
    pruned = next(record for record in smallest.records if "prune" in record.stage)
    assert pruned.after.macs < pruned.before.macs
    quantized = next(record for record in smallest.records if "quantize" in record.stage)
    assert quantized.before.weight_bits == 32
    assert quantized.after.weight_bits == smallest.weight_bits <= 8


def test_the_plan_describes_the_file(made):
    front, out = made
    for candidate in front.candidates:
        manifest = read_manifest(out / "candidates" / candidate.id)
        assert manifest.plan == candidate.plan
        assert bundle.damage(out / "candidates" / candidate.id, manifest) == []
        for layer in candidate.layers:
            kept = candidate.plan.layer(layer.name).keep
            assert layer.channels == (len(kept) if kept is not None else layer.channels_before)


def test_golden_outputs_belong_to_the_golden_inputs(made):
    _, out = made
    with np.load(out / "bundle" / "golden.npz") as golden:
        run = runner(open_session(out / "bundle" / "model.onnx", 1))
        again = np.concatenate([run(x[None]) for x in golden["inputs"]])
        np.testing.assert_allclose(again, golden["outputs"], rtol=1e-5, atol=1e-5)


def test_a_bundle_holds_no_timing_and_no_date(made):
    _, out = made
    text = (out / "bundle" / "manifest.json").read_text() + (out / "bundle" / "README.md").read_text()
    assert "measured_s" not in text
    assert "seconds" not in text
    assert "2026" not in text.replace("schema", "")


def test_a_bundle_is_saved_once_and_whole(made, tmp_path):
    front, out = made
    where = compress.save_bundle(front.best(), tmp_path / "here" / "bundle")
    assert sorted(p.name for p in where.iterdir()) == sorted(p.name for p in (out / "bundle").iterdir())
    with pytest.raises(compress.BadInput, match="it exists"):
        compress.save_bundle(front.best(), where)
    with pytest.raises(compress.BadInput, match="none met the budget"):
        compress.save_bundle(None, tmp_path / "other")


def test_a_bundle_whose_manifest_leads_outside_is_not_copied(made, tmp_path):
    front, out = made
    best = front.best()
    folder = shutil.copytree(out / "candidates" / best.id, tmp_path / "candidate")
    (tmp_path / "outside").write_bytes(b"secret")
    document = json.loads((folder / "manifest.json").read_text())
    entry = {"path": "../outside", "sha256": sha256(tmp_path / "outside"), "bytes": 6}
    (folder / "manifest.json").write_text(json.dumps({**document, "files": [*document["files"], entry]}))
    with pytest.raises(compress.CompressError, match="leaves the bundle"):
        compress.save_bundle(replace(best, folder=str(folder)), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_candidates_and_the_same_bundle_bytes(made, tmp_path):
    front, out = made
    again = compress.run(build(Residual), pair(), target="cpu", out=tmp_path / "again", candidates=4, epochs=1)
    assert [(c.id, c.plan.digest(), c.accuracy, c.best.sha256) for c in again.candidates] == [
        (c.id, c.plan.digest(), c.accuracy, c.best.sha256) for c in front.candidates
    ]
    for candidate in front.candidates:
        for name in ("model.onnx", "manifest.json", "golden.npz", "README.md", "run.py"):
            one, two = (folder / "candidates" / candidate.id / name for folder in (out, tmp_path / "again"))
            assert one.read_bytes() == two.read_bytes(), name


def test_a_finished_folder_is_not_overwritten(made):
    _, out = made
    with pytest.raises(compress.BadInput, match="already holds a finished run"):
        compress.run(build(Residual), pair(), target="cpu", out=out)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(made, tmp_path):
    front, _ = made

    class Stop(Silent):
        seen = 0

        def finished(self, candidate):
            self.seen += 1
            if self.seen == 3:
                raise KeyboardInterrupt

    out = tmp_path / "run"
    arguments = {"target": "cpu", "out": out, "candidates": 4, "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        compress.run(build(Residual), pair(), watcher=Stop(), **arguments)
    assert not (out / "front.json").exists()
    times = {path: path.stat().st_mtime_ns for path in out.glob("candidates/*/candidate.json")}
    assert len(times) == 3
    with pytest.raises(compress.BadInput, match="add --resume"):
        compress.run(build(Residual), pair(), **arguments)
    with pytest.raises(compress.BadInput, match="its run has epochs 1, not 0"):
        compress.run(build(Residual), pair(), **{**arguments, "epochs": 0}, resume=True)
    again = compress.run(build(Residual), pair(), **arguments, resume=True)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert [(c.id, c.plan.digest(), c.accuracy) for c in again.candidates] == [
        (c.id, c.plan.digest(), c.accuracy) for c in front.candidates
    ]


@pytest.mark.slow
def test_a_device_that_is_not_here_gets_predictions_only(tmp_path):
    front = compress.run(build(Plain), pair(), target="cortex-m7", out=tmp_path / "m7", candidates=2)
    assert not front.all_measured
    for candidate in front.candidates:
        assert candidate.best.measurement is None
        assert candidate.best.estimate.error > 0
        assert candidate.best.estimate.latency_s > 0
        assert candidate.best.runtime == "tvm"
        assert candidate.best.accuracy.measured_on == "tvm"
        assert "the same program compiled for this machine" in candidate.best.checked
    bundle = tmp_path / "m7" / "bundle"
    assert (bundle / "model.onnx").is_file()
    assert (bundle / "library" / "src" / "model.h").is_file()


@some("target", ["cpu", "cortex-m7"], quick=["cpu"])
def test_narrow_weights_are_compared_with_8_bits_of_the_same_network(target, tmp_path):
    """With one width and without pruning, so that the ONNX file's weights can be counted: half a byte each."""
    out, narrow = tmp_path / "run", compress.Budget(weight_bits=4)
    options = {"prune": "none", "quantize": "uniform", "epochs": 0, "samples": 16, "candidates": 1}
    front = compress.run(build(Plain), pair(), target=target, budget=narrow, out=out, **options)
    (candidate,) = front.candidates
    files = {artifact.runtime: artifact for artifact in candidate.artifacts}
    assert set(files) == {"onnxruntime", "tvm"}
    bits = {fact.name: fact.weight_bits for fact in candidate.layers}
    counts = {name: module.weight.numel() for name, module in build(Plain).named_modules() if name in bits}
    saved = sum(count - (count + 1) // 2 for name, count in counts.items() if bits[name] == 4)
    assert saved > 0
    for artifact in files.values():
        assert artifact.at_8_bits is not None
        assert (out / artifact.at_8_bits.path).is_file()
        assert (artifact.at_8_bits.instructions is None) == (artifact.instructions is None)
        assert (artifact.at_8_bits.measurement is None) == (artifact.measurement is None) == (target != "cpu")
    # Less what is around the packed weights: a Cast and a longer name each.
    packed = files["onnxruntime"]
    assert 0.5 * saved < packed.at_8_bits.bytes - packed.bytes <= saved
    assert front.baseline.best.at_8_bits is None
    page = (out / "report.html").read_text()
    assert f"{candidate.id} beside itself with 8-bit weights: " in page
    assert not any(name.startswith(".") for name in (entry.path for entry in read_manifest(out / "bundle").files))
    # The same network: outputs differ by roundings of activations at most.
    x = images(8, 3).numpy()
    files = [out / packed.path, out / packed.at_8_bits.path]
    outputs = [runner(open_session(file, exact=target != "cpu"))(x) for file in files]
    assert np.abs(outputs[0] - outputs[1]).max() <= 0.05 * np.abs(outputs[0]).max()


def test_a_device_without_room_is_refused_before_anything_is_written(tmp_path):
    tiny = replace(targets.load("cortex-m4"), ram_bytes=500)
    with pytest.raises(compress.BadInput, match=r"500 bytes of RAM, and even the smallest candidate needs .* too many"):
        compress.run(build(Plain), pair(), target=tiny, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_candidates_that_do_not_fit_are_dropped_with_the_reason(tmp_path):
    dropped = {}

    class Listen(Silent):
        def dropped(self, name, reason):
            dropped[name] = reason

    free = check(Job("p", build(Plain), random_data(), targets.load("cortex-m7"), candidates=3))
    small = replace(targets.load("cortex-m7"), flash_bytes=9_000)
    front = compress.run(build(Plain), pair(), target=small, out=tmp_path / "r", candidates=3, watcher=Listen())
    assert {*dropped, *(c.id for c in front.candidates)} == {proposal.id for proposal in free.ladder}
    assert dropped
    assert all("flash" in reason for reason in dropped.values())
    assert all(c.best.bytes <= 9_000 for c in front.candidates)


@pytest.mark.slow
def test_one_run_can_leave_steps_out(tmp_path):
    front = compress.run(build(Plain), pair(), target="cpu", prune="none", quantize="uniform", out=tmp_path / "a")
    assert [candidate.id for candidate in front.candidates] == ["macs100-w8"]
    front = compress.run(build(Plain), pair(), target="cpu", quantize="none", candidates=2, out=tmp_path / "b")
    assert all(candidate.weight_bits == 32 for candidate in front.candidates)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target": "jeston"}, "unknown target 'jeston'; nearest: jetson"),
        ({"prune": "nrom"}, "unknown pruning method 'nrom'; nearest: norm"),
        ({"quantize": "unifrom"}, "unknown quantization method 'unifrom'; nearest: uniform"),
        ({"runtime": "onnx"}, "unknown runtime 'onnx'"),
        ({"budget": compress.Budget(macs=1.5)}, r"lies in \(0, 1\]"),
        ({"budget": compress.Budget(weight_bits=2.0)}, "out of reach"),
        ({"budget": compress.Budget(activation_bits=3)}, "no integer kernels with 3-bit activations"),
        ({"candidates": 0}, "at least 1"),
        ({"data": (images(8)[:, :2], torch.arange(8) % 2)}, "don't go through Plain"),
        ({"data": (images(8), torch.zeros(8, dtype=torch.long))}, "class"),
        ({"data": (images(40), torch.arange(40) % 20)}, "20 classes, Plain tells 5 apart"),
    ],
)
def test_bad_arguments_are_one_sentence_and_write_nothing(change, sentence, tmp_path):
    arguments = {"data": pair(), "target": "cpu", "out": tmp_path / "run", **change}
    with pytest.raises(compress.BadInput, match=sentence) as caught:
        compress.run(build(Plain), **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_named(tmp_path):
    model = build(Plain)
    model.conv2.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(compress.BadInput, match=r"NaN or infinity in 1 tensor \(conv2\.weight\)"):
        compress.run(model, pair(), target="cpu", out=tmp_path / "run")


def test_the_ladder_spans_more_than_a_factor_of_two_and_repeats_nothing():
    for widths in ((8,), (4, 8)):
        for count in range(2, 14):
            proposals = ladder(count, prune=True, macs=None, params=None, widths=widths, weight_bits=None)
            assert len({proposal.id for proposal in proposals}) == len(proposals) <= count
            assert proposals[0].macs / proposals[-1].macs > 2


def test_the_ladder_keeps_within_both_budgets_and_above_what_both_can_reach():
    least = (0.031, 0.0972)
    for macs, params in ((0.336, None), (None, 0.25), (0.9, 0.11), (0.04, 1.0), (0.333, 0.0972), (1.0, 0.1)):
        proposals = ladder(8, prune=True, macs=macs, params=params, widths=(4, 8), weight_bits=None, least=least)
        assert len({proposal.id for proposal in proposals}) == len(proposals)
        assert (proposals[0].macs, proposals[0].params) == (macs, params)
        for proposal in proposals:
            assert macs is None or least[0] <= proposal.macs <= macs
            assert params is None or least[1] <= proposal.params <= params


@pytest.mark.slow
@pytest.mark.parametrize("tight", ["macs", "params"])
def test_every_proposal_inside_both_budgets_can_be_built(tight, tmp_path):
    network = trace(build(Plain), (images(2),))
    least = dict(zip(("macs", "params"), Counter.of(network, prunable(build(Plain), network)).least(), strict=True))
    # One budget close to its end, the other far from it: the ladder has to end with the first to be reached.
    budget = compress.Budget(**{"macs": 1.0, "params": 1.0, tight: round(1.5 * least[tight], 3)})
    front = compress.run(build(Plain), pair(), target="cpu", out=tmp_path / "run", candidates=4, budget=budget)
    assert len(front.candidates) >= 3
    for candidate in front.candidates:
        assert candidate.macs <= budget.macs * front.baseline.macs
        assert candidate.params <= budget.params * front.baseline.params


@pytest.mark.slow
def test_the_ladder_ends_where_pruning_can_reach(tmp_path):
    narrow = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(2, 5, 3), torch.nn.Flatten(), torch.nn.Linear(720, 5)
    )
    front = compress.run(narrow.eval(), pair(), target="raspberry-pi-5", out=tmp_path / "run", candidates=3)
    assert min(candidate.macs for candidate in front.candidates) < front.baseline.macs
    with pytest.raises(compress.BadInput, match="least reachable"):
        compress.run(narrow, pair(), target="raspberry-pi-5", out=tmp_path / "b", budget=compress.Budget(macs=0.01))


@pytest.mark.slow
def test_a_finished_candidate_that_was_damaged_is_made_again(tmp_path):
    out = tmp_path / "run"
    arguments = {"target": "cortex-m7", "out": out, "candidates": 2, "prune": "none", "quantize": "uniform"}

    class Stop(Silent):
        def phase(self, text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress.run(build(Plain), pair(), watcher=Stop(), **arguments)
    damaged = out / "candidates" / "macs100-w8" / "model.onnx"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:100])
    front = compress.run(build(Plain), pair(), resume=True, **arguments)
    assert damaged.read_bytes() == good
    assert front.best() is not None


def test_the_interval_of_an_accuracy_is_wilsons():
    found = Accuracy.from_counts(90, 100, "onnxruntime")
    assert (round(found.low, 2), round(found.high, 2)) == (82.56, 94.48)
    assert Accuracy.from_counts(100, 100, "onnxruntime").high == 100.0


@pytest.mark.slow
def test_recall_by_class_is_that_of_the_file_and_classes_are_protected_to_the_end(tmp_path):
    from compress.prune.protect import Protect

    data = pair(100)
    out = tmp_path / "run"
    arguments = {"target": "cpu", "out": out, "candidates": 1, "budget": compress.Budget(macs=0.6), "epochs": 0}
    front = compress.run(build(Residual), data, protect_classes=["2", 4], **arguments)
    candidate = front.candidates[0]
    assert [record.stage for record in candidate.records][-2:] == [Protect.label, "compile"]
    for each in (front.baseline, candidate):
        recall = each.best.recall
        assert recall.protected == ("2", "4")
        assert sum(recall.n) == each.accuracy.n == 20
        hits = sum(n * percent / 100 for n, percent in zip(recall.n, recall.percent, strict=True))
        assert hits == pytest.approx(each.accuracy.value / 100 * each.accuracy.n)
    assert Front.from_document(json.loads((out / "front.json").read_text())).candidates[0].best.recall is not None
    assert "Recall by class" in (out / "report.html").read_text()
    with pytest.raises(compress.errors.RunFolderError, match="protect_classes"):
        compress.run(build(Residual), data, protect_classes=["2"], resume=True, **arguments)


def test_protected_classes_are_among_what_a_run_is_asked_for_again_with():
    from compress.api import prepare
    from compress.cli.job import _recorded

    prepared = prepare("resnet", target="cpu", protect_classes=["3", "7"], candidates=1, epochs=0)
    assert prepared.job.protect_classes == (3, 7)
    assert _recorded(json.loads(json.dumps(prepared.configuration)))["protect_classes"] == ("3", "7")


@pytest.mark.slow
def test_predictions_are_compared_within_one_runtime(tmp_path):
    from compress.execution import _of_one_runtime

    front = compress.run(build(Plain), pair(), target="jetson", out=tmp_path / "run", candidates=1, epochs=0)
    runtimes = {candidate.best.runtime for candidate in (front.baseline, *front.candidates)}
    compilers = ("nvcc", "ptxas", "aarch64-linux-gnu-g++")  # of CUDA modules, which the float network has too
    assert runtimes == {"tvm" if all(map(shutil.which, compilers)) else "onnxruntime"}
    for candidate in (front.baseline, *front.candidates):
        assert runtimes <= {artifact.runtime for artifact in candidate.artifacts}
    bare = replace(front.baseline, artifacts=())
    assert _of_one_runtime([bare, *front.candidates], ("onnxruntime",)) == [bare, *front.candidates]
