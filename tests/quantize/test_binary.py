"""Binary weights: values, estimators' gradients by their formulas, constraints that hold at every step."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from compress.errors import BadInput, UnknownName
from compress.quantize.binary import ESTIMATORS, VALUES, BinaryConv2d, BinaryLinear, BinaryWeight, sign, slope
from compress.quantize.pattern_constraints import (
    ComplementaryPairs,
    ExactOnes,
    FirstOfOnes,
    FractionOfOnes,
    Incoherent,
    coherences,
    signs,
    threshold,
)

CONSTRAINTS = {
    "none": None,
    "exact": ExactOnes(5),
    "fraction": FractionOfOnes(0.25),
    "incoherent": Incoherent(0.9),
    "counted and incoherent": Incoherent(0.9, ExactOnes(5)),
    "pairs": ComplementaryPairs(),
    "counted pairs": ComplementaryPairs(ExactOnes(5)),
    "first of ones": FirstOfOnes(),
    "first of ones, others counted": FirstOfOnes(ExactOnes(5)),
}


def rows(count: int = 6, pixels: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, pixels, generator=torch.Generator().manual_seed(seed))


# --- estimators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_forward_is_the_sign_and_backward_the_slope(estimator, progress):
    w = torch.tensor([-2.0, -1.2, -0.5, -0.04, 0.0, 0.04, 0.3, 1.0, 1.4, 1.6], requires_grad=True)
    upstream = torch.arange(1.0, 11.0)
    made = sign(w, estimator, progress)
    assert made.tolist() == [-1.0 if v < 0 else 1.0 for v in w.tolist()]
    made.backward(upstream)
    assert w.grad is not None
    torch.testing.assert_close(w.grad, upstream * slope(w.detach(), estimator, progress))


def test_slopes_equal_their_formulas():
    w = torch.tensor([-1.7, -1.0, -0.3, -0.05, 0.0, 0.08, 0.6, 1.2], dtype=torch.float64)
    assert slope(w, "identity").tolist() == [1.0] * 8
    assert slope(w, "clipped").tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    for p in (0.0, 0.25, 1.0):
        t = 0.1 * 100**p
        k = max(1 / t, 1.0)
        free = w.clone().requires_grad_()
        (k * torch.tanh(t * free)).sum().backward()
        torch.testing.assert_close(slope(w, "ede", p), free.grad)
        o = 1 + 2 * p
        wanted = [
            0.0 if abs(v) > 1.5 else 0.1 ** (1 / o) / 0.1 if abs(v) < 0.1 else abs(v) ** (1 / o - 1) / o
            for v in w.tolist()
        ]
        assert slope(w, "reste", p).tolist() == pytest.approx(wanted)


def test_estimators_go_from_a_line_to_the_sign():
    w = torch.linspace(-0.9, 0.9, 37)
    assert slope(w, "ede", 0.0).std() < 0.01
    assert slope(w, "reste", 0.0).tolist() == pytest.approx([1.0] * 37)
    for estimator in ("ede", "reste"):
        late = slope(w, estimator, 1.0)
        assert late[18] > 3 * late[0]


def test_an_unknown_estimator_is_refused_with_those_that_there_are():
    with pytest.raises(UnknownName, match="clipped"):
        sign(torch.ones(2), "clip")
    with pytest.raises(UnknownName, match="reste"):
        BinaryWeight(rows(), estimator="rest")
    with pytest.raises(UnknownName, match="mean"):
        BinaryWeight(rows(), scale="man")


# --- constraints -----------------------------------------------------------------------------------------------------


def nearest(v: torch.Tensor, allowed: list[torch.Tensor]) -> float:
    return min(float((v - b).square().sum()) for b in allowed)


def test_projection_on_exactly_k_ones_is_the_nearest_of_all_patterns():
    every = [torch.tensor([1.0 if n >> i & 1 else -1.0 for i in range(8)]) for n in range(256)]
    allowed = [b for b in every if (b > 0).sum() == 3]
    assert len(allowed) == math.comb(8, 3)
    for v in rows(5, 8):
        (found,) = ExactOnes(3).project(v[None])
        assert float((v - found).square().sum()) == pytest.approx(nearest(v, allowed))


def test_projection_on_pairs_is_the_nearest_of_all_pairs():
    every = [torch.tensor([1.0 if n >> i & 1 else -1.0 for i in range(6)]) for n in range(64)]
    v = rows(4, 6)
    found = ComplementaryPairs().project(v)
    for i in (0, 2):
        best = min(float((v[i] - b).square().sum() + (v[i + 1] + b).square().sum()) for b in every)
        assert float((v[i : i + 2] - found[i : i + 2]).square().sum()) == pytest.approx(best)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_projected_rows_are_allowed_and_stay_what_they_are(name):
    constraint = CONSTRAINTS[name] or Incoherent(0.999)
    found = constraint.project(rows())
    assert set(found.unique().tolist()) <= {-1.0, 1.0}
    assert constraint.violation(found) is None
    assert torch.equal(constraint.project(found), found)


def test_fraction_is_rounded_to_whole_pixels():
    for fraction in (0.1, 0.25, 0.5, 0.9):
        assert ((FractionOfOnes(fraction).project(rows()) > 0).sum(1) == round(16 * fraction)).all()


def test_violations_name_the_pattern():
    patterns = ExactOnes(5).project(rows())
    patterns[3, int((patterns[3] < 0).nonzero()[0])] = 1.0
    assert ExactOnes(5).violation(patterns) == "pattern 3 has 6 ones where 5 are needed"
    assert ComplementaryPairs().violation(patterns) == "pattern 1 isn't the complement of pattern 0"
    assert ComplementaryPairs().violation(patterns[:5]) == "5 patterns can't be pairs"
    patterns[4] = -patterns[1]
    assert Incoherent(0.95).violation(patterns) == "patterns 1 and 4 have a coherence of 1, at most 0.95 is allowed"


def test_coherence_penalty_equals_a_loop_over_pairs_and_falls_when_followed():
    patterns, limit = signs(rows(5, 12)), 0.1
    total = 0.0
    for i in range(5):
        for j in range(i + 1, 5):
            alike = abs(sum(a * b for a, b in zip(patterns[i].tolist(), patterns[j].tolist(), strict=True))) / 12
            total += max(0.0, alike - limit) ** 2
    assert float(Incoherent(limit).penalty(patterns)) == pytest.approx(total / 10)

    weight = BinaryWeight(0.2 * rows(8, 32) + torch.ones(8, 32), constraint=Incoherent(0.3))
    before = coherences(weight.signs()).abs().triu(1).max()
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        weight.penalty().backward()
        optimizer.step()
    after = coherences(weight.signs()).abs().triu(1).max()
    assert before == 1.0
    assert after <= 0.4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ExactOnes(16).project(rows()), "16 ones in patterns of 16 pixels"),
        (lambda: ExactOnes(0).project(rows()), "0 ones in patterns of 16 pixels"),
        (lambda: FractionOfOnes(1.0), "fraction of ones 1"),
        (lambda: FractionOfOnes(0.01).project(rows()), "0 ones in patterns of 16 pixels"),
        (lambda: Incoherent(1.5), "coherence 1.5"),
        (lambda: ComplementaryPairs().project(rows(5)), "5 patterns can't be complementary pairs"),
    ],
)
def test_impossible_constraints_are_refused_in_one_line(make, said):
    with pytest.raises(BadInput, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_threshold_explains_the_projection():
    v = rows()
    found = ExactOnes(5).project(v)
    assert torch.equal(signs(v - threshold(v, found)), found)
    assert torch.equal(threshold(v, signs(v)), torch.zeros(6, 1))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_values_and_constraint_hold_exactly_after_every_step(values, estimator, name):
    constraint = CONSTRAINTS[name]
    weight = BinaryWeight(rows(), values=values, estimator=estimator, constraint=constraint)
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(1)
    first = weight.binary()
    for step in range(12):
        weight.progress = step / 12
        made = weight()
        allowed = {0.0, 1.0} if values == "01" else {-1.0, 1.0}
        assert set(made.unique().tolist()) <= allowed
        assert torch.equal(made.detach(), weight.binary())
        if constraint is not None and "incoherent" not in name:
            assert constraint.violation(weight.signs()) is None
        optimizer.zero_grad()
        (made * torch.randn(made.shape, generator=generator)).sum().backward()
        optimizer.step()
    assert not torch.equal(first, weight.binary())


def test_the_mean_scale_is_the_one_of_least_squared_error():
    w = rows(3, 50)
    weight = BinaryWeight(w, scale="mean")
    made = weight().detach()
    error = (w - made).square().sum(1)
    for factor in (0.95, 1.05):
        assert (error < (w - factor * made).square().sum(1)).all()
    torch.testing.assert_close(weight.scale().detach(), w.abs().mean(1))


def test_the_learned_scale_learns():
    weight = BinaryWeight(rows(), scale="learned")
    torch.testing.assert_close(weight.scale().detach(), rows().abs().mean(1))
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        (weight().abs() - 3.0).square().mean().backward()
        optimizer.step()
    assert weight.scale().detach().tolist() == pytest.approx([3.0] * 6, rel=0.05)


LAYERS = {
    "linear": (lambda: nn.Linear(12, 5), BinaryLinear, (3, 12)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), BinaryConv2d, (2, 4, 9, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("values", VALUES)
def test_layers_compute_what_the_ordinary_layer_does_with_their_weight(name, values):
    make, kind, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = make()
    layer = kind(plain, values=values, scale="mean")
    x = torch.randn(shape)
    reference = copy.deepcopy(plain)
    with torch.no_grad():
        reference.weight.copy_(layer.binary())
    in_training = layer.train()(x)
    torch.testing.assert_close(in_training, reference(x))
    torch.testing.assert_close(layer.eval()(x), reference(x))
    in_training.sum().backward()
    assert layer.binary.latent.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_follows_training_and_fixing_keeps_the_weight(name):
    make, kind, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = kind(make(), constraint=ExactOnes(4)).train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=50.0)
    before = layer.weight.clone()
    layer(torch.randn(shape)).square().sum().backward()
    optimizer.step()
    layer.eval()
    assert not torch.equal(before, layer.weight)
    assert torch.equal(layer.weight, layer.binary())
    assert ((layer.weight.flatten(1) > 0).sum(1) == 4).all()
    kept = layer.weight.clone()
    layer.fix()
    assert torch.equal(layer.train().weight, kept)
    assert {n for n, p in layer.named_parameters() if p.requires_grad} == {"bias"}


def test_other_padding_than_zeros_is_refused():
    with pytest.raises(BadInput, match="reflect"):
        BinaryConv2d(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))


def test_a_binary_layer_learns_what_a_binary_layer_can_compute():
    generator = torch.Generator().manual_seed(0)
    wanted = signs(torch.randn(4, 24, generator=generator))
    for estimator in ESTIMATORS:
        torch.manual_seed(1)
        layer = BinaryLinear(nn.Linear(24, 4), estimator=estimator)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
        for step in range(250):
            layer.binary.progress = step / 250
            x = torch.randn(64, 24, generator=generator)
            optimizer.zero_grad()
            (layer(x) - x @ wanted.T).square().mean().backward()
            optimizer.step()
        assert torch.equal(layer.binary.signs(), wanted), estimator
