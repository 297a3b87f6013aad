"""A loss that is maximised, and float16 without a scaled loss, are told; sound weights are not."""

import itertools
import warnings
from collections.abc import Callable

import pytest
import torch
from methods import PAPERS, make
from torch import Tensor

from byol_wrap import Learner


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol_wrap.guard.weighed.LOOK_EVERY", 2)
    monkeypatch.setattr("byol_wrap.guard.weighed.LOOKS", 2)
    monkeypatch.setattr("byol_wrap.guard.stepping.ENOUGH", 2)


def train(
    learner: Learner, weigh: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32
) -> None:
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3)
    for _ in range(6):
        view1, view2 = torch.rand(2, 4, 3, 16, 16)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = learner(view1, view2)
        optimizer.zero_grad()
        weigh(loss).backward()
        optimizer.step()
        learner.update_moving_average()


@pytest.mark.parametrize("name", PAPERS)
def test_a_loss_that_is_maximised_is_told_once(name: str) -> None:
    with pytest.warns(UserWarning, match="The loss is maximised: backward") as caught:
        train(make(name), lambda loss: 1 - 0.5 * loss)
    assert len(caught) == 1


def test_a_loss_whose_sign_is_another_at_first_is_told_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("byol_wrap.guard.weighed.LOOK_EVERY", 1)
    monkeypatch.setattr("byol_wrap.guard.weighed.LOOKS", 5)
    signs = iter([1, -1, -1, -1, -1, -1])
    with pytest.warns(UserWarning, match="The loss is maximised: backward"):
        train(make("SimSiam"), lambda loss: next(signs) * loss)


@pytest.mark.parametrize("name", PAPERS)
def test_float16_without_a_scaled_loss_is_told_once(name: str) -> None:
    with pytest.warns(UserWarning, match="float16 without a scaled loss") as caught:
        train(make(name), lambda loss: loss / 2, torch.float16)
    assert len(caught) == 1


def test_so_are_weights_in_float16() -> None:
    learner = make("SimCLR").half()

    def run() -> None:
        for _ in range(6):
            view1, view2 = torch.rand(2, 4, 3, 16, 16).half()
            learner(view1, view2).backward()

    with pytest.warns(UserWarning, match="float16 without a scaled loss"):
        run()


SIGNS = itertools.cycle([1, 1, -1, -1])


@pytest.mark.parametrize(
    ("weigh", "dtype"),
    [
        (lambda loss: loss / 64, torch.float32),
        (lambda loss: 0 * loss, torch.float32),
        (lambda loss: loss * next(SIGNS), torch.float32),
        (lambda loss: loss / 2, torch.bfloat16),
        (lambda loss: loss * 1024 / 2, torch.float16),
    ],
)
def test_sound_weights_are_not_told(weigh: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(make("BYOL"), weigh, dtype)
