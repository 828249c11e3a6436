"""Measured register blocks: which are timed, that results stay what they are, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from compress.errors import BadInput
from compress.export.kernels import backends, dot_blocks
from compress.export.kernels.dot_blocks import Block
from compress.export.library import building
from compress.export.library.loader import Library
from compress.export.library.toolchain import find
from compress.integer import program as p
from compress.integer import reference
from compress.integer.fixed_point import multipliers
from compress.integer.signedness import with_signedness
from compress.profiling import tuning
from compress.profiling.search_blocks import Records


def network() -> p.Program:
    generator = np.random.default_rng(0)
    weight = generator.integers(-127, 128, (32, 3, 3, 16)).astype(np.int8)
    m, s = multipliers(np.full(32, 1e-3))
    how = p.Requantize(m, s, 3, 0, 255)
    bias = generator.integers(-1000, 1000, 32).astype(np.int32)
    op = p.Convolution("conv", ("x",), "y", weight, 8, bias, padding=(1, 1, 1, 1), requantize=how)
    tensors = {
        "x": p.Tensor("x", (8, 12, 16), "uint8", 0.1, 5),
        "y": p.Tensor("y", (8, 12, 32), "uint8", 0.2, 3),
    }
    return p.Program(tensors, (op,), ("x",), ("y",), {"x": (16, 8, 12), "y": (32, 8, 12)})


def asked(host):
    """The network as the host's kernels take it, the shape that they ask a block for, and all blocks, best first."""
    program = with_signedness(network(), host.signed)
    with dot_blocks.asked() as shapes:
        backends.assemble(program, host)
    ((shape, dot),) = shapes.items()
    arguments = (shape.width, shape.vectors, shape.kernel, shape.stride, shape.dilation, shape.steps)
    return program, shape, dot_blocks.ranked(dot, *arguments), lambda: dot_blocks.choose(dot, *arguments)


@pytest.fixture(autouse=True)
def _here():
    host = backends.host()
    if host is None or host.family not in ("x86", "aarch64"):
        pytest.skip("no kernels with register blocks for this machine")
    try:
        find(host)
    except BadInput as error:
        pytest.skip(error.sentence)


@pytest.mark.slow
def test_the_blocks_that_are_timed_are_kept_and_not_timed_again(tmp_path):
    said: list[str] = []
    found = tuning.tune(network(), 600, said.append, tmp_path)
    assert len(found) == 1
    assert len(said) == 1
    assert "conv, layer 1 of 1" in said[0]
    assert {path.name for path in tmp_path.iterdir()} == {"database_workload.json", "database_tuning_record.json"}
    assert tuning.tune(network(), 600, pytest.fail, tmp_path) == found, "a shape that is known isn't timed again"
    assert tuning.tune(network(), 0, pytest.fail, tmp_path) == found


def test_metaschedule_times_the_models_choice_first_and_then_all_others(tmp_path):
    host = backends.host()
    program, shape, ranked, _ = asked(host)
    candidates = ranked[:4]
    records = Records(tmp_path, host, pytest.fail)
    assert records.seconds(shape, candidates) == {}
    records.search(program, shape, candidates, lambda: 0.0, seed=0)
    first = records.seconds(shape, candidates)
    assert list(first) == [candidates[0]], "without time the model's choice alone"
    assert tuning.tune(network(), 0, pytest.fail, tmp_path) == {}, "known for these blocks, and for no others"
    Records(tmp_path, host, pytest.fail).search(program, shape, candidates, lambda: 1.0, seed=0)
    times = Records(tmp_path, host, pytest.fail).seconds(shape, candidates)
    assert set(times) == set(candidates), "a search that ran out of time goes on"
    assert times[candidates[0]] == first[candidates[0]], "what is known isn't timed again"
    assert all(0 < seconds < 1 for seconds in times.values())


def test_no_seconds_time_nothing(tmp_path):
    assert tuning.tune(network(), 0, pytest.fail, tmp_path) == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense", '[["x", "y"]]'])
def test_a_damaged_database_is_begun_anew(tmp_path, content):
    for name in ("database_workload.json", "database_tuning_record.json"):
        (tmp_path / name).write_text(content)
    said: list[str] = []
    assert tuning.tune(network(), 0, said.append, tmp_path) == {}
    assert said == ([] if content == "" else [f"the tuning database in {tmp_path} is damaged and begun anew"])


def test_another_block_is_taken_only_where_it_is_clearly_faster():
    model, other = Block(2, 1, 1), Block(4, 1, 1)
    assert tuning._best({model: 1.0, other: 0.99}, model) == model
    assert tuning._best({model: 1.0, other: 0.97}, model) == other
    assert tuning._best({other: 0.99}, model) == other


@pytest.mark.parametrize("rank", [0, 3, 7])
def test_every_block_gives_the_references_integers(tmp_path, rank):
    host = backends.host()
    program, shape, ranked, _ = asked(host)
    block = ranked[rank]
    with dot_blocks.fixed({shape: block}):
        code = backends.assemble(program, host)
    built = building.build(code, host, tmp_path, file_shapes=program.file_shapes)
    x = np.random.default_rng(1).integers(0, 256, (8, 12, 16)).astype(np.uint8)
    x = x if not host.signed else (x.astype(np.int16) - 128).astype(np.int8)
    with Library(built.linked_path) as library:
        assert np.array_equal(library.run_raw([x[None]])[0][0], reference.run(program, {"x": x})["y"])


def test_a_block_is_fixed_only_within_its_context():
    _, shape, _, choose = asked(backends.host())
    model, other = choose(), Block(1, 1, 1)
    assert model != other
    with dot_blocks.fixed({shape: other}):
        assert choose() == other
    assert choose() == model
