"""Frames of clips, channels of series and crops that are one batch: an image's are averaged."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import Function, conv_net
from oracles import IMAGE, Oracle, check, hooked, wrap
from torch import Tensor, nn

from byol_wrap import representation_candidates

CLIP = (4, 3, 16, 16)  # T frames


def frames(**layers: nn.Module) -> dict[str, nn.Module]:
    return {"body": conv_net(12), "fc": nn.Linear(12, 40), **layers}


class Average(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def consensus(net: Any, x: Tensor) -> Tensor:
    """As in temporal segment networks: scores of frames are averaged."""
    return net.fc(net.body(x.flatten(0, 1))).unflatten(0, x.shape[:2]).mean(1)


def by_a_layer(net: Any, x: Tensor) -> Tensor:
    scores = net.fc(net.body(x.flatten(0, 1))).view(*x.shape[:2], -1)
    return net.average(scores.softmax(-1))


def steps_first(net: Any, x: Tensor) -> Tensor:
    steps = x.transpose(0, 1)
    return net.fc(net.body(steps.flatten(0, 1))).view(len(steps), len(x), -1).mean(0)


def mirrored(net: Any, x: Tensor) -> Tensor:
    """As many crops as images."""
    crops = [x.roll(shift, 3) for shift in range(len(x))]
    return (
        net.fc(net.body(torch.cat(crops))).unflatten(0, (len(x), -1)).narrow(1, 0, len(x)).mean(0)
    )


def swapped(net: Any, x: Tensor) -> Tensor:
    """As many frames as clips, whose dimensions change places."""
    clips = torch.stack([x.roll(shift, 3) for shift in range(len(x))], 1)
    return (
        net.fc(net.body(clips.flatten(0, 1))).unflatten(0, clips.shape[:2]).transpose(0, 1).mean(0)
    )


def both_ways(net: Any, x: Tensor) -> Tensor:
    scores = net.fc(net.body(x.flatten(0, 1)))
    return scores.view(len(x), -1, 40).mean(1) + scores.view(-1, len(x), 40).mean(0)


def as_many_frames(net: Any, x: Tensor) -> Tensor:
    return consensus(net, torch.stack([x.roll(shift, 3) for shift in range(len(x))], 1))


class ByChannel(nn.Module):
    """As in PatchTST: each channel of a series is one of the batch, in patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(8, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(-1, 8, 8).flatten(0, 1)
        tokens = self.mix(self.embed(patches).relu()).relu()
        return self.head(tokens.flatten(1)).view(len(x), -1, 10).mean(1)


def together(x: Tensor) -> Tensor:
    return x.unflatten(0, (-1, 4)).mean(1)


def a_batch_apart(x: Tensor) -> Tensor:
    return x.unflatten(0, (4, -1)).mean(0)


def two_apart(x: Tensor) -> Tensor:
    return x.unflatten(0, (len(x) // 4, -1)).mean(0)


FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Oracle]] = {
    "scores of frames": (
        lambda: Function(consensus, **frames()),
        CLIP,
        ("fc", "input", together),
    ),
    "probabilities of frames, by a layer": (
        lambda: Function(by_a_layer, **frames(average=Average())),
        CLIP,
        ("fc", "input", together),
    ),
    "steps first": (
        lambda: Function(steps_first, **frames()),
        CLIP,
        ("fc", "input", a_batch_apart),
    ),
    "as many crops as images": (
        lambda: Function(mirrored, **frames()),
        IMAGE,
        ("fc", "input", two_apart),
    ),
    "as many frames as clips": (
        lambda: Function(as_many_frames, **frames()),
        IMAGE,
        ("fc", "input", lambda x: x.unflatten(0, (4, -1)).mean(1)),
    ),
    "channels of a series": (
        ByChannel,
        (3, 32),
        ("head", "input", lambda x: x.unflatten(0, (-1, 3)).mean(1)),
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_entries_of_an_image_are_averaged(name: str) -> None:
    build, shape, oracle = FOLDED[name]
    check(build(), shape, oracle)


def test_clips_of_another_length_are_taken() -> None:
    net = Function(consensus, **frames())
    learner = check(net, CLIP, ("fc", "input", together))
    clips = torch.rand(2, 6, *CLIP[1:])
    seen: list[Tensor] = []
    twin = copy.deepcopy(net).eval()
    twin.fc.register_forward_hook(lambda layer, args, out: seen.append(args[0]))
    twin(clips)
    expected = seen[0].unflatten(0, (-1, 6)).mean(1)
    torch.testing.assert_close(learner.embed(clips, prepared=True), expected.detach())


def test_scores_of_each_frame_are_told_with_what_to_type() -> None:
    net = Function(
        lambda net, x: net.fc(net.body(x.flatten(0, 1))).view(*x.shape[:2], -1), **frames()
    )
    words = (
        r"'fc', \(4 B, 12\), averaged over the entries .*hidden_layer='body.\d' \(4 B, 12, 4, 4\)"
    )
    with pytest.warns(UserWarning, match=words):
        check(net, CLIP, ("fc", "input", together))
    check_layer(net, CLIP, ("body.3", "output", lambda x: together(x.mean((2, 3)))))
    rows = {row.name: row for row in representation_candidates(net, torch.rand(2, *CLIP))}
    assert (rows["body.4"].shape, rows["body.4"].size, rows["body.4"].entries) == (
        (12, 4, 4),
        12,
        4,
    )
    assert rows[""].entries == 1


def check_layer(net: nn.Module, shape: tuple[int, ...], oracle: Oracle, pool: Any = None) -> None:
    """A layer that is chosen by its name is read as the oracle does."""
    batch = torch.rand(2, *shape)
    learner = wrap(net, None, hidden_layer=oracle[0], pool=pool)
    learner(batch, batch)
    expected = hooked(copy.deepcopy(net).eval(), batch, oracle)
    torch.testing.assert_close(learner.embed(batch, prepared=True), expected)


def test_tokens_of_each_entry_are_averaged_first() -> None:
    mean = ("embed", "output", lambda x: x.mean(1).unflatten(0, (-1, 3)).mean(1))
    check_layer(ByChannel(), (3, 32), mean)


def split(net: Any, x: Tensor) -> Tensor:
    """As many scores as frames."""
    return sum(net.fc(net.body(x.flatten(0, 1))).split(len(x)))


@pytest.mark.parametrize("forward", [split, both_ways, swapped])
def test_entries_in_an_unknown_order_are_refused_with_what_to_type(forward: Any) -> None:
    classes, shape = (4, CLIP) if forward is split else (40, CLIP)
    if forward is swapped:
        shape = IMAGE
    net = Function(forward, **frames(fc=nn.Linear(12, classes)))
    batch = torch.rand(2, *shape)
    each = 2 if forward is swapped else 4
    words = rf"hidden_layer='body' \({each} B, 12\).*\(-1, {each}\)\)\.mean\(1\)"
    with pytest.raises(ValueError, match=words):
        wrap(net, None)(batch, batch)


def test_a_pool_may_take_the_entries_apart() -> None:
    net = Function(split, **frames())
    check_layer(net, CLIP, ("body", "output", a_batch_apart), a_batch_apart)
    net = Function(consensus, **frames())
    check_layer(net, CLIP, ("body", "output", together), together)
    clips = torch.rand(2, *CLIP)
    with pytest.raises(ValueError, match=r"pool=.* should turn \(8, 12\) into \(2, D\)"):
        wrap(Function(split, **frames()), None, hidden_layer="body", pool=lambda x: x)(clips, clips)
