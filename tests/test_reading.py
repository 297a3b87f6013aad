"""What represents an image, in nets of every kind: the oracle is a hook set by hand."""

import copy
import re
import warnings
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Function, block, conv_net, encoder
from oracles import IMAGE, Oracle, check, mean, same, wrap
from torch import Tensor, nn

from byol_wrap import BYOL, SimCLR, representation_candidates

# Behind the classifier


def with_fc(forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> nn.Module:
    return Function(forward, body=conv_net(12), **{"fc": nn.Linear(12, 3), **layers})


def normalised_scores(net: Any, x: Tensor) -> Tensor:
    return net.scale * F.normalize(net.fc(net.body(x)), dim=1)


def scaled() -> nn.Module:
    net = with_fc(normalised_scores)
    net.scale = nn.Parameter(torch.ones(()))
    return net


def two_heads(net: Any, x: Tensor) -> dict[str, Tensor]:
    features = net.body(x)
    return {"age": F.softplus(net.age(features)), "kind": net.fc(features).log_softmax(1)}


SQUASHED = {
    "tanh": lambda: with_fc(lambda net, x: net.fc(net.body(x)).tanh()),
    "softmax of a temperature": lambda: with_fc(
        lambda net, x: (net.fc(net.body(x)) / 0.1).softmax(1)
    ),
    "a scale that is learned": scaled,
    "heads in a dict": lambda: with_fc(two_heads, age=nn.Linear(12, 1)),
    "both, squashed and not": lambda: with_fc(
        lambda net, x: (lambda y: (y.sigmoid(), y))(net.fc(net.body(x)))
    ),
    "folded": lambda: with_fc(lambda net, x: net.fc(net.body(x)).view(-1, 1, 3).clamp(-1, 1)),
}


@pytest.mark.parametrize("name", SQUASHED)
def test_what_only_squashes_or_reshapes_is_not_the_representation(name: str) -> None:
    check(SQUASHED[name](), IMAGE, ("fc", "input", same))


def by_convolution(*behind: nn.Module, classes: int = 20) -> Callable[[], nn.Module]:
    """Scores of places that are then averaged."""
    return lambda: nn.Sequential(
        encoder(), nn.Conv2d(16, classes, 1), *behind, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], Oracle]] = {
    "ReLU, as in SqueezeNet": (by_convolution(nn.ReLU()), ("1", "input", mean)),
    "LeakyReLU, as in Darknet": (by_convolution(nn.LeakyReLU()), ("1", "input", mean)),
    "nothing": (by_convolution(), ("1", "input", mean)),
    "a kernel over all that is left": (
        lambda: nn.Sequential(encoder(), nn.Conv2d(16, 4, 8), nn.Flatten()),
        ("1", "input", mean),
    ),
    "a backbone's last is narrower": (
        lambda: nn.Sequential(
            block(3, 32),
            nn.Conv2d(32, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.LeakyReLU(),
            nn.Conv2d(12, 4, 1),
            nn.LeakyReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        ("4", "input", mean),
    ),
    "no bias, as a backbone's": (
        lambda: nn.Sequential(
            encoder(),
            nn.Conv2d(16, 20, 1, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        ("4", "output", same),
    ),
    "a norm, as in MobileNet's features": (
        by_convolution(nn.BatchNorm2d(20), nn.ReLU()),
        ("5", "output", same),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_that_classifies_is_passed(name: str) -> None:
    build, oracle = CONVOLUTIONS[name]
    check(build(), IMAGE, oracle)


def test_heads_of_several_layers_share_their_trunk() -> None:
    def head() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))

    net = with_fc(lambda net, x: (lambda f: (net.one(f), net.two(f)))(net.body(x)),
                  one=head(), two=head())  # fmt: skip
    check(net, IMAGE, ("body", "output", same))


@pytest.mark.parametrize(("hidden", "oracle"), [(5, ("body", "output")), (20, ("fc.2", "input"))])
def test_a_head_that_narrows_in_several_layers_is_passed_whole(hidden: int, oracle: Any) -> None:
    head = nn.Sequential(nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    check(with_fc(lambda net, x: net.fc(net.body(x)), fc=head), IMAGE, (*oracle, same))


def test_what_a_flattened_map_is_narrowed_to_is_no_narrow_head() -> None:
    """As in AlexNet: 16 channels, folded to 1024 numbers with dropout, and then 20."""
    head = [nn.Flatten(), nn.Dropout(), nn.Linear(1024, 20), nn.ReLU(), nn.Linear(20, 3)]
    found = wrap(nn.Sequential(encoder(), *head)).representation
    assert found is not None
    assert (found.layer, found.side, found.size) == ("5", "input", 20)


def test_scores_that_are_folded_are_scores() -> None:
    net = with_fc(lambda net, x: net.fc(net.body(x)).view(-1, 2, 3), fc=nn.Linear(12, 6))
    check(net, IMAGE, ("fc", "input", same))


def test_the_last_layer_of_an_attention_is_no_classifier() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        keys = net.patch(x).flatten(2).transpose(1, 2)
        query = net.query.expand(len(x), 1, -1)
        return net.last(F.scaled_dot_product_attention(query, keys, keys)).flatten(1)

    net = Function(forward, patch=nn.Conv2d(3, 16, 8, 8), last=nn.Linear(16, 16))
    net.query = nn.Parameter(torch.randn(1, 1, 16))
    check(net, IMAGE, ("", "output", same))


def test_a_classifier_by_angles_is_passed() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        vectors = F.normalize(net.embed(net.body(x)))
        return 16 * F.linear(vectors, F.normalize(net.weight))

    net = Function(forward, body=conv_net(12), embed=nn.Linear(12, 9))
    net.weight = nn.Parameter(torch.randn(5, 9))
    check(net, IMAGE, ("embed", "output", same))


def test_vectors_of_length_1_are_an_embedding() -> None:
    net = with_fc(lambda net, x: F.normalize(net.fc(net.body(x))), fc=nn.Linear(12, 16))
    check(net, IMAGE, ("", "output", same))


def test_a_plain_mlp_is_read_before_its_last_layer() -> None:
    hidden = [nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()]
    check(nn.Sequential(*hidden, nn.Linear(16, 3)), (20,), ("4", "input", same))


def test_a_linear_beside_the_net_is_passed() -> None:
    """Wide and deep: the wide part reads what the net is fed."""
    deep = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 1))
    net = Function(lambda net, x: net.wide(x) + net.deep(x), wide=nn.Linear(10, 1), deep=deep)
    check(net, (10,), ("deep.2", "input", same))


def test_an_activation_written_by_hand_is_no_squashed_score() -> None:
    net = with_fc(lambda net, x: (lambda y: y * y.sigmoid())(net.fc(net.body(x))))
    net.fc = nn.Linear(12, 9)
    found = wrap(net).representation
    assert found is not None
    assert (found.layer, found.side, found.size) == ("", "output", 9)


# Two modes


def two_tokens(net: Any, x: Tensor) -> Any:
    """As in DeiT: a class token and one for what a teacher says, averaged in eval mode."""
    tokens = net.patch(x).flatten(2).transpose(1, 2)
    tokens = net.block(torch.cat([net.tokens.expand(len(x), -1, -1), tokens], 1))
    one, two = net.fc1(tokens[:, 0]), net.fc2(tokens[:, 1])
    return (one, two) if net.training else (one + two) / 2


def test_scores_of_two_tokens_are_read_at_the_class_token_in_both_modes() -> None:
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    heads = {"fc1": nn.Linear(16, 3), "fc2": nn.Linear(16, 3)}
    net = Function(two_tokens, patch=nn.Conv2d(3, 16, 8, 8), block=block, **heads)
    net.tokens = nn.Parameter(torch.randn(1, 2, 16))
    check(net, IMAGE, ("fc1", "input", same))


def probabilities_in_eval(net: Any, x: Tensor) -> Any:
    scores = net.fc(net.body(x))
    return scores if net.training else (scores.softmax(1), scores)


def features_in_eval(net: Any, x: Tensor) -> Tensor:
    features = net.norm(net.body(x))
    return net.fc(features) if net.training else F.normalize(features)


def auxiliary_in_training(net: Any, x: Tensor) -> Any:
    early = net.early(x)
    scores = net.fc(net.late(early).mean((2, 3)))
    return (net.auxiliary(early.mean((2, 3))), scores) if net.training else scores


def deeply_supervised() -> nn.Module:
    auxiliary = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 3))
    layers = {"early": block(3, 8), "late": block(8, 16), "auxiliary": auxiliary}
    return Function(auxiliary_in_training, **layers, fc=nn.Linear(16, 3))


MODES: dict[str, tuple[Callable[[], nn.Module], Oracle]] = {
    "probabilities": (lambda: with_fc(probabilities_in_eval), ("fc", "input", same)),
    "features": (
        lambda: with_fc(features_in_eval, norm=nn.BatchNorm1d(12)),
        ("norm", "output", same),
    ),
    "an auxiliary classifier": (deeply_supervised, ("fc", "input", same)),
}


@pytest.mark.parametrize("name", MODES)
def test_a_net_that_answers_otherwise_in_eval_is_read_at_one_place(name: str) -> None:
    build, oracle = MODES[name]
    check(build(), IMAGE, oracle)


def test_modes_that_lead_to_different_places_are_told() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        features = net.body(x)
        return net.fc(net.neck(features)) if net.training else features

    net = with_fc(forward, neck=nn.Linear(12, 12))
    with pytest.raises(
        ValueError, match=r"not reached in eval mode.*There are .*hidden_layer='body'"
    ):
        wrap(net)
    net.function = lambda net, x: (
        net.fc(net.neck(net.body(x))) if net.training else net.neck(net.body(x)).relu()
    )
    net.neck = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16))
    net.fc = nn.Linear(16, 3)
    wrap(net)  # nothing with parameters lies in between
    net.function = lambda net, x: (
        net.fc(net.neck(net.body(x))) if net.training else net.other(net.neck(net.body(x))).relu()
    )
    net.other = nn.Linear(16, 9)
    with pytest.warns(UserWarning, match=r"in eval mode the net leads to .* hidden_layer='neck.0'"):
        wrap(net)


class Counting(nn.Module):
    """Counts its runs, those of its copies among them."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = conv_net(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        type(self).runs += 1
        return self.scores(self.body(x))

    def scores(self, x: Tensor) -> Any:
        return self.fc(F.dropout(x, 0.1, training=self.training)) * (2 if self.training else 1)


class Otherwise(Counting):
    def scores(self, x: Tensor) -> Any:
        if not self.training:
            return self.fc(x).softmax(1)
        return self.fc(x)


class Switched(Counting):
    quick = False

    def train(self, mode: bool = True) -> "Switched":
        self.quick = not mode
        return super().train(mode)

    def scores(self, x: Tensor) -> Any:
        return (self.fc(x), x) if self.quick else self.fc(x)


class HandsItselfOn(Counting):
    def scores(self, x: Tensor) -> Any:
        return helper(self, x)


def helper(net: nn.Module, x: Tensor) -> Any:
    return net.fc(x) if net.training else (net.fc(x), x)


@pytest.mark.parametrize(
    ("kind", "runs"), [(Counting, 1), (Otherwise, 2), (Switched, 3), (HandsItselfOn, 3)]
)
def test_a_net_is_run_in_eval_mode_where_its_code_may_ask_for_it(kind: Any, runs: int) -> None:
    kind.runs = 0
    assert wrap(kind()).representation == wrap(Counting()).representation
    assert kind.runs - (kind is Counting) == runs


# Several maps


class Stages(nn.Module):
    """Three stages, each map of which it gives."""

    def __init__(self, pack: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.pack = block(3, 8, 4), block(8, 12), block(12, 20), pack

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        b = self.b(a)
        return self.pack(a, b, self.c(b))


class Pyramid(nn.Module):
    """Feature maps fused from the top down, with one more level, as of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Stages(lambda a, b, c: {"0": a, "1": b, "2": c})
        self.inner = nn.ModuleList([nn.Conv2d(width, 16, 1) for width in (8, 12, 20)])
        self.outer = nn.ModuleList([nn.Conv2d(16, 16, 3, 1, 1) for _ in range(3)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [layer(m) for layer, m in zip(self.inner, self.body(x).values(), strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[2:])
        maps = [layer(m) for layer, m in zip(self.outer, maps, strict=True)]
        return {"p0": maps[0], "p1": maps[1], "p2": maps[2], "p3": F.max_pool2d(maps[2], 1, 2)}


def extra_levels(net: Any, x: Tensor) -> list[Tensor]:
    maps = list(net.body(x))
    maps.append(net.p5(maps[-1]))
    return [*maps, F.max_pool2d(maps[-1], 1, 2)]


def test_extra_levels_behind_the_backbone_are_not_its_deepest() -> None:
    net = Function(extra_levels, body=Stages(lambda a, b, c: (a, b, c)))
    net.p5 = nn.Conv2d(20, 12, 1, 2)
    check(net, IMAGE, ("body.c", "output", mean))


def test_a_pooling_that_closes_a_stage_is_a_level_of_its_own() -> None:
    net = Stages(lambda a, b, c: [a, b, c, F.max_pool2d(c, 2)])
    check(net, IMAGE, ("c", "output", lambda x: mean(F.max_pool2d(x, 2))))


@pytest.mark.parametrize(
    "pack",
    [
        lambda a, b, c: (a, b, c),
        lambda a, b, c: {"low": a, "mid": b, "high": c},
        lambda a, b, c: [a, b, c],
        lambda a, b, c: (c, b, a),
        lambda a, b, c: {"feature_maps": (b, c)},
    ],
    ids=["tuple", "dict", "list", "reversed", "nested"],
)
def test_of_several_maps_the_deepest_is_read(pack: Any) -> None:
    check(Stages(pack), IMAGE, ("c", "output", mean))


# Dense outputs


class Dense(nn.Module):
    """A small U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = block(3, 8), block(8, 16), block(16, 32)
        self.up1, self.up2 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.mix1, self.mix2 = block(32, 16, 1), block(16, 8, 1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(one)
        y = self.mix1(torch.cat([two, self.up1(self.down3(two))], 1))
        y = self.mix2(torch.cat([one, self.up2(y)], 1))
        return F.interpolate(self.out(y), scale_factor=2)


def dilated(net: Any, x: Tensor) -> dict[str, Tensor]:
    """A segmentation net whose head pools the whole map in one of its branches."""
    maps = net.backbone(x)
    pooled = net.pooled(maps.mean((2, 3), keepdim=True)).expand(-1, -1, *maps.shape[2:])
    return {"out": F.interpolate(net.head(pooled + net.local(maps)), size=x.shape[2:])}


def code(net: Any, x: Tensor) -> Any:
    """A variational autoencoder."""
    h = net.encoder(x).flatten(1)
    mu, log = net.mu(h), net.log(h)
    z = mu + log.exp() * 0.1
    return net.decoder(net.up(z).view(-1, 16, 8, 8)), mu, log


def decoder() -> nn.Module:
    up = nn.ConvTranspose2d(16, 8, 2, 2)
    return nn.Sequential(up, nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, 2))


class Masked(nn.Module):
    """A masked autoencoder: half of the tokens are encoded, all are decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.zeros(1, 1, 8))
        layer = {"dim_feedforward": 32, "batch_first": True, "dropout": 0.0}
        self.encoder = nn.TransformerEncoderLayer(16, 2, **layer)
        self.narrow = nn.Linear(16, 8)
        self.decoder = nn.TransformerEncoderLayer(8, 2, **layer)
        self.out = nn.Linear(8, 192)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        seen = self.narrow(self.encoder(tokens[:, ::2]))
        both = torch.cat([seen, self.token.expand(len(x), 8, -1)], dim=1)
        return self.out(self.decoder(both))


def at_a_time(net: Any, x: Tensor) -> Tensor:
    """As a U-Net of a diffusion model."""
    time = net.time(torch.ones(len(x), 4))[:, :, None, None]
    return F.interpolate(net.up(net.down(x) + time), scale_factor=2)


DENSE: dict[str, tuple[Callable[[], nn.Module], Oracle]] = {
    "U-Net": (Dense, ("down3", "output", mean)),
    "dilated": (
        lambda: Function(
            dilated,
            backbone=nn.Sequential(block(3, 16), block(16, 32)),
            pooled=nn.Conv2d(32, 8, 1),
            local=nn.Conv2d(32, 8, 3, 1, 1),
            head=nn.Conv2d(8, 3, 1),
        ),
        ("backbone", "output", mean),
    ),
    "autoencoder": (
        lambda: nn.Sequential(encoder(), decoder(), nn.Sigmoid()),
        ("0", "output", mean),
    ),
    "variational": (
        lambda: Function(
            code,
            encoder=encoder(),
            mu=nn.Linear(1024, 12),
            log=nn.Linear(1024, 12),
            up=nn.Linear(12, 1024),
            decoder=decoder(),
        ),
        ("mu", "output", same),
    ),
    "masked": (Masked, ("encoder", "output", lambda x: x.mean(1))),
    "masked, by pixels that are folded": (
        lambda: Function(
            lambda net, x: F.pixel_shuffle(net.decoder(net.encoder(x)), 4),
            encoder=encoder(),
            decoder=nn.Conv2d(16, 48, 1),
        ),
        ("encoder", "output", mean),
    ),
    "key points, by the places of the largest scores": (
        lambda: Function(
            lambda net, x: net.scores(net.decoder(net.encoder(x))).flatten(2).topk(3)[0],
            encoder=nn.Sequential(encoder(), block(16, 24)),
            decoder=nn.Sequential(nn.ConvTranspose2d(24, 16, 4, 4), nn.ReLU()),
            scores=nn.Conv2d(16, 4, 1),
        ),
        ("encoder", "output", mean),
    ),
    "scores refined in stages": (
        lambda: Function(
            lambda net, x: (
                lambda f: (lambda y: torch.cat([y, net.two(torch.cat([f, y], 1))], 1))(net.one(f))
            )(net.encoder(x)),
            encoder=encoder(),
            one=nn.Conv2d(16, 4, 1),
            two=nn.Conv2d(20, 4, 1),
        ),
        ("two", "input", mean),
    ),
    "a map of few classes": (
        lambda: nn.Sequential(encoder(), nn.Conv2d(16, 3, 1)),
        ("1", "input", mean),
    ),
    "queries with heads of several layers": (
        lambda: Function(
            lambda net, x: net.heads(net.norm(net.patch(x).flatten(2).transpose(1, 2))),
            patch=nn.Conv2d(3, 16, 8, 8),
            norm=nn.LayerNorm(16),
            heads=nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)),
        ),
        ("norm", "output", lambda x: x.mean(1)),
    ),
    "a table that is narrowed": (
        lambda: nn.Sequential(
            nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 20)
        ),
        ("3", "output", same),
    ),
    "a map that the embedding of a time joins": (
        lambda: Function(
            at_a_time, time=nn.Linear(4, 32), down=block(3, 32), up=nn.Conv2d(32, 3, 1)
        ),
        ("down", "output", mean),
    ),
    "a pyramid of fused maps": (Pyramid, ("body.c", "output", mean)),
}


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_output_is_read_at_the_narrowest_place_with_a_word(name: str) -> None:
    build, oracle = DENSE[name]
    with pytest.warns(
        UserWarning, match=r"(place or part|place|as it is fed).* rather than .*hidden_layer='"
    ) as told:
        check(build(), (20,) if "table" in name else IMAGE, oracle)
    assert len(told) == 1


# Channels


def frames(net: Any, x: Tensor) -> Tensor:
    maps = net.body(x.flatten(0, 1))
    return maps.view(*x.shape[:2], *maps.shape[1:])


CHANNELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "Conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 9, 5, 2), nn.BatchNorm1d(9), nn.ReLU()),
        (2, 64),
        lambda x: x.mean(2),
    ),
    "Conv1d with InstanceNorm, transposed": (
        lambda: Function(
            lambda net, x: net.body(x).transpose(1, 2),
            body=nn.Sequential(nn.Conv1d(2, 9, 5, 2), nn.InstanceNorm1d(9), nn.GELU()),
        ),
        (2, 64),
        lambda x: x.mean(1),
    ),
    "Conv1d, residual and pooled": (
        lambda: Function(
            lambda net, x: F.avg_pool1d((lambda y: y + net.two(y))(net.one(x)), 2),
            one=nn.Conv1d(2, 9, 5, 2),
            two=nn.Conv1d(9, 9, 3, padding=1),
        ),
        (2, 64),
        lambda x: x.mean(2),
    ),
    "Conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 9, 3, 2), nn.GroupNorm(3, 9), nn.ReLU()),
        (1, 9, 9, 9),
        mean,
    ),
    "Conv2d, flattened to (B, C, H W)": (
        lambda: nn.Sequential(nn.Conv2d(3, 9, 3, 2), nn.ReLU(), nn.Flatten(2)),
        IMAGE,
        mean,
    ),
    "frames of a clip (B, T, C, H, W)": (
        lambda: Function(frames, body=nn.Sequential(nn.Conv2d(3, 9, 3, 4), nn.ReLU())),
        (4, 3, 16, 16),
        lambda x: x.mean((1, 3, 4)),
    ),
    "a recurrent net": (
        lambda: Function(
            lambda net, x: net.norm(net.rnn(x)[0]),
            rnn=nn.GRU(5, 9, batch_first=True),
            norm=nn.LayerNorm(9),
        ),
        (11, 5),
        lambda x: x.mean(1),
    ),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_told_by_the_layer_not_by_the_number_of_dimensions(name: str) -> None:
    build, shape, pool = CHANNELS[name]
    check(build(), shape, ("", "output", pool))


# Class tokens


class Transformer(nn.Module):
    """A Vision Transformer that owns a class token, whatever it does with it."""

    def __init__(self, joins: str = "first", read: str = "none") -> None:
        super().__init__()
        self.patch, self.cls_token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 1, 16))
        layer = {"dim_feedforward": 32, "batch_first": True, "dropout": 0.0}
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, **layer) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 9)
        self.joins, self.read = joins, read

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.joins == "registers":
            x = torch.cat([self.cls_token.expand(len(x), 4, -1), x], 1)
        token = self.cls_token[:, : 0 if self.joins == "empty" else 1].expand(len(x), -1, -1)
        for i, layer in enumerate(self.blocks):
            if self.joins == ("first", "late")[i] or (self.joins == "empty" and not i):
                x = torch.cat([token, x], 1)
            x = layer(x)
        if self.joins == "last":  # as in CaiT: it alone attends to the others
            x = torch.cat([token + layer(torch.cat([token, x], 1))[:, :1], x], 1)
        x = self.norm(x)
        if self.read == "none":
            return x
        scores: Tensor = self.head(x)
        return scores[:, 0] if self.read == "class" else scores[:, 1:].mean(1)


def first(x: Tensor) -> Tensor:
    return x[:, 0]


TOKENS: dict[str, tuple[Callable[[], nn.Module], Oracle]] = {
    "a class token": (Transformer, ("norm", "output", first)),
    "one that only joins the last block": (
        lambda: Transformer("late"),
        ("norm", "output", first),
    ),
    "one that joins when all is done": (
        lambda: Transformer("last"),
        ("norm", "output", first),
    ),
    "registers alone": (lambda: Transformer("registers"), ("norm", "output", lambda x: x.mean(1))),
    "one of no rows": (lambda: Transformer("empty"), ("norm", "output", lambda x: x.mean(1))),
    "one that is owned and not used": (
        lambda: Transformer("never"),
        ("norm", "output", lambda x: x.mean(1)),
    ),
    "the head reads it": (lambda: Transformer(read="class"), ("head", "input", first)),
    "the head reads the mean of the others": (
        lambda: Transformer(read="mean"),
        ("head", "input", lambda x: x.mean(1)),
    ),
    "not used, and the head reads the mean": (
        lambda: Transformer("never", "mean"),
        ("head", "input", lambda x: x.mean(1)),
    ),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_class_token_is_read_where_there_is_one(name: str) -> None:
    build, oracle = TOKENS[name]
    check(build(), IMAGE, oracle)


@pytest.mark.parametrize(("layer", "pool"), [("blocks.0", "mean"), ("blocks.1", "class_token")])
def test_before_the_class_token_joins_there_is_none(layer: str, pool: str) -> None:
    found = wrap(Transformer("late"), hidden_layer=layer).representation
    assert found is not None
    assert found.pool == pool


# Scores that a norm, or a cut, follows


def cut_out(net: Any, x: Tensor) -> Tensor:
    """As in OpenPose: scores are joined with the features for the next stage, and cut out."""
    maps = net.body(x)
    joined = torch.cat([maps, net.heat(maps), net.field(maps)], 1)
    return joined[:, -9:]


def test_scores_cut_out_of_what_they_were_joined_with_are_scores() -> None:
    net = Function(cut_out, body=encoder(), heat=nn.Conv2d(16, 3, 1), field=nn.Conv2d(16, 6, 1))
    with pytest.warns(UserWarning, match="values for each place"):
        check(net, IMAGE, ("body", "output", mean))
    net.function = lambda net, x: torch.cat([net.body(x), net.heat(net.body(x))], 1)[:, :12]
    net.body = nn.Sequential(*encoder())
    found = wrap(net).representation
    assert found is not None
    assert (found.layer, found.size) == ("", 12)  # features are not passed


def by_normed_convolution(reads: int, gives: int) -> nn.Module:
    return nn.Sequential(
        block(3, reads),
        nn.Conv2d(reads, gives, 1, bias=False),
        nn.BatchNorm2d(gives),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def test_a_convolution_and_its_norm_that_narrow_much_are_passed() -> None:
    check(by_normed_convolution(80, 10), IMAGE, ("1", "input", mean))


def test_a_convolution_and_its_norm_that_narrow_little_are_told() -> None:
    with pytest.warns(UserWarning, match=r"32 channels to 12 .* may be scores.*'0'"):
        check(by_normed_convolution(32, 12), IMAGE, ("4", "output", same))
    check(by_normed_convolution(12, 12), IMAGE, ("4", "output", same))


# Tokens that are written to in place, or given apart


class WrittenTo(Transformer):
    """Residuals are added in place to what a Linear gave, which is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Linear(16, 16), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.repeat(len(x), 1, 1), x], 1)
        mixed = self.blocks(x)
        mixed += x
        normed: Tensor = self.norm(mixed)
        return normed


def test_a_class_token_is_followed_through_what_is_written_to_in_place() -> None:
    check(WrittenTo(), IMAGE, ("norm", "output", first))
    found = wrap(WrittenTo(), hidden_layer="blocks").representation  # as it was given
    assert found is not None
    assert found.pool == "class_token"


class Apart(Transformer):
    """Gives its map and its class token, each by its name."""

    def __init__(self, names: tuple[str, str], is_learned: bool = True) -> None:
        super().__init__("first" if is_learned else "never")
        self.names = names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[2] // 8
        token, patches = super().forward(x).split([1, size * size], 1)
        return dict(zip(self.names, (patches.mT.unflatten(2, (size, size)), token), strict=True))


def test_a_class_token_that_is_given_beside_its_map_is_read() -> None:
    net = Apart(("last_hidden_state", "cls_token_value"))
    check(net, IMAGE, ("norm", "output", first))


# Equal candidates


def towers(forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> nn.Module:
    return Function(forward, **{"one": conv_net(12), "two": conv_net(12), **layers})


def averaged(net: Any, x: Tensor) -> Tensor:
    return (net.fc1(net.one(x)) + net.fc2(net.two(x))) / 2


def shared_tower(net: Any, x: Tensor) -> Any:
    return net.body(x[:, 0]), net.body(x[:, 1])


def stem_and_towers(net: Any, x: Tensor) -> dict[str, Tensor]:
    x = net.stem(x)
    return {"a": net.fc1(net.one(x)), "b": net.fc2(net.two(x))}


def linear() -> dict[str, nn.Module]:
    return {"fc1": nn.Linear(12, 3), "fc2": nn.Linear(12, 3)}


EQUAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "scores of two streams, averaged": (
        lambda: towers(averaged, **linear()),
        IMAGE,
        r"'fc1', .* but the input of layer 'fc2' may do as well.*hidden_layer='two'",
    ),
    "an ensemble of three": (
        lambda: Function(
            lambda net, x: torch.stack([net.a(x), net.b(x), net.c(x)]).mean(0),
            **{name: conv_net(12, classes=3) for name in "abc"},
        ),
        IMAGE,
        r"'b.8' and the input of layer 'c.8' may do as well: they hang.*='b.7'.*='c.7'",
    ),
    "vectors of two streams": (
        lambda: towers(lambda net, x: (net.one(x), net.two(x))),
        IMAGE,
        r"by the net's output, .* but part 1 of the net's output.*hidden_layer='two'",
    ),
    "maps of two streams": (
        lambda: Function(
            lambda net, x: {"a": net.one(x), "b": net.two(x)}, one=encoder(), two=encoder()
        ),
        IMAGE,
        "part b of the net's output may do as well.*hidden_layer='two'",
    ),
    "both items of a pair by one tower": (
        lambda: Function(shared_tower, body=conv_net(12)),
        (2, *IMAGE),
        "part 1 of the net's output may do as well",
    ),
    "two large towers on a small stem": (
        lambda: Function(
            stem_and_towers, stem=block(3, 4), one=conv_net(24, 4), two=conv_net(24, 4),
            fc1=nn.Linear(24, 3), fc2=nn.Linear(24, 5),
        ),
        IMAGE,
        "the input of layer 'fc2' may do as well",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_equal_candidates_are_told_once(name: str) -> None:
    build, shape, words = EQUAL[name]
    batch = torch.rand(2, *shape)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        wrap(build(), None)(batch, batch)
    assert len(told) == 1
    assert re.search(words, str(told[0].message)), told[0].message


def in_training_alone(net: Any, x: Tensor) -> Any:
    scores = net.fc1(net.one(x))
    return (scores, net.fc2(net.two(x))) if net.training else scores


def exits(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    early = net.early(x)
    return net.fc1(early.mean((2, 3))), net.fc2(net.late(early).mean((2, 3)))


def stripes(net: Any, x: Tensor) -> list[Tensor]:
    """As for persons: a classifier for each part of a map."""
    top, bottom = F.adaptive_avg_pool2d(net.body(x), (2, 1)).flatten(2).unbind(2)
    return [net.fc1(top), net.fc2(bottom)]


def projected(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and what a loss reads, both of length 1."""
    features = net.body(x)
    return F.normalize(features), F.normalize(net.head(features))


def norm(width: int) -> nn.Module:
    return nn.LayerNorm(width)


def re_identified(net: Any, x: Tensor) -> Any:
    pooled = net.body(x)
    return (net.fc(net.neck(pooled)), pooled) if net.training else net.neck(pooled)


NOT_EQUAL: dict[str, tuple[Callable[[], nn.Module], Oracle]] = {
    "a large and a small stream": (
        lambda: Function(
            averaged, one=conv_net(24), two=conv_net(4), fc1=nn.Linear(24, 3), fc2=nn.Linear(4, 3)
        ),
        ("fc1", "input", same),
    ),
    "streams that are joined": (
        lambda: towers(
            lambda net, x: net.fc(torch.cat([net.one(x), net.two(x)], 1)), fc=nn.Linear(24, 3)
        ),
        ("fc", "input", same),
    ),
    "a second stream in training alone": (
        lambda: towers(in_training_alone, **linear()),
        ("fc1", "input", same),
    ),
    "exits at two depths": (
        lambda: Function(
            exits, early=block(3, 12, 4), late=block(12, 12), fc1=nn.Linear(12, 3),
            fc2=nn.Linear(12, 3),
        ),
        ("fc2", "input", same),
    ),
    "stripes of one map": (
        lambda: Function(stripes, body=encoder(), fc1=nn.Linear(16, 3), fc2=nn.Linear(16, 3)),
        ("body", "output", mean),
    ),
    "two tasks on one trunk": (
        lambda: with_fc(two_heads, age=nn.Linear(12, 1)),
        ("fc", "input", same),
    ),
    "pooled features beside scores of the normalised, which alone are given in eval mode": (
        lambda: with_fc(re_identified, neck=nn.BatchNorm1d(12)),
        ("neck", "output", same),
    ),
    "a vector and the same, normalised": (
        lambda: with_fc(lambda net, x: (lambda y: (y, net.norm(y)))(net.body(x)), norm=norm(12)),
        ("norm", "output", same),
    ),
    "a vector that two norms read": (
        lambda: with_fc(
            lambda net, x: (lambda y: (net.one(y), net.two(y)))(net.body(x)),
            one=norm(12),
            two=norm(12),
        ),
        ("one", "output", same),
    ),
    "features beside their projection": (
        lambda: Function(
            projected, body=conv_net(24), head=nn.Sequential(nn.Linear(24, 32), nn.ReLU(),
            nn.Linear(32, 8)),
        ),
        ("", "output", lambda x: x[0]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_EQUAL)
def test_what_only_looks_like_an_equal_candidate_is_not_told(name: str) -> None:
    build, oracle = NOT_EQUAL[name]
    check(build(), IMAGE, oracle)


def test_features_beside_scores_of_their_places_are_told() -> None:
    """As of a discriminator that gives its features, too."""
    net = Function(
        lambda net, x: (lambda maps: (net.out(maps[-1]), *maps))(net.body(x)),
        body=Stages(lambda a, b, c: (a, b, c)),
        out=nn.Conv2d(20, 1, 1),
    )
    with pytest.warns(UserWarning, match="values for each place"):
        check(net, IMAGE, ("body.c", "output", mean))


# Extra levels that have parameters


def detector(net: Any, x: Tensor) -> dict[str, Tensor]:
    maps = [net.a(x)]
    for layer in (net.b, net.extra1, net.extra2):
        maps.append(layer(maps[-1]))
    return dict(zip("0123", maps, strict=True))


def test_a_level_that_may_be_a_detectors_is_told() -> None:
    layers = {"a": block(3, 8, 4), "b": block(8, 24), "extra1": nn.Conv2d(24, 24, 1, 2)}
    net = Function(detector, **layers, extra2=nn.Conv2d(24, 8, 1, 2))
    with pytest.warns(UserWarning, match=r"may end at a map before it.*hidden_layer='b'"):
        check(net, IMAGE, ("extra1", "output", mean))


# The images' channels


def folded(net: Any, x: Tensor) -> Tensor:
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
    return net.deep(net.patch(patches.flatten(3).flatten(1, 2)).transpose(1, 2)).mean(2)


NOT_FIRST: dict[str, Callable[[], nn.Module]] = {
    "patches by a Linear": lambda: Function(
        folded, deep=nn.Conv1d(16, 16, 3), patch=nn.Linear(3 * 64, 16)
    ),
    "a stem that is registered late": lambda: Function(
        lambda net, x: net.deep(net.stem(x)).mean((2, 3)), deep=block(16, 16), stem=block(3, 16)
    ),
    "pixels folded into channels": lambda: nn.Sequential(
        nn.PixelUnshuffle(4), conv_net(12, channels=48)
    ),
}


@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize("name", NOT_FIRST)
def test_channels_are_settled_by_what_runs(name: str, image_size: int | None) -> None:
    learner = wrap(NOT_FIRST[name](), image_size)
    learner(torch.rand(4, 3, 32, 32)).backward()
    assert learner.channels == 3
    assert len(learner.embed(torch.rand(2, 3, 32, 32))) == 2


def test_channels_of_two_streams_are_found_together() -> None:
    net = towers(
        lambda net, x: net.fc(torch.cat([net.one(x[:, :3]), net.two(x[:, 3:])], 1)),
        two=conv_net(12, 2),
        fc=nn.Linear(24, 3),
    )
    found = wrap(net)
    assert found.channels == 5
    assert found.representation is not None
    assert found.representation.layer == "fc"


def test_channels_that_do_not_run_are_refused_as_ever() -> None:
    with pytest.raises(ValueError, match="3 channels"):
        wrap(conv_net(6), None)(torch.rand(4, 4, 32, 32))


# Doubts


def few() -> nn.Module:
    return nn.Sequential(block(3, 16, 1), block(16, 16, 1), nn.Conv2d(16, 3, 3, 1, 1))


def probabilities() -> nn.Module:
    return with_fc(
        lambda net, x: net.fc(net.body(x)).relu().add(1e-9).softmax(1), fc=nn.Linear(12, 9)
    )


def distance(net: Any, x: Tensor) -> Tensor:
    return F.pairwise_distance(net.body(x), net.body(x.flip(3)), keepdim=True)


def pixelwise() -> nn.Module:
    return nn.Sequential(block(3, 16, 1), block(16, 16, 1), nn.Conv2d(16, 32, 1))


def left_out(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.large(x)
    return net.small(x).mean((2, 3))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (few, "3 numbers hardly tell one image from another"),
        (probabilities, "always sum to 1"),
        (pixelwise, "as many places as what the net is fed"),
        (
            lambda: Function(left_out, large=block(3, 99), small=nn.Conv2d(99, 9, 1)),
            "% of the net's parameters get no gradient",
        ),
    ],
    ids=["few", "probabilities", "pixelwise", "left out"],
)
@pytest.mark.parametrize("method", [BYOL, SimCLR])
def test_what_looks_odd_is_told_once_with_what_to_type(
    build: Any, reason: str, method: Any
) -> None:
    with pytest.warns(UserWarning, match=reason) as told:
        learner = method(build(), 32, projection_size=8)
    assert len(told) == 1
    message = str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        name = message.partition("hidden_layer=")[2].split("'")[1]
        chosen = method(build(), 32, name, projection_size=8).representation
    assert f"hidden_layer={name!r} (B, " in message
    assert chosen is not None
    assert chosen.layer == name
    assert learner.representation != chosen


def test_a_single_number_is_told_where_no_other_layer_can_be_named() -> None:
    with pytest.warns(UserWarning, match="1 numbers? hardly tells?.*by hidden_layer="):
        wrap(Function(distance, body=conv_net(12)))


def test_candidates_are_listed_with_their_shapes_and_shares() -> None:
    net = Stages(lambda a, b, c: (a, b, c))
    table = representation_candidates(net, 32)
    rows = {row.name: row for row in table}
    assert rows["b"].shape == (12, 4, 4)
    assert rows["b"].size == 12
    total = sum(p.numel() for p in net.parameters())
    trained = sum(p.numel() for part in (net.a, net.b) for p in part.parameters())
    assert rows["b"].share == pytest.approx(trained / total)
    assert [row.chosen for row in table] == [False] * (len(table) - 1) + [True]
    assert (table[-1].name, table[-1].side, table[-1].share) == ("", "output", 1.0)
    assert table.representation == wrap(net).representation
    assert "'b'" in str(table)
    assert str(table).count("\n") == len(table)
    for row in table:
        if row.side == "output" and not row.chosen:
            found = wrap(net, hidden_layer=row.name).representation
            assert found is not None
            assert found.size == row.size


def test_candidates_leave_the_net_alone_and_say_where_it_is_refused() -> None:
    net = conv_net(9)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    table = representation_candidates(net.eval(), torch.rand(2, 3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.training
    assert table.representation is not None
    detached = Function(lambda net, x: net.body(x).detach(), body=conv_net(9))
    assert representation_candidates(detached, 16).representation is None
    with pytest.raises(ValueError, match="cannot take a batch"):
        representation_candidates(nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), 16)


# The copy depends on nothing of the net's


def closed_over() -> nn.Module:
    """A forward that was patched with a function that holds the old one."""
    net = conv_net(12, classes=5)
    old = net.forward
    net.forward = lambda x: 2 * old(x)
    return net


def keeps_a_map() -> nn.Module:
    """One that keeps what a layer of the net gives."""
    net = with_fc(lambda net, x: net.fc(net.body(x)))
    maps: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        maps.append(net.body[:4](x).detach())
        return net.function(net, x)

    net.forward = forward
    return net


def hooked_over_itself() -> nn.Module:
    net = with_fc(lambda net, x: net.body(x))
    net.body.register_forward_hook(lambda layer, args, out: net.fc(out))
    return net


def by_its_weight() -> nn.Module:
    net = conv_net(12)
    weight = nn.Parameter(torch.randn(5, 12))
    net.weight = weight
    net.register_forward_hook(lambda layer, args, out: F.linear(out, weight))
    return net


def frozen() -> nn.Module:
    """No graph leads to it: a constant."""
    return closed_over().requires_grad_(False)


@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize(
    "build", [closed_over, keeps_a_map, hooked_over_itself, by_its_weight, frozen]
)
def test_a_copy_that_still_runs_the_net_is_refused(build: Any, image_size: int | None) -> None:
    net = build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    views = torch.rand(2, 4, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r"would still run net's own .*types.MethodType"):
        wrap(net, image_size)(*views)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("build", [closed_over, keeps_a_map, hooked_over_itself])
def test_a_method_without_a_target_takes_such_a_net(build: Any) -> None:
    net = build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    learner = SimCLR(net, 32, projection_size=8)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert learner.representation is not None
    assert learner.representation.size == 12
    learner(torch.rand(4, 3, 32, 32)).backward()
    assert next(net.parameters()).grad is not None


def as_a_method() -> nn.Module:
    net = conv_net(12, classes=5)
    net.forward = MethodType(lambda self, x: self[8](self[:8](x)), net)
    return net


def as_a_partial() -> nn.Module:
    net = conv_net(12, classes=5)
    net.forward = partial(nn.Sequential.forward, net)
    return net


def hook_of_its_own() -> nn.Module:
    net = conv_net(12, classes=5)
    net[7].register_forward_hook(lambda layer, args, out: 2 * out)
    return net


@pytest.mark.parametrize("build", [as_a_method, as_a_partial, hook_of_its_own])
def test_a_patch_that_is_copied_with_the_net_is_taken(build: Any) -> None:
    learner = wrap(build())
    for twin in (learner, copy.deepcopy(learner)):
        twin(torch.rand(4, 3, 32, 32)).backward()
        images = torch.rand(2, 3, 32, 32)
        expected = twin.eval().target.project(images)
        for parameter in twin.net.parameters():
            parameter.data.zero_()
        assert torch.equal(twin.target.project(images), expected)


def test_a_net_that_is_prepared_for_quantisation_is_taken() -> None:
    """As torchvision's are: its sums are layers, of floats."""
    add = torch.ao.nn.quantized.FloatFunctional()
    net = with_fc(lambda net, x: net.fc(net.sum.add(net.body(x), net.body(x))), sum=add)
    found = wrap(net).representation
    assert found is not None
    assert (found.layer, found.side) == ("fc", "input")


def test_a_copy_that_shares_what_it_should_copy_is_refused() -> None:
    class Sharing(nn.Sequential):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Sharing":
            return Sharing(self[0], copy.deepcopy(self[1], memo))

    net = Sharing(conv_net(12), nn.Linear(12, 5))
    with pytest.raises(RuntimeError, match=r"shares '0.0.weight' with it"):
        wrap(net)
    assert all(p.requires_grad for p in net.parameters())
    assert SimCLR(net, 32, projection_size=8).representation is not None
