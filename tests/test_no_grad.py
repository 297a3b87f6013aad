"""Training without gradients is told; losses that are only computed are not."""

import contextlib
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from methods import PAPERS, make
from torch import Tensor
from torch.optim import SGD, AdamW

from byol_wrap import Learner


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol_wrap.guard.no_grad.LOSSES", 4)
    monkeypatch.setattr("byol_wrap.guard.no_grad.STEPS", 4)


def views() -> tuple[Tensor, Tensor]:
    images = torch.rand(8, 3, 32, 32)
    return images, images + 0.1 * torch.randn_like(images)


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
            loss = learner(*views())
        backward(loss)
        optimizer.step()
        if update:
            learner.update_moving_average()


def told(run: Callable[[], object]) -> str:
    with pytest.warns(UserWarning, match="Nothing is trained: the last") as caught:
        run()
    assert len(caught) == 1
    return str(caught[0].message)


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
    learner(*views()).backward()

    def run() -> None:
        for _ in range(20):
            with torch.no_grad():
                silenced(learner(*views()))
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
                learner(*views())
            learner.update_moving_average()

    assert "4 updates followed" in told(run)


def validated(learner: Learner) -> None:
    optimizer = AdamW(learner.parameters(), lr=1e-3)
    for _ in range(3):
        for _ in range(3):
            optimizer.zero_grad()
            learner(*views()).backward()
            optimizer.step()
            learner.update_moving_average()
        with torch.no_grad():
            for _ in range(9):
                learner(*views())


def supervised(learner: Learner) -> None:
    """The net is trained by another loss, and the learner's is only looked at."""
    optimizer = SGD(learner.parameters(), lr=1e-3)
    learner.attach(optimizer)
    for _ in range(12):
        optimizer.zero_grad()
        view1, view2 = views()
        with torch.no_grad():
            learner(view1, view2)
        learner.net(view1).square().mean().backward()
        optimizer.step()


def beside_another(learner: Learner) -> None:
    other = torch.nn.Linear(2, 2)
    optimizer = SGD(other.parameters(), lr=0.1)
    for _ in range(12):
        with torch.no_grad():
            learner(*views())
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
    learner(*views())  # with a gradient, after which nobody counts
    assert learner._watch._no_grad._optimizers is None
