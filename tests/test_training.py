"""Training: the schedule, the losses, reproducibility, and what evaluation counts."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress import data, models, training
from compress.errors import BadInput
from compress.networks import train_resnet
from compress.networks.cifar_resnet import resnet
from compress.training import Recipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(n: int = 64) -> data.Data:
    """Two classes of 4x4 images that differ in brightness."""
    x = torch.rand(n, 1, 4, 4, generator=seeded(1))
    y = torch.arange(n) % 2
    return data.from_python((x + y.view(-1, 1, 1, 1).float(), y), divisible=False)


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# The schedule


def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine() -> None:
    recipe = Recipe(lr=0.4, warmup=0.2)
    rates = [training.learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[:20] == pytest.approx([0.4 * (i + 1) / 21 for i in range(20)])
    assert rates[20:] == pytest.approx([0.2 * (1 + math.cos(math.pi * i / 80)) for i in range(80)])
    assert rates[20] == 0.4
    assert rates[-1] < 0.001


# Steps


def test_one_step_of_sgd_is_the_textbook_formula() -> None:
    toys, model = toy(), linear()
    expected = copy.deepcopy(model)
    recipe = Recipe(epochs=1, lr=0.1, batch_size=64, momentum=0.9, weight_decay=0.01, warmup=0, clip=None)
    training.fit(model, toys.train, recipe, generator=seeded())
    images, labels = next(iter(toys.train.batches(64)))
    F.cross_entropy(expected(images), labels).backward()
    weight, bias = expected[1].weight, expected[1].bias
    # Nesterov's first step has the velocity g, so the step is g + 0.9 g. The bias doesn't decay.
    g = weight.grad + 0.01 * weight
    torch.testing.assert_close(model[1].weight, weight - 0.1 * 1.9 * g)
    torch.testing.assert_close(model[1].bias, bias - 0.1 * 1.9 * bias.grad)


def test_distillation_adds_the_divergence_from_the_teacher() -> None:
    toys, model, teacher = toy(), linear(0), linear(1)
    expected = copy.deepcopy(model)
    recipe = Recipe(
        epochs=1,
        lr=0.1,
        batch_size=64,
        momentum=0.0,
        weight_decay=0,
        warmup=0,
        clip=None,
        temperature=3,
        distillation=0.6,
    )
    training.fit(model, toys.train, recipe, generator=seeded(), teacher=teacher)
    images, labels = next(iter(toys.train.batches(64)))
    output, wanted = expected(images), teacher(images).detach()
    p = torch.softmax(wanted / 3, 1)
    divergence = (p * (torch.log(p) - torch.log_softmax(output / 3, 1))).sum(1).mean()
    (0.4 * F.cross_entropy(output, labels) + 0.6 * 9 * divergence).backward()
    torch.testing.assert_close(model[1].weight, expected[1].weight - 0.1 * expected[1].weight.grad)


def test_reconstruction_minimizes_the_squared_error() -> None:
    x = torch.rand(32, 1, 4, 4, generator=seeded())
    found = data.from_python((x, None), divisible=False)
    torch.manual_seed(0)
    model = nn.Conv2d(1, 1, 1)
    before = training.evaluate_psnr(model, found.train)
    training.fit(
        model, found.train, Recipe(epochs=60, lr=0.2, batch_size=32), generator=seeded(), task="reconstruction"
    )
    assert model.weight.item() == pytest.approx(1, abs=0.1)
    after = training.evaluate_psnr(model, found.train)
    assert sum(after) > sum(before)


def test_the_gradient_is_clipped_to_its_largest_norm() -> None:
    toys, model = toy(), linear()
    start = weights(model)
    recipe = Recipe(epochs=1, lr=1.0, batch_size=64, momentum=0.0, weight_decay=0, warmup=0, clip=0.01)
    training.fit(model, toys.train, recipe, generator=seeded())
    assert float((weights(model) - start).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_last_steps_are_averaged_with_their_statistics() -> None:
    """Against the same steps by hand: four of them, of which the last two count."""
    toys, torch_seed = toy(), 3
    torch.manual_seed(torch_seed)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    recipe = Recipe(epochs=1, lr=0.1, batch_size=16, averaged=0.5)
    seen: list[dict[str, torch.Tensor]] = []
    watched = copy.deepcopy(model)

    def forward(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
        if module.training:
            seen.append({name: tensor.clone() for name, tensor in module.state_dict().items()})  # before this step
        output: torch.Tensor = module(images)
        return output

    training.fit(watched, toys.train, replace(recipe, averaged=0.0), generator=seeded(), forward=forward)
    assert len(seen) == 4
    training.fit(model, toys.train, recipe, generator=seeded())
    last = watched.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (seen[3][name] + last[name]) / 2)


def test_what_a_network_misses_of_its_teacher_is_a_share_of_the_variance() -> None:
    x = torch.randn(50, 4, generator=seeded())
    teacher, right, constant = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)
    right.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        constant.weight.zero_()
        constant.bias.copy_(teacher(x).mean(0))
        half = copy.deepcopy(teacher)
        half.weight.mul_(0.5)
        half.bias.copy_(teacher(x).mean(0) - (x @ half.weight.T).mean(0))
    found = [training.unexplained(model, teacher, x) for model in (right, half, constant)]
    assert found == pytest.approx([0.0, 0.25, 1.0], abs=1e-5)


def test_training_learns() -> None:
    toys, model = toy(), linear()
    before, n = training.evaluate(model, toys.train)
    training.fit(model, toys.train, Recipe(epochs=30, lr=0.1, batch_size=16), generator=seeded())
    after, _ = training.evaluate(model, toys.train)
    assert after == n > before


def test_adamw_learns_too() -> None:
    toys, model = toy(), linear()
    training.fit(model, toys.train, Recipe(epochs=30, lr=0.05, batch_size=16, optimizer="adamw"), generator=seeded())
    correct, n = training.evaluate(model, toys.train)
    assert correct == n


# Reproducibility


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x))


def test_the_same_generator_gives_the_same_weights_whatever_the_global_one_was() -> None:
    found = []
    for world, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(0)
        model = Dropping()
        torch.manual_seed(world)
        state = torch.get_rng_state()
        training.fit(
            model, toy().train, Recipe(epochs=2, batch_size=16), generator=seeded(seed), augment=data.CropFlip(1)
        )
        assert torch.equal(torch.get_rng_state(), state)
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_no_epochs_change_nothing() -> None:
    model = linear()
    before = weights(model)
    training.fit(model, toy().train, Recipe(epochs=0), generator=seeded())
    assert torch.equal(weights(model), before)


def test_a_last_batch_of_one_image_is_left_out() -> None:
    model = Dropping()
    training.fit(model, toy(33).train, Recipe(epochs=1, batch_size=16), generator=seeded())
    assert bool(weights(model).isfinite().all())
    assert not model.training


def test_the_teacher_stays_as_it_was() -> None:
    torch.manual_seed(0)
    teacher = Dropping().train()
    before = copy.deepcopy(teacher.state_dict())
    training.fit(linear(), toy().train, Recipe(), generator=seeded(), teacher=teacher)
    assert teacher.training
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_progress_is_told_once_an_epoch() -> None:
    said: list[str] = []
    training.fit(linear(), toy().train, Recipe(epochs=3), generator=seeded(), progress=said.append)
    assert [line.split(",")[0] for line in said] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_divergence_is_refused_with_the_way_out() -> None:
    with pytest.raises(BadInput, match="lower the learning rate"):
        training.fit(linear(), toy().train, Recipe(epochs=3, lr=float("inf"), clip=None, warmup=0), generator=seeded())


def test_an_exported_network_cant_be_trained(tmp_path: Path) -> None:
    program = torch.export.export(linear(), (torch.zeros(2, 1, 4, 4),))
    with pytest.raises(BadInput, match="--epochs 0"):
        training.fit(program.module(), toy().train, Recipe(), generator=seeded())


# Evaluation


def test_evaluation_counts_what_is_right() -> None:
    toys = toy()
    assert training.evaluate(lambda images: F.one_hot((images.mean((1, 2, 3)) > 1).long(), 2), toys.train) == (64, 64)
    assert training.evaluate(lambda images: torch.eye(2)[:1].expand(len(images), 2), toys.train) == (32, 64)


def test_evaluation_leaves_the_mode_as_it_was() -> None:
    model = Dropping().train()
    first, again = (training.evaluate(model, toy().train) for _ in range(2))
    assert first == again
    assert model.training


def test_psnr_is_its_formula_on_the_scale_of_pixels() -> None:
    pixels = torch.randint(20, 230, (3, 1, 4, 4), generator=seeded(), dtype=torch.uint8)
    found = data.from_python((pixels, None), mean=(0.4,), std=(0.3,), divisible=False)
    # Ten grey levels off everywhere.
    values = training.evaluate_psnr(lambda images: images + 10 / 255 / 0.3, found.train)
    assert values == pytest.approx([20 * math.log10(255 / 10)] * 3, abs=1e-3)
    # Beyond 255 is clipped, so that only what is missing to 255 counts.
    bright = training.evaluate_psnr(lambda images: images + 1000, found.train)
    expected = [10 * math.log10(255**2 / float((255 - p.double()).square().mean())) for p in pixels]
    assert bright == pytest.approx(expected, abs=1e-3)
    assert all(math.isfinite(v) for v in training.evaluate_psnr(lambda images: images, found.train))


# The shipped network


def test_the_first_training_steps_of_the_shipped_network_are_reproducible() -> None:
    recipe = Recipe(epochs=1, lr=0.1, batch_size=64, warmup=0.1, label_smoothing=0.05)
    digits = models.load("resnet")
    images = data.load("digits", mean=digits.mean, std=digits.std).train.inputs(128, seeded())
    few = data.from_python((images, torch.arange(128) % 10), divisible=False)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = resnet()
        training.fit(model, few.train, recipe, generator=seeded(), augment=train_resnet.AUGMENT)
        found.append(weights(model))
    assert torch.equal(found[0], found[1])


@pytest.mark.slow
def test_training_anew_gives_a_network_as_good_as_the_shipped_one() -> None:
    info = models.load("resnet")
    evaluate = data.load("digits", mean=info.mean, std=info.std).evaluate
    correct, n = training.evaluate(train_resnet.train(), evaluate)
    assert correct / n >= 0.985
