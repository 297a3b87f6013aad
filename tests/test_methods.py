"""What every method promises, whichever it is."""

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from methods import IN_HALVES, METHODS, PAPERS, WITH_TARGET, make, possible
from nets import conv_net
from torch import Tensor, nn

from byol_wrap import (
    BYOL,
    MOCO_VIEW,
    SIMCLR_VIEW,
    SIMSIAM_VIEW,
    VIEW1,
    VIEW2,
    Learner,
    MoCo,
    SimCLR,
    SimSiam,
    cosine_ema_decay,
)

every_method = pytest.mark.parametrize("name", METHODS)


def images(batch: int = 8) -> Tensor:
    return torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


def two_views(batch: int = 8) -> tuple[Tensor, Tensor]:
    view1, view2 = images(2 * batch).chunk(2)
    return view1, view2


def sgd(learner: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(learner.parameters(), lr=lr, momentum=0.9)


def step(learner: Learner, optimizer: torch.optim.Optimizer, *batch: Tensor) -> float:
    loss = learner(*batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def state(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def gradients(learner: Learner) -> dict[str, Tensor]:
    named = learner.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_equal(ones: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        assert torch.equal(tensor, others[name]), name


# Loss and embedding


@every_method
def test_a_batch_gives_a_loss_that_trains_all_but_what_lies_behind(name: str) -> None:
    learner = make(name)
    loss = learner(images())
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert possible(name, loss.item())
    loss.backward()
    trained = {n for n, p in learner.named_parameters() if p.requires_grad and "net.8" not in n}
    assert gradients(learner).keys() == trained
    assert {n.split(".")[0] for n in trained} <= {"online", "predictor"}


@every_method
def test_images_are_fed_as_the_two_views_that_views_gives(name: str) -> None:
    learner = make(name).eval()  # in training MoCo would draw an order of its keys, too
    recipes = {"BYOL": (VIEW1, VIEW2), "SimSiam": (SIMSIAM_VIEW,) * 2, "SimCLR": (SIMCLR_VIEW,) * 2}
    views = learner._views.augment1, learner._views.augment2
    assert tuple(view.recipe for view in views) == recipes.get(name, (MOCO_VIEW,) * 2)
    torch.manual_seed(1)
    loss = learner(images())
    torch.manual_seed(1)
    view1, view2 = learner.views(images())
    assert torch.equal(loss, learner(view1, view2))
    assert not torch.equal(view1, view2)


@every_method
def test_training_improves_what_is_learned(name: str) -> None:
    learner = make(name)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    learner.attach(optimizer)
    losses = [step(learner, optimizer, *two_views(16)) for _ in range(30)]
    # MoCo's queue starts as noise, which is easily told from keys.
    assert max(losses[-5:]) < max(losses[:10]) - 0.05


@every_method
def test_embed_is_the_normalised_representation_without_gradient(name: str) -> None:
    learner = make(name)
    learner.net[1].eval()
    before, flags = state(learner), [module.training for module in learner.modules()]
    batch = images(3)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = copy.deepcopy(learner.net[:8]).eval()((batch - mean) / std).detach()
    result = learner.embed(batch)
    assert not result.requires_grad
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(learner.embed(batch[:1]), expected[:1])
    assert [module.training for module in learner.modules()] == flags
    assert_equal(before, state(learner))


@every_method
def test_health_tells_of_a_target_where_there_is_one(name: str) -> None:
    learner = make(name)
    learner(images(16))
    told = learner.health()
    assert {"std_ratio", "rank", "projection_std_ratio", "uniformity"} <= told.keys()
    one_view = name in ("MoCo", "MoCo, keys in parts")  # is all that the online network sees
    assert ("alignment" in told) != one_view
    assert ("target_distance" in told) == ("tau" in told) == (name in WITH_TARGET)


@every_method
def test_a_batch_of_one_is_refused_before_anything_is_changed(name: str) -> None:
    learner = make(name)
    before = state(learner)
    with pytest.raises(ValueError, match=f"cannot train {type(learner).__name__}"):
        learner(images(1))
    assert_equal(before, state(learner))


# Halves


@pytest.mark.parametrize("name", IN_HALVES)
def test_two_halves_are_one_loss(name: str) -> None:
    whole = make(name)
    halved = copy.deepcopy(whole)
    for learner in (whole, halved):
        for parameter in learner.target.parameters():
            parameter.data.mul_(1.1)
    loss = whole(*two_views())
    loss.backward()
    parts = []
    for half in halved.halves(*two_views()):
        half.backward()
        parts.append(half.item())
    assert sum(parts) == pytest.approx(loss.item(), rel=1e-6)
    ones, others = gradients(whole), gradients(halved)
    assert ones.keys() == others.keys()
    for key, gradient in ones.items():
        torch.testing.assert_close(gradient, others[key], rtol=1e-4, atol=1e-7)
    assert_equal(state(whole), state(halved))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in IN_HALVES])
def test_a_loss_that_has_no_halves_says_so_and_what_to_do(name: str) -> None:
    learner = make(name)
    before = state(learner)
    kind = name.split(",")[0]
    with pytest.raises(TypeError, match=rf"The loss of {kind}, .* use learner\(images\)"):
        next(learner.halves(images()))
    assert_equal(before, state(learner))
    learner(images()).backward()


class OtherLoss(BYOL):
    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        return super().loss(view1, view2) + 100


class Terms(SimCLR):
    count = 3

    def directions(self, view1: Tensor, view2: Tensor) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield self.project(view1).sum()


def test_halves_are_refused_where_they_are_not_those_of_the_loss() -> None:
    learner = OtherLoss(conv_net(6), 32, projection_hidden_size=16)
    with pytest.raises(TypeError, match="OtherLoss has a loss of its own"):
        next(learner.halves(images()))
    terms = Terms(conv_net(6), 32)
    for terms.count in (1, 3):  # type: ignore[misc]
        with pytest.raises(TypeError, match="should yield two terms"):
            list(terms.halves(images()))
    terms.count = 2
    assert len(list(terms.halves(images()))) == 2


@pytest.mark.parametrize("name", WITH_TARGET)
def test_a_pace_that_is_none_is_refused_whenever_it_is_set(name: str) -> None:
    learner = make(name, total_steps=9)
    for decay in (1.5, -3, float("nan")):
        with pytest.raises(ValueError, match=r"moving_average_decay lies in \[0, 1\]"):
            learner.moving_average_decay = decay
    for steps in (-5, 2.5):
        with pytest.raises(ValueError, match="total_steps should be an integer"):
            learner.total_steps = steps  # type: ignore[assignment]
    assert learner.total_steps == 9


# Accumulated gradients, attach, the target


@every_method
def test_accumulated_gradients_are_the_sum_of_each_batch_s(name: str) -> None:
    learner, apart = make(name), make(name)
    total: dict[str, Tensor] = {}
    for seed in range(2):
        torch.manual_seed(seed)
        learner(images()).backward()
        torch.manual_seed(seed)
        apart.zero_grad()
        apart(images()).backward()
        total = {key: total.get(key, 0) + value for key, value in gradients(apart).items()}
    found = gradients(learner)
    assert found.keys() == total.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, total[key], rtol=1e-5, atol=1e-7)
    assert_equal(state(apart), state(learner))


@every_method
def test_attach_is_an_update_after_each_real_step(name: str) -> None:
    attached, by_hand = make(name), make(name)
    optimizers = sgd(attached), sgd(by_hand)
    for learner, optimizer in zip((attached, by_hand), optimizers, strict=True):
        if learner is attached:
            learner.attach(optimizer)
        torch.manual_seed(3)
        for k in range(6):
            (learner(images()) / 2).backward()
            if k % 2:
                optimizer.step()
                optimizer.zero_grad()
                if learner is by_hand:
                    learner.update_moving_average()
    assert_equal(state(by_hand), state(attached))
    if name in WITH_TARGET:
        assert attached.step == 3
        assert not torch.equal(attached.net[0].weight, attached.target.net[0].weight)
        before = state(attached)
        with pytest.warns(UserWarning, match="does nothing on a learner that is attached"):
            attached.update_moving_average()
        assert_equal(before, state(attached))


@pytest.mark.parametrize("name", WITH_TARGET)
def test_only_an_update_moves_the_target(name: str) -> None:
    learner = make(name, moving_average_decay=0.9)
    before = [p.clone() for p in learner.target.parameters()]
    optimizer = sgd(learner, lr=0.5)
    step(learner, optimizer, images())
    step(learner, optimizer, images())
    assert all(torch.equal(a, b) for a, b in zip(before, learner.target.parameters(), strict=True))
    assert all(p.grad is None for p in learner.target.parameters())
    learner.update_moving_average()
    old, new, online = before[0], learner.target.net[0].weight, learner.net[0].weight
    torch.testing.assert_close(new, 0.9 * old + 0.1 * online)
    assert not torch.equal(old, new)


@pytest.mark.parametrize("method", [SimSiam, SimCLR])
def test_a_method_without_a_target_holds_no_copy_and_says_nothing(method: Any) -> None:
    net = conv_net(6, classes=5)
    learner = method(net, 32, projection_size=8)
    assert {name for name, _ in learner.named_children()} <= {"online", "predictor"}
    assert not hasattr(learner, "step")
    assert not any(key == "step" or key.startswith("target") for key in learner.state_dict())
    heads = [learner.online.projector, *([learner.predictor] if method is SimSiam else [])]
    expected = sum(p.numel() for part in (net, *heads) for p in part.parameters())
    assert sum(p.numel() for p in learner.parameters()) == expected
    with pytest.raises(AttributeError, match="tau"):
        _ = learner.tau
    before = state(learner)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner.update_moving_average()
        learner.attach(sgd(learner))
        learner.update_moving_average()
    assert not caught
    assert_equal(before, state(learner))


# Heads


@every_method
def test_neither_construction_nor_building_draws_random_numbers(name: str) -> None:
    net = conv_net(6, classes=5)
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    built = METHODS[name](net, 32)
    assert torch.equal(torch.get_rng_state(), expected)
    lazy = METHODS[name](net)
    lazy.embed(images(2))
    assert torch.equal(torch.get_rng_state(), expected)
    after = []
    for learner in (built, METHODS[name](net)):
        torch.manual_seed(5)
        learner(images())  # builds the second
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


@every_method
@pytest.mark.parametrize("hidden", [16, None])
def test_lazy_heads_are_trained_by_an_optimizer_made_before(name: str, hidden: int | None) -> None:
    if hidden is None and name == "BYOL":
        pytest.skip("its hidden layer has a size of its own")
    learner = make(name, None, projection_hidden_size=hidden)
    assert learner.representation is None
    with pytest.raises(RuntimeError, match="give image_size="):
        learner.state_dict()
    known = list(learner.parameters())
    optimizer = sgd(learner, lr=0.5)
    learner.attach(optimizer)
    learner.eval()(images(1))
    online = [*learner.online.parameters()]
    before = [p.detach().clone() for p in online]
    assert {id(p) for p in online} <= {id(p) for p in known}
    assert type(learner.online.projector[0]) is nn.Linear
    assert learner.online.projector[0].weight.shape == (hidden or 6, 6)
    if name in WITH_TARGET:
        twins = zip(learner.online.projector.parameters(), learner.target.projector.parameters(),
                    strict=True)  # fmt: skip
        assert all(torch.equal(a, b) and not b.requires_grad for a, b in twins)
    step(learner.train(), optimizer, images())
    weights = [i for i, p in enumerate(online) if p.ndim > 1 and p.grad is not None]
    assert len(weights) >= 4
    assert not any(torch.equal(online[i], before[i]) for i in weights)


@every_method
@pytest.mark.parametrize("image_size", [32, None])
def test_copies_train_on_as_the_learner_does(name: str, image_size: int | None) -> None:
    # None is a width that is not known yet, either.
    learner = make(name, image_size, projection_hidden_size=16 if name == "BYOL" else None)
    if image_size is not None:
        step(learner, sgd(learner), images())
    file = io.BytesIO()
    torch.save(learner, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    losses = []
    for other in (learner, copy.deepcopy(learner), pickle.loads(pickle.dumps(learner)), saved):
        torch.manual_seed(2)
        if image_size is None:
            other.embed(images(2))
            torch.manual_seed(2)
        optimizer = sgd(other)
        losses.append([step(other, optimizer, images()) for _ in range(3)])
        assert other.representation == learner.representation
    assert losses == 4 * losses[:1]
    assert len({id(p) for p in learner.parameters()} & {id(p) for p in other.parameters()}) == 0


# Resuming


@every_method
@pytest.mark.parametrize("image_size", [32, None])
def test_a_checkpoint_resumes_bit_for_bit_also_into_unbuilt_heads(
    name: str, image_size: int | None
) -> None:
    options = {"total_steps": 8} if name in WITH_TARGET else {}

    def run(learner: Learner, optimizer: torch.optim.Optimizer) -> list[float]:
        losses = []
        for _ in range(4):
            losses.append(step(learner, optimizer, torch.rand(10, 3, 32, 32)))
            learner.update_moving_average()
        return losses

    learner = make(name, **options)
    optimizer = sgd(learner)
    run(learner, optimizer)
    saved = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
    file = io.BytesIO()
    torch.save(saved | {"random": torch.get_rng_state()}, file)
    expected = run(learner, optimizer)

    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    other = METHODS[name](conv_net(6, classes=5), image_size, **options)
    other_optimizer = sgd(other)
    other.load_state_dict(loaded["learner"])
    if name in WITH_TARGET:
        assert other.tau == cosine_ema_decay(4, 8, make(name).tau)
        assert type(other.target.projector[0]) is nn.Linear
    assert type(other.online.projector[0]) is nn.Linear
    other_optimizer.load_state_dict(loaded["optimizer"])
    torch.set_rng_state(loaded["random"])
    assert run(other, other_optimizer) == expected
    assert_equal(state(learner), state(other))
    if isinstance(learner, MoCo):
        assert learner.queue_position == 8 * (20 if learner.symmetric else 10) % len(learner.queue)


# What the papers say


def test_heads_are_the_papers() -> None:
    learners = {name: METHODS[name].func(conv_net(6), 32) for name in PAPERS}  # type: ignore[attr-defined]
    projector = {name: layers(learner.online.projector) for name, learner in learners.items()}
    predictor = {
        name: layers(learner.predictor)
        for name, learner in learners.items()
        if "predictor" in dict(learner.named_children())
    }
    square = ["6 6", "BN 6 affine", "ReLU"]
    assert projector == {
        "BYOL": ["6 4096 bias", "BN 4096 affine", "ReLU", "4096 256"],
        "SimSiam": [*square, *square, "6 2048", "BN 2048"],
        "SimCLR": ["6 6 bias", *square[1:], "6 128", "BN 128 scale"],
        "MoCo": ["6 6 bias", "ReLU", "6 128 bias"],
    }
    assert predictor == {
        "BYOL": ["256 4096 bias", "BN 4096 affine", "ReLU", "4096 256"],
        "SimSiam": ["2048 512", "BN 512 affine", "ReLU", "512 2048 bias"],
    }
    moco = learners["MoCo"]
    assert isinstance(moco, MoCo)
    assert (moco.queue.shape, moco.temperature, moco.tau) == ((4096, 128), 0.2, 0.999)


def layers(head: nn.Module) -> list[str]:
    """A head's layers in words."""
    words = []
    for layer in head.children():
        if isinstance(layer, nn.Linear):
            bias = " bias" if layer.bias is not None else ""
            words.append(f"{layer.in_features} {layer.out_features}{bias}")
        elif isinstance(layer, nn.BatchNorm1d):
            kind = "" if layer.weight is None else " affine"
            if layer.bias is not None and not layer.bias.requires_grad:
                assert not layer.bias.any()
                kind = " scale"
            words.append(f"BN {layer.num_features}{kind}")
        else:
            words.append(type(layer).__name__)
    return words


class Spectral(nn.Module):
    """Mixes channels of each frequency by complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 6, 1)
        self.weight = nn.Parameter(torch.randn(6, 12, 32, 17, dtype=torch.cfloat))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        frequencies = torch.fft.rfft2(self.up(x))
        mixed = torch.einsum("bchw,cdhw->bdhw", frequencies, self.weight)
        values: Tensor = self.head(torch.fft.irfft2(mixed).relu().mean((2, 3)))
        return values


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_complex_weights_are_read_and_trained(
    name: str, pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byol_wrap.guard.drift.WINDOW", 2)
    net = Spectral()
    learner = make(name, net=net, pretrained=pretrained)
    assert learner.representation is not None
    assert (learner.representation.where, learner.representation.size) == (
        "the input of layer 'head'",
        12,
    )
    before = net.weight.detach().clone()
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-4)
    for _ in range(4):
        learner(torch.rand(8, 3, 32, 32)).backward()
        optimizer.step()
        learner.update_moving_average()
    assert not torch.equal(net.weight, before)
    if learner.has_target:
        assert not torch.equal(learner.target.net.weight, before)
