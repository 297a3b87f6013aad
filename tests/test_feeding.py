"""What training was fed is remembered: by what is embedded, by averages, copies and states."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from kornia import augmentation
from methods import PAPERS, WITH_TARGET, make
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import InterpolationMode, v2

from byol_wrap import BYOL, VIEW1, Learner, RandomView, extract_features

HALVES = [0.5] * 3
NO_PIXELS = r"augment_fn gives views whose values are no pixels in \[0, 1\].*prepared=True"
SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def photographs(size: int = 16) -> Tensor:
    """Images in [0, 1], from black to white."""
    torch.manual_seed(0)
    coarse = torch.rand(8, 3, 5, 5)
    return nn.functional.interpolate(coarse, size, mode="bilinear").clamp(0, 1)


def train(learner: Learner, *batch: Any) -> None:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)
    learner(*batch).backward()
    optimizer.step()
    learner.update_moving_average()


# A pipeline that gives more than pixels


def standardised(view: Tensor) -> Tensor:
    mean, std = view.mean((1, 2, 3), keepdim=True), view.std((1, 2, 3), keepdim=True)
    return (view - mean) / std


def held_in_a_dict() -> Callable[[Tensor], Tensor]:
    steps = {"last": augmentation.Normalize(HALVES, HALVES)}
    return lambda view: steps["last"](view)


PREPARING: dict[str, Any] = {
    "a function": lambda view: (RandomView(VIEW1, 16)(view) - 0.45) / 0.225,
    "to [-1, 1]": lambda view: view * 2 - 1,
    "in a partial": partial(TF.normalize, mean=HALVES, std=[0.2] * 3),
    "in a Lambda": v2.Lambda(lambda view: (view - 0.5) / 0.25),
    "in a dict": held_in_a_dict(),
    "each image for itself": standardised,
    "for a net of bytes": lambda view: view * 255,
    "behind a view that is seen": nn.Sequential(
        RandomView(VIEW1, 16), v2.Lambda(lambda view: (view - 0.5) / 0.25)
    ),
}


@pytest.mark.parametrize("kind", PREPARING)
def test_images_that_a_function_would_have_prepared_are_not_embedded_without_a_word(
    kind: str,
) -> None:
    learner = make("SimSiam", 16, augment_fn=PREPARING[kind])
    batch = photographs()
    train(learner, (batch * 255).byte())
    learner.embed(batch, prepared=True)
    learner.embed(batch, prepared=False)  # which says so
    with pytest.warns(UserWarning, match=NO_PIXELS):
        extract_features(learner, [batch])
    learner.embed(batch)  # once


def test_statistics_are_no_pipeline_s() -> None:
    """With ``mean`` and ``std`` what a pipeline gives is held against pixels before those."""
    batch, own = photographs(), {"mean": [0.3] * 3, "std": [0.25] * 3}
    learner = make("BYOL", 16, augment_fn=lambda view: view.flip(3), **own)
    train(learner, batch)
    learner.embed(batch)
    twice = make("BYOL", 16, augment_fn=lambda view: (view - 0.3) / 0.25, **own)
    train(twice, batch)
    with pytest.warns(UserWarning, match=NO_PIXELS):
        twice.embed(batch)


SOUND: dict[str, Any] = {
    "a function": lambda view: RandomView(VIEW1, 16)(view),
    "sharp edges": augmentation.RandomResizedCrop((16, 16), resample="bicubic"),
    "torchvision's": lambda images: torch.stack([TORCHVISION(image) for image in images]),
    "kornia's": nn.Sequential(
        augmentation.ColorJiggle(0.8, 0.8, 0.8, 0.2), augmentation.RandomSharpness(2.0, p=1.0)
    ),
    "a little noise": lambda view: view + 0.08 * torch.randn_like(view),
}
TORCHVISION = v2.Compose(
    [
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v2.RandomResizedCrop(16, interpolation=InterpolationMode.BICUBIC, antialias=True),
    ]
)


@pytest.mark.parametrize("kind", SOUND)
def test_pipelines_that_give_pixels_are_left_in_peace(kind: str) -> None:
    learner = make("BYOL", 16, augment_fn=SOUND[kind])
    batch = (photographs() > 0.5).float()
    for _ in range(3):
        train(learner, batch)
    learner.embed(batch)


def test_what_is_no_pixel_s_to_begin_with_is_no_pipeline_s_doing() -> None:
    net = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5))
    learner = BYOL(net, augment_fn=lambda rows: rows + 0.1, **SMALL)
    rows = 5 * torch.randn(8, 7)
    train(learner, rows)
    learner.embed(rows)


def test_that_views_came_prepared_is_kept() -> None:
    """In a copy, in what was pickled, and in a state that another process loads."""
    learner, other = (make("BYOL", 16, augment_fn=standardised) for _ in range(2))
    batch = photographs()
    train(learner, batch)
    other.load_state_dict(learner.state_dict())
    for kept in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner)), other):
        with pytest.warns(UserWarning, match=NO_PIXELS):
            kept.embed(batch)


# States


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", PAPERS)
def test_a_distributed_checkpoint_knows_what_was_fed(name: str, tmp_path: Path) -> None:
    """It loads into what a fresh learner's state holds, and nothing else."""
    learner, other = make(name, 16), make(name, 16)
    batch = photographs()
    train(learner, batch, batch.flip(3))
    checkpoint.save(learner.state_dict(), checkpoint_id=tmp_path)
    state = other.state_dict()
    checkpoint.load(state, checkpoint_id=tmp_path)
    other.load_state_dict(state)
    assert torch.equal(other.embed(batch), learner.embed(batch, prepared=True))


def test_what_was_fed_is_no_hindrance_to_those_who_use_a_state() -> None:
    learner = make("BYOL", 16)
    batch = photographs()
    train(learner, batch, batch.flip(3))
    state = learner.state_dict(keep_vars=True)
    loss: Any = torch.func.functional_call(learner, state, (batch, batch.flip(3)))
    loss.backward()
    assert get_model_state_dict(learner).keys() == state.keys()
    fresh = make("BYOL", 16)
    learner.load_state_dict({k: v for k, v in fresh.state_dict().items() if k != "fed"})
    assert torch.equal(learner.embed(batch), learner.embed(batch, prepared=True))
    learner.load_state_dict(fresh.state_dict())  # of which nothing is known
    assert torch.equal(learner.embed(batch), learner.embed(batch, prepared=False))


# Averages that outlive their learner


@pytest.mark.parametrize("name", PAPERS)
def test_an_average_outlives_its_learner_with_all_that_it_knew(name: str) -> None:
    batch = photographs()

    def pretrain() -> AveragedModel:
        learner = make(name, 16)
        averaged = AveragedModel(learner, use_buffers=True)
        for _ in range(3):
            train(learner, batch, batch.flip(3))
            averaged.update_parameters(learner)
        gone.append(weakref.ref(learner))
        return averaged

    gone: list[weakref.ref[Learner]] = []
    averaged = pretrain()
    gc.collect()
    assert gone[0]() is None
    sent = pickle.loads(pickle.dumps(averaged))
    for kept in (averaged, copy.deepcopy(averaged), sent, copy.deepcopy(sent)):
        expected = kept.module.embed(batch, prepared=True)
        assert torch.equal(kept.module.embed(batch), expected)
        if name in WITH_TARGET:
            assert kept.module.state_dict()["step"] == kept.module.step == 3
