"""The target network is a copy of the net: it must not depend on it, and must follow all of it."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods import PAPERS, make
from nets import Function, conv_net
from torch import Tensor, nn
from torch.nn import functional as F

from byol_wrap import BYOL, Learner

WITH_TARGET = ["BYOL", "MoCo"]


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32)


def in_float32() -> nn.Module:
    """A usual patch, over layers without a parameter."""
    net = conv_net(6, classes=5)
    for i in (1, 4):
        net[i] = nn.BatchNorm2d(6, affine=False)
        old = net[i].forward
        net[i].forward = lambda x, old=old: old(x.float()).to(x.dtype)  # type: ignore[method-assign]
    return net


def by_a_norm() -> nn.Module:
    net = conv_net(6, classes=5)
    weight = net[3].weight
    net[7].register_forward_hook(lambda layer, args, out: out / weight.detach().norm())  # type: ignore[operator, union-attr]
    return net


def by_its_statistics() -> nn.Module:
    net = conv_net(6, classes=5)
    net[7].register_forward_hook(lambda layer, args, out: out - net[4].running_mean)  # type: ignore[operator]
    return net


class Shifted(nn.Module):
    """Knows its net weakly, as what must not own it does."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = weakref.ref(net)

    def forward(self, x: Tensor) -> Tensor:
        net = self.net()
        assert net is not None
        return x + net[0].bias.detach().sum()


def by_a_weak_reference() -> nn.Module:
    net = conv_net(6, classes=5)
    net[6] = nn.Sequential(nn.AdaptiveAvgPool2d(1), Shifted(net))
    return net


DEPENDENT = [in_float32, by_a_norm, by_its_statistics, by_a_weak_reference]


@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize("build", DEPENDENT)
def test_a_copy_that_reads_or_writes_the_net_s_values_is_refused(
    build: Callable[[], nn.Module], image_size: int | None
) -> None:
    net = build()
    net[1].running_mean.fill_(torch.nan)  # type: ignore[index, operator]
    before = {name: value.clone() for name, value in net.state_dict(keep_vars=True).items()}
    versions = [p._version for p in net.parameters()]
    does = "write net's own buffer '1.running_var'" if build is in_float32 else "read values of"
    with pytest.raises(RuntimeError, match=rf"would still {does}.*types.MethodType"):
        make("BYOL", image_size, net=net)(images())
    for name, value in net.state_dict(keep_vars=True).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert [p._version for p in net.parameters()] == versions


@pytest.mark.parametrize("name", ["SimSiam", "SimCLR"])
@pytest.mark.parametrize("build", DEPENDENT)
def test_a_method_without_a_target_takes_such_a_net(
    build: Callable[[], nn.Module], name: str
) -> None:
    net = build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    learner = make(name, net=net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    learner(images()).backward()


class Adapted(nn.Module):
    """With a layer that is trained, in a list of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = conv_net(6), nn.Linear(6, 5)
        self.hidden = [nn.Linear(6, 6)]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden[0](self.body(x)).relu())


def by_a_hook() -> nn.Module:
    net, adapter = conv_net(6, classes=5), nn.Linear(6, 6)
    net[7].register_forward_hook(lambda layer, args, out: out + adapter(out))  # type: ignore[operator]
    return net


def prompted() -> nn.Module:
    """With a plain tensor that is trained."""
    net, prompt = conv_net(6, classes=5), torch.zeros(3, 32, 32, requires_grad=True)
    net.register_forward_pre_hook(lambda layer, args: (args[0] + prompt,))
    return net


@pytest.mark.parametrize("build", [by_a_hook, prompted, Adapted])
@pytest.mark.parametrize("name", PAPERS)
def test_what_is_trained_but_not_registered_is_refused_for_a_copy(
    name: str, build: Callable[[], nn.Module]
) -> None:
    net = build()
    if name not in WITH_TARGET:
        make(name, net=net)(images()).backward()
        return
    with pytest.raises(RuntimeError, match=r"parameter of shape \(.*\) .* is not registered in it"):
        make(name, net=net)


class Frozen(nn.Module):
    """With what is not trained, or made anew in each forward, besides what is registered."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_net(6)
        self.teacher = [nn.Linear(6, 6).requires_grad_(False)]
        self.twice = [self.body]

    def forward(self, x: Tensor) -> Tensor:
        switch = torch.ones((), requires_grad=True)
        return self.teacher[0](self.twice[0](x.requires_grad_()) * switch)


def drawing() -> nn.Module:
    """It draws from a state of its own: no two runs give the same."""
    net, state = conv_net(6, classes=5), torch.Generator()
    net[7].register_forward_hook(
        lambda layer, args, out: out + torch.rand(out.shape, generator=state)  # type: ignore[operator]
    )
    return net


def with_functions() -> nn.Module:
    net = Function(lambda net, x: net.act(F.dropout(net.body(x))), body=conv_net(6))
    net.act = lambda x: x.tanh()
    net.register_buffer("table", torch.ones(1).expand(4))
    return net


@pytest.mark.parametrize("build", [Frozen, drawing, with_functions])
def test_a_copy_that_stands_alone_is_taken(build: Callable[[], nn.Module]) -> None:
    net, plain = build(), conv_net(6)
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    learner = BYOL(net, 32, projection_size=8, projection_hidden_size=16)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    drawn = torch.rand(3)
    learner(images()).backward()
    torch.set_rng_state(state)
    BYOL(plain, 32, projection_size=8, projection_hidden_size=16)
    assert torch.equal(torch.rand(3), drawn)


# Buffers that a forward resizes


class Cached(nn.Module):
    """Sizes its buffer at the first forward, and by a state, as observers for quantisation do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        largest = x.detach().amax((0, 2, 3))
        self.largest.resize_(largest.shape).copy_(largest)
        return x

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        self.largest.resize_(state[prefix + "largest"].shape)
        super()._load_from_state_dict(state, prefix, *rest)


@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize("name", PAPERS)
def test_a_buffer_that_a_forward_resizes_is_put_back(name: str, image_size: int | None) -> None:
    net = nn.Sequential(*conv_net(6)[:6], Cached(), *conv_net(6, classes=5)[6:])
    buffer = net[6].largest
    learner = make(name, image_size, net=net)
    learner.views(images())
    assert net[6].largest is buffer
    assert not buffer.numel() or image_size is None
    train(learner)
    assert net[6].largest.shape == (6,)
    other = make(name, net=nn.Sequential(*conv_net(6)[:6], Cached(), *conv_net(6, classes=5)[6:]))
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other.net[6].largest, buffer)


def train(learner: Learner) -> Any:
    learner(images()).backward()
    learner.update_moving_average()
