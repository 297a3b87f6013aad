"""What a step may cost: no waiting for the device, few operators, half the memory in halves."""

import copy
import pickle
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from nets import conv_net
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models

from byol_wrap import BYOL
from byol_wrap.views import applying

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


class Operators(TorchDispatchMode):
    """Counts what runs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operators(run: Callable[[], Any]) -> Counter[str]:
    with Operators() as counted:
        run()
    return counted.counts


def make(net: nn.Module | None = None, image_size: int | None = 64) -> BYOL:
    torch.manual_seed(0)
    return BYOL(conv_net(6, classes=5) if net is None else net, image_size, **SMALL)


def whole_step(learner: BYOL, batch_size: int, size: int = 64) -> Callable[[], None]:
    images = torch.rand(batch_size, 3, size, size)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        learner(images).backward()
        optimizer.step()
        learner.update_moving_average()

    run()
    return run


def bare_networks(learner: BYOL, batch_size: int, size: int = 64) -> Callable[[], None]:
    """Both networks on both views, forward and backward: what a step cannot do without."""
    view1, view2 = torch.rand(2, batch_size, 3, size, size)

    def run() -> None:
        outputs = [learner.predictor(learner.online(view)[0]) for view in (view1, view2)]
        with torch.no_grad():
            targets = [learner.target(view)[0] for view in (view1, view2)]
        sum((q * z).sum() for q, z in zip(outputs, targets, strict=True)).backward()

    return run


# Waiting and launching


def test_nothing_in_a_step_reads_a_value_off_the_device() -> None:
    learner = make()
    run = whole_step(learner, 16)
    counts = operators(lambda: [run() for _ in range(25)])  # the watch on collapse looks, too
    assert counts["convolution"] > 0
    assert counts["_local_scalar_dense"] == 0
    assert counts["nonzero"] <= 25 * 2 * 5  # of draws, which are made on the host


@pytest.mark.parametrize("side", [64, 96])
def test_of_small_images_and_on_accelerators_operators_do_not_grow_with_the_batch(
    monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    monkeypatch.setattr(applying, "SMALL", 96)
    monkeypatch.setattr(applying, "MEDIUM", 97)
    images = torch.rand(256, 3, side, side)
    learner = make(image_size=side)
    learner.views(images[:2])
    counts = [
        sum(operators(lambda n=n: learner.views(images[:n])).values()) for n in (64, 128, 256)
    ]
    assert max(counts) <= 1500
    assert max(counts) - min(counts) <= 20


def test_beside_networks_and_views_a_step_launches_little() -> None:
    learner = make(models.resnet18())
    view1, view2 = torch.rand(2, 4, 3, 64, 64)
    floor = operators(bare_networks(learner, 4))
    step = operators(lambda: learner(view1, view2).backward())
    assert sum(step.values()) - sum(floor.values()) <= 80
    average = operators(learner.update_moving_average)
    assert average["_foreach_lerp_"] == 1
    assert sum(average.values()) <= 5


# Layers behind the representation


class Behind(nn.Module):
    """A tail that is run, one that is not, and weights of the tail that are used before it."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Sequential(*(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3)))
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.frozen = nn.Conv2d(6, 6, 3, padding=1)
        self.frozen.weight = self.tail[1].weight
        self.tap = nn.Conv2d(6, 6, 3, padding=1)
        self.never = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(self.stem(x))
        x = nn.functional.conv2d(x, self.tail[2].weight, padding=1)
        return self.tail(self.tap(x))


def shared_in(learner: BYOL) -> set[str]:
    """Names of the target's parameters that take no memory: they are the online network's."""
    pairs = zip(learner.net.parameters(), learner.target.net.named_parameters(), strict=True)
    return {name for p, (name, q) in pairs if p.data_ptr() == q.data_ptr()}


@pytest.mark.parametrize("image_size", [32, None])
def test_the_target_holds_nothing_that_is_only_reached_behind_the_representation(
    image_size: int | None,
) -> None:
    learner = BYOL(Behind(), image_size, hidden_layer="tap", channels=3, **SMALL)
    loss = learner(torch.rand(4, 3, 32, 32))
    loss.backward()
    learner.update_moving_average()
    assert learner.health()["target_distance"] == 0
    # "never" is not known to lie behind, and two weights of the tail are used before it.
    assert shared_in(learner) == {"tail.0.weight", "tail.0.bias", "tail.1.bias", "tail.2.bias"}
    assert all(p.numel() for p in learner.net.parameters())


@pytest.mark.parametrize(
    ("build", "hidden_layer", "share"),
    [(models.vgg11, None, 0.033), (models.resnet18, "layer2", 0.95), (models.resnet18, "", 0.0)],
)
def test_memory_of_the_target(build: Any, hidden_layer: str | None, share: float) -> None:
    net = build()
    learner = BYOL(net, 32, hidden_layer, **SMALL)
    shared = shared_in(learner)
    sizes = [sum(p.numel() for p in net.parameters())]
    sizes += [sum(p.numel() for n, p in learner.target.net.named_parameters() if n not in shared)]
    expected = {"vgg11": 4096 * 1000 + 1000, "resnet18": 0}[build.__name__]
    if hidden_layer == "layer2":
        behind = (net.layer3, net.layer4, net.fc)
        expected = sum(p.numel() for part in behind for p in part.parameters())
    assert sizes[0] - sizes[1] == expected
    assert expected / sizes[0] == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("image_size", [32, None])
def test_the_target_can_be_used_as_any_net(image_size: int | None) -> None:
    torch.manual_seed(0)
    shared = {"8.weight", "8.bias"}
    learner = BYOL(conv_net(6, classes=7), image_size, **SMALL)
    learner.embed(torch.rand(2, 3, 32, 32))
    assert shared_in(learner) == shared
    for name, parameter in learner.named_parameters():  # as SummaryWriter.add_histogram does
        assert torch.histc(parameter.detach(), 10).sum() > 0, name
    assert learner.target.net.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert learner.target.net.state_dict()["8.weight"].shape == (7, 6)
    for name, value in learner.state_dict().items():
        assert torch.histc(value.float(), 10).sum() > 0, name

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.5)

    learner.apply(init)
    assert (learner.target.net[8].weight == 0.5).all()
    learner.double()
    assert shared_in(learner) == shared
    other = BYOL(conv_net(6, classes=7), image_size, **SMALL).double()
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other.net[8].weight, learner.net[8].weight)
    other.embed(torch.rand(2, 3, 32, 32))
    assert torch.equal(other.target.net[8].weight, learner.net[8].weight)


def test_copies_share_as_the_original_does() -> None:
    learner = make()
    shared = {"8.weight", "8.bias"}
    assert shared_in(learner) == shared
    for twin in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert shared_in(twin) == shared
        assert twin.net[8].weight.data_ptr() != learner.net[8].weight.data_ptr()


def test_a_state_that_holds_what_is_shared_does_not_change_the_net() -> None:
    learner = make()
    state = learner.state_dict()
    state["target.net.8.weight"] = torch.full((5, 6), 9.0)  # as of a learner that was not built
    learner.load_state_dict(state)
    assert torch.equal(learner.net[8].weight, state["online.net.8.weight"])


# Halves


def gradients(learner: BYOL) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in learner.parameters()]


def with_dropout() -> nn.Module:
    return nn.Sequential(conv_net(6), nn.Dropout(0.5), nn.Linear(6, 6))


@pytest.mark.parametrize("image_size", [32, None])
def test_halves_leave_the_gradients_of_one_backward(
    image_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byol_wrap.guard.watch.STEPS_WITHOUT_UPDATE", 1)
    images = torch.rand(8, 3, 32, 32)
    whole = make(with_dropout(), image_size)
    halved = copy.deepcopy(whole)
    torch.manual_seed(1)
    loss = whole(images)
    loss.backward()
    torch.manual_seed(1)
    total = 0.0
    for half in halved.halves(images):
        assert 0 <= half.item() <= 4
        half.backward()
        total += half.item()
    assert total == pytest.approx(loss.item(), abs=1e-6)
    for a, b in zip(gradients(whole), gradients(halved), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for a, b in zip(whole.buffers(), halved.buffers(), strict=True):
        assert torch.equal(a, b)
    assert whole.health() == pytest.approx(halved.health())
    with pytest.warns(UserWarning, match="not been updated for 1 training steps"):
        next(halved.halves(images))  # the second step, not the fourth


class SavedForBackward:
    """The largest number of bytes that graphs hold at a time, parameters aside."""

    def __init__(self, learner: BYOL) -> None:
        self.parameters = {p.untyped_storage().data_ptr() for p in learner.parameters()}
        self.alive: Counter[int] = Counter()
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters and storage.data_ptr() not in self.alive:
            self.alive[storage.data_ptr()] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.free, storage.data_ptr())
        return tensor

    def free(self, address: int) -> None:
        self.now -= self.alive.pop(address, 0)


def peak(learner: BYOL, losses: Callable[[], Iterable[Tensor]]) -> int:
    saved = SavedForBackward(learner)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        for loss in losses():
            loss.backward()
            del loss
    return saved.most


def test_halves_hold_about_half_of_the_activations() -> None:
    learner = make(models.resnet18())
    view1, view2 = torch.rand(2, 16, 3, 64, 64)
    whole = peak(learner, lambda: [learner(view1, view2)])
    halves = peak(learner, lambda: learner.halves(view1, view2))
    assert 0.45 < halves / whole < 0.55


def test_halves_check_their_input_and_leave_the_learner_whole() -> None:
    learner, batch = make(), torch.rand(4, 3, 64, 64)
    with pytest.raises(ValueError, match="holds NaN"):
        next(learner.halves(torch.full((4, 3, 64, 64), float("nan"))))
    halves = learner.halves(batch)
    first = next(halves)
    assert learner(batch, batch) > 1.2 * first  # in between it is the whole loss
    next(halves)
    assert list(halves) == []
    with pytest.raises(TypeError, match="half"):
        learner(batch, batch, half=1)  # type: ignore[call-arg]
