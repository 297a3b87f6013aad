"""Training that cannot work says so, once; training that can says nothing."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import conv_net
from torch import Tensor, nn

from byol_wrap import BYOL, Learner, MoCo, RandomView, Recipe, SimCLR, SimSiam

METHODS: dict[str, Callable[..., Learner]] = {
    "BYOL": lambda *a, **k: BYOL(*a, **{"projection_size": 8, "projection_hidden_size": 16, **k}),
    "SimSiam": lambda *a, **k: SimSiam(
        *a, **{"projection_size": 8, "prediction_hidden_size": 4, **k}
    ),
    "SimCLR": lambda *a, **k: SimCLR(*a, **{"projection_size": 8, **k}),
    "MoCo": lambda *a, **k: MoCo(*a, **{"projection_size": 8, "queue_size": 32, **k}),
}


def make(method: str = "BYOL", net: nn.Module | None = None, **options: Any) -> Learner:
    torch.manual_seed(0)
    return METHODS[method](net or conv_net(6), 32, **options)


def images(batch: int = 8) -> Tensor:
    return torch.rand(batch, 3, 32, 32)


def train(learner: Learner, steps: int = 3, lr: float = 0.01, batch: Tensor | None = None) -> None:
    optimizer = torch.optim.SGD(learner.parameters(), lr=lr)
    for _ in range(steps):
        loss = learner(images() if batch is None else batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()


def warned(run: Callable[[], Any], match: str) -> str:
    """The one warning that ``run`` gives."""
    with pytest.warns(UserWarning, match=match) as caught:
        run()
    assert len(caught) == 1
    return str(caught[0].message)


# Modes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["learner", "net"])
def test_training_in_eval_mode_is_told_once(method: str, part: str) -> None:
    learner = make(method)
    train(learner)
    (learner if part == "learner" else learner.net).eval()
    told = warned(lambda: train(learner, 4), "is in eval mode")
    assert ("learner.net.train()" in told) == (part == "net")
    train(learner, 2)


def test_a_validation_loss_with_gradient_is_no_training() -> None:
    learner = make()
    for _ in range(3):
        train(learner, 2)
        learner.eval()
        for _ in range(3):
            learner(images())
        learner.train()


def test_a_target_that_stands_still_is_told_in_eval_mode_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("byol_wrap.guard.watch.STEPS_WITHOUT_UPDATE", 4)
    learner = make().eval()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)

    def without_update() -> None:
        for _ in range(8):
            learner(images()).backward()
            optimizer.step()

    with pytest.warns(UserWarning, match=r"eval mode|not been updated") as caught:
        without_update()
    assert {str(w.message)[:14] for w in caught} == {"The net is tra", "The target net"}


def test_an_attached_optimizer_may_add_up_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol_wrap.guard.watch.STEPS_WITHOUT_UPDATE", 2)
    monkeypatch.setattr("byol_wrap.guard.watch.WHEN_ATTACHED", 5)
    learner = make()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)
    learner.attach(optimizer)
    for _ in range(10):
        learner(images()).backward()
    with pytest.warns(UserWarning, match="not been updated for 10 training steps"):
        learner(images())


@pytest.mark.parametrize("method", ["BYOL", "MoCo"])
def test_batchnorm_frozen_on_purpose_is_frozen_in_the_target(method: str) -> None:
    learner = make(method)
    frozen = learner.net[1]
    frozen.eval()
    statistics = copy.deepcopy(learner.target.net[1].state_dict())
    train(learner)  # without a warning
    twin = learner.target.net[1]
    assert not twin.training
    assert learner.target.net[4].training
    assert torch.equal(twin.running_mean, statistics["running_mean"])
    frozen.train()
    train(learner, 1)
    assert twin.training
    assert not torch.equal(twin.running_mean, statistics["running_mean"])


def test_a_warning_points_to_the_user_s_line() -> None:
    learner = make()
    for call in (learner, nn.Sequential(learner), lambda x: next(learner.halves(x))):
        learner._watch._warned.clear()
        with pytest.warns(UserWarning, match="values from") as caught:
            call(images() * 255)
        assert [w.filename for w in caught] == [__file__]


# What is not finite


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_is_told_with_its_step(method: str) -> None:
    learner = make(method)
    train(learner, 2)
    with torch.no_grad():
        learner.net[3].weight.fill_(torch.nan)
    told = warned(lambda: train(learner, 3), "training is lost")
    assert "The loss ceased to be finite at about step 3 " in told


@pytest.mark.parametrize("method", ["BYOL", "MoCo"])
def test_the_target_is_not_poisoned(method: str) -> None:
    learner = make(method)
    train(learner, 2)
    for parameter in learner.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan) if parameter.requires_grad else None
    torch.optim.SGD(learner.parameters(), lr=0.1).step()  # gradients that overflowed
    before = copy.deepcopy(learner.target.state_dict())
    warned(learner.update_moving_average, "The weights of the heads ceased to be finite")
    for name, tensor in learner.target.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.isfinite().all() for parameter in learner.target.parameters())


def test_features_that_are_not_finite_are_seen_at_a_look() -> None:
    """As on an accelerator, where the loss itself is not read."""
    learner = make()
    learner._watch.lost = lambda *_: None  # type: ignore[method-assign]
    learner._watch.may_follow = lambda head: True  # type: ignore[method-assign]
    train(learner, 1)
    with torch.no_grad():
        learner.net[3].weight.fill_(torch.nan)
    warned(lambda: train(learner, 45), "The features ceased to be finite")


# What is fed


def repeated(learner: Learner, batch: Tensor) -> Callable[[], None]:
    def run() -> None:
        for _ in range(4):
            learner(batch)

    return run


def test_statistics_for_255_with_images_in_the_unit_interval_are_told() -> None:
    learner = make(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    warned(repeated(learner, images()), r"hardly vary.*given for \[0, 255\]")


def test_views_in_255_with_statistics_for_the_unit_interval_are_told() -> None:
    learner = make(augment_fn=lambda x: x * 255, mean=(0.5,) * 3, std=(0.25,) * 3)
    warned(repeated(learner, images()), r"standard deviation of \d+.*\[0, 255\]")


def test_masks_of_0_and_1_are_told() -> None:
    masks = (images() > 0.5).to(torch.uint8)
    told = warned(repeated(make(), masks), "uint8 and hold only 0 and 1")
    assert "images.float()" in told


def test_centred_images_are_told_with_their_share() -> None:
    told = warned(repeated(make(), images() - 0.5), "of the values lie outside")
    assert "48 %" in told or "47 %" in told  # but for those that are nearly 0


def test_images_without_contrast_are_told_and_a_black_batch_is_not() -> None:
    learner = make()
    learner(torch.zeros(4, 3, 32, 32))
    learner(images())
    warned(repeated(learner, 0.5 + images() / 1000), "hardly vary within an image")


@pytest.mark.parametrize(
    ("batch", "advice"),
    [
        (images() > 0.5, "images.float()"),
        ((images() * 65535).to(torch.int32), "65535"),
        ((images() * 200).to(torch.int16), "65535"),
    ],
)
def test_no_advice_destroys_data(batch: Tensor, advice: str) -> None:
    with pytest.raises(TypeError) as error:
        make()(batch)
    assert "to(torch.uint8)" not in str(error.value)
    assert advice in str(error.value)


# The schedule


def test_a_run_much_longer_than_total_steps_is_told() -> None:
    learner = make(total_steps=5)
    train(learner, 15)
    told = warned(lambda: train(learner, 2), "has had 16 updates, but total_steps=5")
    assert "stands still" in told


def test_integers_of_numpy_are_integers() -> None:
    learner = make(total_steps=np.int64(7))
    assert learner.tau == 0.99
    train(learner, 2)
    for wrong in (0, -1, 2.5, "8"):
        with pytest.raises(ValueError, match="total_steps should be an integer"):
            make(total_steps=wrong)


def test_sound_training_says_nothing() -> None:
    gentle = RandomView(Recipe(crop_area=(0.5, 1.0)), 32)
    for method in METHODS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(make(method, augment_fn=gentle), 12)
            train(make(method), 3, batch=(images() * 255).to(torch.uint8))
