"""Training without gradients is told; losses that are only computed are not."""

import contextlib
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
import telling
import torch
from methods import PAPERS, make
from telling import views
from torch import Tensor
from torch.optim import SGD, AdamW

from byol_wrap import Learner


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol_wrap.guard.no_grad.LOSSES", 4)
    monkeypatch.setattr("byol_wrap.guard.no_grad.STEPS", 4)


def silenced(loss: Tensor) -> None:
    loss.clone().requires_grad_().backward()


def nothing(loss: Tensor) -> None:
    pass


def train(
    learner: Learner,
    steps: int = 12,
    *,
    gradients: Callable[[], AbstractContextManager[object]] = torch.no_grad,
    backward: Callable[[Tensor], None] = silenced,
    attach: bool = False,
    update: bool = True,
) -> None:
    optimizer = AdamW(learner.parameters(), lr=1e-3)
    if attach:
        learner.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        with gradients():
            loss = learner(*views(32))
        backward(loss)
        optimizer.step()
        if update:
            learner.update_moving_average()


told = partial(telling.told, match="Nothing is trained: the last")


@pytest.mark.parametrize("name", PAPERS)
def test_losses_without_gradient_that_steps_follow_are_told(name: str) -> None:
    learner = make(name)
    message = told(lambda: train(learner, update=name != "SimCLR"))
    assert "the last 7 losses were computed without gradients, and yet 4 optimizer steps" in message
    assert "requires_grad_() only hides" in message


def test_gradients_that_a_validation_left_off_are_told() -> None:
    learner = make("BYOL")
    train(learner, gradients=contextlib.nullcontext, backward=Tensor.backward)
    with torch.no_grad():  # as set_grad_enabled(False) that nobody takes back
        told(lambda: train(learner, 50, gradients=contextlib.nullcontext, backward=nothing))


@pytest.mark.parametrize("attach", [False, True])
def test_inference_mode_and_attached_optimizers_are_told(attach: bool) -> None:
    learner = make("MoCo")
    told(lambda: train(learner, gradients=torch.inference_mode, attach=attach, update=not attach))


@pytest.mark.parametrize("cleared", [False, True])
def test_steps_with_gradients_of_0_or_old_ones_are_told(cleared: bool) -> None:
    learner = make("SimSiam")
    own = list(learner.parameters())
    optimizers = SGD(own[:4], lr=1e-3), AdamW(own[4:], lr=1e-3)
    learner(*views(32)).backward()

    def run() -> None:
        for _ in range(20):
            with torch.no_grad():
                silenced(learner(*views(32)))
            for optimizer in optimizers:
                optimizer.step()
                if cleared:
                    optimizer.zero_grad(set_to_none=False)

    told(run)


def test_updates_that_no_known_optimizer_precedes_are_told() -> None:
    learner = make("BYOL")

    def run() -> None:
        for _ in range(12):
            with torch.no_grad():
                learner(*views(32))
            learner.update_moving_average()

    assert "4 updates followed" in told(run)


def validated(learner: Learner) -> None:
    optimizer = AdamW(learner.parameters(), lr=1e-3)
    for _ in range(3):
        for _ in range(3):
            optimizer.zero_grad()
            learner(*views(32)).backward()
            optimizer.step()
            learner.update_moving_average()
        with torch.no_grad():
            for _ in range(9):
                learner(*views(32))


def supervised(learner: Learner) -> None:
    """The net is trained by another loss, and the learner's is only looked at."""
    optimizer = SGD(learner.parameters(), lr=1e-3)
    learner.attach(optimizer)
    for _ in range(12):
        optimizer.zero_grad()
        view1, view2 = views(32)
        with torch.no_grad():
            learner(view1, view2)
        learner.net(view1).square().mean().backward()
        optimizer.step()


def beside_another(learner: Learner) -> None:
    other = torch.nn.Linear(2, 2)
    optimizer = SGD(other.parameters(), lr=0.1)
    for _ in range(12):
        with torch.no_grad():
            learner(*views(32))
        optimizer.step()


@pytest.mark.parametrize("how", [validated, supervised, beside_another])
@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_losses_that_are_only_computed_are_not_told(
    name: str, how: Callable[[Learner], None]
) -> None:
    learner = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        how(learner)
    learner(*views(32))  # with a gradient, after which nobody counts
    assert learner._watch._no_grad._optimizers is None
