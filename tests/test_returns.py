"""Weights that come back again and again are told; what is swapped in for a while is not."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from fake_cuda_step import Elsewhere, plays_a_gpu
from methods import PAPERS, make
from telling import told, views
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from byol_wrap import Learner
from byol_wrap.guard.returns import _Past


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"READ_EVERY": 5, "CHOOSE_EVERY": 10, "SPAN": 9}.items():
        monkeypatch.setattr(f"byol_wrap.guard.returns.{name}", value)


def train(
    learner: Learner,
    steps: int = 20,
    before: Callable[[int], object] = lambda step: None,
    optimizer: Optimizer | None = None,
) -> None:
    optimizer = optimizer or AdamW(learner.parameters(), lr=1e-3)
    for step in range(steps):
        before(step)
        optimizer.zero_grad()
        learner(*views()).backward()
        optimizer.step()
        learner.update_moving_average()


def every(steps: int, write: Callable[[], object]) -> Callable[[int], None]:
    """Write at the start of each epoch of so many steps, but the first."""

    def before(step: int) -> None:
        if step and step % steps == 0:
            write()

    return before


# What comes back


def through_data(module: nn.Module) -> Callable[[], None]:
    start = [p.detach().clone() for p in module.parameters()]

    def write() -> None:
        for parameter, values in zip(module.parameters(), start, strict=True):
            parameter.data.copy_(values)

    return write


def data_replaced(module: nn.Module) -> Callable[[], None]:
    start = [p.detach().clone() for p in module.parameters()]

    def write() -> None:
        for parameter, values in zip(module.parameters(), start, strict=True):
            parameter.data = values.clone()

    return write


def loaded(module: nn.Module) -> Callable[[], object]:
    start = copy.deepcopy(module.state_dict())
    return lambda: module.load_state_dict(start)


def seeded(module: nn.Module) -> Callable[[], None]:
    def write() -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module.apply(lambda layer: getattr(layer, "reset_parameters", int)())

    write()
    return write


HOW = {f.__name__: f for f in (loaded, through_data, data_replaced, seeded)}


@pytest.mark.parametrize(
    ("name", "how"), [*((name, "loaded") for name in PAPERS), *(("SimCLR", how) for how in HOW)]
)
def test_a_net_that_is_put_back_at_each_epoch_s_start_is_told(name: str, how: str) -> None:
    learner = make(name, 16)
    before = every(4, HOW[how](learner.net))
    message = told(lambda: train(learner, before=before), "the net's weights came back")
    assert message.startswith("3 times")
    assert "at step 1, the last time at step 13 (" in message


def test_a_whole_learner_that_is_put_back_is_told() -> None:
    whole = make("MoCo", 16)
    told(lambda: train(whole, before=every(4, loaded(whole))), "the net's weights came back")


def test_the_best_weights_put_back_again_and_again_are_told() -> None:
    learner = make("SimSiam", 16)
    train(learner, 6)
    before = every(5, loaded(learner))
    message = told(lambda: train(learner, 25, before), "3 times the net's weights came back")
    assert "at step 7, the last time at step 22 (" in message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_precision_and_layout_are_known_again(dtype: torch.dtype) -> None:
    learner = make("SimCLR", 16).to(dtype=dtype, memory_format=torch.channels_last)
    before = every(4, loaded(learner.net))

    def run() -> None:
        optimizer = SGD(learner.parameters(), lr=0.1)
        for step in range(20):
            before(step)
            view1, view2 = (view.to(dtype) for view in views())
            learner(view1, view2).backward()
            optimizer.step()
            optimizer.zero_grad()

    told(run, "3 times the net's weights came back")


def test_nets_drawn_anew_at_each_epoch_s_start_are_told() -> None:
    learner = make("SimCLR", 16)

    def draw() -> None:
        learner.net.apply(lambda layer: getattr(layer, "reset_parameters", int)())

    message = told(
        lambda: train(learner, 26, every(5, draw)), "other weights were written into the net"
    )
    assert "the last time at step 16 (" in message


# What is sound


def averaged(learner: Learner) -> None:
    """An average, far from the net, is swapped in for validation, with gradient or without."""
    average = [torch.zeros_like(p) for p in learner.net.parameters()]

    def validate() -> None:
        own = [p.detach().clone() for p in learner.net.parameters()]
        for mean, values in zip(average, own, strict=True):
            mean.lerp_(values, 0.1)
        for values in (average, own):
            with torch.no_grad():
                for parameter, value in zip(learner.net.parameters(), values, strict=True):
                    parameter.copy_(value)
            if values is average:
                learner.embed(torch.rand(4, 3, 16, 16))
                learner(*views())

    train(learner, 30, every(4, validate))


def sharpness_aware(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.01)
    for _ in range(15):
        own = [p.detach().clone() for p in learner.parameters()]
        learner(*views()).backward()
        with torch.no_grad():
            for parameter in learner.parameters():
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=0.1)
        optimizer.zero_grad()
        learner(*views()).backward()
        with torch.no_grad():
            for parameter, values in zip(learner.parameters(), own, strict=True):
                parameter.copy_(values)
        optimizer.step()
        learner.update_moving_average()


def looking_ahead(learner: Learner) -> None:
    slow = [p.detach().clone() for p in learner.net.parameters()]

    @torch.no_grad()
    def step() -> None:
        for parameter, values in zip(learner.net.parameters(), slow, strict=True):
            parameter.copy_(values.lerp_(parameter, 0.5))

    train(learner, 30, every(3, step))


def trying_rates(learner: Learner) -> None:
    """As a search for a learning rate, and a run that goes back to a checkpoint once."""
    put_back = loaded(learner)
    for rate in (1e-4, 1e-3, 1e-2):
        train(learner, 8, optimizer=SGD(learner.parameters(), lr=rate))
        if rate < 1e-2:
            put_back()


def adding_up(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1)
    for step in range(30):
        learner(*views()).backward()
        if step % 5 == 4:
            optimizer.step()
            optimizer.zero_grad()
            learner.update_moving_average()


def standing_still(learner: Learner) -> None:
    own = [p for name, p in learner.named_parameters() if "net" in name and "target" not in name]
    rest = [p for name, p in learner.named_parameters() if "net" not in name and p.requires_grad]
    train(learner, 30, optimizer=SGD([{"params": own, "lr": 0.0}, {"params": rest}], lr=0.1))


def growing_from_0(learner: Learner) -> None:
    with torch.no_grad():
        learner.net[0].weight.zero_()
    train(learner, 30)


SOUND = (
    *(averaged, sharpness_aware, looking_ahead, trying_rates, adding_up, standing_still),
    growing_from_0,
)


@pytest.mark.parametrize("how", SOUND)
@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_what_is_sound_is_not_told(name: str, how: Callable[[Learner], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        how(make(name, 16))


def test_a_few_values_that_rounding_puts_back_are_no_return() -> None:
    past = _Past()
    one, other = [1.0] * 16, [*([1.0] * 14), 2.0, 2.0]
    assert not any(past.has_come_back(values, step) for step, values in enumerate([one, other] * 9))
    far = [3.0] * 16
    assert [past.has_come_back(values, 20) for values in (far, one)] == [False, True]


def test_of_many_earlier_weights_the_first_and_the_last_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("byol_wrap.guard.returns.MOST", 8)
    past = _Past()
    for step in range(40):
        assert not past.has_come_back([float(step)], step)
    assert len(past._first_seen) <= 8
    assert past.has_come_back([0.0], 40)
    assert past.has_come_back([39.0], 41)


@plays_a_gpu
def test_no_value_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol_wrap.guard.look.is_plain", lambda parameter: True)
    with Elsewhere() as there:
        learner, view = make("BYOL").to(there.device), torch.empty(8, 3, 32, 32).to(there.device)
        for _ in range(12):
            learner(view, view)
        there.waits.clear()
        for _ in range(12):
            learner(view, view)
        assert there.waits == []
        assert learner._watch._weights.returns._layers
