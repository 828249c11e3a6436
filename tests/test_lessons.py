"""Trainings of one job see the same images, and ask their teacher once: with the results of asking each time."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from compress import data, lessons, training
from compress.data import CropFlip
from compress.lessons import Lessons
from compress.training import Recipe
from tests.support import context

RECIPE = Recipe(epochs=2, batch_size=16)
STEPS = 2 * 4


class Asked(nn.Module):
    """A network that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.times = nn.Linear(48, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.times += 1
        return self.layer(x.flatten(1))


def student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))


def made(model: nn.Module, teacher: nn.Module, taught: Lessons | None, seen: list[torch.Tensor] | None = None):
    """The network after training on random images that are shifted and turned, its own randomness always the same."""
    images = torch.randint(0, 256, (64, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = data.from_python((images, torch.arange(64) % 3), divisible=False).train

    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if module.training and seen is not None:
            seen.append(x.clone())
        output: torch.Tensor = module(x)
        return output

    training.fit(
        model,
        split,
        RECIPE,
        generator=torch.Generator().manual_seed(3),
        teacher=teacher,
        augment=CropFlip(1),
        forward=forward,
        lessons=taught,
    )
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_teacher_is_asked_once_a_batch_for_all_students():
    torch.manual_seed(1)
    teacher, taught, seen = Asked(), Lessons(7), [list[torch.Tensor](), list[torch.Tensor]()]
    first = made(student(), teacher, taught, seen[0])
    assert teacher.times == STEPS
    second = made(student(5), teacher, taught, seen[1])
    assert teacher.times == STEPS
    assert len(seen[0]) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    # As if each had been the first.
    assert torch.equal(weights(first), weights(made(student(), teacher, Lessons(7))))
    assert torch.equal(weights(second), weights(made(student(5), teacher, Lessons(7))))
    assert not torch.equal(weights(first), weights(made(student(), teacher, Lessons(8))))


@pytest.mark.parametrize("most", [0, 16 * 3 * 4 * 3])
def test_what_exceeds_the_memory_is_asked_for_again(most):
    torch.manual_seed(1)
    teacher, taught = Asked(), Lessons(7, most_bytes=most)
    kept = most // (16 * 3 * 4)
    expected = weights(made(student(), teacher, Lessons(7)))
    for _ in range(2):
        before = teacher.times
        assert torch.equal(weights(made(student(), teacher, taught)), expected)
        assert teacher.times - before in (STEPS, STEPS - kept)
    assert teacher.times - before == STEPS - kept


def test_an_interrupted_training_leaves_what_is_right():
    torch.manual_seed(1)
    teacher, taught = Asked(), Lessons(7)
    expected = weights(made(student(), copy.deepcopy(teacher), Lessons(7)))

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.left = student(), 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return self.inner(x)

    with pytest.raises(KeyboardInterrupt):
        made(Broken(), teacher, taught)
    assert teacher.times == 3
    assert torch.equal(weights(made(student(), teacher, taught)), expected)
    assert teacher.times == STEPS


def test_each_teacher_and_batch_size_has_its_own():
    teacher, other, asked = student(), student(), context()
    taught = lessons.of(asked, teacher, 16)
    assert taught is lessons.of(asked, teacher, 16)
    assert len({id(taught), id(lessons.of(asked, other, 16)), id(lessons.of(asked, teacher, 32))}) == 3
    assert lessons.of(asked, None, 16) is None
    assert lessons.of(replace(asked, seed=5, shared={}), teacher, 16).seed == 5


def test_a_teacher_is_asked_once_for_what_all_candidates_are_compared_with():
    images = torch.randint(0, 256, (300, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked = context(data=data.from_python((images, torch.arange(300) % 3), divisible=False))
    teacher, other = Asked(), Asked()
    for model in (student(0), student(1)):
        inputs, wanted = lessons.compared(asked, teacher)
        assert len(inputs) == lessons.COMPARED
        same = copy.deepcopy(teacher)
        assert training.unexplained(model, wanted, inputs) == training.unexplained(model, same, inputs)
    assert teacher.times == lessons.COMPARED // lessons.AT_ONCE
    assert not torch.equal(lessons.compared(asked, other)[1], wanted)
