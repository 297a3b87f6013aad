"""The backbone is the user's: nothing but trained weights may show that it was wrapped."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods import METHODS, PAPERS
from nets import Function, Tokens, conv_net
from torch import Tensor, nn
from torchvision import models

from byol_wrap import BYOL, Learner

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


class Restless(nn.Module):
    """Changes a buffer, a plain attribute and the random state in every forward, eval or not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_net(6)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("rebound", torch.zeros(2))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.rebound = self.rebound + 1
        self.last = self.body(x + 0.01 * torch.randn_like(x))
        return self.last


def state(net: nn.Module) -> dict[str, Any]:
    """All that a net holds, comparable."""
    hooks = [name for name in vars(net) if name.endswith("_hooks") or "hooks_" in name]
    assert len(hooks) > 8
    return {
        "tensors": {k: v.clone() for k, v in net.state_dict(keep_vars=True).items()},
        "identities": [id(t) for t in (*net.parameters(), *net.buffers())],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "gradients": [p.grad for p in net.parameters()],
        "training": [m.training for m in net.modules()],
        "hooks": [len(vars(m)[name]) for m in net.modules() for name in hooks if vars(m)[name]],
        "attributes": [sorted(vars(m)) for m in net.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in before:
        if key == "tensors":
            assert before[key].keys() == after[key].keys()
            for name, tensor in before[key].items():
                assert torch.equal(tensor, after[key][name]), name
        elif key == "random":
            assert torch.equal(before[key], after[key])
        else:
            assert before[key] == after[key], key


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: models.resnet18(),
    "mobilenet": lambda: models.mobilenet_v3_small(),
    "conv": lambda: conv_net(6, classes=5),
    "tokens": lambda: Tokens(class_token=True),
    "restless": Restless,
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)), nn.ReLU()
    ),
}


SMALL_NETS = ["conv", "tokens", "restless", "spectral norm"]
METHOD_AND_NET = [("BYOL", net) for net in NETS]
METHOD_AND_NET += [(method, net) for net in SMALL_NETS for method in PAPERS[1:]]


@pytest.fixture(params=METHOD_AND_NET, ids=lambda names: ", ".join(names))
def wrap_and_net(request: pytest.FixtureRequest) -> tuple[Callable[..., Learner], nn.Module]:
    torch.manual_seed(0)
    method, net = request.param
    return METHODS[method], NETS[net]()


@pytest.mark.parametrize("training", [True, False])
def test_construction_leaves_everything_bit_for_bit(wrap_and_net: Any, training: bool) -> None:
    wrap, net = wrap_and_net
    net.train(training)
    next(m for m in net.modules() if m is not net).train(not training)  # a flag of its own
    before = state(net)
    learner = wrap(net, 32)
    assert_same(before, state(net))
    if not learner.has_target:
        return
    assert [m.training for m in learner.target.net.modules()] == before["training"]
    for name, tensor in learner.target.net.state_dict().items():
        assert torch.equal(tensor, before["tensors"][name]) or not tensor.numel(), name


def test_building_on_the_first_batch_leaves_nothing_but_what_a_forward_does(
    wrap_and_net: Any,
) -> None:
    wrap, net = wrap_and_net
    learner = wrap(net)
    net.eval()
    twin, tensors = copy.deepcopy(net), [*net.parameters(), *net.buffers()]
    batch = torch.rand(2, 3, 32, 32)
    random = torch.get_rng_state()
    with torch.no_grad():
        twin(batch)  # how often it is run, and its draws, but for the values of an attribute
    alone = state(twin)
    torch.set_rng_state(random)
    learner.embed(batch)
    assert learner.representation is not None
    embedded = state(net)
    rebound = {name for name, _ in net.named_buffers() if name == "rebound"}
    assert all(
        i == id(t) for i, t in zip(embedded["identities"], tensors, strict=True) if not rebound
    )
    assert_same(alone | {"identities": []}, embedded | {"identities": []})


def test_the_backbone_is_the_users_own_module(wrap_and_net: Any) -> None:
    wrap, net = wrap_and_net
    learner = wrap(net, 32)
    assert learner.net is net
    assert learner.online.net is net
    if not learner.has_target:
        return
    assert learner.target.net is not net
    own = {id(t) for t in (*net.parameters(), *net.buffers())}
    assert not own & {id(t) for t in (*learner.target.parameters(), *learner.target.buffers())}


def train(learner: Learner, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    for _ in range(steps):
        loss = learner(torch.rand(4, 3, 32, 32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()


@pytest.mark.filterwarnings("ignore:.*non-writable:UserWarning")
@pytest.mark.parametrize(
    ("method", "name"),
    [
        *(("BYOL", name) for name in ("resnet18", "conv", "tokens")),
        *((method, "conv") for method in METHODS if method != "BYOL"),
    ],
)
def test_between_steps_the_backbone_is_as_if_never_wrapped(method: str, name: str) -> None:
    net = NETS[name]()
    keys = list(net.state_dict())
    wrapped_before = state(net)
    learner = METHODS[method](net, 32)
    for _ in range(2):
        train(learner, 1)
        after = state(net)
        assert after["hooks"] == wrapped_before["hooks"] == []
        assert after["attributes"] == wrapped_before["attributes"]
        assert after["identities"] == wrapped_before["identities"]
        assert list(net.state_dict()) == keys
        size = len(pickle.dumps(net))
        assert size < 1.1 * len(pickle.dumps(NETS[name]())) + 1000  # no learner comes along
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), saved(net)):
            images = torch.rand(2, 3, 32, 32)
            torch.testing.assert_close(other.eval()(images), copy.deepcopy(net).eval()(images))


def saved(net: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


def test_a_trained_backbone_loads_into_a_fresh_net() -> None:
    learner = BYOL(models.resnet18(), 32, **SMALL)
    train(learner)
    fresh = models.resnet18()
    fresh.load_state_dict(learner.net.state_dict(), strict=True)


@pytest.mark.parametrize("where", ["net", "augment", "target"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_a_forward_leaves_no_hook_and_training_goes_on(
    where: str, error: type[BaseException]
) -> None:
    broken = {"now": False}

    def break_here(*_: Any) -> None:
        if broken["now"]:
            raise error("stop")

    def forward(self: Any, x: Tensor) -> Tensor:
        features = self.body(x)
        if where == "net" or (where == "target" and not torch.is_grad_enabled()):
            break_here()
        return self.fc(features)

    def augment(x: Tensor) -> Tensor:
        if where == "augment":
            break_here()
        return x

    net = Function(forward, body=conv_net(6), fc=nn.Linear(6, 3))
    learner = BYOL(net, 32, "body.3", augment_fn=augment, **SMALL)
    # hidden_layer body.3 is passed before the break; with "fc" the break comes first.
    learner_late = BYOL(net, 32, augment_fn=augment, **SMALL)
    hooks = state(net)["hooks"]
    broken["now"] = True
    with pytest.raises(error, match="stop"):
        learner_late(torch.rand(4, 3, 32, 32))
    assert state(net)["hooks"] == hooks == []
    broken["now"] = False
    pickle_free = copy.deepcopy(net)
    assert list(pickle_free.state_dict()) == list(net.state_dict())
    train(learner_late)
    train(learner)


@pytest.mark.parametrize("image_size", [32, None])
def test_embedding_puts_every_training_flag_back_even_after_an_error(
    image_size: int | None,
) -> None:
    net = conv_net(6, classes=3)
    learner = BYOL(net, image_size, **SMALL)
    net[1].eval()
    flags = [m.training for m in learner.modules()]
    before = net[1].running_mean.clone(), net[4].running_mean.clone()
    learner.embed(torch.rand(1, 3, 32, 32))
    assert [m.training for m in learner.modules()] == flags
    assert torch.equal(before[0], net[1].running_mean)
    assert torch.equal(before[1], net[4].running_mean)
    with pytest.raises(RuntimeError):
        learner.online.represent(torch.rand(1, 5, 32, 32))
    net[0] = nn.Conv2d(5, 6, 3)
    with pytest.raises(RuntimeError):
        learner.embed(torch.rand(1, 3, 32, 32))
    assert [m.training for m in learner.modules()] == flags


def test_hooks_of_the_users_own_survive_and_fire() -> None:
    net = conv_net(6, classes=3)
    calls: list[int] = []
    handle = net[0].register_forward_hook(lambda *_: calls.append(1))
    learner = BYOL(net, 32, **SMALL)
    calls.clear()
    learner(torch.rand(4, 3, 32, 32))
    assert calls
    assert list(net[0]._forward_hooks) == [handle.id]
