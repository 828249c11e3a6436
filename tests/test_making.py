"""Candidates come out the same from this process, another one or the cache; only what changed is made again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

import compress
from compress import api, pipeline, runfolder, watch
from compress import data as datasets
from compress.errors import RunFolderError
from compress.job import Job
from compress.making_options import MakingOptions
from compress.search import Outcome, Proposal
from compress.types import Context, Size, State
from tests.small_jobs import OPTIONS, Log, data, device, network, run, substance
from tests.support import context


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("COMPRESS_CACHE_BYTES", str(10**9))
    return tmp_path / "xdg" / "compress" / "results"


@dataclass(frozen=True)
class Draw:
    """A stage that notes what it drew."""

    name: str

    def __call__(self, state: State, context: Context) -> State:
        drawn = float(torch.rand(1, generator=context.generator))
        return replace(state, notes=(*state.notes, compress.types.Note(self.name, "draw", repr(drawn))))


class Remember:
    def __init__(self) -> None:
        self.held: dict[tuple[Draw, ...], State] = {}
        self.ran: list[str] = []

    def find(self, stages: Sequence[Draw]) -> State | None:
        return self.held.get(tuple(stages))

    def keep(self, stages: Sequence[Draw], state: State) -> None:
        self.ran.append(stages[-1].name)
        self.held[tuple(stages)] = state


def drawn(stages: Sequence[Draw], seed: int = 0, known: Remember | None = None) -> list[str]:
    given = context(seed=seed + 100)  # its generator isn't what counts
    state = pipeline.run(stages, State(network()), replace(given, seed=seed), lambda _: Size(1, 1, 32.0), known)
    return [note.why for note in state.notes]


def test_what_a_stage_draws_depends_on_the_seed_and_the_stages_before_it_alone():
    a, b, c = (Draw(name) for name in "abc")
    assert drawn([a, b]) == drawn([a, b])
    assert drawn([a, b])[0] == drawn([a, c])[0] == drawn([a])[0]
    assert len({*drawn([a, b, c]), *drawn([b, a, c]), *drawn([a, b], seed=1)}) == 8


def test_stages_that_are_known_from_the_start_are_not_run_again():
    a, b, c = (Draw(name) for name in "abc")
    known = Remember()
    assert drawn([a, b], known=known) == drawn([a, b])
    assert drawn([a, c], known=known) == drawn([a, c])
    assert drawn([a, b], known=known) == drawn([a, b])
    assert known.ran == ["a", "b", "c"]


def test_one_process_at_a_time_works_in_a_run_folder(tmp_path):
    def enter():
        with runfolder.locked(tmp_path):
            return list(tmp_path.iterdir())

    with runfolder.locked(tmp_path), pytest.raises(RunFolderError, match="another process is working in it; wait"):
        enter()
    assert enter() == []


def test_a_candidate_comes_to_its_place_whole_or_not_at_all(tmp_path):
    folder = runfolder.create(tmp_path / "run")

    def fail():
        with folder.building("a") as path:
            (path / "half").write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert folder.names() == ()
    for text in ("first", "second"):
        with folder.building("a") as path:
            assert (path.name, list(path.iterdir())) == ("a", [])
            (path / text).write_text("")
            assert folder.candidate("a").exists() == (text == "second")
    assert [each.name for each in folder.candidate("a").iterdir()] == ["second"]
    folder.begin("b")
    folder.tidy()
    assert [each.name for each in folder.path.iterdir()] == ["candidates"]


@pytest.mark.slow
def test_a_second_run_takes_what_it_can_from_the_first(cached, tmp_path):
    first = Log()
    made = run(tmp_path / "a", cache=True, watcher=first)
    ids = [each.id for each in made.candidates]
    assert first.begun == ["float", *ids]

    # Nothing that shapes a candidate: all are taken, and the front is chosen anew.
    again = Log()
    limit = compress.Budget(max_accuracy_drop=50.0)
    assert substance(run(tmp_path / "b", cache=True, watcher=again, budget=limit)) == substance(made)
    assert (again.begun, again.words) == ([], [])

    # A damaged entry is said, and made again, to the same bytes.
    for entry in cached.iterdir():
        if json.loads((entry / "entry.json").read_text())["about"].get("candidate") == ids[1]:
            (entry / "files" / "model.onnx").write_bytes(b"damaged")
    repaired = Log()
    assert substance(run(tmp_path / "c", cache=True, watcher=repaired)) == substance(made)
    assert repaired.begun == [ids[1]]
    assert len(repaired.words) == 1
    assert "was damaged (model.onnx has been changed): dropped, and made anew" in repaired.words[0]
    assert "was damaged" in (tmp_path / "c" / "report.html").read_text()

    # Without the cache everything is made, to the same bytes.
    without = Log()
    assert substance(run(tmp_path / "d", watcher=without)) == substance(made)
    assert without.begun == ["float", *ids]


@pytest.mark.slow
def test_another_precision_or_target_goes_on_from_the_pruned_network(cached, tmp_path):
    first = Log()
    run(tmp_path / "a", cache=True, watcher=first, candidates=1, budget=compress.Budget(macs=0.5))
    assert len([text for text in first.messages if text.startswith("prune")]) == 1

    # Another device with the same kernels: the finished network is taken, its files are written anew.
    other = Log()
    alike = replace(device(), name="another", title="Another")
    front = run(tmp_path / "b", cache=True, watcher=other, candidates=1, budget=compress.Budget(macs=0.5), target=alike)
    assert other.begun == ["float", front.candidates[0].id]
    assert not any(text.startswith(("prune", "quantize")) for text in other.messages)
    plain = run(tmp_path / "c", candidates=1, budget=compress.Budget(macs=0.5), target=alike)
    assert substance(front) == substance(plain)

    # Another precision: pruned as before, quantized anew.
    bits = Log()
    budget = compress.Budget(macs=0.5)
    front = run(tmp_path / "d", cache=True, watcher=bits, candidates=1, budget=budget, quantize="layer-error")
    assert not any(text.startswith("prune") for text in bits.messages)
    assert any(text.startswith("quantize") for text in bits.messages)
    plain = run(tmp_path / "e", candidates=1, budget=budget, quantize="layer-error")
    assert substance(front) == substance(plain)


@pytest.mark.slow
def test_what_shapes_a_candidate_changes_its_key():
    from compress.identity import candidate_key, network_key

    def keys(model=None, given=None, target=None, **changes):
        options = {"prune": "random", "quantize": "uniform", "samples": 16, **changes}
        loaded = datasets.from_python(given or data())
        asked = Job("Two", model or network(), loaded, target or device(), **options)
        stages = asked.stages(Proposal(0.5, None, 8, False))
        return candidate_key(asked, "one", stages), network_key(asked, stages)

    usual = keys()
    assert usual == keys()
    assert usual == keys(budget=compress.Budget(max_accuracy_drop=3.0))
    assert usual == keys(candidates=20)
    heavier = network()
    with torch.no_grad():
        heavier[0].weight[0, 0, 0, 0] += 1e-3
    strided = network()
    strided[3].dilation = (2, 2)  # the same parameters, another function
    given = data()
    changed = given[0].clone()
    changed[0, 0, 0, 0] += 1.0  # one pixel of one training or evaluation image
    for change in (
        {"model": heavier},
        {"model": strided},
        {"given": (changed, given[1])},
        {"seed": 1},
        {"samples": 17},
        {"quantize": "layer-error"},
        {"budget": compress.Budget(flash_bytes=10**6)},
        {"target": device("visionfive-2")},  # zero points aren't free there
    ):
        assert all(one != other for one, other in zip(usual, keys(**change), strict=True)), change
    # What only exporters read of a target changes its files, not the network that they are of.
    for alike in (replace(device(), name="other", ram_bytes=2 * device().ram_bytes), device("x86-64")):
        candidate, state = keys(target=alike)
        assert candidate != usual[0]
        assert state == usual[1]
    # Kernels that are tuned are timed: what comes out isn't settled by what was asked for.
    assert keys(tune=0.0)[0] is None


class Narrowing:
    """Proposes half of the most accurate candidate of the first round, then half of that."""

    def __init__(self) -> None:
        self.seen: list[tuple[Outcome, ...]] = []

    @property
    def most(self) -> int:
        return 4

    def propose(self, outcomes: Sequence[Outcome]) -> tuple[Proposal, ...]:
        self.seen.append(tuple(outcomes))
        if not outcomes:
            return (Proposal(0.8, None, None, False), Proposal(0.6, None, None, False))
        if len(outcomes) > 4:
            return (Proposal(0.8, None, None, False),)  # nothing new
        known = outcomes[1:] if len(outcomes) == 3 else outcomes[-1:]
        best = max(known, key=lambda each: (each.candidate.value, each.candidate.id))
        return (Proposal(round(best.proposal.macs / 2, 2), None, None, False),)

    def account(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing was expected."""


@pytest.mark.slow
def test_rounds_see_what_earlier_ones_found_and_nothing_that_was_timed(tmp_path):
    from compress.execution import execute

    def search(path, stop_after=None):
        options = {k: v for k, v in OPTIONS.items() if k != "cache"}
        prepared = api.prepare(network(), data(), target=device(), **options)
        seen = Narrowing()
        folder = runfolder.create(path)

        class Stop(watch.Silent):
            made = 0

            def finished(self, candidate):
                Stop.made += 1
                if Stop.made == stop_after:
                    raise KeyboardInterrupt

        front = execute(prepared.job, lambda maker: seen, folder, prepared.configuration, "test", Stop())
        return front, seen.seen

    front, seen = search(tmp_path / "a")
    assert [len(each) for each in seen] == [0, 3, 4, 5]
    ids = [each.id for each in front.candidates]
    assert len(set(ids)) == len(ids) == 4
    assert [outcome.candidate.id for outcome in seen[-1]] == ["float", *ids]
    for outcome in seen[-1]:
        assert all(record.seconds == 0.0 for record in outcome.candidate.records)
        assert all(artifact.measurement is None for artifact in outcome.candidate.artifacts)
    # Stopped in the second round and resumed, the search sees and proposes the same.
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", stop_after=4)
    resumed, again = search(tmp_path / "b")
    assert substance(resumed) == substance(front)
    assert again == seen


@pytest.mark.slow
def test_processes_make_what_this_one_makes(tmp_path):
    here = substance(run(tmp_path / "a"))
    assert substance(run(tmp_path / "b", processes=2)) == here
    assert not (tmp_path / "b" / runfolder.MAKING).exists()


@pytest.mark.parametrize(
    ("how", "tune", "problem"),
    [
        (MakingOptions(processes=0), None, "--processes 0: it must be at least 1"),
        (MakingOptions(processes=2, workers="tcp://a:1"), None, "give one of them"),
        (MakingOptions(processes=2), 1.0, "leave --processes out"),
        (MakingOptions(workers="tcp://a:1"), 1.0, "leave --workers out"),
    ],
)
def test_ways_that_exclude_one_another_are_refused(how, tune, problem):
    with pytest.raises(compress.BadInput, match=problem):
        how.check(tune)


def test_a_job_that_cannot_be_sent_is_refused_with_the_way_out(tmp_path):
    class Unsendable(torch.nn.Identity):
        def __reduce__(self):
            raise RuntimeError("holds a socket")

    model = torch.nn.Sequential(network(), Unsendable()).eval()
    with pytest.raises(compress.BadInput, match="holds a socket.*leave --processes and --workers out"):
        run(tmp_path / "run", model=model, processes=2, prune="none")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_schema_is_refused(tmp_path):
    out = tmp_path / "run"
    run(out, candidates=1)
    document = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**document, "schema": 7, "status": "running"}))
    with pytest.raises(RunFolderError, match="has schema 7, this version reads 1; run again with --out elsewhere"):
        run(out, candidates=1, resume=True)


@pytest.mark.slow
def test_a_search_goes_the_same_way_here_in_other_processes_stopped_and_from_the_cache(cached, tmp_path):
    def expected(name: str) -> list[str]:
        return [each["id"] for each in runfolder.read_run(tmp_path / name)["facts"]["search"]["expected"]]

    asked = {"candidates": 6, "quantize": "layer-error"}
    front = run(tmp_path / "a", cache=True, **asked)
    assert [each.id for each in front.candidates] == expected("a")
    assert len(expected("a")) == 6
    assert 'id="search"' in (tmp_path / "a" / "report.html").read_text()
    assert substance(run(tmp_path / "b", processes=2, **asked)) == substance(front)

    class Stop(Log):
        def finished(self, candidate):
            self.made.append(candidate.id)
            if len(self.made) == 6:  # in the second round
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", watcher=Stop(), **asked)
    assert substance(run(tmp_path / "c", resume=True, **asked)) == substance(front)
    assert expected("a") == expected("b") == expected("c")

    again = Log()
    assert substance(run(tmp_path / "d", cache=True, watcher=again, **asked)) == substance(front)
    assert again.begun == []
    assert not any("foresee" in text for text in again.messages)


def test_a_goal_of_latency_reads_the_targets_figures():
    from compress.identity import network_key

    loaded = datasets.from_python(data())
    slow = replace(device(), launch_overhead_s=1e-3)

    def key(target, proposal):
        asked = Job("Two", network(), loaded, target, prune="norm", quantize="uniform", samples=16)
        return network_key(asked, asked.stages(proposal))

    half, faster = Proposal(0.5, None, 8, False), Proposal(None, None, 8, False, 0.5)
    assert key(device(), half) == key(slow, half)
    assert key(device(), faster) != key(slow, faster)
