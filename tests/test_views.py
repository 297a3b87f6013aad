"""The two augmentation pipelines, image by image against torchvision, and what they draw."""

import math
from dataclasses import asdict, fields, replace
from functools import partial

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import FIGURES, tensor
from torch import nn
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from byol_wrap import BYOL, IMAGENET_MEAN, IMAGENET_STD, RandomView, Recipe
from byol_wrap.views import (
    MOCO_VIEW,
    SIMCLR_VIEW,
    SIMSIAM_VIEW,
    VIEW1,
    VIEW2,
    Draws,
    Normalize,
    Views,
    apply,
    applying,
    as_unit_float,
    cropping,
    draw,
    normalization,
    pixels,
)

STEPS = ("flip", "jitter", "greyscale", "blur", "solarize")
COLOUR_STEPS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def images(batch=6, channels=3, height=40, width=56, seed=0):
    """Smooth coloured noise, so that an error of a pixel shows and bicubic does not ring."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 9, 9, generator=generator)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def no_draws(batch, height, width):
    """Draws that do nothing."""
    no = torch.zeros(batch, dtype=torch.bool)
    return Draws(
        boxes=torch.tensor([[0, 0, height, width]]).expand(batch, 4),
        flip=no,
        jitter=no,
        jitter_order=torch.arange(4).expand(batch, 4),
        jitter_factors=torch.zeros(batch, 4),
        greyscale=no,
        blur=no,
        blur_sigma=torch.ones(batch),
        solarize=no,
    )


def for_some(batch, *chosen):
    """A step's column: which of a batch's images it was drawn for."""
    return torch.tensor([i in chosen for i in range(batch)])


def close(value, expected, tolerance=1e-5):
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


def torchvision_crop(image, box, size):
    cut = TF.resized_crop(image, *box, size, InterpolationMode.BICUBIC, antialias=True)
    return cut.clamp(0, 1)


def torchvision_view(draws, batch, size):
    """A view from the same draws, one image after the other, by torchvision."""
    kernel = [size[1] // 10 | 1, size[0] // 10 | 1]  # torchvision names the width first
    out = []
    for i, image in enumerate(batch):
        x = torchvision_crop(image, draws.boxes[i].tolist(), size)
        if draws.flip[i]:
            x = TF.horizontal_flip(x)
        if draws.jitter[i]:
            for kind in draws.jitter_order[i].tolist():
                x = COLOUR_STEPS[kind](x, draws.jitter_factors[i, kind].item())
        if draws.greyscale[i]:
            x = TF.rgb_to_grayscale(x, 3)
        if draws.blur[i]:
            x = TF.gaussian_blur(x, kernel, [draws.blur_sigma[i].item()] * 2)
        if draws.solarize[i]:
            x = TF.solarize(x, 0.5)
        out.append(x)
    return torch.stack(out)


# Each step


def crop_one_by_one(batch, boxes, size, flip):
    views = [cropping.crop_one(x, box, size) for x, box in zip(batch, boxes.tolist(), strict=True)]
    return torch.stack([x.flip(-1) if f else x for x, f in zip(views, flip, strict=True)])


@pytest.mark.parametrize("crop", [crop_one_by_one, cropping.crop])
@pytest.mark.parametrize("size", [(16, 16), (24, 80), (96, 64)])
def test_crop_equals_torchvision(crop, size):
    batch = images(5)
    boxes = [(0, 0, 40, 56), (3, 5, 30, 20), (39, 55, 1, 1), (0, 50, 40, 6), (7, 0, 9, 56)]
    batch[4] = (batch[4] > 0.5).float()  # hard edges ring: the result has to be clipped
    out = crop(batch, torch.tensor(boxes), size, for_some(5))
    for image, box, got in zip(batch, boxes, out, strict=True):
        close(got, torchvision_crop(image, box, size), 2e-6)
    mirrored = crop(batch, torch.tensor(boxes), size, for_some(5, 0, 3))
    for i in range(5):
        close(mirrored[i], out[i].flip(-1) if i in (0, 3) else out[i], 2e-6)
    assert out.min() == 0
    assert out.max() == 1


@pytest.mark.parametrize("crop", [crop_one_by_one, cropping.crop])
def test_crop_is_antialiased(crop):
    noise = 0.5 + 0.1 * torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    out = crop(noise, torch.tensor([[0, 0, 96, 96]]), (32, 32), for_some(1))
    assert out.std() < 0.05


@pytest.mark.parametrize(
    ("step", "expected", "factors"),
    [
        (pixels.brightness, TF.adjust_brightness, (0.6, 0.9, 1.0, 1.1, 1.25, 1.4)),
        (pixels.contrast, TF.adjust_contrast, (0.6, 0.9, 1.0, 1.1, 1.25, 1.4)),
        (pixels.saturation, TF.adjust_saturation, (0.8, 0.9, 1.0, 1.05, 1.1, 1.2)),
        (pixels.hue, TF.adjust_hue, (-0.1, -0.03, 0.0, 0.02, 0.07, 0.1)),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_colour_step_equals_torchvision_with_a_factor_for_each_image(step, expected, factors):
    batch = images()
    batch[1] = batch[1] ** 3
    batch[2] = batch[2].sqrt()
    out = step(batch, torch.tensor(factors))
    for image, factor, got in zip(batch, factors, out, strict=True):
        close(got, expected(image, factor), 3e-5)
        close(step(image[None], factor)[0], got, 1e-6)
    assert 0 <= out.min() < out.max() <= 1


def blur_one_by_one(batch, sigma):
    return torch.stack([pixels.blur_one(*row) for row in zip(batch, sigma.tolist(), strict=True)])


@pytest.mark.parametrize("blur", [blur_one_by_one, pixels.blur])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 130), (224, 70)])
def test_blur_equals_torchvision_with_a_sigma_for_each_image(blur, height, width):
    batch = images(4, height=height, width=width)
    sigmas = (0.1, 0.5, 1.3, 2.0)
    out = blur(batch, torch.tensor(sigmas))
    for image, sigma, got in zip(batch, sigmas, out, strict=True):
        kernel = [width // 10 | 1, height // 10 | 1]
        close(got, TF.gaussian_blur(image, kernel, [sigma, sigma]))


@pytest.mark.parametrize("blur", [blur_one_by_one, pixels.blur])
def test_blur_kernel_spans_23_pixels_at_224(blur):
    impulse = torch.zeros(1, 1, 224, 224)
    impulse[0, 0, 112, 112] = 1
    spread = blur(impulse, torch.tensor([2.0]))[0, 0].nonzero()
    assert (spread.amin(0).tolist(), spread.amax(0).tolist()) == ([101, 101], [123, 123])


def hwc(values):
    return tensor(values).permute(2, 0, 1)[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["grayscale", "solarize"])
def test_greyscale_and_solarize_equal_the_reference(name, dtype):
    figures = FIGURES["augment_ops"]
    step = {"grayscale": pixels.greyscale, "solarize": pixels.solarize}[name]
    close(step(hwc(figures["image"]).to(dtype)), hwc(figures[name]).to(dtype), 1e-6)


def test_greyscale_and_solarize_equal_torchvision():
    batch = images()
    close(pixels.greyscale(batch), TF.rgb_to_grayscale(batch, 3), 1e-6)
    close(pixels.solarize(batch), TF.solarize(batch, 0.5), 0)


def test_solarize_inverts_from_one_half_on():
    x = torch.tensor([0.0, 0.25, 0.499, 0.5, 0.75, 1.0])
    close(pixels.solarize(x), torch.tensor([0.0, 0.25, 0.499, 0.5, 0.25, 0.0]), 1e-7)
    half = torch.tensor(0.5)
    below, above = half.nextafter(half - 1), half.nextafter(half + 1)
    assert torch.equal(pixels.solarize(below), below)
    assert torch.equal(pixels.solarize(above), 1 - above)


# The whole pipeline


def test_flip_mirrors_the_drawn_images_only():
    batch = images(4)
    out = apply(replace(no_draws(4, 40, 56), flip=for_some(4, 1, 3)), batch, (40, 56))
    for i in range(4):
        close(out[i], TF.horizontal_flip(batch[i]) if i in (1, 3) else batch[i], 1e-6)


@pytest.mark.parametrize("medium", [1, 1000], ids=["image by image", "at once"])
def test_jitter_takes_the_four_steps_in_each_image_s_own_order(monkeypatch, medium):
    monkeypatch.setattr(applying, "MEDIUM", medium)
    batch = images(5)
    orders = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3], [1, 3, 0, 2], [2, 0, 3, 1]])
    factors = torch.tensor(
        [
            [1.4, 0.6, 1.2, 0.1],
            [1.4, 1.4, 0.8, -0.1],
            [0.0, 0.0, 0.0, 0.0],
            [0.6, 1.4, 1.1, 0.05],
            [1.3, 0.7, 0.9, 0.1],
        ]
    )
    jittered = for_some(5, 0, 1, 3, 4)
    draws = replace(
        no_draws(5, 40, 56), jitter=jittered, jitter_order=orders, jitter_factors=factors
    )
    out = apply(draws, batch, (40, 56))
    close(out, torchvision_view(draws, batch, (40, 56)), 1e-4)
    # The order matters by far more than the tolerance.
    reordered = replace(draws, jitter_order=orders.flip(1))
    assert (apply(reordered, batch, (40, 56)) - out).abs().amax((1, 2, 3))[jittered].min() > 0.01


@pytest.mark.parametrize("size", [(64, 64), (70, 96), (81, 80)])
@pytest.mark.parametrize("recipe", [VIEW1, VIEW2], ids=["view1", "view2"])
def test_whole_view_equals_torchvision_given_the_same_draws(recipe, size):
    batch = images(16, height=100, width=80)
    torch.manual_seed(0)
    draws = draw(replace(recipe, blur=0.5, greyscale=0.4, solarize=0.4), 16, 100, 80)
    assert all(getattr(draws, name).sum() > 0 for name in STEPS)
    close(apply(draws, batch, size), torchvision_view(draws, batch, size), 1e-4)


def kornia_s_view(draws, batch):
    """The same by kornia's functions. Its crop is not antialiased: there is none."""
    from kornia import color, enhance, filters, geometry

    colour = (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        lambda image, turn: enhance.adjust_hue(image, 2 * math.pi * turn),
    )
    weights = torch.tensor([0.2989, 0.5870, 0.1140])
    kernel = tuple(side // 10 | 1 for side in batch.shape[2:])
    out = []
    for i, image in enumerate(batch):
        x = image[None]
        if draws.flip[i]:
            x = geometry.hflip(x)
        if draws.jitter[i]:
            for kind in draws.jitter_order[i].tolist():
                x = colour[kind](x, draws.jitter_factors[i, kind])
        if draws.greyscale[i]:
            x = color.rgb_to_grayscale(x, weights).expand(-1, 3, -1, -1)
        if draws.blur[i]:
            x = filters.gaussian_blur2d(x, kernel, draws.blur_sigma[i].expand(1, 2))
        if draws.solarize[i]:
            x = torch.where(x < 0.5, x, 1 - x)  # enhance.solarize keeps one half
        out.append(x[0])
    return torch.stack(out)


@pytest.mark.parametrize("recipe", [VIEW1, VIEW2], ids=["view1", "view2"])
def test_all_but_the_crop_equals_kornia_given_the_same_draws(recipe):
    batch = images(16, height=100, width=80)
    torch.manual_seed(0)
    draws = draw(replace(recipe, blur=0.5, greyscale=0.4, solarize=0.4), 16, 100, 80)
    draws = replace(draws, boxes=no_draws(16, 100, 80).boxes)
    close(apply(draws, batch, (100, 80)), kornia_s_view(draws, batch), 1e-4)


@pytest.mark.parametrize("recipe", [VIEW1, VIEW2], ids=["view1", "view2"])
def test_a_call_applies_what_draw_draws(recipe):
    batch = images(16, height=100, width=80)
    torch.manual_seed(3)
    out = RandomView(recipe, (64, 72))(batch)
    torch.manual_seed(3)
    close(out, apply(draw(recipe, 16, 100, 80), batch, (64, 72)), 0)


# What is drawn


def test_draws_follow_the_table():
    n, sd = 4000, 0.008  # the standard deviation of a frequency of 0.5 over 4000 draws
    torch.manual_seed(0)
    draws1, draws2 = draw(VIEW1, n, 224, 224), draw(VIEW2, n, 224, 224)
    for draws, blur, solarize in ((draws1, 1.0, 0.0), (draws2, 0.1, 0.2)):
        frequency = {name: getattr(draws, name).float().mean().item() for name in STEPS}
        assert frequency == {
            "flip": pytest.approx(0.5, abs=4 * sd),
            "jitter": pytest.approx(0.8, abs=4 * sd),
            "greyscale": pytest.approx(0.2, abs=4 * sd),
            "blur": blur if blur == 1 else pytest.approx(blur, abs=4 * sd),
            "solarize": solarize if solarize == 0 else pytest.approx(solarize, abs=4 * sd),
        }
        low = torch.tensor([0.6, 0.6, 0.8, -0.1])
        high = torch.tensor([1.4, 1.4, 1.2, 0.1])
        assert_uniform((draws.jitter_factors - low) / (high - low))
        orders = (draws.jitter_order * torch.tensor([64, 16, 4, 1])).sum(1)
        counts = orders.unique(return_counts=True)[1] / len(orders)
        assert draws.jitter_order.sort(1).values.eq(torch.arange(4)).all()
        assert len(counts) == 24
        assert counts.sub(1 / 24).abs().max() < 0.02
    assert_uniform((draws1.blur_sigma[:, None] - 0.1) / 1.9)
    # Whether one step is drawn says nothing of another.
    both = (draws1.flip & draws1.jitter).float().mean().item()
    assert both == pytest.approx(0.4, abs=4 * sd)


def numbers_behind(draws, height, width):
    """All that is drawn for an image, a column each, spread evenly where it is a fraction."""
    top, left, h, w = draws.boxes.double().T
    crop = [h * w, (w / h).log(), (top + 0.5) / (height - h + 1), (left + 0.5) / (width - w + 1)]
    chosen = [getattr(draws, name).double() for name in STEPS]
    order, factors = draws.jitter_order.double().T, draws.jitter_factors.double().T
    return torch.stack([*crop, *chosen, *order, *factors, draws.blur_sigma.double()], dim=1)


def test_no_draw_tells_of_another():
    """Not of the same image, of its neighbour in the batch, nor of its other view."""
    n = 4000
    torch.manual_seed(0)
    recipe = replace(VIEW2, blur=0.4)
    ones, others = (numbers_behind(draw(recipe, n, 224, 224), 224, 224) for _ in range(2))
    corners = ones[:, 2:4]
    assert_uniform((corners - corners.amin(0)) / (corners.amax(0) - corners.amin(0)))
    columns = torch.cat([ones, others, ones.roll(1, 0)], dim=1).T
    alike = torch.corrcoef(columns)
    places = range(9, 13)  # what a permutation holds in one place it does not hold in another
    for i in places:
        for j in places:
            alike[i, j] = alike[18 + i, 18 + j] = alike[36 + i, 36 + j] = 0
    assert alike.fill_diagonal_(0).abs().max() < 5 / math.sqrt(n)


def assert_uniform(columns):
    """Each column spreads evenly over [0, 1]: Kolmogorov's distance, at a level of 1e-6."""
    assert columns.min() >= -1e-6
    assert columns.max() <= 1 + 1e-6
    steps = torch.linspace(0, 1, len(columns))[:, None]
    assert (columns.sort(0).values - steps).abs().max() < 2.7 / math.sqrt(len(columns))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (60, 200)])
def test_crops_are_distributed_as_torchvision_s(height, width):
    n = 3000
    torch.manual_seed(0)
    ours = draw(VIEW1, n, height, width).boxes.double()
    image = torch.empty(1, height, width)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    ).double()

    def figures(boxes):
        top, left, h, w = boxes.unbind(1)
        return torch.stack([h * w, w / h, top, left, top + h / 2, left + w / 2], dim=1)

    for mine, other in zip(figures(ours).unbind(1), figures(theirs).unbind(1), strict=True):
        grid = torch.cat([mine, other]).sort().values
        mine, other = (torch.searchsorted(x.sort().values, grid, right=True) for x in (mine, other))
        # Two-sample Kolmogorov-Smirnov, at a level of 1e-5.
        assert (mine - other).abs().max() / n < 2.47 * math.sqrt(2 / n)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(height=st.integers(8, 400), width=st.integers(8, 400), seed=st.integers(0, 2**31))
def test_boxes_lie_inside_with_area_and_aspect_in_range(height, width, seed):
    assume(1 / 2 <= height / width <= 2)  # where all ten tries are next to never refused
    torch.manual_seed(seed)
    for top, left, h, w in draw(VIEW1, 16, height, width).boxes.tolist():
        assert top >= 0
        assert left >= 0
        assert top + h <= height
        assert left + w <= width
        # Sides are rounded to whole pixels.
        assert (h + 0.5) * (w + 0.5) >= 0.08 * height * width
        assert (w + 0.5) / (h - 0.5) >= 3 / 4
        assert (w - 0.5) / (h + 0.5) <= 4 / 3


@settings(max_examples=50, deadline=None, derandomize=True)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), seed=st.integers(0, 2**31))
def test_boxes_lie_inside_images_of_any_size_and_aspect(height, width, seed):
    torch.manual_seed(seed)
    for top, left, h, w in draw(VIEW1, 8, height, width).boxes.tolist():
        assert 0 <= top <= top + h - 1 < height
        assert 0 <= left <= left + w - 1 < width


@pytest.mark.parametrize(("height", "width"), [(8, 2000), (2000, 8), (9, 1000), (30, 4000)])
def test_images_no_crop_fits_in_give_torchvision_s_central_crop(height, width):
    box = RandomResizedCrop.get_params(torch.empty(1, height, width), [0.08, 1.0], [3 / 4, 4 / 3])
    torch.manual_seed(0)
    assert draw(VIEW1, 3, height, width).boxes.tolist() == [[*box]] * 3


def test_every_draw_differs_between_images():
    torch.manual_seed(0)
    for draws in (draw(VIEW1, 64, 224, 224), draw(replace(VIEW2, blur=0.5), 64, 224, 224)):
        assert len(draws.boxes.unique(dim=0)) > 60
        for kind in range(4):
            assert len(draws.jitter_factors[:, kind].unique()) > 60
        assert len(draws.jitter_order.unique(dim=0)) > 12
        assert len(draws.blur_sigma.unique()) > 60
        for name in ("flip", "jitter", "greyscale"):
            assert 0 < getattr(draws, name).sum() < 64
    assert 0 < draws.blur.sum() < 64
    assert 0 < draws.solarize.sum() < 64


def test_recipes_of_the_siblings_are_those_of_their_reference_code():
    alike = {"flip": 0.5, "jitter": 0.8, "greyscale": 0.2, "blur": 0.5, "blur_sigma": (0.1, 2.0)}
    alike |= {"crop_ratio": (3 / 4, 4 / 3), "solarize": 0.0}
    names = ("crop_area", "brightness", "contrast", "saturation", "hue")
    for recipe, numbers in (
        (SIMSIAM_VIEW, ((0.2, 1.0), 0.4, 0.4, 0.4, 0.1)),
        (MOCO_VIEW, ((0.2, 1.0), 0.4, 0.4, 0.4, 0.1)),
        (SIMCLR_VIEW, ((0.08, 1.0), 0.8, 0.8, 0.8, 0.2)),
    ):
        assert asdict(recipe) == alike | dict(zip(names, numbers, strict=True))


def test_default_views_follow_the_given_recipes():
    batch = images(4)
    still = Recipe(crop_area=(1, 1), crop_ratio=(1.4, 1.4), flip=0, jitter=0, greyscale=0)
    recipes = (still, replace(still, flip=1.0))
    view1, view2 = Views(None, None, None, None, recipes=recipes)(batch)
    close(view1, batch, 1e-6)
    close(view2, batch.flip(-1), 1e-6)


def test_every_draw_differs_between_views():
    torch.manual_seed(0)
    recipe = replace(VIEW2, blur=0.5)
    first, second = draw(recipe, 64, 224, 224), draw(recipe, 64, 224, 224)
    for field in fields(Draws):
        assert not torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name
    both = torch.cat([first.boxes, second.boxes])
    assert len(both.unique(dim=0)) > 125


def test_images_of_a_batch_get_views_of_their_own():
    batch = images(1, height=48, width=48).expand(32, -1, -1, -1)
    torch.manual_seed(0)
    view1, view2 = Views(None, None, None, None)(batch)
    both = torch.cat([view1, view2]).flatten(1)
    distances = torch.cdist(both, both) + torch.eye(64) * 1e3
    assert distances.min() > 0.1


def test_views_depend_on_the_seed_alone():
    pipeline, batch = Views(None, None, (64, 64), None), images(8)
    torch.manual_seed(0)
    first = pipeline(batch)
    torch.rand(7)
    other = pipeline(batch)
    torch.manual_seed(0)
    again = pipeline(batch)
    for view, repeated, different in zip(first, again, other, strict=True):
        assert torch.equal(view, repeated)
        assert not torch.equal(view, different)


# Which steps are taken


@pytest.fixture
def taken(monkeypatch):
    """How many images each step was computed for."""
    counts = {}

    def counting(name, step, part, *args, images=None):
        counts[name] = counts.get(name, 0) + (images or len(part))
        return step(part, *args)

    for name in ("brightness", "contrast", "saturation", "hue", "greyscale", "blur", "solarize"):
        monkeypatch.setattr(pixels, name, partial(counting, name, getattr(pixels, name)))
    blur_one = pixels.blur_one
    monkeypatch.setattr(pixels, "blur_one", lambda x, s: counting("blur", blur_one, x, s, images=1))
    return counts


@pytest.mark.parametrize("medium", [1, 1000], ids=["image by image", "at once"])
def test_no_step_is_computed_for_images_it_was_not_drawn_for(taken, monkeypatch, medium):
    monkeypatch.setattr(applying, "MEDIUM", medium)
    torch.manual_seed(0)
    draws = draw(VIEW2, 64, 64, 64)
    apply(draws, images(64, height=64, width=64), (64, 64))
    drawn = {name: int(getattr(draws, name).sum()) for name in STEPS}
    jittered = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), drawn["jitter"])
    assert taken == jittered | {name: drawn[name] for name in ("greyscale", "blur", "solarize")}
    assert 0 < taken["blur"] < 20


@pytest.mark.parametrize("recipe", [VIEW1, VIEW2], ids=["view1", "view2"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(63, 63, None), (63, 200, None), (200, 63, None), (128, 128, (32, 32)), (128, 128, (64, 63))],
)
def test_views_below_64_pixels_are_never_blurred(taken, recipe, height, width, size):
    torch.manual_seed(0)
    RandomView(replace(recipe, blur=1.0), size)(images(8, height=height, width=width))
    assert "blur" not in taken
    assert taken["brightness"] > 0


@pytest.mark.parametrize(
    ("height", "width", "size"), [(64, 64, None), (32, 32, (64, 64)), (100, 64, (64, 90))]
)
def test_first_view_is_always_blurred_from_64_pixels_on_and_never_solarized(
    taken, height, width, size
):
    torch.manual_seed(0)
    RandomView(VIEW1, size)(images(16, height=height, width=width))
    assert taken["blur"] == 16
    assert "solarize" not in taken


@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_any_number_of_channels(taken, channels):
    torch.manual_seed(0)
    view1, view2 = Views(None, None, (64, 72), None)(images(16, channels, 80, 60))
    for view in (view1, view2):
        assert view.shape == (16, channels, 64, 72)
        assert 0 <= view.min() < view.max() <= 1
    colour = {"brightness", "contrast", "saturation", "hue", "greyscale"}
    assert colour & taken.keys() == (colour if channels == 3 else set())
    assert taken.keys() >= {"blur", "solarize"}


# Shapes and types


@pytest.mark.parametrize(("size", "expected"), [(None, (40, 56)), ((24, 30), (24, 30))])
def test_views_have_the_given_size_or_that_of_the_images(size, expected):
    view1, view2 = Views(None, None, size, None)(images(2))
    assert view1.shape == view2.shape == (2, 3, *expected)


@pytest.mark.parametrize(
    ("image_size", "expected"), [(20, (20, 20)), ((16, 24), (16, 24)), (None, (40, 56))]
)
def test_learner_s_views_have_its_image_size(image_size, expected):
    learner = BYOL(tiny_net(), image_size, projection_hidden_size=8)
    for view in learner.views(images(3)):
        assert view.shape == (3, 3, *expected)
        assert view.dtype == torch.float32


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8]
)
@pytest.mark.parametrize("autocast", [False, True])
def test_views_are_float32_and_unchanged_by_autocast(dtype, autocast):
    batch = (images(8, height=64, width=64) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    pipeline = Views(None, None, None, normalization(None, None, 3))
    torch.manual_seed(0)
    plain = pipeline(batch.float() / 255 if dtype == torch.uint8 else batch.float())
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = (*pipeline(batch), pipeline.normalized(batch))
    assert all(view.dtype == torch.float32 for view in got)
    assert torch.equal(got[0], plain[0])
    assert torch.equal(got[1], plain[1])


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_views_lie_in_memory_as_the_images_do(side, dtype):
    batch = (255 * images(4, height=side, width=side)).to(dtype)
    pipeline = Views(None, None, None, normalization(None, None, 3))
    made = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        made[layout] = pipeline(batch.contiguous(memory_format=layout))
        assert all(view.is_contiguous(memory_format=layout) for view in made[layout])
    for first, last in zip(*made.values(), strict=True):
        close(first, last, 1e-6)


def test_bytes_are_divided_by_255():
    batch = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    close(as_unit_float(batch), torch.linspace(0, 1, 256).reshape(1, 1, 16, 16), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_images_are_not_modified(dtype):
    batch = (images(32, height=64, width=64) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    before = batch.clone()
    pipeline = Views(None, None, None, normalization(None, None, 3))
    torch.manual_seed(0)
    pipeline(batch)
    pipeline.normalized(batch)
    assert torch.equal(batch, before)


def test_views_of_images_that_need_gradient_have_none():
    view1, view2 = Views(None, None, None, None)(images(4).requires_grad_())
    assert not view1.requires_grad
    assert not view2.requires_grad


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8,), (8, 8, 8), (8.5, 8)])
def test_sizes_that_are_not_pairs_of_positive_integers_are_refused(size):
    with pytest.raises((TypeError, ValueError), match="image_size") as error:
        BYOL(tiny_net(), size)
    assert str(size) in str(error.value)


# Normalisation


def test_imagenet_s_statistics():
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_normalisation_is_imagenet_s_for_three_channels_and_one_half_for_others(channels):
    batch = images(2, channels)
    mean, std = ([0.5] * channels,) * 2
    if channels == 3:
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = TF.normalize(batch, mean, std)
    close(normalization(None, None, channels)(batch), expected, 1e-6)
    close(Views(None, None, None, normalization(None, None, channels)).normalized(batch), expected)


def test_normalisation_comes_last_in_both_views():
    batch = images(8, height=64, width=64)
    torch.manual_seed(0)
    plain = Views(None, None, None, None)(batch)
    torch.manual_seed(0)
    normalized = Views(None, None, None, Normalize((0.1, 0.2, 0.3), (2, 3, 4), 3))(batch)
    for before, after in zip(plain, normalized, strict=True):
        close(after, TF.normalize(before, [0.1, 0.2, 0.3], [2, 3, 4]), 1e-6)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5, 0.5, 0.5), "mean expects one number for each of the 3 channels, got 1"),
        ((0.5,) * 3, (0.5,) * 4, "std expects one number for each of the 3 channels, got 4"),
        ((0.5,) * 3, (0.5, 0.0, 0.5), "std positive"),
        ((0.5,) * 3, (0.5, -1.0, 0.5), "std positive"),
        ((0.5,) * 3, (0.5, math.inf, 0.5), "std positive"),
        ((0.5,) * 3, (0.5, math.nan, 0.5), "std positive"),
        ((0.5, math.nan, 0.5), (0.5,) * 3, "mean must be finite"),
    ],
)
def test_statistics_that_cannot_normalise_are_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalize(mean, std, 3)


@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 3, None), (None, (0.5,) * 3)])
def test_mean_and_std_go_together(mean, std):
    with pytest.raises(ValueError, match="go together"):
        normalization(mean, std, 3)


# Pipelines of the user's own


def tiny_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def learner_with(**kwargs):
    return BYOL(tiny_net(), 16, projection_size=4, projection_hidden_size=8, **kwargs)


def brighter(batch):
    return batch + 0.25


def darker(batch):
    return batch * 0.5


def test_augment_fn_replaces_both_pipelines_and_the_normalisation():
    batch = images(4)
    view1, view2 = learner_with(augment_fn=brighter).views(batch)
    close(view1, batch + 0.25, 0)
    close(view2, batch + 0.25, 0)


def test_augment_fn2_replaces_the_second_pipeline():
    batch = images(4)
    view1, view2 = learner_with(augment_fn=brighter, augment_fn2=darker).views(batch)
    close(view1, batch + 0.25, 0)
    close(view2, batch * 0.5, 0)


def test_augment_fn2_alone_leaves_the_first_pipeline():
    batch = images(4)
    torch.manual_seed(0)
    view1, view2 = learner_with(augment_fn2=darker).views(batch)
    torch.manual_seed(0)
    default = learner_with().views(batch)[0]
    close(view1, default, 0)
    close(view2, TF.normalize(batch * 0.5, [*IMAGENET_MEAN], [*IMAGENET_STD]))


def test_augment_fn_is_normalised_where_statistics_are_given():
    batch = images(4)
    learner = learner_with(augment_fn=brighter, mean=(0.1, 0.2, 0.3), std=(2, 3, 4))
    expected = TF.normalize(batch + 0.25, [0.1, 0.2, 0.3], [2, 3, 4])
    for view in learner.views(batch):
        close(view, expected)


def test_augment_fn_is_fed_float32_in_the_unit_interval():
    seen = []

    def spy(batch):
        seen.append(batch)
        return batch

    batch = (images(4) * 255).to(torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        learner_with(augment_fn=spy).views(batch)
    assert len(seen) == 2
    for got in seen:
        close(got, batch.float() / 255, 1e-7)


def test_augment_fn_without_entries_is_used_all_the_same():
    # An empty Sequential is the identity, and false where its truth is asked for.
    batch = images(4)
    for learner in (
        learner_with(augment_fn=nn.Sequential()),
        learner_with(augment_fn=brighter, augment_fn2=nn.Sequential()),
    ):
        close(learner.views(batch)[1], batch, 0)


def test_augment_fn_that_works_in_place_spoils_neither_the_images_nor_the_other_view():
    batch = images(4)
    before = batch.clone()
    learner = learner_with(augment_fn=lambda x: x.mul_(0.5), augment_fn2=brighter)
    view1, view2 = learner.views(batch)
    close(view1, before * 0.5, 0)
    close(view2, before + 0.25, 0)
    assert torch.equal(batch, before)


def test_augment_module_and_views_are_no_part_of_the_learner_s_state():
    class Augment(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("offset", torch.ones(1))

        def forward(self, batch):
            return batch * self.weight + self.offset

    augment = Augment()
    plain = learner_with()
    learner = learner_with(augment_fn=augment)
    plain(images(4))
    learner(images(4))
    roots = {key.partition(".")[0] for key in plain.state_dict()}
    assert roots == {"online", "predictor", "target", "step", "fed"}
    assert learner.state_dict().keys() == plain.state_dict().keys()
    assert augment not in set(learner.modules())
    assert not {id(p) for p in learner.parameters()} & {id(augment.weight)}
    assert augment.training


@pytest.mark.parametrize(
    ("junk", "got"),
    [
        (lambda batch: None, "NoneType"),
        (lambda batch: (batch, batch), "tuple"),
        (lambda batch: batch.numpy(), "ndarray"),
        (lambda batch: batch[:-1], r"\(3, 3, 40, 56\)"),
        (lambda batch: batch.sum(), r"\(\)"),
    ],
)
@pytest.mark.parametrize("name", ["augment_fn", "augment_fn2"])
def test_augment_fn_that_returns_something_else_is_refused(name, junk, got):
    learner = learner_with(**{"augment_fn": brighter, name: junk})
    with pytest.raises(
        ValueError, match=f"should return a view of each of the 4 images, got {got}"
    ):
        learner(images(4))


@pytest.mark.parametrize("name", ["augment_fn", "augment_fn2"])
def test_augment_fn_that_cannot_be_called_is_refused(name):
    with pytest.raises(TypeError, match=f"{name} should be callable, got list"):
        learner_with(**{name: [brighter]})


# A recipe of one's own


def test_a_random_view_takes_a_side_or_a_pair():
    images = torch.rand(2, 3, 40, 40)
    for size, shape in ((32, (32, 32)), ((24, 32), (24, 32)), (None, (40, 40))):
        assert RandomView(VIEW1, size)(images).shape == (2, 3, *shape)
    with pytest.raises(ValueError, match="image_size should be a positive"):
        RandomView(VIEW1, 0)


def test_views_of_an_own_recipe_are_normalised_as_the_default_ones():
    still = Recipe(crop_area=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, greyscale=0)
    images = torch.rand(4, 3, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    net = torch.nn.Conv2d(3, 8, 3)
    learner = BYOL(net, 32, augment_fn=RandomView(still), projection_hidden_size=8)
    for view in learner.views(images):
        torch.testing.assert_close(view, (images - mean) / std)
    learner = BYOL(net, 32, augment_fn=RandomView(still), mean=(0, 0, 0), std=(1, 1, 1))
    for view in learner.views(images):
        torch.testing.assert_close(view, images)
