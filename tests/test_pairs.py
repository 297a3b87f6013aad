"""Pairs of views from which nothing can be learnt are told; sound ones are not."""

import itertools
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from methods import PAPERS, make
from nets import conv_net
from telling import told
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

from byol_wrap import Learner, RandomView, Recipe
from byol_wrap.guard.pairs import PairsWatch


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LOOK_EVERY": 2,
        "REPEATS": 2,
        "MATCH_LOOKS": 12,
        "MATCH_IMAGES": 96,
        "FEW_STEPS": 5,
    }.items():
        monkeypatch.setattr(f"byol_wrap.guard.pairs.{name}", value)


def images(count: int = 16) -> Tensor:
    """Images that can be told apart, by colour and coarse pattern."""
    coarse = torch.rand(count, 3, 4, 4)
    return F.interpolate(coarse, size=32, mode="bilinear").clamp(0, 1)


def train(
    learner: Learner,
    views: Callable[[], tuple[Tensor, ...]] = lambda: (images(),),
    steps: int = 10,
) -> None:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        learner(*views()).backward()
        optimizer.step()
        learner.update_moving_average()


# The same view twice

SAME: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "one tensor": lambda: (view := images(), view),
    "copies": lambda: (view := images(), view.clone()),
    "nearly": lambda: (view := images(), view + 0.001 * torch.randn_like(view)),
    "most": lambda: (view := images(), torch.cat([view[:14], images(2)])),
}


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "copies") for name in PAPERS), *(("BYOL", kind) for kind in SAME)]
)
def test_one_view_twice_is_told(name: str, kind: str) -> None:
    told(lambda: train(make(name), SAME[kind]), "both views are the same")


@pytest.mark.parametrize("name", ["BYOL", "MoCo"])
def test_an_augmentation_that_changes_nothing_is_told(name: str) -> None:
    learner = make(name, augment_fn=lambda x: x, mean=(0.5,) * 3, std=(0.25,) * 3)
    told(lambda: train(learner), "For 100 % of the images both views are the same")


def half_flipped(batch: Tensor) -> Tensor:
    return torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch, batch.flip(-1))


def with_blank_ones() -> tuple[Tensor, ...]:
    views = images(), images()
    for view in views:
        view[4:] = 0
    return views


DIFFERENT: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "noise": lambda: (view := images(), view + 0.05 * torch.randn_like(view)),
    "flips alone": lambda: (half_flipped(view := images()), half_flipped(view)),
    "blank images": with_blank_ones,
    "of other shapes": lambda: (view := images(), view[..., :24]),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_views_that_differ_are_not_told(kind: str) -> None:
    train(make("BYOL"), DIFFERENT[kind])


def test_sameness_is_looked_for_in_the_first_steps_alone() -> None:
    watch = PairsWatch()
    for _ in range(100):
        assert not watch.is_same(*torch.rand(2, 4, 3, 4, 4))
    view = torch.rand(4, 3, 4, 4)
    assert not any(watch.is_same(view, view) for _ in range(10))


# Pairs that do not match


def shuffled() -> tuple[Tensor, ...]:
    view = images(32)
    return view, view.roll(1, 0) + 0.1 * torch.randn_like(view)


@pytest.mark.parametrize("name", PAPERS)
def test_pairs_that_were_shuffled_are_told(name: str) -> None:
    told(lambda: train(make(name), shuffled, 30), "After 26 steps the two views of an image are no")


def test_strangers_are_told_when_enough_images_were_seen() -> None:
    torch.manual_seed(0)
    watch, told = PairsWatch(), []
    for _ in range(60):
        watch.is_same(*torch.rand(2, 4, 3, 4, 4))
        told.append(bool(watch.are_strangers(*torch.randn(2, 4, 8))))
    assert told.index(True) == 49  # after 24 looks at four images, read at the next one
    assert sum(told) == 1


def matching() -> tuple[Tensor, ...]:
    view = images(8)
    return view, 0.5 * view + 0.1 * torch.randn_like(view)


@pytest.mark.parametrize("name", PAPERS)
def test_pairs_that_match_are_not_told_even_of_a_net_that_learns_nothing(name: str) -> None:
    learner = make(name)
    for _ in range(30):
        learner(*matching())
    assert learner._watch._pairs._matches is None


# Draws


@pytest.mark.parametrize("name", PAPERS)
def test_a_seed_in_the_loop_is_told(name: str) -> None:
    learner = make(name)

    def run() -> None:
        for step in range(40):
            if step % 4 == 0:
                torch.manual_seed(0)
            learner(images())

    told(run, r"torch\.manual_seed called in the loop")


@pytest.mark.parametrize("own", ["views", "augment_fn"])
def test_where_nothing_is_drawn_nothing_is_repeated(own: str) -> None:
    batch, other, own_draws = images(), images(), torch.Generator().manual_seed(0)
    noise = partial(torch.rand, generator=own_draws)
    learner = make("BYOL", augment_fn=lambda x: x + 0.2 * noise(x.shape))
    for step in range(16):
        if step % 8 == 0:
            torch.manual_seed(0)  # as for the order of an epoch
        learner(batch, other) if own == "views" else learner(batch)


def test_a_seed_in_the_loop_is_told_of_functions_of_one_s_own() -> None:
    learner = make("SimCLR", augment_fn=lambda x: x + 0.2 * torch.rand_like(x))

    def run() -> None:
        for step in range(40):
            if step % 4 == 0:
                torch.manual_seed(0)
            learner(images())

    told(run, r"torch\.manual_seed called in the loop")


class OneByOne:
    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        self.transform = transform

    def __call__(self, batch: Tensor) -> Tensor:
        return torch.stack([self.transform(image) for image in batch])


CROP = transforms.RandomResizedCrop(32)
ONCE = {
    "alone": CROP,
    "v2": v2.RandomHorizontalFlip(),
    "composed": transforms.Compose([v2.Resize(32), CROP]),
    "in a module": nn.Sequential(nn.Identity(), transforms.RandomApply([nn.Identity()])),
}


@pytest.mark.parametrize("kind", ONCE)
def test_an_augmentation_that_draws_once_for_a_batch_is_told(kind: str) -> None:
    message = told(lambda: make("SimCLR", augment_fn=ONCE[kind]), "draws once for a whole batch")
    assert "torch.stack" in message


@pytest.mark.parametrize(
    "augment",
    [
        OneByOne(CROP),
        lambda batch: torch.stack([CROP(image) for image in batch]),
        v2.Normalize((0.5,) * 3, (0.5,) * 3),
        RandomView(Recipe(), 32),
        nn.Sequential(RandomView(Recipe(), 32), v2.Normalize((0.5,) * 3, (0.5,) * 3)),
    ],
)
def test_one_that_draws_for_each_image_is_not_told(augment: Callable[[Tensor], Tensor]) -> None:
    make("SimCLR", augment_fn=augment)


# Batches


@pytest.mark.parametrize("name", PAPERS)
def test_batches_of_two_or_three_are_told(name: str) -> None:
    sizes = itertools.cycle([2, 3])
    message = told(
        lambda: train(make(name), lambda: (images(next(sizes)),)), "batches were of 3 images or"
    )
    assert "Adding up" in message


def test_batches_of_two_without_batchnorm_and_a_small_one_now_and_then_are_not_told() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sizes = iter([2, 2, 8] * 4)
    train(make("BYOL", net=conv_net(6)), lambda: (images(next(sizes)),), 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(make("MoCo", net=net), lambda: (images(2),))


def test_small_batches_of_many_processes_and_frozen_batchnorm_are_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = make("BYOL")
    with monkeypatch.context() as grouped:
        grouped.setattr("torch.distributed.is_initialized", lambda: True)
        grouped.setattr("torch.distributed.get_world_size", lambda: 2)
        watch = PairsWatch()
        assert not any(watch.are_few(2, learner) for _ in range(9))
    learner.eval()
    learner.target.train()  # which trains nothing
    watch = PairsWatch()
    assert not any(watch.are_few(2, learner) for _ in range(9))
