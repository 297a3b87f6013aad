"""Batches of one picture, the same batch again and lost views are told; sound data are not."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fake_cuda_step import Elsewhere, plays_a_gpu
from methods import PAPERS, make
from telling import told
from torch import Tensor, nn

from byol_wrap import Learner
from byol_wrap.guard.batches import marks


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"GAP": 2, "AGAIN": 4}.items():
        monkeypatch.setattr(f"byol_wrap.guard.batches.{name}", value)


def pictures(count: int) -> Tensor:
    """Images that can be told apart, by colour and coarse pattern."""
    return F.interpolate(torch.rand(count, 3, 4, 4), size=16, mode="bilinear")


def noisy(images: Tensor) -> Tensor:
    return images + 0.1 * torch.randn_like(images)


def feed(learner: Learner, batch: Callable[[int], object], steps: int = 30) -> None:
    for step in range(steps):
        given = batch(step)
        learner(*given) if isinstance(given, tuple) else learner(given)


# One picture all over


def two_of(images: Tensor) -> Tensor:
    return images[torch.randint(0, 2, (20,))]


ONE: dict[str, Callable[[int], object]] = {
    "one for all": lambda step: PHOTOS[:1].expand(8, -1, -1, -1),
    "another one in each batch": lambda step: pictures(1).expand(8, -1, -1, -1),
    "bytes": lambda step: (255 * PHOTOS[:1]).byte().repeat(8, 1, 1, 1),
    "channels last": lambda step: (
        PHOTOS[:1].repeat(8, 1, 1, 1).to(memory_format=torch.channels_last)
    ),
    "a list": lambda step: [PHOTOS[0]] * 8,
    "two": lambda step: two_of(PHOTOS),
    "most": lambda step: torch.cat([PHOTOS[:1].expand(5, -1, -1, -1), pictures(3)]),
    "two views": lambda step: (PHOTOS[:1].expand(8, -1, -1, -1), noisy(pictures(8))),
}
PHOTOS, LAST = pictures(48), torch.channels_last


@pytest.mark.parametrize(
    ("name", "kind"), [*((n, "one for all") for n in PAPERS), *(("BYOL", kind) for kind in ONE)]
)
def test_one_picture_all_over_is_told(name: str, kind: str) -> None:
    augment = None if kind == "a list" else noisy
    learner = make(name, 16, augment_fn=augment)
    message = told(lambda: feed(learner, ONE[kind]), "images in a batch are the same picture")
    assert "in 2 looks until step 9" in message


def test_images_that_are_mostly_blank_are_told() -> None:
    def batch(step: int) -> Tensor:
        return torch.cat([torch.rand(5, 3, 1, 1).expand(-1, -1, 16, 16), pictures(3)])

    message = told(lambda: feed(make("MoCo", 16, augment_fn=noisy), batch), "are of one colour")
    assert message.startswith("5 of 8 images")


def test_a_collapse_is_told_where_it_is_not_the_data_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOOK_EVERY": 2, "LOOKS": 9}.items():
        monkeypatch.setattr(f"byol_wrap.guard.collapse.{name}", value)
    learner = make("SimCLR", 16, augment_fn=lambda x: x * (1 + torch.rand(())))
    told(lambda: feed(learner, ONE["one for all"]), "are the same picture")
    with torch.no_grad():
        for parameter in learner.net.parameters():
            parameter.zero_()
    told(lambda: feed(learner, lambda step: pictures(8), 60), "Training has collapsed")


# The same batch again

AGAIN: dict[str, Callable[[int], object]] = {
    "as it was": lambda step: PHOTOS[:32],
    "in another order": lambda step: PHOTOS[:31][torch.randperm(31)],
    "bytes in another order": lambda step: (255 * PHOTOS[:31][torch.randperm(31)]).byte(),
    "nearly": lambda step: torch.cat([PHOTOS[:31], pictures(1)]),
    "a list": lambda step: list(PHOTOS[:8]),
    "two views": lambda step: (PHOTOS[:16], PHOTOS[:16].flip(-1)),
    "tables": lambda step: (TABLE[torch.randperm(16)], TABLE[:16]),
}
TABLE = torch.rand(16, 12)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((n, "in another order") for n in PAPERS), *(("BYOL", kind) for kind in AGAIN)],
)
def test_the_same_batch_again_and_again_is_told(name: str, kind: str) -> None:
    augment = None if kind == "a list" else noisy
    learner = make(name, 16, augment_fn=augment)
    if kind == "tables":
        learner = make(name, None, nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16)))
    message = told(lambda: feed(learner, AGAIN[kind]), "images made up the batch in 5 looks")
    assert "from step 2 to step 20" in message


# Views that keep nothing

LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "black": torch.zeros_like,
    "one image": lambda x: PHOTOS[:1].expand_as(x),
    "the first image": lambda x: x[:1].expand_as(x),
    "a colour of each": lambda x: x.mean((2, 3), keepdim=True).expand_as(x).clone(),
}


@pytest.mark.parametrize(
    ("name", "kind"), [*((n, "black") for n in PAPERS), *(("BYOL", kind) for kind in LOST)]
)
def test_a_second_view_that_keeps_nothing_is_told(name: str, kind: str) -> None:
    learner = make(name, 16, augment_fn=noisy, augment_fn2=LOST[kind])
    run = lambda: feed(learner, lambda step: pictures(8))  # noqa: E731
    told(run, "The second view keeps nothing of its image")


def test_a_first_view_and_a_given_one_that_keep_nothing_are_told() -> None:
    learner = make("SimSiam", 16, augment_fn=LOST["one image"], augment_fn2=noisy)
    told(lambda: feed(learner, lambda step: pictures(8)), "The first view keeps nothing")
    pair = lambda step: (pictures(8), torch.zeros(8, 3, 16, 16))  # noqa: E731
    told(lambda: feed(make("SimCLR", 16), pair), "The second view keeps nothing")


# What is sound


def dot(step: int) -> Tensor:
    """A dot, at another place in each image: a look at a few values sees next to none of them."""
    images = torch.zeros(16, 3, 16, 16)
    for image in images:
        top, left = torch.randint(0, 16, (2,)).tolist()
        image[:, top, left] = 1
    return images


def with_blank_ones(step: int) -> Tensor:
    return torch.cat([torch.rand(3, 3, 1, 1).expand(-1, -1, 16, 16), pictures(5)])


SOUND: dict[str, Callable[[int], object]] = {
    "three batches in turn": lambda step: PHOTOS[16 * (step % 3) :][:16],
    "two batches in turn": lambda step: PHOTOS[24 * (step % 2) :][:24],
    "three batches, shuffled": lambda step: PHOTOS[torch.randperm(48)[:16]],
    "most of few, shuffled": lambda step: PHOTOS[torch.randperm(48)[:40]],
    "each batch ten times": lambda step: PHOTOS[16 * (step // 10 % 3) :][:16],
    "drawn with repeats": lambda step: PHOTOS[torch.randint(0, 48, (32,))],
    "each image four times": lambda step: pictures(8).repeat_interleave(4, 0),
    "batches of four": lambda step: pictures(4),
    "dark and grey": lambda step: 0.02 * pictures(8).mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "some of one colour": with_blank_ones,
    "small and at another place": dot,
    "frames": lambda step: (PHOTOS[step % 48] + 0.001 * torch.randn(8, 3, 16, 16)).clamp(0, 1),
    "views by noise": lambda step: (noisy(images := pictures(8)), noisy(images)),
    "sizes of their own": lambda step: [pictures(1)[0, :, : 8 + i] for i in range(8)],
}


def table(step: int) -> tuple[Tensor, Tensor]:
    """Of which most rows are 0."""
    rows = torch.rand(16, 12) * (torch.arange(16) < 6)[:, None]
    return rows, rows + 0.1 * torch.randn_like(rows)


def test_rows_of_a_table_may_be_0() -> None:
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16))
    feed(make("SimCLR", None, net), table)


@pytest.mark.parametrize("kind", SOUND)
def test_sound_data_are_not_told(kind: str) -> None:
    learner = make("SimCLR", 16, augment_fn=None if "sizes" in kind else noisy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(learner, SOUND[kind], 36)


@pytest.mark.parametrize("shape", [(37, 3, 17, 23), (37, 40), (37, 9, 1), (37, 5, 8, 8, 8)])
@pytest.mark.parametrize("whole", [True, False])
def test_rows_are_known_again_in_another_order(shape: tuple[int, ...], whole: bool) -> None:
    batch, order = torch.rand(shape), torch.randperm(len(torch.rand(shape)))
    rows = marks(batch, whole).unflatten(0, (2, -1))
    assert torch.equal(rows[:, order], marks(batch[order], whole).unflatten(0, (2, -1)))
    assert len(rows.unique(dim=1).T) == len(batch)
    assert (rows[1] > 0).all()


@plays_a_gpu
def test_no_look_waits_for_an_accelerator() -> None:
    with Elsewhere() as there:
        learner, view = make("BYOL").to(there.device), torch.empty(8, 3, 32, 32).to(there.device)
        for _ in range(12):
            learner(view, view)
        there.waits.clear()
        # Every value that is read is the same.
        told(lambda: feed(learner, lambda step: (view, view)), "images in a batch are")
        assert there.waits == []
