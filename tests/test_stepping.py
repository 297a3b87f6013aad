"""What the first steps and the rates of optimizers show is told, once; what is sound is not."""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda_step import Elsewhere, plays_a_gpu
from methods import PAPERS, make
from nets import conv_net
from telling import heads, told, views
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from byol_wrap import Learner


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "stepping.ENOUGH": 4,
        "stepping.MOST": 12,
        "stepping.COUNTED": 8,
        "stepping.UNTIL": 14,
        "stepping.WASTED": 0.6,
        "weighed.LOOK_EVERY": 1,
        "weighed.LOOKS": 2,
        "rates.LONG": 4,
        "little.FIRST": 3,
        "little.SPAN": 6,
        "little.LITTLE": 1e-5,
        "little.HEADS_ALONE": 2,
        "trained.HEADS_AFTER": 2,
        "trained.NET_AFTER": 5,
    }.items():
        monkeypatch.setattr(f"byol_wrap.guard.{name}", value)


def train(
    learner: Learner,
    *optimizers: Any,
    steps: int = 12,
    weigh: float = 1.0,
    between: Callable[[], Any] = lambda: None,
    scheduler: LRScheduler | None = None,
) -> None:
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (weigh * learner(*views())).backward()
        between()
        for optimizer in optimizers:
            optimizer.step()
        if scheduler is not None:
            scheduler.step()
        learner.update_moving_average()


def halves(learner: Learner) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The net's parameters, and the heads'."""
    return list(learner.net.parameters()), heads(learner)


# Which way


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, SGD) for name in PAPERS), ("SimCLR", AdamW), ("BYOL", AdamW)]
)
def test_an_optimizer_that_maximises_is_told(name: str, kind: Any) -> None:
    learner = make(name)
    optimizer = kind(learner.parameters(), lr=1e-3, maximize=True)
    told(lambda: train(learner, optimizer), "the optimizer moves the .*projector.* along")


def test_a_group_that_maximises_is_told_by_name() -> None:
    learner = make("SimSiam")
    net, heads = halves(learner)
    groups = [{"params": net, "maximize": True}, {"params": heads}]
    told(lambda: train(learner, SGD(groups, lr=1e-3)), "the optimizer moves the net along")


class Climber(Optimizer):
    """No option says which way it goes."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter += 1e-3 * parameter.grad


def test_which_way_is_seen_on_the_weights_and_not_on_an_option() -> None:
    learner = make("BYOL")
    told(lambda: train(learner, Climber(learner.parameters())), "along the gradient, not against")


@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_the_negative_is_rightly_maximised(name: str) -> None:
    learner = make(name)
    train(learner, SGD(learner.parameters(), lr=1e-3, maximize=True), weigh=-1.0)
    other = make(name)
    told(
        lambda: train(other, SGD(other.parameters(), lr=1e-3), weigh=-1.0), "called on its negative"
    )


# No gradient


@pytest.mark.parametrize("name", PAPERS)
def test_gradients_that_are_0_are_told_where_decay_moves_the_weights(name: str) -> None:
    learner = make(name)
    optimizer = AdamW(learner.parameters(), lr=1e-3, weight_decay=0.1)
    told(
        lambda: train(
            learner, optimizer, between=lambda: optimizer.zero_grad(set_to_none=False), steps=8
        ),
        r"The gradient of the .*projector.* was 0 or missing in 4 steps",
    )


def test_a_net_whose_gradients_are_0_is_told() -> None:
    learner = make("SimCLR")
    for parameter in learner.net.parameters():
        parameter.register_hook(torch.zeros_like)
    told(
        lambda: train(learner, SGD(learner.parameters(), lr=0.01), steps=8),
        "The gradient of the net was 0 or missing",
    )


# Too little


def clipped(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.01)

    def clip() -> None:
        nn.utils.clip_grad_norm_(learner.parameters(), 1e-4)

    train(learner, optimizer, between=clip)


TOO_LITTLE: dict[str, Callable[[Learner], None]] = {
    "clipped": clipped,
    "rate": lambda learner: train(learner, SGD(learner.parameters(), lr=1e-8)),
    "weight": lambda learner: train(learner, SGD(learner.parameters(), lr=0.01), weigh=1e-6),
}


@pytest.mark.parametrize(
    ("name", "how"), [*((name, "rate") for name in PAPERS), ("BYOL", "clipped"), ("MoCo", "weight")]
)
def test_weights_that_hardly_move_are_told(name: str, how: str) -> None:
    told(lambda: TOO_LITTLE[how](make(name)), "In 6 training steps no weight has moved by more")


@pytest.mark.parametrize("name", ["SimCLR", "BYOL"])
def test_a_new_net_whose_rate_stays_at_0_is_told(name: str) -> None:
    def run(learner: Learner) -> None:
        net, heads = halves(learner)
        train(learner, SGD([{"params": net, "lr": 0.0}, {"params": heads}], lr=0.1), steps=20)

    told(lambda: run(make(name)), "the net has not moved at all, while the heads have")
    run(make(name, pretrained=True))


@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_gradients_that_are_cleared_before_a_step_is_taken_are_told(name: str) -> None:
    learner = make(name)
    optimizer = SGD(learner.parameters(), lr=0.01)

    def run() -> None:
        for step in range(10):
            optimizer.zero_grad()
            learner(*views()).backward()
            if step % 5 == 4:
                optimizer.step()
                learner.update_moving_average()

    told(run, "Of 8 losses 6 went backward for nothing")


# Who steps


@pytest.mark.parametrize("name", PAPERS)
def test_an_optimizer_that_never_steps_hides_no_other(name: str) -> None:
    learner = make(name)
    unused = AdamW(learner.parameters(), lr=1e-3)
    net, _ = halves(learner)
    told(
        lambda: train(learner, SGD(net, lr=0.01)),
        "The optimizer that holds the projector.* never steps: another one has taken",
    )
    del unused


def test_an_optimizer_of_another_net_that_steps_instead_is_told() -> None:
    learner = make("SimCLR")
    unused, wrong = SGD(learner.parameters(), lr=0.1), SGD(conv_net(6).parameters(), lr=0.1)

    def run() -> None:
        for _ in range(8):
            learner(*views()).backward()
            wrong.step()

    told(run, r"no weight has changed, although .* call optimizer.step")
    del unused


# Rates


@pytest.mark.parametrize(("kind", "rate"), [(AdamW, 0.2), (torch.optim.Adam, 0.05), (SGD, 3.0)])
def test_a_rate_that_no_run_has_is_told(kind: Any, rate: float) -> None:
    learner = make("SimSiam")
    told(
        lambda: train(learner, kind(learner.parameters(), lr=rate), steps=3),
        f"{kind.__name__}'s learning rate is {rate:g}, at which",
    )


def along_a_cosine(optimizer: Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=2)


def ever_less(optimizer: Optimizer) -> LRScheduler:
    return StepLR(optimizer, 1, 0.02)


@pytest.mark.parametrize(
    ("schedule", "match"),
    [(along_a_cosine, "risen again 3 times in 12 "), (ever_less, "less than a ten thousandth")],
)
def test_a_scheduler_for_epochs_that_is_stepped_after_each_batch_is_told(
    schedule: Callable[[Optimizer], LRScheduler], match: str
) -> None:
    learner = make("BYOL")
    optimizer = SGD(learner.parameters(), lr=0.01)
    told(lambda: train(learner, optimizer, steps=14, scheduler=schedule(optimizer)), match)


# What is sound


def adding_up(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1, momentum=0.9)
    for step in range(30):
        (learner(*views()) / 3).backward()
        if step % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
            learner.update_moving_average()


def by_hand(learner: Learner) -> None:
    for _ in range(12):
        learner(*views()).backward()
        for parameter in learner.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.01 * parameter.grad
                parameter.grad = None
        learner.update_moving_average()


def in_turns(learner: Learner) -> None:
    net, heads = halves(learner)
    each = SGD(net, lr=0.01), AdamW(heads, lr=1e-3)
    for step in range(20):
        learner(*views()).backward()
        each[step % 2].step()
        [optimizer.zero_grad() for optimizer in each]
        learner.update_moving_average()


def warming_up(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1)
    train(learner, optimizer, scheduler=LambdaLR(optimizer, lambda step: step / 20), steps=20)


def ending(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: max(1 - step / 10, 0.0))
    train(learner, optimizer, scheduler=scheduler, steps=16)


def restarting(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 0.0 if step % 4 < 2 else 1.0)
    train(learner, optimizer, scheduler=scheduler, steps=14)


def a_head_frozen(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1)
    train(learner, optimizer, steps=1)
    learner.online.projector.requires_grad_(False)
    train(learner, optimizer, steps=10)


def scaled(learner: Learner) -> None:
    optimizer, scaler = SGD(learner.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    for _ in range(12):
        optimizer.zero_grad()
        scaler.scale(learner(*views())).backward()
        scaler.step(optimizer)
        scaler.update()


def heads_alone(learner: Learner) -> None:
    net, heads = halves(learner)
    optimizer = SGD([{"params": net, "lr": 0.0}, {"params": heads}], lr=0.1)
    train(learner, optimizer, steps=6)
    optimizer.param_groups[0]["lr"] = 0.1
    train(learner, optimizer, steps=6)


SOUND: dict[str, Callable[[Learner], None]] = {
    "momentum": lambda learner: train(learner, SGD(learner.parameters(), lr=0.1, momentum=0.9)),
    "fused": lambda learner: train(learner, AdamW(learner.parameters(), fused=True)),
    "much decay": lambda learner: train(learner, SGD(learner.parameters(), 0.1, weight_decay=0.1)),
    "batches added up": adding_up,
    "two optimizers in turns": in_turns,
    "no optimizer of torch's": by_hand,
    "rate rises from 0": warming_up,
    "rate falls to 0": ending,
    "rate rises from 0 and again twice": restarting,
    "a head frozen": a_head_frozen,
    "scaled": scaled,
    "heads alone at first": heads_alone,
}


@pytest.mark.parametrize("how", SOUND)
@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_what_is_sound_is_not_told(name: str, how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SOUND[how](make(name))


def test_nothing_is_left_of_the_looks() -> None:
    hooks = _global_optimizer_pre_hooks, _global_optimizer_post_hooks
    before = [len(of) for of in hooks]
    learner = make("SimCLR")
    optimizer = SGD(learner.parameters(), lr=0.01)
    train(learner, optimizer, steps=2)
    assert [len(of) for of in hooks] == [count + 1 for count in before]
    train(learner, optimizer, steps=10)
    assert [len(of) for of in hooks] == before
    other = make("SimCLR")
    train(other, optimizer, steps=2)
    del other
    gc.collect()
    optimizer.step()  # nobody is there any more


@plays_a_gpu
def test_no_look_waits_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol_wrap.guard.look.is_plain", lambda parameter: True)
    monkeypatch.setattr("byol_wrap.guard.stepping.UNTIL", 30)
    with Elsewhere() as there:
        learner, view = make("SimSiam").to(there.device), torch.empty(8, 3, 16, 16).to(there.device)
        optimizer = SGD(learner.parameters(), lr=0.1)
        for _ in range(12):
            learner(view, view)
        for parameter in learner.parameters():
            parameter.grad = torch.zeros_like(parameter)
        there.waits.clear()
        learner._watch._weights.weighed.usual = 1.0

        def run() -> None:
            for _ in range(5):
                optimizer.step()
                learner(view, view)

        told(run, "along the gradient")  # all values there are 0.5
        assert there.waits == []
        assert learner._watch._weights.stepping.steps is not None
        assert len(learner._watch._weights.stepping.steps.looks) == 4
