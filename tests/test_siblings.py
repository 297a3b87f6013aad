"""SimSiam, SimCLR and MoCo against figures of their reference implementations, in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import conv_net
from reference import encoder, tensor
from torch import Tensor, is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from byol_wrap import MoCo, SimCLR, SimSiam, byol_loss, moco_loss, nt_xent_loss, simsiam_loss

FIGURES: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "siblings_reference.json").read_text()
)
NET = {"inp": "net.0", "norm": "net.1", "out": "net.3"}


def named(figures: dict[str, Any], prefix: str = "", to: str = "online.") -> dict[str, Tensor]:
    """Figures of one network under our names: the encoder's layers, then the projector's."""
    ours = {}
    for name, values in figures.items():
        if name.startswith(prefix):
            layer, _, kind = name.removeprefix(prefix).rpartition(".")
            layer = NET.get(layer) or layer.replace("fc.", "projector.")
            ours[f"{to}{layer}.{kind}"] = tensor(values)
    return ours


def counted(learner: torch.nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with BatchNorm's counters, of which the figures have none."""
    counters = {k: v for k, v in learner.state_dict().items() if k.endswith("num_batches_tracked")}
    return {**counters, **state}


def close(ours: dict[str, Tensor], figures: dict[str, Tensor], tolerance: float) -> None:
    for name, figure in figures.items():
        torch.testing.assert_close(
            ours[name].data, figure, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_eight_steps_of_simsiam_equal_the_reference() -> None:
    figures = FIGURES["simsiam"]
    learner = SimSiam(encoder(), hidden_layer=-1, projection_size=12, prediction_hidden_size=5)
    learner(tensor(figures["view1"][0]), tensor(figures["view2"][0]))  # builds the heads

    def ours(values: dict[str, Any]) -> dict[str, Tensor]:
        state = named(values, "encoder.")
        state.pop("online.projector.6.bias", None)  # zero, and not trained
        return state | {k: tensor(v) for k, v in values.items() if k.startswith("predictor.")}

    learner.load_state_dict(counted(learner, ours(figures["init"])))
    optimizer = torch.optim.SGD(
        learner.parameters(), figures["lr"], figures["momentum"], weight_decay=0.01
    )
    assert figures["weight_decay"] == 0.01
    for k, expected in enumerate(figures["losses"]):
        loss = learner(tensor(figures["view1"][k]), tensor(figures["view2"][k]))
        assert loss.item() == pytest.approx(expected, abs=1e-9 if k == 0 else 1e-8), k
        optimizer.zero_grad()
        loss.backward()
        if k == 0:
            gradients = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
            first = ours(figures["grad_step0"])
            assert first.keys() == gradients.keys()
            close(gradients, first, 1e-9)
        optimizer.step()
    close(learner.state_dict(), ours(figures["end"]), 1e-8)


def test_eight_steps_of_moco_equal_the_reference() -> None:
    figures = FIGURES["moco"]
    learner = MoCo(
        encoder(),
        hidden_layer=-1,
        projection_size=6,
        queue_size=figures["K"],
        temperature=figures["temperature"],
        moving_average_decay=figures["tau"],
    )
    learner.eval()(tensor(figures["view_q"][0]), tensor(figures["view_k"][0]))
    learner.train()
    state = named(figures["init"]) | named(figures["init"], to="target.")
    state |= {"queue": tensor(figures["queue_init"]), "queue_position": torch.tensor(0)}
    learner.load_state_dict(counted(learner, state | {"step": torch.tensor(0)}))
    optimizer = torch.optim.SGD(
        learner.parameters(), figures["lr"], figures["momentum"], weight_decay=0.01
    )
    assert figures["weight_decay"] == 0.01
    for k, expected in enumerate(figures["losses"]):
        if k > 0:
            learner.update_moving_average()
        loss = learner(tensor(figures["view_q"][k]), tensor(figures["view_k"][k]))
        assert loss.item() == pytest.approx(expected, abs=1e-9 if k == 0 else 1e-8), k
        optimizer.zero_grad()
        loss.backward()
        if k == 0:
            gradients = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
            first = named(figures["grad_step0"])
            assert first.keys() == gradients.keys()
            close(gradients, first, 1e-9)
        optimizer.step()
    end = named(figures["online_end"])
    end |= named(figures["target_end_before_last_update"], to="target.")
    close(learner.state_dict(), end | {"queue": tensor(figures["queue_end"])}, 1e-8)
    assert learner.queue_position == figures["queue_ptr_end"]


@pytest.mark.parametrize("case", FIGURES["simclr"]["cases"])
@pytest.mark.parametrize("at_a_time", [2**25, 20])
def test_nt_xent_is_half_of_the_reference(
    case: dict[str, Any], at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byol_wrap.methods.losses.LARGEST", at_a_time)
    z1, z2 = (tensor(case[name]).requires_grad_() for name in ("projection1", "projection2"))
    loss = nt_xent_loss(z1, z2, case["temperature"])
    assert 2 * loss.item() == pytest.approx(case["loss"], abs=1e-9)
    (2 * loss).backward()
    assert z1.grad is not None
    assert z2.grad is not None
    gradient = torch.cat([z1.grad, z2.grad])
    torch.testing.assert_close(gradient, tensor(case["grad"]), rtol=0, atol=1e-9)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if is_tensor(t))])
        return out


@pytest.mark.parametrize(("limit", "largest"), [(500, 480), (2**25, 3600)])
def test_nt_xent_holds_no_more_similarities_than_it_may(
    limit: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byol_wrap.methods.losses.LARGEST", limit)
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(30, 5, generator=generator).requires_grad_() for _ in range(2))
    with Largest() as seen:
        nt_xent_loss(z1, z2).backward()
    assert seen.numel == largest  # 60 x 60 similarities, 8 rows of them at a time


LOSSES = {
    "byol_loss": lambda x, y: byol_loss(x, y),
    "simsiam_loss": lambda x, y: simsiam_loss(x, y),
    "nt_xent_loss": lambda x, y: nt_xent_loss(x, y),
    "moco_loss": lambda x, y: moco_loss(x, y, x.flip(0)),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_computed_in_float32_under_autocast(
    name: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("byol_wrap.methods.losses.LARGEST", 200)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 64, 32, generator=generator)

    def both(autocast: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        a, b = (v.clone().to(dtype).requires_grad_() for v in (x, y))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = LOSSES[name](a, b)
        loss.backward()
        assert loss.dtype == torch.float32
        return loss.detach(), a.grad

    exact, gradient = both(False, torch.float32)
    found, its_gradient = both(True, torch.float32)
    assert torch.equal(found, exact)
    assert torch.equal(its_gradient, gradient)
    half, _ = both(True, torch.bfloat16)
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=1e-2)


def test_a_learner_s_temperature_is_that_of_its_loss() -> None:
    view1, view2 = torch.rand(2, 8, 3, 32, 32)
    simclr = SimCLR(conv_net(6), 32, temperature=0.07).eval()
    rows = simclr.project(view1), simclr.project(view2)
    torch.testing.assert_close(simclr(view1, view2), nt_xent_loss(*rows, temperature=0.07))
    moco = MoCo(conv_net(6), 32, temperature=0.07, queue_size=20).eval()
    query, key = moco.project(view1), moco.target.project(view2)
    expected = moco_loss(query, key, moco.queue, temperature=0.07)
    torch.testing.assert_close(moco(view1, view2), expected)


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("method", [SimCLR, MoCo])
def test_temperatures_that_divide_nothing_are_refused(method: Any, temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"{method.__name__} expects a positive temperature"):
        method(conv_net(6), temperature=temperature)
    rows = torch.eye(3)
    with pytest.raises(ValueError, match="nt_xent_loss expects a positive temperature"):
        nt_xent_loss(rows, rows, temperature)
    with pytest.raises(ValueError, match="moco_loss expects a positive temperature"):
        moco_loss(rows, rows, rows, temperature)
