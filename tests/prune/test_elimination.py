"""Backward elimination against brute force: remove each unit, refit by lstsq, compare errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from compress.prune.elimination import Problem, eliminate
from tests.prune.design import Operator, designs, least_squares, squared_error, targets


class Case:
    """One layer that reads a group's channels, with inputs that are correlated and not centred."""

    def __init__(self, operator: Operator, shape: tuple[int, ...], groups: int, columns: list[list[int]], seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.columns = columns
        self.designs = designs(operator, shape, groups)
        self.importance = torch.rand(groups, shape[0] // groups, generator=generator, dtype=torch.float64) + 0.1
        self.targets = targets(operator(self.weight), len(shape), groups)

    @property
    def problem(self) -> Problem:
        moments = torch.stack([x.T @ x / len(x) for x in self.designs])
        matrix = self.weight.reshape(len(self.designs), self.importance.shape[1], -1)
        full = torch.cat([matrix, torch.zeros_like(matrix[..., :1])], 2)
        return Problem(full, moments, self.importance, torch.tensor(self.columns))

    def solutions(self, gone: list[int]) -> list[torch.Tensor]:
        lost = {column for unit in gone for column in self.columns[unit]}
        keep = [k for k in range(self.designs[0].shape[1] - 1) if k not in lost]
        return [least_squares(x, t, keep) for x, t in zip(self.designs, self.targets, strict=True)]

    def error(self, gone: list[int]) -> float:
        each = zip(self.designs, self.targets, self.solutions(gone), self.importance, strict=True)
        return sum(squared_error(*parts) for parts in each)


def mixed(*shape: int, seed: int = 0) -> torch.Tensor:
    """Inputs whose channels (axis 1) depend on one another and have means."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    mixing = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    return torch.relu(torch.einsum("oc,nc...->no...", mixing, x) + 0.3)


def linear(seed: int = 0) -> Case:
    x = mixed(200, 9, seed=seed)
    return Case(lambda w: F.linear(x, w), (5, 9), 1, [[i] for i in range(9)], seed)


def conv(seed: int = 0) -> Case:
    x = mixed(6, 5, 7, 7, seed=seed)
    columns = [[i * 9 + tap for tap in range(9)] for i in range(5)]
    return Case(lambda w: F.conv2d(x, w, stride=2, padding=1), (4, 5, 3, 3), 1, columns, seed)


def grouped(seed: int = 0) -> Case:
    """Two groups of three channels each: unit i is channel i of every group."""
    x = mixed(6, 6, 8, 8, seed=seed)
    columns = [[i * 9 + tap for tap in range(9)] for i in range(3)]
    return Case(lambda w: F.conv2d(x, w, groups=2), (4, 3, 3, 3), 2, columns, seed)


def flattened(seed: int = 0) -> Case:
    """A linear layer behind a flatten: a channel is four neighbouring columns."""
    x = mixed(200, 20, seed=seed)
    return Case(lambda w: F.linear(x, w), (5, 20), 1, [list(range(4 * i, 4 * i + 4)) for i in range(5)], seed)


def two_readers(seed: int = 0) -> list[Case]:
    x = mixed(8, 5, 6, 6, seed=seed)
    columns = [[i * 9 + tap for tap in range(9)] for i in range(5)]
    one = Case(lambda w: F.conv2d(x, w, padding=1), (3, 5, 3, 3), 1, columns, seed)
    return [one, Case(lambda w: F.conv2d(x, w), (2, 5, 1, 1), 1, [[i] for i in range(5)], seed + 1)]


CASES = {
    "linear": lambda: [linear()],
    "conv2d": lambda: [conv()],
    "grouped conv": lambda: [grouped()],
    "linear behind flatten": lambda: [flattened()],
    "two readers": two_readers,
}
cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


@cases
def test_each_step_takes_the_unit_whose_loss_lstsq_says_is_least_and_adds_what_it_says(make):
    readers = make()
    units = len(readers[0].columns)
    found = eliminate([case.problem for case in readers], units, [])
    assert sorted(found.order) == list(range(units))
    assert found.errors[0] == 0
    gone: list[int] = []
    for step, unit in enumerate(found.order):
        trials = {i: sum(case.error([*gone, i]) for case in readers) for i in range(units) if i not in gone}
        assert unit == min(trials, key=trials.get)
        gone.append(unit)
        assert found.errors[step + 1] == pytest.approx(trials[unit], rel=2e-4)


@cases
def test_weights_at_checkpoints_are_those_of_lstsq_on_the_columns_that_are_left(make):
    readers = make()
    units = len(readers[0].columns)
    found = eliminate([case.problem for case in readers], units, [units - 1, 2])
    assert set(found.refitted) == {units - 1, 2}
    for kept, weights in found.refitted.items():
        for case, weight in zip(readers, weights, strict=True):
            expected = torch.stack(case.solutions(list(found.order[: units - kept]))).float()
            torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-3)


@cases
def test_the_path_never_falls_and_ends_with_the_bias_alone(make):
    readers = make()
    units = len(readers[0].columns)
    errors = eliminate([case.problem for case in readers], units, []).errors
    assert (errors[1:] >= errors[:-1]).all()
    variance = sum(
        float((t.var(0, unbiased=False) * w).sum())
        for case in readers
        for t, w in zip(case.targets, case.importance, strict=True)
    )
    assert errors[-1] == pytest.approx(variance, rel=1e-3)


def test_an_output_that_counts_for_nothing_costs_nothing():
    """Unit 0 is read by output 0 alone, unit 1 by output 1, whose importance is a hundredth."""
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = torch.cat([x, torch.ones(100, 1)], 1)
    weight = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]], dtype=torch.float64)
    problem = Problem(weight, (moments.T @ moments / 100)[None], torch.tensor([[1.0, 0.01]]), torch.tensor([[0], [1]]))
    assert eliminate([problem], 2, []).order == (1, 0)


@pytest.fixture(scope="module")
def wide() -> Case:
    x = mixed(600, 150, seed=3)
    return Case(lambda w: F.linear(x, w), (7, 150), 1, [[i] for i in range(150)], 3)


def test_groups_of_many_units_pass_every_checkpoint_with_the_direct_error(wide):
    """Above 64 units several go at a time; what is said of the error holds nevertheless."""
    found = eliminate([wide.problem], 150, [140, 97, 52, 12])
    assert set(found.refitted) == {140, 97, 52, 12}
    assert (found.errors[1:] >= found.errors[:-1]).all()
    for kept in (149, 140, 120, 97, 80, 52, 12):
        assert found.errors[150 - kept] == pytest.approx(wide.error(list(found.order[: 150 - kept])), rel=1e-3)


def test_of_two_equal_units_one_stays_however_many_go_at_a_time():
    """Seventy channels, each twice: seventy go at no cost, and never both of a pair."""
    half = torch.randn(400, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = half.repeat_interleave(2, 1)
    case = Case(lambda w: F.linear(x, w), (6, 140), 1, [[i] for i in range(140)], 0)
    found = eliminate([case.problem], 140, [])
    assert len({unit // 2 for unit in found.order[:70]}) == 70
    assert found.errors[70] < 1e-3 * found.errors[71]  # what damping leaves
