"""Classes whose false negatives must not rise: the shift by formula, the stage on a trained network, and its limits."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress import data as datasets
from compress import targets
from compress.errors import BadData, BadInput, UnknownName
from compress.graph.output import output_bias, with_output_bias
from compress.graph.qdq import insert
from compress.graph.trace import trace
from compress.prune import protect_classes, prune
from compress.prune.protect import Protect, hits, prior_shift, raised, shift, shortfall
from compress.prune.recall import Recall, class_indices, recall
from compress.quantize.uniform import Uniform
from compress.training import Recipe, evaluate, evaluate_by_class, fit
from compress.types import Budget, Context, State
from tests.graph.networks import Plain, Residual, UNet, build, images
from tests.support import random_data

# --- the shift, on logits made by hand --------------------------------------------------------------------------------

LOGITS = torch.tensor([[3.0, 0, 0], [1, 2, 0], [0, 4, 0], [0, 5, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 0, 1, 1, 2])


def test_a_class_is_raised_by_its_margin_to_the_input_that_is_needed_and_no_more():
    none = torch.zeros(3, dtype=torch.float64)
    assert hits(LOGITS, LABELS, 0) == 1
    # The margins of class 0's inputs are -3, 1 and 4.
    for wanted, rise in ((1, 0.0), (2, 1.01), (3, 4.01)):
        found = raised(LOGITS, LABELS, none, 0, wanted, 0.01)
        torch.testing.assert_close(found, torch.tensor([rise, 0, 0], dtype=torch.float64))
        assert hits(LOGITS + found, LABELS, 0) == wanted


def test_the_prior_shift_makes_the_mean_predicted_share_of_each_class_its_frequency():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (400,), generator=generator)
    logits = torch.randn(400, 6, generator=generator, dtype=torch.float64) + F.one_hot(labels, 6)
    logits[:, 2] += 3
    found = prior_shift(logits, labels)
    assert found[4:].tolist() == [0, 0]
    # The gradient of the cross-entropy along b_c is the mean of softmax_c less the frequency; the ridge is small.
    shares = torch.softmax(logits + found, 1).mean(0)[:4]
    torch.testing.assert_close(shares, torch.bincount(labels).double() / 400, atol=2e-3, rtol=0)


def test_protected_classes_get_back_what_they_had():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(5, (500,), generator=generator)
    logits = torch.randn(500, 5, generator=generator, dtype=torch.float64) + 2 * F.one_hot(labels, 5)
    logits[:, 1] -= 1.5
    needed = {1: 70, 3: 75}
    assert shortfall(logits, labels, needed) > 0
    found = shift(logits, labels, needed)
    assert shortfall(logits + found, labels, needed) == 0


def test_classes_that_exclude_each_other_end_with_the_fewest_lost():
    logits = torch.tensor(
        [[0.0, 1.0, -9], [1.0, 0.0, -9]], dtype=torch.float64
    )  # each input looks like the other class
    labels = torch.tensor([0, 1])
    assert shortfall(logits + shift(logits, labels, {0: 1, 1: 1}), labels, {0: 1, 1: 1}) == 1


# --- where the bias is ------------------------------------------------------------------------------------------------


class Ends(nn.Module):
    """A layer, and what stands between it and the output."""

    def __init__(self, layer: nn.Module, end) -> None:
        super().__init__()
        self.layer, self.end = layer, end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.layer(x))


@pytest.mark.parametrize(
    ("layer", "end"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), lambda z: z),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5, bias=False)), lambda z: z),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), lambda z: F.log_softmax(z, 1)),
        (nn.Conv2d(3, 5, 1), lambda z: z.mean((2, 3))),
        (nn.Conv2d(3, 5, 1, bias=False), lambda z: F.adaptive_avg_pool2d(z, 1).flatten(1)),
    ],
)
def test_the_bias_that_moves_each_output_by_itself_is_found(layer, end):
    model, x = Ends(layer, end).eval(), images(3)
    name = output_bias(model, trace(model, (x,)), x)
    change = torch.tensor([2.0, 0, 0, -1, 0])
    before = copy.deepcopy(model.state_dict())
    moved = with_output_bias(model, name, change)(x) - model(x)
    torch.testing.assert_close(moved - moved[:, 1:2], change.expand(3, 5), atol=1e-4, rtol=0)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "end"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), F.relu),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), lambda z: z * 2),
        (nn.Conv2d(3, 5, 1), lambda z: F.relu(z).mean((2, 3))),
        (nn.Conv2d(3, 5, 16), lambda z: z.flatten(1)[:, :3]),
        (nn.Conv2d(3, 5, 1), lambda z: z),
    ],
)
def test_no_bias_is_found_where_none_moves_the_outputs_alone(layer, end):
    model, x = Ends(layer, end).eval(), images(3)
    assert output_bias(model, trace(model, (x,)), x) is None


# --- on a network that was trained ------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two convolutions for digits."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
        self.head = nn.Linear(16, 10, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.two(F.relu(self.one(x)))).amax((2, 3)))


@functools.cache
def trained(bias: bool = True):
    data = datasets.load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small(bias)
    fit(model, data.train, Recipe(epochs=9, lr=0.05, batch_size=32), generator=torch.Generator().manual_seed(0))
    assert evaluate(model, data.evaluate)[0] > 400
    return model, data


def found(model: nn.Module, data, c: int) -> int:
    return evaluate_by_class(model, data.train)[0][c]


def fallen(data, before: nn.Module, after: nn.Module) -> list[int]:
    """The two classes that lost most training inputs."""
    losses = {c: found(before, data, c) - found(after, data, c) for c in range(10)}
    return sorted(sorted(losses, key=losses.__getitem__)[-2:])


@pytest.mark.parametrize("method", ["norm", "random"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.slow
def test_protected_classes_keep_their_recall_on_the_training_split_at_the_same_size(method, bias):
    model, data = trained(bias)
    plain = prune(model, images_of(data), macs=0.7, method=method, data=data)
    classes = fallen(data, model, plain.model)
    assert found(plain.model, data, classes[0]) < found(model, data, classes[0])  # or the test would show nothing
    held = prune(model, images_of(data), macs=0.7, method=method, data=data, protect_classes=classes[:1])
    assert found(held.model, data, classes[0]) >= found(model, data, classes[0])
    assert held.plan == plain.plan
    assert held.report.after.macs == plain.report.after.macs
    assert held.recall.protected == (data.classes[classes[0]],)
    assert [note.where for note in held.report.notes if note.what == "protected class"] == [data.classes[classes[0]]]


def test_a_network_that_is_already_pruned_can_be_protected():
    model, data = trained()
    pruned = prune(model, images_of(data), macs=0.7, method="norm", data=data)
    (c, _) = fallen(data, model, pruned.model)
    held = protect_classes(pruned.model, model, data, [data.classes[c]])
    assert found(held.model, data, c) >= found(model, data, c) > found(pruned.model, data, c)
    assert held.recall.before[c] == pytest.approx(pruned.recall.before[c], abs=5)
    assert held.notes
    with pytest.raises(BadInput, match="classes is empty"):
        protect_classes(pruned.model, model, data, [])


def images_of(data) -> torch.Tensor:
    return data.train.inputs(2, torch.Generator().manual_seed(0))


def about(data, teacher) -> Context:
    return Context(targets.load("cpu"), Budget(), data, torch.Generator().manual_seed(0), teacher=teacher)


def test_nothing_is_moved_where_no_protected_class_lost_anything():
    model, data = trained()
    state = State(model)
    assert Protect((0, 1, 2))(state, about(data, model)) is state
    assert Protect(())(state, about(data, model)) is state


def test_a_network_that_is_quantized_is_judged_and_moved_as_it_runs():
    model, data = trained()
    pruned = prune(model, images_of(data), macs=0.7, method="norm", data=data)
    context = about(data, model)
    state = Uniform(8, 8)(pruned.state, context)

    def simulated(of: State) -> nn.Module:
        return insert(trace(of.model, (images_of(data),)), of.quantization)

    (c, _) = fallen(data, model, simulated(state))
    assert found(simulated(state), data, c) < found(model, data, c)
    held = Protect((c,))(state, context)
    assert held.quantization == state.quantization
    assert found(simulated(held), data, c) >= found(model, data, c)


def test_the_evaluation_split_is_never_looked_at():
    model, data = trained()

    class Forbidden:
        n, shape = data.evaluate.n, data.evaluate.shape

        def batches(self, *arguments, **more):
            raise AssertionError("looked at")

    pruned = prune(model, images_of(data), macs=0.7, method="norm", data=data)
    Protect((3,))(pruned.state, about(replace(data, evaluate=Forbidden()), model))


def test_a_network_whose_output_has_no_bias_is_left_alone_with_a_note():
    model, data = trained()

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * 2

    pruned = prune(model, images_of(data), macs=0.7, method="norm", data=data)
    (c, _) = fallen(data, model, pruned.model)
    state = State(Doubled(pruned.model).eval())
    held = Protect((c,))(state, about(data, Doubled(model).eval()))
    assert held.model is state.model
    assert "no bias moves the outputs alone" in held.notes[0].why


# --- recall -----------------------------------------------------------------------------------------------------------


class Says(nn.Module):
    """Answers the class that stands in the first pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.one_hot(x[:, 0, 0, 0].long().clamp(0, 2), 3).float()


def test_recall_counts_the_inputs_of_each_class_that_are_found():
    x = torch.zeros(6, 1, 2, 2)
    x[:, 0, 0, 0] = torch.tensor([0.0, 0, 1, 1, 1, 0])
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    data = datasets.from_python((x, y), num_classes=3, divisible=False)
    wrong = Says()
    wrong.register_forward_hook(lambda module, inputs, output: output.roll(1, 1))
    result = recall(Says(), wrong, data, protected=(1,))
    assert result.before == (pytest.approx(200 / 3), pytest.approx(200 / 3), None)
    assert result.after == (0.0, pytest.approx(100 / 3), None)
    assert (result.n, result.protected, result.fallen) == ((3, 3, 0), ("1",), ("1",))
    assert str(result).splitlines() == [
        "class    before   after  inputs",
        "0         66.7%    0.0%       3",
        "1 *       66.7%   33.3%       3",
        "2             -       -       0",
    ]
    assert evaluate_by_class(Says(), data.evaluate) == ((2, 2), (3, 3))


@pytest.mark.slow
def test_there_is_recall_where_the_data_have_labels_and_none_elsewhere():
    labelled = prune(build(Plain), images(2), macs=0.6, data=random_data())
    assert isinstance(labelled.recall, Recall)
    assert sum(labelled.recall.n) == 64
    assert prune(build(Plain), images(2), macs=0.6, data=images(8)).recall is None
    assert prune(build(Plain), images(2), macs=0.6).recall is None
    assert prune(build(UNet), images(2), macs=0.6, data=random_data()).recall is None


# --- what can't be protected ------------------------------------------------------------------------------------------


def test_classes_are_named_or_counted_from_0():
    data = replace(random_data(), classes=("cat", "dog", "3", "frog", "horse"))
    assert class_indices(["dog", 4, "3", "0", 4], data, "protect_classes") == (0, 1, 2, 4)
    assert class_indices([], data, "protect_classes") == ()
    with pytest.raises(UnknownName, match="unknown class 'dgo'; nearest: dog"):
        class_indices(["dgo"], data, "protect_classes")
    for index in (5, -1, "17"):
        with pytest.raises(BadInput, match="data has classes 0 to 4"):
            class_indices([index], data, "protect_classes")
    with pytest.raises(BadInput, match="give a sequence"):
        class_indices("dog", data, "protect_classes")


def test_without_labels_no_class_can_be_protected():
    for data in (None, images(8)):
        with pytest.raises(BadInput, match="needs data with class labels"):
            prune(build(Residual), images(2), macs=0.5, data=data, protect_classes=[1])


def test_outputs_that_are_no_rows_of_logits_are_refused():
    with pytest.raises(BadInput, match="needs logits \\(batch, classes\\)"):
        prune(build(UNet), images(2), macs=0.6, data=random_data(), protect_classes=[1])


def test_data_with_more_classes_than_the_network_tells_apart_are_refused():
    with pytest.raises(BadData, match="it has 7 classes, the network tells 5 apart"):
        prune(build(Plain), images(2), macs=0.5, data=random_data(classes=7))
