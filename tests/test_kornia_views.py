"""A view among kornia's own augmentations, and images of different sizes."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import kornia.augmentation as augmentation
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from kornia.constants import BorderType, Resample
from nets import conv_net
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode, v2

from byol_wrap import BYOL, IMAGENET_MEAN, IMAGENET_STD, RandomView, kornia_view
from byol_wrap.views import VIEW1, VIEW2, Recipe, apply, draw

STILL = Recipe(crop_area=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, greyscale=0, blur=0)
CROPS = replace(STILL, crop_area=(0.2, 0.6), crop_ratio=(3 / 4, 4 / 3), flip=0.5)
CONTAINERS = {
    "ImageSequential": augmentation.ImageSequential,
    "AugmentationSequential": augmentation.AugmentationSequential,
    "nn.Sequential": nn.Sequential,
}


def images(batch=6, height=40, width=56, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 9, 9, generator=generator)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def close(value, expected, tolerance=1e-5):
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


# One of kornia's own


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_view_runs_between_kornia_s_steps(name):
    before = augmentation.RandomVerticalFlip(p=1.0)
    after = augmentation.RandomErasing(p=1.0, value=1.0)
    chain = CONTAINERS[name](
        before, RandomView(STILL, 32), augmentation.RandomCrop((24, 24)), after
    )
    out = chain(images())
    assert out.shape == (6, 3, 24, 24)
    assert (out == 1).flatten(1).float().mean(1).min() > 0.01  # what is erased
    square = images(6, 40, 40)
    close(CONTAINERS[name](before, RandomView(STILL))(square), square.flip(2), 1e-6)


@pytest.mark.parametrize("name", [name for name in CONTAINERS if name != "nn.Sequential"])
def test_a_container_gives_the_same_view_again(name):
    chain = CONTAINERS[name](RandomView(VIEW2, 64), augmentation.RandomErasing(p=0.5))
    first = chain(images())
    parameters = chain._params
    assert not torch.equal(chain(images()), first)
    assert torch.equal(chain(images(), params=parameters), first)


def test_parameters_give_the_same_view_again():
    view = RandomView(VIEW2, 64)
    first = view(images())
    parameters = view._params
    other = view(images())
    assert not torch.equal(first, other)
    assert torch.equal(view(images(), params=parameters), first)
    assert torch.equal(RandomView(VIEW1, 64)(images(), params=parameters), first)
    for name in ("boxes", "flip", "jitter_factors", "blur_sigma", "batch_prob"):
        assert len(parameters[name]) == 6
        assert parameters[name].device.type == "cpu"


@pytest.mark.parametrize("sides", [(32, 32), (80, 80)], ids=["at once", "one by one"])
def test_same_on_batch_is_one_draw_for_all(sides):
    batch = images(1, *sides).expand(6, -1, -1, -1)
    view = RandomView(replace(VIEW2, jitter=1.0), 64, same_on_batch=True)
    first, second = view(batch), view(batch)
    close(first, first[:1].expand_as(first), 1e-6)
    assert not torch.equal(first, second)
    own = RandomView(VIEW2, 64)
    chain = augmentation.ImageSequential(own, same_on_batch=True)
    assert own.same_on_batch
    out = chain(batch)
    close(out, out[:1].expand_as(out), 1e-6)


def test_printing_says_what_is_drawn():
    shown = repr(augmentation.ImageSequential(RandomView(VIEW2, 64)))
    assert "RandomView(Recipe(crop_area=(0.08, 1.0)" in shown
    assert "size=(64, 64), same_on_batch=False)" in shown


def test_one_image_is_a_batch_of_one_or_keeps_its_dimensions():
    assert RandomView(VIEW1, 32)(images()[0]).shape == (1, 3, 32, 32)
    assert RandomView(VIEW1, 32, keepdim=True)(images()[0]).shape == (3, 32, 32)
    assert RandomView(VIEW1, 32, keepdim=True)(images()[:1]).shape == (1, 3, 32, 32)
    assert RandomView(VIEW1, 32, keepdim=True)(images()[0, 0]).shape == (32, 32)
    assert RandomView(VIEW1, 32)(images()[0, 0]).shape == (1, 1, 32, 32)
    assert RandomView(VIEW1, 32)(images()[:0]).shape == (0, 3, 32, 32)


def test_masks_and_key_points_are_cropped_and_mirrored_with_the_images():
    view = RandomView(CROPS, (24, 30))
    chain = augmentation.AugmentationSequential(view, data_keys=["input", "mask", "keypoints"])
    boxes = torch.tensor([[3.0, 4.0], [20.0, 30.0]]).expand(6, 2, 2)
    _, masks, points = chain(images(), images()[:, :1].round(), boxes)
    params = view._params
    assert 0 < params["flip"].sum() < 6
    for i, (box, flip) in enumerate(zip(params["boxes"].tolist(), params["flip"], strict=True)):
        mask = images()[i : i + 1, :1].round()
        cut = TF.resized_crop(mask, *box, (24, 30), InterpolationMode.NEAREST_EXACT)
        close(masks[i], (cut.flip(-1) if flip else cut)[0], 0)
        top, left, height, width = box
        x = (boxes[i, :, 0] - left + 0.5) * 30 / width - 0.5
        y = (boxes[i, :, 1] - top + 0.5) * 24 / height - 0.5
        close(points[i], torch.stack([29 - x if flip else x, y], dim=1), 1e-4)
    close(chain.transform_matrix, view.transform_matrix, 1e-6)


def test_moving_a_view_moves_no_draws_and_adds_nothing_to_a_state():
    view = RandomView(VIEW1, 32)
    chain = nn.Sequential(view).to("meta").to(torch.float64)
    assert not chain.state_dict()
    out = view(images())
    assert (out.device.type, out.dtype) == ("cpu", torch.float32)
    for twin in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert torch.equal(twin(images(), params=view._params), out)


def test_draws_are_made_on_the_host_whatever_the_default_device_and_dtype():
    view = RandomView(VIEW2, 32)
    batch = images()
    torch.manual_seed(0)
    expected = view(batch)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            close(view(batch), expected, 1e-6)
    finally:
        torch.set_default_dtype(default)


# In a learner


def learner_with(augment, **kwargs):
    net = conv_net(4)
    return BYOL(net, 32, projection_size=4, projection_hidden_size=8, augment_fn=augment, **kwargs)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_with_a_view_is_normalised_as_the_view_alone_is(name):
    chain = CONTAINERS[name](RandomView(VIEW1, 32), augmentation.RandomErasing(p=1.0))
    learner = learner_with(chain)
    torch.manual_seed(0)
    expected = [TF.normalize(chain(images()), [*IMAGENET_MEAN], [*IMAGENET_STD]) for _ in range(2)]
    torch.manual_seed(0)
    for got, view in zip(learner.views(images()), expected, strict=True):
        close(got, view)
    assert learner(images()).isfinite()


def test_a_container_that_normalises_is_not_normalised_again():
    chain = augmentation.ImageSequential(
        RandomView(STILL, 32), augmentation.Normalize((0.1, 0.2, 0.3), (2.0, 3.0, 4.0))
    )
    square = images(6, 32, 32)
    for view in learner_with(chain).views(square):
        close(view, TF.normalize(square, [0.1, 0.2, 0.3], [2, 3, 4]))


def test_a_container_without_a_view_is_the_user_s_own_and_not_normalised():
    own = augmentation.ImageSequential(augmentation.RandomHorizontalFlip(p=1.0))
    for view in learner_with(own).views(images()):
        close(view, images().flip(3), 1e-6)


# Images of different sizes


def pictures(dtype):
    parts = [images(1, *sides, seed=i)[0] for i, sides in enumerate([(40, 56), (90, 30), (33, 70)])]
    return [(255 * part).to(dtype) if dtype == torch.uint8 else part for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_each_of_a_list_is_cropped_from_its_full_size(dtype):
    parts = pictures(dtype)
    view = RandomView(CROPS, (24, 30))
    torch.manual_seed(1)
    out = view(parts)
    for part, box, flip, got in zip(
        parts, view._params["boxes"].tolist(), view._params["flip"], out, strict=True
    ):
        top, left, height, width = box
        assert top + height <= part.shape[1]
        assert left + width <= part.shape[2]
        share = height * width / (part.shape[1] * part.shape[2])
        assert 0.15 < share < 0.65
        pixels = part.float() / 255 if dtype == torch.uint8 else part
        cut = TF.resized_crop(pixels, *box, (24, 30), InterpolationMode.BICUBIC, antialias=True)
        close(got, (cut.flip(-1) if flip else cut).clamp(0, 1), 1e-5)
    assert torch.equal(view(parts, params=view._params), out)


def test_a_list_of_one_size_gives_the_views_of_the_batch():
    batch = images(5, 70, 80)
    draws = draw(VIEW2, 5, 70, 80)
    close(apply(draws, list(batch), (64, 64)), apply(draws, batch, (64, 64)), 1e-6)


def test_sizes_are_drawn_for_as_for_batches_of_one_size():
    heights, widths = torch.tensor([40, 200, 64]), torch.tensor([60, 30, 64])
    torch.manual_seed(0)
    mixed = draw(VIEW1, 3, heights, widths).boxes
    for i in range(3):
        torch.manual_seed(0)
        assert torch.equal(draw(VIEW1, 3, int(heights[i]), int(widths[i])).boxes[i], mixed[i])


class Widest(TorchDispatchMode):
    """The largest tensor of floats that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("kind", ["batch", "list"])
def test_bytes_are_cropped_before_they_are_widened(kind):
    batch = (255 * images(2, 300, 300)).to(torch.uint8)
    view = RandomView(replace(CROPS, crop_area=(0.05, 0.1)), 32)
    with Widest() as widest:
        view(batch if kind == "batch" else list(batch))
    assert widest.numel < 0.12 * batch[0].numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_learner_takes_a_list_as_a_batch(dtype):
    learner = BYOL(conv_net(4), 32, projection_size=4, projection_hidden_size=8)
    loader = torch.utils.data.DataLoader(pictures(dtype), batch_size=3, collate_fn=list)
    for batch in loader:
        assert learner(batch).isfinite()
        assert [view.shape for view in learner.views(batch)] == [(3, 3, 32, 32)] * 2
        with pytest.raises(ValueError, match="different sizes are no batch"):
            learner.embed(batch)
    same = list(images(3, 32, 32))
    close(learner.embed(same), learner.embed(torch.stack(same)), 1e-6)


def test_a_list_is_checked_as_a_batch_is():
    learner = BYOL(conv_net(4), 32, projection_size=4, projection_hidden_size=8)
    good = pictures(torch.float32)
    spoiled = good[1].clone()
    spoiled[0, 3, 4] = torch.nan
    for bad, error, message in (
        (spoiled, ValueError, "holds NaN"),
        (good[1][:1], ValueError, "3 channels"),
        (good[1].long(), TypeError, "int64"),
        (good[1][:, :4], ValueError, "at least 8 pixels"),
        (good[1].to("meta"), ValueError, "net is on cpu"),
        (good[1][None], TypeError, "should be a tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            learner([good[0], bad])
    with pytest.raises(ValueError, match="batch of one"):
        learner(good[:1])
    with pytest.warns(UserWarning, match="normalised already"):
        learner([good[0], 9 * good[1] - 5])
    unsized = BYOL(conv_net(4), projection_size=4, projection_hidden_size=8)
    with pytest.raises(ValueError, match="give image_size= to the learner"):
        unsized(good)


def test_a_pipeline_of_one_s_own_gets_the_list():
    def own(batch):
        return torch.stack([TF.resize(image, [32, 32]) for image in batch])

    parts = pictures(torch.uint8)
    for view in learner_with(own).views(parts):
        close(view, own([part.float() / 255 for part in parts]), 1e-6)


# The stock chain


def test_the_stock_chain_has_the_recipe_s_numbers():
    chain = kornia_view(VIEW2, (70, 90))
    crop, clip, flip, jitter, grey, blur, solarize = chain.children()
    assert crop.flags["size"] == (70, 90)
    assert crop.flags["resample"] == Resample.BICUBIC
    assert crop.flags["align_corners"] is False
    assert (crop._param_generator.scale, crop._param_generator.ratio) == ((0.08, 1), (3 / 4, 4 / 3))
    assert (clip.min_val, clip.max_val) == (0, 1)
    assert [step.p for step in (flip, jitter, grey, blur, solarize)] == [0.5, 0.8, 0.2, 0.1, 0.2]
    assert (jitter.brightness, jitter.contrast) == (0.4, 0.4)
    assert (jitter.saturation, jitter.hue) == (0.2, 0.1)
    assert blur.flags["kernel_size"] == (7, 9)
    assert blur.flags["border_type"] == BorderType.REFLECT
    assert [type(step).__name__ for step in kornia_view(VIEW1, 32).children()][-1] == (
        "RandomGrayscale"
    )


def test_the_stock_chain_equals_ours_but_for_the_antialiasing_of_crops():
    torch.manual_seed(0)
    batch = images(8, 64, 64)
    whole = replace(VIEW2, crop_area=(1, 1), crop_ratio=(1, 1))
    recipe = replace(whole, greyscale=0.3, blur=0.5, solarize=0.5)
    chain = kornia_view(recipe, 64)
    out = chain(batch)
    _, _, flip, jitter, grey, blur, solarize = (item.data for item in chain._params)
    draws = replace(
        draw(recipe, 8, 64, 64),
        flip=flip["batch_prob"] > 0.5,
        jitter=jitter["batch_prob"] > 0.5,
        jitter_order=jitter["order"].long().expand(8, 4),
        jitter_factors=torch.stack(
            [jitter[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")],
            dim=1,
        ),
        greyscale=grey["batch_prob"] > 0.5,
        blur=blur["batch_prob"] > 0.5,
        blur_sigma=blur["sigma"],
        solarize=solarize["batch_prob"] > 0.5,
    )
    close(apply(draws, batch, (64, 64)), out, 1e-4)
    still = kornia_view(replace(whole, crop_area=(0.5, 0.9), flip=0, jitter=0, greyscale=0), 64)
    batch = (batch > 0.5).float()  # hard edges ring: the result has to be clipped
    cut = still(batch)
    assert (cut.min(), cut.max()) == (0, 1)


# What would go wrong without a word


def test_a_view_is_made_again_of_images_that_it_fits_alone():
    view = RandomView(CROPS, 24)
    view(images(4))
    with pytest.raises(ValueError, match="drawn for 4 images, got 1"):
        view(images(1), params=view._params)
    with pytest.raises(ValueError, match="drawn for larger images"):
        view(images(4, height=8, width=8), params=view._params)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_area": (float("nan"), 1)},
        {"crop_area": (0.9, 0.2)},
        {"crop_area": (2, 3)},
        {"crop_ratio": (0, 1)},
        {"blur_sigma": (-1, 2)},
        {"blur_sigma": (float("nan"), 2)},
        {"flip": 2},
        {"jitter": float("nan")},
        {"brightness": -0.4},
        {"contrast": 2.0},
        {"hue": float("inf")},
    ],
)
def test_recipes_out_of_range_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} should be"):
        replace(VIEW1, **wrong)


class OwnNormalize(augmentation.Normalize):
    """Told by its kind, not by its name."""


HALF = ((0.5,) * 3, (0.5,) * 3)
RED = (0.9 - IMAGENET_MEAN[0]) / IMAGENET_STD[0]


def still():
    return RandomView(STILL, 32)


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (lambda: v2.Compose([still()]), RED),
        (lambda: partial(nn.Sequential.__call__, nn.Sequential(still())), RED),
        (lambda: nn.Sequential(still(), v2.Compose([v2.Normalize(*HALF)])), 0.8),
        (lambda: nn.Sequential(still(), OwnNormalize(*HALF)), 0.8),
    ],
)
def test_what_a_pipeline_holds_is_found_in_lists_too(pipeline, expected):
    view1, view2 = BYOL(conv_net(6), 32, augment_fn=pipeline()).views(
        torch.full((2, 3, 32, 32), 0.9)
    )
    assert view1[0, 0, 0, 0].item() == pytest.approx(expected, abs=1e-5)
    assert view2[0, 0, 0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_images_that_a_pipeline_would_have_normalised_are_not_embedded_without_a_word():
    chain = nn.Sequential(still(), augmentation.Normalize(*HALF))
    learner = BYOL(conv_net(6), 32, augment_fn=chain)
    batch = torch.full((2, 3, 32, 32), 0.9)
    with pytest.warns(UserWarning, match="augment_fn normalises the views itself.*prepared=True"):
        learner.embed(batch)
    learner.embed(2 * batch - 1, prepared=True)
    BYOL(conv_net(6), 32, augment_fn=still()).embed(batch)


@pytest.mark.parametrize("swapped", [False, True])
def test_each_pipeline_is_normalised_by_its_own_kind(swapped):
    pipelines = [still(), nn.Sequential(still(), augmentation.Normalize(*HALF))]
    first, second = pipelines[::-1] if swapped else pipelines
    learner = BYOL(conv_net(6), 32, augment_fn=first, augment_fn2=second)
    reds = [view[0, 0, 0, 0].item() for view in learner.views(torch.full((2, 3, 32, 32), 0.9))]
    assert reds == pytest.approx([0.8, RED] if swapped else [RED, 0.8], abs=1e-5)


# What a view is not made of


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (np.zeros((3, 32, 32)), TypeError, "got ndarray; convert it"),
        (None, TypeError, "got NoneType"),
        ([], TypeError, "got an empty one"),
        ([np.zeros((3, 32, 32))], TypeError, "got one of ndarray"),
        ((torch.rand(2, 3, 32, 32),) * 2, ValueError, r"got \(2, 3, 32, 32\); give a batch"),
        (torch.rand(2, 2, 3, 32, 32), ValueError, r"got \(2, 2, 3, 32, 32\)"),
        (torch.rand(32), ValueError, r"got \(32,\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int16), TypeError, r"got torch.int16.*65535"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.complex64), TypeError, "got torch.complex64"),
    ],
)
def test_what_is_no_image_is_refused_by_what_it_is(wrong, error, message):
    with pytest.raises(error, match=message):
        RandomView(VIEW1, 16)(wrong)


@pytest.mark.parametrize(("scale", "message"), [(255, "still in"), (-2, "normalised already")])
def test_a_view_alone_tells_of_floats_that_are_no_pixels(scale, message):
    view, batch = RandomView(VIEW1, 16), images()
    with pytest.warns(UserWarning, match=message) as caught:
        augmentation.ImageSequential(view)(batch * scale)
    assert [w.filename for w in caught] == [__file__]
    view(batch), view([image * 1.02 for image in batch])
    learner = BYOL(conv_net(6), 32, projection_size=8, augment_fn=RandomView(VIEW1, 32))
    with pytest.warns(UserWarning, match=message) as caught:  # once: the learner has looked
        learner(batch * scale)
    assert [w.filename for w in caught] == [__file__]


def test_a_view_cannot_be_undone():
    steps = augmentation.AugmentationSequential(RandomView(VIEW1, 16))
    view = steps(images())
    with pytest.raises(NotImplementedError, match="cannot be undone: its crop leaves out"):
        steps.inverse(view)


def test_a_container_that_takes_no_list_is_named():
    steps = augmentation.ImageSequential(RandomView(VIEW1, 16))
    learner = BYOL(conv_net(6), 16, projection_size=8, augment_fn=steps)
    with pytest.raises(TypeError, match=r"given a list of images .* A RandomView alone does"):
        learner(list(images()))
