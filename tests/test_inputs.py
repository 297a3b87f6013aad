"""What a learner takes, and the error for what it does not, before anything is changed."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from byol_wrap import BYOL
from byol_wrap.data import Item


def small_net(channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def small_learner(channels=3, **kwargs):
    torch.manual_seed(0)
    arguments = {"image_size": 16, "projection_size": 8, "projection_hidden_size": 16, **kwargs}
    return BYOL(small_net(channels), **arguments)


@pytest.fixture
def learner():
    return small_learner()


def images(*shape, seed=0):
    return torch.rand(shape or (4, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


def spoiled(value):
    batch = images()
    batch[2, 1, 5, 7] = value
    return batch


def snapshot(learner):
    """All that a call which is refused must leave alone."""
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    return state, [module.training for module in learner.modules()], torch.get_rng_state()


def assert_refused(learner, call, error, *parts):
    """``call`` raises ``error``, naming all ``parts``, and leaves no trace on the learner."""
    state, flags, generator = snapshot(learner)
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for part in parts:
        assert part in str(caught.value)
    new_state, new_flags, new_generator = snapshot(learner)
    assert new_state.keys() == state.keys()
    assert all(torch.equal(new_state[name], value) for name, value in state.items())
    assert new_flags == flags
    assert torch.equal(new_generator, generator)
    assert all(parameter.grad is None for parameter in learner.parameters())


# Images

CALLS = {
    "forward": lambda learner, batch: learner(batch),
    "embed": lambda learner, batch: learner.embed(batch),
    "views": lambda learner, batch: learner.views(batch),
    "projection": lambda learner, batch: learner(batch, return_embedding=True),
    "embedding": lambda learner, batch: learner(
        batch, return_embedding=True, return_projection=False
    ),
}
WRONG_IMAGES = {
    "NaN": (spoiled(math.nan), ValueError, ["images holds NaN", "1 of 3072"]),
    "infinity": (spoiled(math.inf), ValueError, ["images holds infinity", "1 of 3072"]),
    "minus infinity": (spoiled(-math.inf), ValueError, ["images holds infinity", "1 of 3072"]),
    "half NaN": (spoiled(math.nan).half(), ValueError, ["images holds NaN"]),
    "int64": (images().long(), TypeError, ["uint8 in [0, 255] or floats in [0, 1]", "int64"]),
    "bool": (images() > 0.5, TypeError, ["uint8 in [0, 255] or floats in [0, 1]", "bool"]),
    "complex": (images() + 0j, TypeError, ["uint8 in [0, 255] or floats", "complex64"]),
    "list": ([images(), torch.zeros(4)], TypeError, ["should be a tensor", "got list"]),
    "array": (images().numpy(), TypeError, ["should be a tensor", "got ndarray"]),
    "number": (torch.tensor(0.5), ValueError, ["is empty", "()"]),
    "rank 3": (images(3, 16, 16), ValueError, ["(B, C, H, W)", "(3, 16, 16)", "images[None]"]),
    "rank 5": (images(2, 3, 4, 16, 16), ValueError, ["(B, C, H, W)", "(2, 3, 4, 16, 16)"]),
    "one channel": (images(4, 1, 16, 16), ValueError, ["3 channels", "got 1", "channels="]),
    "channels last": (images(4, 16, 16, 3), ValueError, ["3 channels", "got 16", "permute"]),
    "low": (images(4, 3, 4, 16), ValueError, ["at least 8 pixels", "4 x 16", "resize"]),
    "narrow": (images(4, 3, 16, 7), ValueError, ["at least 8 pixels", "16 x 7"]),
    "empty": (images(0, 3, 16, 16), ValueError, ["images is empty", "(0, 3, 16, 16)"]),
    "meta": (images().to("meta"), ValueError, ["images is on meta", "net is on cpu", "move"]),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", WRONG_IMAGES)
@pytest.mark.parametrize("call", CALLS)
def test_wrong_images_are_refused_by_name_and_change_nothing(learner, call, kind, training):
    learner.train(training)
    learner.net[1].eval()  # a flag of its own, which has to stay
    batch, error, parts = WRONG_IMAGES[kind]
    assert_refused(learner, lambda: CALLS[call](learner, batch), error, *parts)


@pytest.mark.parametrize("kind", WRONG_IMAGES)
def test_wrong_first_images_do_not_size_the_heads(kind):
    learner = small_learner(image_size=None)
    batch, error, _ = WRONG_IMAGES[kind]
    with pytest.raises(error):
        learner(batch)
    assert learner.representation is None
    learner(images(4, 3, 24, 24))
    assert learner.representation.size == 4


@pytest.mark.parametrize("call", ["forward", "projection"])
def test_batch_of_one_is_refused_in_training(learner, call):
    assert_refused(
        learner,
        lambda: CALLS[call](learner, images(1, 3, 16, 16)),
        ValueError,
        "batch of one",
        "at least 2",
    )


def test_pair_of_one_is_refused_in_training(learner):
    one = images(1, 3, 16, 16)
    assert_refused(learner, lambda: learner(one, one), ValueError, "batch of one")


def test_batch_of_one_is_fine_where_nothing_is_trained(learner):
    one = images(1, 3, 16, 16)
    assert learner.training
    assert learner.embed(one).shape == (1, 4)
    assert [view.shape for view in learner.views(one)] == [one.shape] * 2
    assert learner(one, return_embedding=True, return_projection=False).shape == (1, 4)
    learner.eval()
    assert 0 <= learner(one).item() <= 8
    assert 0 <= learner(one, one).item() <= 8
    assert learner(one, return_embedding=True)[0].shape == (1, 8)


@pytest.mark.parametrize("size", [8, (8, 40)])
def test_smallest_images_are_taken(learner, size):
    height, width = (size, size) if isinstance(size, int) else size
    assert learner(images(4, 3, height, width)).isfinite()


# Pairs of views

WRONG_PAIRS = {
    "NaN in view 1": (spoiled(math.nan), images(), ValueError, ["view1 holds NaN"]),
    "NaN in view 2": (images(), spoiled(math.nan), ValueError, ["view2 holds NaN", "1 of 3072"]),
    "infinity in view 2": (images(), spoiled(math.inf), ValueError, ["view2 holds infinity"]),
    "lengths": (
        images(),
        images(3, 3, 16, 16),
        ValueError,
        ["same items", "(4, 3, 16, 16)", "(3, 3, 16, 16)"],
    ),
    "list": ([images()], images(), TypeError, ["view1 should be a tensor", "got list"]),
    "float labels": (images(), torch.rand(4), ValueError, ["looks like labels", "(4,)"]),
    "labels": (images(), [0, 1, 2, 3], TypeError, ["view2 should be a tensor", "got list"]),
    "empty": (images(0, 3, 16, 16),) * 2 + (ValueError, ["view1 is empty"]),
    "device of view 1": (
        images().to("meta"),
        images(),
        ValueError,
        ["view1 is on meta", "net is on cpu"],
    ),
    "device of view 2": (
        images(),
        images().to("meta"),
        ValueError,
        ["view2 is on meta", "net is on cpu"],
    ),
}


@pytest.mark.parametrize("kind", WRONG_PAIRS)
def test_wrong_pairs_are_refused_by_name_and_change_nothing(learner, kind):
    view1, view2, error, parts = WRONG_PAIRS[kind]
    assert_refused(learner, lambda: learner(view1, view2), error, *parts)


def test_second_view_does_not_go_with_return_embedding(learner):
    assert_refused(
        learner,
        lambda: learner(images(), images(), return_embedding=True),
        ValueError,
        "images alone",
    )


# Values


@pytest.mark.parametrize(
    ("batch", "guess"),
    [
        ((images() - 0.45) / 0.22, "normalised already"),
        (images() * 255, r"\[0, 255\]"),
        (images().double() * 255, r"\[0, 255\]"),
        (images().bfloat16() * 255, r"\[0, 255\]"),
    ],
    ids=["normalised", "float32", "float64", "bfloat16"],
)
@pytest.mark.parametrize("call", CALLS)
def test_floats_far_outside_the_unit_interval_warn_once(learner, call, batch, guess):
    with pytest.warns(UserWarning, match=guess) as caught:
        CALLS[call](learner, batch)
    assert len(caught) == 1
    for again in CALLS.values():  # a second warning would be an error
        again(learner, batch)
    low, high = batch.aminmax()
    assert f"from {low.item():.3g} to {high.item():.3g}" in str(caught[0].message)


def test_each_learner_warns_for_itself():
    for _ in range(2):
        with pytest.warns(UserWarning, match="floats in"):
            small_learner()(images() * 255)


def test_warning_comes_with_the_first_far_batch_even_if_late(learner):
    for _ in range(3):
        learner(images())
    with pytest.warns(UserWarning, match="floats in"):
        learner(images() * 255)


def overshooting():
    """Images as bicubic resizing leaves them: a few values are a little outside [0, 1]."""
    batch = images()
    batch[:, :, 0, 0] = -0.2
    batch[:, :, 1, 1] = 1.1
    return batch


@pytest.mark.parametrize(
    "batch",
    [
        (images() * 255).to(torch.uint8),
        images(),
        overshooting(),
        images(4, 3, 16, 16).zero_(),
    ],
    ids=["uint8", "unit", "overshoot", "black"],
)
def test_images_in_range_do_not_warn(learner, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in CALLS.values():
            call(learner, batch)


def test_views_of_the_user_s_own_may_have_any_range(learner):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner(images() * 50 - 25, images() * 50 - 25)


def test_every_batch_on_the_cpu_is_checked(learner):
    for _ in range(25):
        learner.embed(images())
    for call in CALLS.values():
        with pytest.raises(ValueError, match="NaN"):
            call(learner, spoiled(math.nan))
    with pytest.raises(ValueError, match="view2 holds NaN"):
        learner(images(), spoiled(math.nan))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(2, 6),
    channels=st.integers(1, 5),
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    dtype=st.sampled_from(
        [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
    ),
    image_size=st.sampled_from([None, 16, (9, 20)]),
    constant=st.booleans(),
)
def test_valid_images_of_any_kind_give_a_loss_in_range(
    batch, channels, height, width, dtype, image_size, constant
):
    learner = small_learner(channels, image_size=image_size)
    pixels = images(batch, channels, height, width)
    pixels = torch.full_like(pixels, 0.5) if constant else pixels
    pixels = (pixels * (255 if dtype == torch.uint8 else 1)).to(dtype)
    before = pixels.clone()
    loss = learner(pixels)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert -1e-5 <= loss.item() <= 8 + 1e-5
    loss.backward()
    gradients = [p.grad for p in learner.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(pixels, before)


# Arguments of the constructor

WRONG_ARGUMENTS = {
    "image_size 0": ({"image_size": 0}, ValueError, ["image_size", "positive", "0"]),
    "image_size -3": ({"image_size": -3}, ValueError, ["image_size", "positive", "-3"]),
    "image_size triple": ({"image_size": (1, 2, 3)}, ValueError, ["image_size", "(1, 2, 3)"]),
    "image_size (8, 0)": ({"image_size": (8, 0)}, ValueError, ["image_size", "(8, 0)"]),
    "image_size (8.0, 8)": ({"image_size": (8.0, 8)}, ValueError, ["image_size", "(8.0, 8)"]),
    "projection_size": ({"projection_size": 0}, ValueError, ["positive integer", "0"]),
    "projection_size 2.5": ({"projection_size": 2.5}, ValueError, ["positive integer", "2.5"]),
    "hidden size": ({"projection_hidden_size": -4}, ValueError, ["positive integer", "-4"]),
    "decay 1.1": ({"moving_average_decay": 1.1}, ValueError, ["[0, 1]", "1.1"]),
    "decay -0.1": ({"moving_average_decay": -0.1}, ValueError, ["[0, 1]", "-0.1"]),
    "decay NaN": ({"moving_average_decay": math.nan}, ValueError, ["[0, 1]", "nan"]),
    "total_steps 0": ({"total_steps": 0}, ValueError, ["total_steps", ">= 1", "0"]),
    "total_steps -5": ({"total_steps": -5}, ValueError, ["total_steps", ">= 1", "-5"]),
    "mean alone": ({"mean": (0.5,) * 3}, ValueError, ["mean and std go together"]),
    "std alone": ({"std": (0.5,) * 3}, ValueError, ["mean and std go together"]),
    "mean alone with augment_fn": (
        {"mean": (0.5,) * 3, "augment_fn": torch.relu},
        ValueError,
        ["mean and std go together"],
    ),
    "length of mean": (
        {"mean": (0.5,), "std": (0.5,)},
        ValueError,
        ["mean expects one number for each of the 3 channels", "got 1"],
    ),
    "length of std": (
        {"mean": (0.5,) * 3, "std": (0.5,) * 2},
        ValueError,
        ["std expects one number for each of the 3 channels", "got 2"],
    ),
    "std 0": ({"mean": (0.5,) * 3, "std": (0.5, 0, 0.5)}, ValueError, ["std positive"]),
    "augment_fn": ({"augment_fn": 3}, TypeError, ["augment_fn should be callable", "int"]),
    "augment_fn2": ({"augment_fn2": "flip"}, TypeError, ["augment_fn2 should be callable", "str"]),
    "pool": ({"pool": "median"}, ValueError, ["mean, max, class_token, flatten", "'median'"]),
    "layer name": ({"hidden_layer": "avgpol"}, ValueError, ["'avgpol'", "Closest: avgpool"]),
    "layer index": (
        {"hidden_layer": 7},
        ValueError,
        ["hidden_layer=7", "out of range", "6 children"],
    ),
    "negative index": ({"hidden_layer": -7}, ValueError, ["hidden_layer=-7", "out of range"]),
    "layer type": ({"hidden_layer": 2.5}, TypeError, ["dotted name", "index", "float"]),
    "layer bool": ({"hidden_layer": True}, TypeError, ["dotted name", "index", "bool"]),
}


def named_net():
    net = nn.Sequential()
    for name, layer in zip(
        ("conv", "norm", "relu", "avgpool", "flatten"), small_net(), strict=True
    ):
        net.add_module(name, layer)
    net.add_module("drop", nn.Dropout(0.5))
    net.norm.eval()
    return net


@pytest.mark.parametrize("image_size", [16, None])  # None: not only at the first batch
@pytest.mark.parametrize("kind", WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused_by_name_and_change_nothing(kind, image_size):
    torch.manual_seed(0)
    net = named_net()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    generator = torch.get_rng_state()
    arguments, error, parts = WRONG_ARGUMENTS[kind]
    with pytest.raises(error) as caught:
        BYOL(net, **{"image_size": image_size, "projection_hidden_size": 8, **arguments})
    for part in parts:
        assert part in str(caught.value)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == flags
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("size", [2.5, 16.0, "16", [16], {16: 16}])
def test_image_size_of_another_type_is_refused_by_name(size):
    with pytest.raises((TypeError, ValueError), match="image_size") as caught:
        BYOL(small_net(), size)
    assert str(size) in str(caught.value)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (small_net, "got function; if it makes one, call it: small_net()"),
        (nn.Sequential, "got type; if it makes one, call it: Sequential()"),
        ("resnet18", "got str; make the net first: torchvision.models.get_model('resnet18')"),
        (small_net().state_dict(), "got OrderedDict; load the weights into a net first"),
        (None, "got NoneType."),
    ],
    ids=["function", "class", "string", "weights", "nothing"],
)
def test_net_that_is_no_module_is_refused(net, message):
    with pytest.raises(TypeError, match=re.escape(f"should be an nn.Module, {message}")):
        BYOL(net, 16)


def picture():
    return Image.new("RGB", (16, 16))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 16, 16, 3)), "with channels first: torch.as_tensor(images).permute(0, 3"),
        (np.zeros((2, 3, 16, 16)), "convert it, torch.as_tensor(...)"),
        ([picture(), picture()], "pil_to_tensor(image) for image in images]"),
        (picture(), "pil_to_tensor(image) for image in images]"),
        ([np.zeros((16, 16, 3))], "give one tensor (B, C, H, W), or a list of tensors"),
        ({"pixel_values": torch.rand(2, 3, 16, 16)}, "one of its entries, which are pixel_values"),
        (DataLoader(torch.rand(4, 3, 16, 16)), "for images in loader: learner(images)"),
        (TensorDataset(torch.rand(4, 3, 16, 16)), "for images in loader: learner(images)"),
        ([torch.rand(2, 3, 16, 16), torch.arange(2)], "for images, labels in loader"),
        (Item(torch.rand(2, 3, 16, 16), 0, []), "give its images: learner(batch.image)"),
        ([], "give one tensor (B, C, H, W)"),
    ],
)
def test_what_is_no_tensor_is_refused_by_what_it_is(images, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        BYOL(small_net(), 16, projection_hidden_size=8)(images)


def test_net_wrapped_in_data_parallel_is_refused():
    with pytest.raises(TypeError, match=re.escape("wrap the plain net, BYOL(net.module)")):
        BYOL(nn.DataParallel(small_net()), 16)


def test_a_learner_is_no_net():
    with pytest.raises(TypeError, match=re.escape("BYOL(learner.net)")):
        BYOL(BYOL(small_net(), 16), 16)


def test_net_compiled_from_outside_is_refused():
    with pytest.raises(TypeError, match=re.escape("torch.compile(BYOL(net))")):
        BYOL(torch.compile(small_net(), backend="eager"), 16)


@pytest.mark.parametrize("part", ["the net", "a child"])
def test_net_compiled_in_place_is_refused(part):
    net = small_net()
    (net if part == "the net" else net[0]).compile(backend="eager")
    with pytest.raises(TypeError, match="compiled already"):
        BYOL(net, 16)


@pytest.mark.parametrize("layer", [nn.LazyLinear(4), nn.LazyBatchNorm2d()])
def test_net_with_lazy_layers_is_refused(layer):
    with pytest.raises(TypeError, match="run one batch through it"):
        BYOL(nn.Sequential(nn.Conv2d(3, 4, 3), layer), 16)


PARTS = {
    "the online network": lambda learner: learner.online,
    "the target": lambda learner: learner.target,
    "the target in a net": lambda learner: nn.Sequential(nn.Identity(), learner.target),
    "a net that holds the learner": lambda learner: nn.ModuleList([learner]),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_network_of_a_learner_is_refused(part):
    learner = BYOL(small_net(), 16)
    with pytest.raises(TypeError, match=r"wrap the backbone itself, BYOL\(learner.net\)"):
        BYOL(PARTS[part](learner), 16)


def test_net_without_parameters_is_refused():
    with pytest.raises(ValueError, match="Flatten has no parameter to train"):
        BYOL(nn.Flatten(), 16)


def test_net_that_cannot_take_the_images_says_so():
    with pytest.raises(ValueError, match="Do image_size and channels suit it") as caught:
        BYOL(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), 16)
    assert "(2, 3, 16, 16)" in str(caught.value)


def test_a_pair_of_bytes_is_refused_unless_the_net_takes_bytes():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            return self.net(x.float() / 255)

    pair = (torch.rand(2, 4, 3, 16, 16) * 255).byte()
    for image_size in (16, None):
        learner = small_learner(image_size=image_size)
        with pytest.raises(TypeError, match="are uint8, and two views are fed as they are"):
            learner(*pair)
        learner(*pair.float()).backward()
    BYOL(Frames(), 16, projection_size=8, projection_hidden_size=16)(*pair).backward()
