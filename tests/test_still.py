"""Weights that stand still, jump or are written by others are told; those that train are not."""

import copy
import gc
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda_step import Elsewhere, plays_a_gpu
from methods import PAPERS, WITH_TARGET, make
from nets import conv_net
from telling import told, views
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import _global_optimizer_post_hooks

from byol_wrap import Learner


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "still.LOOK_EVERY": 2,
        "still.LOOKS": 3,
        "still.STEPS": 4,
        "replaced.LOOK_EVERY": 2,
        "jump.LOOK_EVERY": 2,
        "jump.USUAL": 3,
        "jump.WINDOWS": 2,
        "stepping.UNTIL": 0,  # what counts steps in any case has ended by then
    }.items():
        monkeypatch.setattr(f"byol_wrap.guard.{name}", value)


def train(
    learner: Learner,
    optimizer: Optimizer,
    steps: int = 20,
    *,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    after: Callable[[int], Any] = lambda step: None,
    update: bool = True,
) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        backward(learner(*views(32)))
        optimizer.step()
        if update:
            learner.update_moving_average()
        after(step)


# No gradient


def made_anew(loss: Tensor) -> None:
    torch.tensor(loss.item(), requires_grad=True).backward()


@pytest.mark.parametrize(
    ("name", "backward", "attach"),
    [
        *((name, made_anew, False) for name in PAPERS),
        *((name, lambda loss: None, name == "BYOL") for name in ("BYOL", "SimCLR")),
    ],
)
def test_losses_that_never_go_backward_are_told(
    name: str, backward: Callable[[Tensor], None], attach: bool
) -> None:
    learner = make(name)
    optimizer = AdamW(learner.parameters())
    if attach:
        learner.attach(optimizer)
    message = told(
        lambda: train(learner, optimizer, backward=backward, update=False),
        "no parameter of the learner had a gradient when the optimizer stepped",
    )
    assert "torch.tensor(loss.item()" in message


@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_gradients_cleared_before_the_step_are_told(name: str) -> None:
    learner = make(name)
    optimizer = SGD(learner.parameters(), lr=0.1)

    def cleared(loss: Tensor) -> None:
        loss.backward()
        optimizer.zero_grad()

    told(lambda: train(learner, optimizer, backward=cleared), "no zero_grad")


@pytest.mark.parametrize("name", PAPERS)
def test_updates_without_a_gradient_are_told_whoever_steps(name: str) -> None:
    learner = make(name)

    def run() -> None:
        for _ in range(20):
            learner(*views(32))
            learner.update_moving_average()

    told(run, r"had a gradient when update_moving_average\(\) was called")


# No rate


def warm_up_without_scheduler(learner: Learner) -> Optimizer:
    optimizer = SGD(learner.parameters(), lr=0.1)
    LambdaLR(optimizer, lambda step: min(step / 5, 1.0))
    return optimizer


def beside_another_net(learner: Learner) -> Optimizer:
    groups = [{"params": learner.parameters(), "lr": 0.0}, {"params": nn.Linear(2, 2).parameters()}]
    return SGD(groups, lr=0.1)


NO_RATE: dict[str, Callable[[Learner], Optimizer]] = {
    "SGD": lambda learner: SGD(learner.parameters(), lr=0.0, momentum=0.9),
    "fused": lambda learner: AdamW(learner.parameters(), lr=0.0, fused=True),
    "scheduler forgotten": warm_up_without_scheduler,
    "beside another net": beside_another_net,
}


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "SGD") for name in PAPERS), *(("BYOL", how) for how in NO_RATE), ("SimCLR", "fused")],
)
def test_a_rate_of_0_is_told(name: str, how: str) -> None:
    learner = make(name)
    optimizer = NO_RATE[how](learner)
    message = told(lambda: train(learner, optimizer), "learning rate is 0")
    assert "For 6 training steps no weight has moved" in message


def test_a_rate_of_0_is_told_also_where_most_steps_find_no_gradient() -> None:
    learner = make("SimCLR")
    takes = itertools.cycle([True, False, False])

    def now_and_then(loss: Tensor) -> None:
        if next(takes):
            loss.backward()

    optimizer = SGD(learner.parameters(), lr=0.0)
    told(lambda: train(learner, optimizer, backward=now_and_then), "learning rate is 0")


@pytest.mark.parametrize("name", ["BYOL", "SimSiam"])
def test_a_run_that_goes_on_when_its_schedule_has_ended_is_told(name: str) -> None:
    learner = make(name)
    optimizer = SGD(learner.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: max(1 - step / 5, 0.0))
    told(
        lambda: train(learner, optimizer, 24, after=lambda _: scheduler.step()),
        "longer than its scheduler was made for",
    )


def test_steps_that_half_precision_loses_are_told() -> None:
    learner = make("SimCLR", net=conv_net(6)).to(torch.bfloat16)
    matrices, rest = ([p for p in learner.parameters() if (p.ndim > 1) is m] for m in (True, False))
    for parameter in matrices:
        nn.init.constant_(parameter, 0.5)
    optimizer = SGD([{"params": matrices}, {"params": rest, "lr": 1e-10}], lr=1e-9)

    def run() -> None:
        for _ in range(20):
            view1, view2 = (view.bfloat16() for view in views(32))
            learner(view1, view2).backward()
            optimizer.step()

    told(run, r"at a learning rate of 1e-09\. Was the rate lowered by a scheduler")


def test_gradients_clipped_to_next_to_nothing_are_told() -> None:
    learner = make("BYOL")
    optimizer = SGD(learner.parameters(), lr=0.01)

    def clipped(loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1e-9)

    told(lambda: train(learner, optimizer, backward=clipped), "Are all gradients 0")


# What is sound


def skipping(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(20):
        scaler.scale(learner(*views(32)) * (torch.inf if step < 14 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        learner.update_moving_average()


def adding_up(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1)
    for step in range(30):
        (learner(*views(32)) / 15).backward()
        if step % 15 == 14:
            optimizer.step()
            optimizer.zero_grad()
            learner.update_moving_average()


def adding_up_at_a_rate_that_rises(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: float(step >= 5))
    for step in range(20):
        learner(*views(32)).backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


def warming_up(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: step / 50)
    train(learner, optimizer, after=lambda _: scheduler.step())


def computing(learner: Learner) -> None:
    other = nn.Linear(2, 2)
    optimizer, held = SGD(other.parameters(), lr=0.1), SGD(learner.parameters(), lr=0.1)
    for _ in range(20):
        learner(*views(32))
        optimizer.step()  # another net's
    del held


def validating(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=1e-3)
    for _ in range(2):
        train(learner, optimizer, 5)
        for _ in range(11):
            learner(*views(32))  # in training mode, with gradient


def one_part(net: float, heads: float) -> Callable[[Learner], None]:
    def run(learner: Learner) -> None:
        own = set(learner.net.parameters())
        rest = [p for p in learner.parameters() if p.requires_grad and p not in own]
        groups = [{"params": list(own), "lr": net}, {"params": rest, "lr": heads}]
        train(learner, SGD(groups, lr=0.1))

    return run


def averages_put_in_for_a_while(learner: Learner) -> None:
    optimizer = SGD(learner.parameters(), lr=1e-3)
    for _ in range(3):
        train(learner, optimizer, 6)
        own = copy.deepcopy(learner.net.state_dict())
        learner.net.load_state_dict({k: torch.zeros_like(v) for k, v in own.items()})
        learner.net.load_state_dict(own)


def clipping_weights(learner: Learner) -> None:
    def clip(step: int) -> None:
        with torch.no_grad():
            for parameter in learner.net.parameters():
                parameter.clamp_(-0.05, 0.05)

    train(learner, SGD(learner.parameters(), lr=0.1), after=clip)


def growing_on(learner: Learner) -> None:
    def grow(step: int) -> None:
        with torch.no_grad():
            for parameter in learner.net.parameters():
                parameter.mul_(50 if step == 1 else 1.05)

    train(learner, SGD(learner.parameters(), lr=0.1), after=grow)


SOUND: dict[str, Callable[[Learner], None]] = {
    "rate rises from 0": warming_up,
    "batches added up": adding_up,
    "rate rises from 0, batches added up": adding_up_at_a_rate_that_rises,
    "steps skipped at first": skipping,
    "only computed": computing,
    "validated with gradient": validating,
    "heads alone": one_part(0.0, 0.1),
    "net alone": one_part(0.1, 0.0),
    "fused": lambda learner: train(learner, AdamW(learner.parameters(), fused=True)),
    "weights swapped and back": averages_put_in_for_a_while,
    "weights clipped": clipping_weights,
    "weights grown, and moving on": growing_on,
}


@pytest.mark.parametrize("how", SOUND)
@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_what_is_sound_is_not_told(name: str, how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SOUND[how](make(name))


def test_steps_are_counted_only_while_nothing_moves() -> None:
    before = len(_global_optimizer_post_hooks)
    learner = make("SimCLR")
    optimizer = SGD(learner.parameters(), lr=1e-3)
    [learner(*views(32)) for _ in range(9)]
    assert len(_global_optimizer_post_hooks) == before + 1
    train(learner, optimizer, 8)
    assert len(_global_optimizer_post_hooks) == before
    [learner(*views(32)) for _ in range(9)]
    del learner
    gc.collect()
    optimizer.step()  # for which nobody is there any more


# Jumps


def other(learner: Learner) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return conv_net(6, classes=5).state_dict()


@pytest.mark.parametrize(("name", "fused"), [*((n, False) for n in WITH_TARGET), ("BYOL", True)])
def test_weights_loaded_into_the_net_when_training_has_begun_are_told(
    name: str, fused: bool
) -> None:
    learner = make(name)
    optimizer = SGD(learner.parameters(), lr=1e-3, fused=fused)
    train(learner, optimizer, 8)
    learner.net.load_state_dict(other(learner))
    message = told(lambda: train(learner, optimizer, 4), "other weights were written into the net")
    assert "At step 9 " in message


@pytest.mark.parametrize("how", ["whole", "both", "no target"])
def test_weights_loaded_where_nothing_is_left_behind_are_not_told(how: str) -> None:
    learner = make("SimCLR" if how == "no target" else "BYOL")
    optimizer = SGD(learner.parameters(), lr=1e-3)
    train(learner, optimizer, 8)
    saved = other(learner)
    if how == "whole":
        learner.load_state_dict(make("BYOL", net=conv_net(6, classes=5)).state_dict())
    else:
        learner.net.load_state_dict(saved)
    if how == "both":
        learner.target.net.load_state_dict(saved)
    train(learner, optimizer, 4)


@pytest.mark.parametrize("name", PAPERS)
def test_weights_that_are_thrown_far_and_freeze_are_told(name: str) -> None:
    learner = make(name)
    optimizer = SGD(learner.parameters(), lr=1e5)
    learner._watch._weights.rates._steps = 10_000  # it would be told at once
    with pytest.warns(UserWarning, match="At about step 1 .* grew to") as caught:
        train(learner, optimizer, 20)
    messages = [str(w.message) for w in caught if "grew to" in str(w.message)]
    assert len(messages) == 1
    assert "have hardly moved since" in messages[0]


@plays_a_gpu
def test_no_look_waits_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol_wrap.guard.look.is_plain", lambda parameter: True)
    with Elsewhere() as there:
        learner, view = make("BYOL").to(there.device), torch.empty(8, 3, 32, 32).to(there.device)
        for _ in range(12):
            learner(view, view)
        there.waits.clear()
        for _ in range(9):
            learner(view, view)
            learner._watch._weights.jump.updated()
        assert there.waits == []
        assert learner._watch._weights.jump._kept


# Parameters that are others


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("name", PAPERS)
def test_parameters_that_are_replaced_under_the_optimizer_are_told(name: str, anew: bool) -> None:
    learner = make(name)
    optimizer: Optimizer = SGD(learner.parameters(), lr=1e-3)
    train(learner, optimizer, 8)
    state = {k: v.clone() for k, v in learner.net.state_dict().items()}
    learner.net.load_state_dict(state, assign=True)
    if anew:
        train(learner, SGD(learner.parameters(), lr=1e-3), 8)
        return
    told(lambda: train(learner, optimizer, 8), "holds parameters that the net no longer has")


@pytest.mark.parametrize("name", PAPERS)
def test_a_head_that_is_replaced_under_the_optimizer_is_told(name: str) -> None:
    learner = make(name)
    optimizer = SGD(learner.parameters(), lr=1e-3)
    train(learner, optimizer, 8)
    last = [m for m in learner.online.projector.modules() if isinstance(m, nn.Linear)][-1]
    last.weight = nn.Parameter(last.weight.detach().clone())
    told(lambda: train(learner, optimizer, 8), "parameters that the projector no longer has")


def test_parameters_replaced_before_there_is_an_optimizer_are_not_told() -> None:
    learner = make("SimCLR")
    learner(*views(32))
    state = {k: v.clone() for k, v in learner.net.state_dict().items()}
    learner.net.load_state_dict(state, assign=True)
    for _ in range(3):
        learner(*views(32))


def test_freezing_and_unfreezing_replaces_nothing() -> None:
    learner = make("BYOL")
    optimizer = SGD(learner.parameters(), lr=1e-3)
    for frozen in (True, False, True):
        learner.net[0].requires_grad_(not frozen)
        train(learner, optimizer, 6)
