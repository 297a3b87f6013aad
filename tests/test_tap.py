"""Finding the representation of a net, and reading it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from nets import Function, Tokens, conv_net
from torch import Tensor, nn
from torchvision import models

from byol_wrap import BYOL

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def wrap(net: nn.Module, image_size: int | None = 32, **kwargs: Any) -> BYOL:
    return BYOL(net, image_size, **SMALL, **kwargs)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # older torchvision
@pytest.mark.parametrize(
    ("name", "image_size", "layer", "size"),
    [
        ("resnet18", 32, "fc", 512),
        ("vgg11", 32, "classifier.6", 4096),
        ("densenet121", 32, "classifier", 1024),
        ("efficientnet_b0", 32, "classifier.1", 1280),
        ("mobilenet_v3_small", 32, "classifier.3", 1024),
        ("convnext_tiny", 32, "classifier.2", 768),
        ("swin_t", 32, "head", 768),
        ("vit_b_32", 32, "heads.head", 768),
        ("regnet_y_400mf", 32, "fc", 440),
        ("maxvit_t", 224, "classifier.5", 512),
        ("googlenet", 64, "fc", 1024),
    ],
)
def test_finds_what_the_classifier_of_a_torchvision_net_reads(
    name: str, image_size: int, layer: str, size: int
) -> None:
    extra: dict[str, Any] = {"image_size": 32} if name.startswith("vit") else {}
    extra |= {"init_weights": False} if name == "googlenet" else {}
    net = models.get_model(name, weights=None, **extra)
    learner = wrap(net, image_size)
    found = learner.representation
    assert found is not None
    assert (found.layer, found.side, found.size) == (layer, "input", size)

    # The oracle: the classifier's input, caught by a hook of our own.
    net.eval()
    seen: list[Tensor] = []
    images = torch.rand(2, 3, image_size, image_size)
    net.get_submodule(layer).register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        net(learner._views.normalized(images))
    torch.testing.assert_close(learner.embed(images), seen[0])


def test_takes_the_output_of_a_net_without_a_classifier() -> None:
    found = wrap(conv_net(width=6)).representation
    assert found is not None
    assert (found.layer, found.side, found.pool, found.size) == ("", "output", "none", 6)


def test_takes_the_output_where_nothing_can_be_trained_before_the_last_linear() -> None:
    with pytest.warns(UserWarning, match="5 numbers hardly tell"):
        found = wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))).representation
    assert found is not None
    assert (found.layer, found.size) == ("", 5)


def test_a_linear_that_is_changed_after_it_is_no_classifier() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(self.body(x)).relu_()

    found = wrap(Function(forward, body=conv_net(6), fc=nn.Linear(6, 5))).representation
    assert found is not None
    assert (found.layer, found.size) == ("", 5)


def test_a_view_of_the_last_linear_is_still_the_classifier() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(self.body(x)).view(len(x), 5, 1)

    found = wrap(Function(forward, body=conv_net(6), fc=nn.Linear(6, 5))).representation
    assert found is not None
    assert (found.layer, found.side, found.size) == ("fc", "input", 6)


def test_a_convolution_of_a_single_pixel_is_a_classifier_too() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(self.body(x)[:, :, None, None]).flatten(1)

    net = Function(forward, body=conv_net(6), fc=nn.Conv2d(6, 5, 1))
    found = wrap(net).representation
    assert found is not None
    assert (found.layer, found.side, found.size) == ("fc", "input", 6)
    images = torch.rand(2, 3, 32, 32)
    learner = wrap(net).eval()
    expected = net.body(learner._views.normalized(images))
    torch.testing.assert_close(learner.embed(images), expected)


def test_a_map_of_few_numbers_is_told() -> None:
    net = nn.Sequential(*list(conv_net(6))[:6], nn.Conv2d(6, 5, 1))
    with pytest.warns(UserWarning, match="layer '6' gives 5 numbers for each place"):
        found = wrap(net).representation
    assert found is not None
    assert (found.layer, found.side, found.pool, found.size) == ("", "output", "mean", 5)


@pytest.mark.parametrize("how", ["mean", "stack", "residual", "maximum", "changed"])
def test_the_mean_of_classifiers_is_read_at_what_they_share(how: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.body(x)
        if how == "maximum":
            tokens = torch.stack([x, 2 * x], dim=1)
            return self.one(x) + 0.5 * self.two(tokens).max(1)[0]
        one, two = self.one(x), self.two(x * 2)
        if how == "residual":
            return (one + two + x) / 3
        if how == "changed":
            return (one + two.relu_()) / 2
        return torch.stack([one, two]).mean(0) if how == "stack" else (one + two) / 2

    net = Function(forward, body=conv_net(6), one=nn.Linear(6, 6), two=nn.Linear(6, 6))
    found = wrap(net).representation
    assert found is not None
    expected = ("", "output") if how in ("residual", "changed") else ("body", "output")
    assert (found.layer, found.side) == expected


def test_a_classifier_called_by_keyword_is_found_and_read() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(input=self.body(x))

    learner = wrap(Function(forward, body=conv_net(6), fc=nn.Linear(6, 5)))
    assert learner.representation is not None
    assert learner.representation.layer == "fc"
    assert learner.embed(torch.rand(2, 3, 32, 32)).shape == (2, 6)


def test_a_name_an_index_and_an_empty_name_choose_a_layer() -> None:
    net = conv_net(width=6, classes=5)
    images = torch.rand(2, 3, 32, 32)
    for choice, layer, size in (("3", "3", 6), (-2, "7", 6), (8, "8", 5), ("", "", 5)):
        learner = wrap(net, hidden_layer=choice)
        assert learner.representation is not None
        assert (learner.representation.layer, learner.representation.size) == (layer, size)
    learner = wrap(net, hidden_layer="3")
    net.eval()
    expected = net[:4](learner._views.normalized(images)).mean((2, 3))
    torch.testing.assert_close(learner.embed(images), expected.detach())


@dataclass
class Output:
    extra: None
    logits: Tensor


@pytest.mark.parametrize(
    "pack",
    [
        lambda y: (y, y[:, :1]),
        lambda y: {"aux": y[:, :1], "out": y},
        lambda y: [y[:, :1], y],
        lambda y: Output(None, y),
        lambda y: {"hidden": (y[:, :1],), "last_hidden_state": y},
    ],
    ids=["tuple", "dict", "list", "dataclass", "hidden-states"],
)
def test_understands_structured_outputs(pack: Any) -> None:
    net = Function(lambda self, x: pack(self.body(x)), body=conv_net(6))
    learner = wrap(net)
    assert learner.representation is not None
    assert learner.representation.size == 6
    learner(torch.rand(4, 3, 32, 32)).backward()
    assert net.body[0].weight.grad.abs().sum() > 0


def test_pools_maps_by_their_mean_in_both_layouts() -> None:
    net = conv_net(6)[:6]
    last = Function(lambda self, x: self.body(x).permute(0, 2, 3, 1), body=net)
    images = torch.rand(2, 3, 32, 48)
    first, second = wrap(net, (32, 48)), wrap(last, (32, 48))
    assert second.representation is not None
    assert second.representation.channels_last
    torch.testing.assert_close(first.embed(images), second.embed(images))
    assert first.embed(images).shape == (2, 6)


@pytest.mark.parametrize("class_token", [True, False])
def test_pools_tokens_by_class_token_or_mean(class_token: bool) -> None:
    net = Tokens(class_token)
    images = torch.rand(2, 3, 32, 32)
    learner = wrap(net)
    tokens = net(learner._views.normalized(images))
    expected = tokens[:, 0] if class_token else tokens.mean(1)
    torch.testing.assert_close(learner.embed(images), expected.detach())


@pytest.mark.parametrize(
    ("pool", "oracle"),
    [
        ("mean", lambda x: x.mean((2, 3))),
        ("max", lambda x: x.amax((2, 3))),
        ("flatten", lambda x: x.flatten(1)),
        (lambda x: x[:, :, 0, 0], lambda x: x[:, :, 0, 0]),
    ],
)
def test_pool_overrides(pool: Any, oracle: Any) -> None:
    net = conv_net(6)[:6]
    learner = wrap(net, pool=pool)
    images = torch.rand(2, 3, 32, 32)
    net.eval()
    expected = oracle(net(learner._views.normalized(images)))
    torch.testing.assert_close(learner.embed(images), expected.detach())


def test_mean_and_max_of_tokens_override_the_class_token() -> None:
    net = Tokens(class_token=True)
    images = torch.rand(2, 3, 32, 32)
    for pool, oracle in (("mean", lambda x: x.mean(1)), ("max", lambda x: x.amax(1))):
        learner = wrap(net, pool=pool)
        expected = oracle(net(learner._views.normalized(images)))
        torch.testing.assert_close(learner.embed(images), expected.detach())


def test_layers_behind_the_representation_are_not_run() -> None:
    calls: list[int] = []
    net = conv_net(6, classes=5)
    learner = wrap(net, hidden_layer="3")
    net[6].register_forward_hook(lambda *_: calls.append(1))
    learner(torch.rand(2, 3, 32, 32))
    assert not calls


def test_a_net_that_catches_exceptions_does_not_swallow_the_tap() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        features = self.body(x)
        try:
            return self.fc(features)
        except Exception:
            return self.other(features)

    net = Function(forward, body=conv_net(6), fc=nn.Linear(6, 5), other=nn.Linear(6, 4))
    assert wrap(net).embed(torch.rand(2, 3, 32, 32)).shape == (2, 6)


class Loop(nn.Module):
    """Runs its layer as often as it is told."""

    def __init__(self, times: int, detach: bool = False) -> None:
        super().__init__()
        self.first, self.again = conv_net(6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)
        self.times, self.detach = times, detach

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(self.times):
            x = self.again(x)
        return self.last(x.detach() if self.detach else x).tanh()


@pytest.mark.parametrize(
    ("net", "kwargs", "message"),
    [
        (Loop(0), {"hidden_layer": "again"}, "never reached"),
        (Loop(2), {"hidden_layer": "again"}, "reached 2 times"),
        (
            Function(lambda self, x: self.body(x).detach(), body=conv_net(6)),
            {},
            "No gradient flows",
        ),
        (
            Function(lambda self, x: self.body(x).argmax(1), body=conv_net(6)),
            {},
            "no tensor of floats",
        ),
        (Function(lambda self, x: "text", body=conv_net(6)), {}, "no tensor of floats"),
        (
            Function(lambda self, x: self.body(x).mean(0), body=conv_net(6)),
            {},
            "one entry for each",
        ),
        (conv_net(6), {"pool": lambda x: x.sum()}, "should turn"),
        (conv_net(6)[:6], {"pool": "class_token"}, "needs tokens"),
        (
            conv_net(6),
            {"image_size": 9999999, "hidden_layer": "nothing"},
            "no layer named 'nothing'",
        ),
        (
            Function(lambda self, x: self.body(x) @ torch.ones(7, 1), body=conv_net(6)),
            {},
            "cannot take a batch of shape",
        ),
    ],
)
def test_a_layer_that_cannot_represent_an_image_is_an_error_that_says_why(
    net: nn.Module, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        wrap(net, **kwargs)


def test_pool_must_return_a_tensor() -> None:
    with pytest.raises(TypeError, match="pool should return a tensor"):
        wrap(conv_net(6), pool=lambda x: None)


def test_a_layer_that_is_skipped_later_is_an_error_and_leaves_no_hook() -> None:
    net = Loop(1)
    learner = wrap(net, hidden_layer="again")
    net.times = 0
    with pytest.raises(RuntimeError, match="was not reached"):
        learner(torch.rand(2, 3, 32, 32))
    assert not net.again._forward_hooks


def test_a_frozen_net_is_an_error_in_training_only() -> None:
    net = conv_net(6, classes=5).requires_grad_(False)
    learner = wrap(net)
    with pytest.raises(RuntimeError, match="No gradient flows"):
        learner(torch.rand(2, 3, 32, 32))
    learner.eval()(torch.rand(2, 3, 32, 32))
    net[3].requires_grad_(True)
    learner.train()(torch.rand(2, 3, 32, 32)).backward()
    assert net[3].weight.grad is not None


def test_a_partly_frozen_net_trains_the_rest() -> None:
    net = conv_net(6, classes=5)
    net[0].requires_grad_(False)
    wrap(net)(torch.rand(2, 3, 32, 32)).backward()
    assert net[0].weight.grad is None
    assert net[3].weight.grad is not None
    assert not net[0].weight.requires_grad


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # the target's
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_trains_or_says_why_not(use_reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    def forward(self: Any, x: Tensor) -> Tensor:
        features = self.stem(x)
        return self.fc(checkpoint(self.body, features, use_reentrant=use_reentrant))

    def build() -> Function:
        torch.manual_seed(0)
        return Function(forward, stem=conv_net(6)[:3], body=conv_net(6)[3:], fc=nn.Linear(6, 2))

    views = torch.rand(2, 4, 3, 32, 32)
    learner = wrap(build())
    hidden = [n for n in learner._ddp_params_and_buffers_to_ignore if ".body." in n]
    assert not hidden  # their gradients must be shared between processes
    learner(*views).backward()
    plain = build()
    plain.function = lambda self, x: self.fc(self.body(self.stem(x)))
    reference = wrap(plain)
    reference.load_state_dict(learner.state_dict())
    reference(*views).backward()
    for name, parameter in reference.net.named_parameters():
        if not name.startswith("fc"):
            other = learner.net.get_parameter(name).grad
            torch.testing.assert_close(other, parameter.grad)
    if use_reentrant:
        with pytest.raises(ValueError, match="No gradient flows"):
            wrap(build(), hidden_layer="body.3")
