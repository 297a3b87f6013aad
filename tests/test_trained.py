"""What no optimizer trains is told, once; what stands still for a good reason is not."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from fake_cuda_step import Elsewhere, plays_a_gpu
from methods import PAPERS, make
from nets import conv_net
from telling import heads, told
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from byol_wrap import Learner

HEADS = {"BYOL": "projector and the predictor", "SimSiam": "projector and the predictor"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol_wrap.guard.trained.HEADS_AFTER", 2)
    monkeypatch.setattr("byol_wrap.guard.trained.NET_AFTER", 5)
    monkeypatch.setattr("byol_wrap.guard.gradients.LOOKS", 6)
    monkeypatch.setattr("byol_wrap.guard.gradients.STEPS", 3)


def images() -> Tensor:
    return torch.rand(8, 3, 32, 32)


def train(learner: Learner, *optimizers: Optimizer, steps: int = 8, add_up: int = 1) -> None:
    for k in range(steps):
        learner(images()).backward()
        if (k + 1) % add_up == 0:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            learner.update_moving_average()


@pytest.mark.parametrize(("name", "fused"), [*((n, False) for n in PAPERS), ("SimCLR", True)])
def test_an_optimizer_of_the_net_alone_is_told(name: str, fused: bool) -> None:
    learner = make(name)
    optimizer = AdamW(learner.net.parameters(), fused=fused)
    which = HEADS.get(name, "projector")
    told(lambda: train(learner, optimizer), rf"does not train the {which}\. ")


@pytest.mark.parametrize("part", ["projector", "predictor"])
@pytest.mark.parametrize("name", ["BYOL", "SimSiam"])
def test_one_head_that_is_left_out_is_told(name: str, part: str) -> None:
    learner = make(name, None)
    learner.embed(images())
    own = [p for n, p in learner.named_parameters() if part not in n]
    told(lambda: train(learner, SGD(own, lr=0.1)), rf"does not train the {part}\. ")


@pytest.mark.parametrize(("name", "fused"), [("BYOL", False), ("SimCLR", True)])
def test_an_optimizer_of_the_heads_alone_is_told(name: str, fused: bool) -> None:
    learner = make(name)
    optimizer = SGD(heads(learner), lr=0.1, fused=fused)
    told(lambda: train(learner, optimizer), "does not train the net: in 5 steps")


def test_an_optimizer_of_a_net_that_was_replaced_is_told() -> None:
    learner = make("SimCLR")
    other = conv_net(6, classes=5)
    optimizer = SGD([*other.parameters(), *heads(learner)], lr=0.1)
    told(lambda: train(learner, optimizer), "before the net was changed")


@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_an_optimizer_of_another_learner_is_told(name: str) -> None:
    learner, other = make(name), make(name)
    optimizer = SGD(other.parameters(), lr=0.1)
    told(lambda: train(learner, optimizer), "No optimizer trains the learner")


def test_attach_looks_at_all_optimizers() -> None:
    learner = make("SimSiam")
    net = SGD(learner.net.parameters(), lr=0.1)
    told(lambda: learner.attach(net), "does not train the projector and the predictor")
    waits = make("BYOL", None)
    rest = SGD(heads(waits), lr=0.1)
    waits.attach(SGD(waits.net.parameters(), lr=0.1))
    del rest


class ByHand:
    """No optimizer of torch's; what it writes is not counted."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]

    def step(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def skipped(learner: Learner) -> None:
    """A scaler skips every step."""
    optimizer = SGD(learner.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for _ in range(8):
        scaler.scale(learner(images()) * torch.inf).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def rates(learner: Learner, net: float, head: float) -> Optimizer:
    return SGD(
        [
            {"params": learner.net.parameters(), "lr": net},
            {"params": heads(learner), "lr": head},
        ],
        lr=0.1,
        fused=True,
    )


def frozen(learner: Learner) -> None:
    learner.net[0].requires_grad_(False)
    learner.online.projector.requires_grad_(False)
    train(learner, SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1))


SOUND: dict[str, Callable[[Learner], None]] = {
    "whole": lambda learner: train(learner, SGD(learner.parameters(), lr=0.1)),
    "fused": lambda learner: train(learner, AdamW(learner.parameters(), fused=True)),
    "batches added up": lambda learner: train(
        learner, SGD(learner.parameters(), lr=0.1), add_up=20
    ),
    "steps skipped": skipped,
    "a rate of 0 at first": lambda learner: train(learner, rates(learner, 0.0, 0.0)),
    "heads first": lambda learner: train(learner, rates(learner, 0.0, 0.1)),
    "net first": lambda learner: train(learner, rates(learner, 0.1, 0.0)),
    "two optimizers": lambda learner: train(
        learner, SGD(learner.net.parameters(), lr=0.1), AdamW(heads(learner), fused=True)
    ),
    "frozen on purpose": frozen,
    "no optimizer of torch's": lambda learner: train(
        learner,
        ByHand(learner.parameters()),  # type: ignore[arg-type]
    ),
    "only computed": lambda learner: [learner(images()) for _ in range(8)] and None,
}


@pytest.mark.parametrize("how", SOUND)
@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_what_stands_still_for_a_reason_is_not_told(name: str, how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SOUND[how](make(name))


def test_a_head_of_one_s_own_is_told_by_its_name() -> None:
    class Scaled(Learner):
        def __init__(self) -> None:
            super().__init__(conv_net(6), 32, projector=nn.Linear(6, 4))
            self.scale = nn.Parameter(torch.ones(()))

        def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
            return (self.scale * self.project(view1) - self.project(view2)).square().mean()

    learner = Scaled()
    told(lambda: train(learner, SGD(learner.online.parameters(), lr=0.1)), "not train the scale")


@pytest.mark.parametrize(
    ("name", "rate"), [("BYOL", 0.1), ("SimCLR", 0.1), ("SimSiam", 0.0), ("MoCo", 0.1)]
)
def test_a_step_that_is_never_taken_is_told(name: str, rate: float) -> None:
    learner = make(name)
    optimizer = SGD(learner.parameters(), lr=rate)

    def run() -> None:
        for _ in range(8):
            learner(images()).backward()
            optimizer.zero_grad()
            learner.update_moving_average()

    told(run, "no weight has changed, although an optimizer .* call optimizer.step")


@pytest.mark.parametrize(("every", "fused"), [(2, False), (4, False), (1, False), (1, True)])
def test_a_target_that_is_updated_after_each_batch_that_is_added_up_is_told(
    monkeypatch: pytest.MonkeyPatch, every: int, fused: bool
) -> None:
    monkeypatch.setattr("byol_wrap.guard.pacing.LOOKS", 12)
    monkeypatch.setattr("byol_wrap.guard.pacing.FRESH", 2)
    learner, batch = make("BYOL"), images()
    optimizer = SGD(learner.parameters(), lr=0.1, fused=fused)

    def run() -> None:
        for k in range(13):
            learner(batch).backward()
            if (k + 1) % every == 0:
                optimizer.step()
                optimizer.zero_grad()
            learner.update_moving_average()

    if every == 1:
        run()
        for _ in range(8):
            learner.update_moving_average()  # which nobody looks at any more
    else:
        told(run, rf"{11 - 12 // every} of 12 updates found no weight changed")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_gradients_that_are_never_cleared_are_told(name: str, fused: bool) -> None:
    learner = make(name)
    optimizer = SGD(learner.parameters(), lr=0.01, fused=fused)

    def run(clear: Callable[[], None], every: int = 1) -> None:
        for k in range(10):
            learner(images()).backward()
            if (k + 1) % every == 0:
                nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
                optimizer.step()
                clear()
                learner.update_moving_average()

    told(lambda: run(lambda: None), "Gradients of the .*projector.* are added up from step to step")
    for clear, every in (
        (optimizer.zero_grad, 1),
        (optimizer.zero_grad, 3),
        (lambda: optimizer.zero_grad(set_to_none=False), 1),
        (lambda: learner.zero_grad(set_to_none=False), 2),
    ):
        learner._watch = type(learner._watch)()
        optimizer.zero_grad()
        run(clear, every)


@pytest.mark.parametrize("name", PAPERS)
def test_gradients_of_a_part_that_are_never_cleared_are_told(name: str) -> None:
    learner = make(name)
    optimizer = SGD(learner.parameters(), lr=0.01)

    def run() -> None:
        for _ in range(10):
            learner.net.zero_grad()
            learner(images()).backward()
            optimizer.step()
            learner.update_moving_average()

    told(run, rf"Gradients of the {HEADS.get(name, 'projector')} are added up")


@plays_a_gpu
def test_no_look_waits_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("look", "optimizers"):  # what has no values here has them there
        monkeypatch.setattr(f"byol_wrap.guard.{module}.is_plain", lambda parameter: True)
    with Elsewhere() as there:
        learner, view = make("SimSiam").to(there.device), torch.empty(8, 3, 32, 32).to(there.device)
        optimizer: Any = SGD(learner.parameters(), lr=0.1)
        for _ in range(12):
            learner(view, view)
        there.waits.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for parameter in learner.parameters():
                parameter.grad = torch.zeros_like(parameter)
            for _ in range(9):
                learner._watch._weights.trained._goes_backward(view)  # of which there is none here
                if not learner._watch._weights.gradients._is_done:
                    learner._watch._weights.gradients._look(view)
                learner(view, view)
        assert there.waits == []
        assert learner._watch._weights.trained._is_done
        assert learner._watch._weights.gradients._is_done
        del optimizer


def test_looks_end_after_a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make("BYOL")
    train(learner, SGD(learner.parameters(), lr=0.1), steps=4)

    def no_more(_: nn.Module) -> Iterator[Any]:
        raise AssertionError

    monkeypatch.setattr("byol_wrap.guard.trained.parts", no_more)
    train(learner, SGD(learner.parameters(), lr=0.1), steps=4)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", ["BYOL", "MoCo"])
def test_parameters_of_ones_own_that_the_target_does_not_follow_are_told(
    monkeypatch: pytest.MonkeyPatch, name: str, copied: bool
) -> None:
    monkeypatch.setattr("byol_wrap.guard.pacing.LOOKS", 6)
    learner = make(name)
    trained = {n: p.detach().clone() for n, p in learner.named_parameters() if p.requires_grad}
    trained = {name: value.requires_grad_() for name, value in trained.items()}
    optimizer = SGD(trained.values(), lr=0.1)

    def run() -> None:
        for _ in range(8):
            torch.func.functional_call(learner, trained, images()).backward()
            optimizer.step()
            optimizer.zero_grad()
            if copied:
                learner.load_state_dict(trained, strict=False)
            learner.update_moving_average()

    if copied:
        run()
    else:
        told(run, "run with other parameters than its own")
