"""Devices that are not here: what a learner does there, as far as the host can tell."""

import contextlib
import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda_step import Elsewhere, move, plays_a_gpu
from methods import METHODS, PAPERS, WITH_TARGET, make
from nets import conv_net
from torch import Tensor, nn

from byol_wrap import BYOL, Learner
from byol_wrap.backbone import encoder
from byol_wrap.ema import Pace, cosine_ema_decay, update_average
from byol_wrap.evaluation.features import extract_features
from byol_wrap.evaluation.health import Outputs, figures
from byol_wrap.guard.contract import Gate
from byol_wrap.methods.processes import same_permutation

CHECKED = 10  # batches of floats that are read


def there_is(name: str, device: torch.device, **options: Any) -> tuple[Learner, Tensor]:
    """A learner and a view on a device, inside ``with Elsewhere()``."""
    learner = make(name, **options)
    move(learner, device)
    return learner, torch.empty(8, 3, 32, 32, device=device)


# What the host waits for


@plays_a_gpu
@pytest.mark.parametrize("name", METHODS)
def test_from_the_eleventh_batch_a_step_waits_for_nothing(name: str) -> None:
    with Elsewhere("cuda:1") as there:
        learner, view = there_is(name, there.device)
        waits = []
        for _ in range(CHECKED + 3):
            before = len(there.waits)
            learner(view, view)
            learner.update_moving_average()
            waits.append(len(there.waits) - before)
    assert all(waits[:CHECKED])  # two views are one batch
    assert not any(waits[CHECKED:])


@plays_a_gpu
def test_uint8_has_no_values_to_check_and_does_not_use_up_the_checks() -> None:
    with Elsewhere() as there:
        gate, view = Gate(), torch.empty(8, 3, 32, 32, device=there.device)
        for _ in range(CHECKED + 2):
            gate.batch(view.byte(), there.device)
        assert there.waits == []
        gate.batch(view, there.device)
        assert there.waits


@plays_a_gpu
def test_the_look_at_the_features_is_recorded_where_they_are() -> None:
    with Elsewhere("cuda:1") as there:
        learner, view = there_is("BYOL", there.device)
        for _ in range(CHECKED):
            learner(view, view)
        there.waits.clear()
        for _ in range(11):  # up to the step that looks
            learner(view, view)
    assert there.waits == []
    assert there.streams.call_args_list
    for call in there.streams.call_args_list:
        assert call.args == (torch.device("cuda:1"),)


class Fused(torch.optim.Optimizer):
    """What a ``GradScaler`` takes for a fused optimizer: called always, told by ``found_inf``."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert self.found_inf is not None  # type: ignore[attr-defined]


@plays_a_gpu
@pytest.mark.parametrize(("name", "total_steps"), [("BYOL", None), ("BYOL", 9), ("SimSiam", None)])
def test_a_fused_optimizer_under_a_scaler_is_not_waited_for(
    name: str, total_steps: int | None
) -> None:
    options = {"total_steps": total_steps} if name == "BYOL" else {}
    with Elsewhere() as there:
        learner, view = there_is(name, there.device, **options)
        optimizer: Any = Fused(learner.parameters())
        learner.attach(optimizer)
        for k in range(CHECKED + 3):
            before = len(there.waits)
            learner(view, view)
            optimizer.found_inf = torch.zeros((), device=there.device)  # as GradScaler sets it
            optimizer.step()
            assert k < CHECKED or len(there.waits) == before
        if total_steps is not None:
            assert 0 <= learner.tau <= 1  # asking for it is a wait
            assert len(there.waits) == before + 1


@pytest.mark.parametrize("total_steps", [None, 6])
def test_a_step_that_is_skipped_on_the_device_moves_and_counts_nothing(
    total_steps: int | None,
) -> None:
    torch.manual_seed(0)
    average, online = conv_net(4), conv_net(4)
    pace, step = Pace(0.9, total_steps), torch.zeros((), dtype=torch.long)
    taken = 0
    for k in range(10):
        skipped = torch.full((1,), float(k % 3 == 1))
        before = [p.clone() for p in average.parameters()]
        update_average(average, online, pace.tau_unless(skipped, step))
        pace.advance(step, skipped)
        tau = 0.9 if total_steps is None else cosine_ema_decay(taken, total_steps, 0.9)
        for p, q, r in zip(average.parameters(), before, online.parameters(), strict=True):
            if skipped:
                assert torch.equal(p, q)
            else:
                torch.testing.assert_close(p.detach(), torch.lerp(q, r.detach(), 1 - tau))
        taken += not skipped
        assert step.item() == taken
    assert pace.tau(step) == pytest.approx(0.9 if total_steps is None else 1.0)


# Copies and kernels that a device does not have


class Away(nn.Module):
    """A net that is on a device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def parameters(self, recurse: bool = True) -> Any:
        return iter([SimpleNamespace(device=self.device)])

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("device", ["mps", "xpu", "cuda:1"])
def test_only_cuda_is_copied_to_without_a_wait(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[bool] = []

    def to(x: Tensor, where: torch.device, non_blocking: bool = False) -> Tensor:
        if where == torch.device(device):
            copies.append(non_blocking)
        return x

    monkeypatch.setattr(Tensor, "to", to)
    same_permutation(8, torch.device(device))
    extract_features(Away(device), [torch.rand(4, 3)], device="cpu")
    assert copies == [device == "cuda:1"] * 2


@plays_a_gpu
def test_health_needs_no_kernel_that_mps_lacks() -> None:
    with Elsewhere("mps") as there:
        outputs = Outputs(*(torch.empty(8, 6, device=there.device) for _ in range(3)))
        there.operators.clear()
        told = figures(outputs)
    assert [op for op in there.operators if op != "device"] == ["_to_copy"] * 3
    assert told["rank"] == pytest.approx(1)  # of a constant, which is what is read here
    assert told["alignment"] == 0


# Where heads are drawn


class Watched(nn.Sequential):
    """A head that notes where it is moved."""

    def to(self, *where: Any) -> "Watched":  # type: ignore[override]
        events.append(where)
        return super().to(*where)


events: list[Any] = []


def test_lazy_heads_are_drawn_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    events.clear()
    size = encoder.set_in_features

    def draws(head: nn.Module, features: int) -> None:
        events.append("drawn")
        size(head, features)

    monkeypatch.setattr(encoder, "set_in_features", draws)
    online = encoder.Encoder(conv_net(6).to("meta"), Watched(nn.LazyLinear(4)))
    online.size_projector(6)
    assert events == [("cpu",), "drawn", (torch.device("meta"),)]
    assert next(online.projector.parameters()).is_meta
    online = encoder.Encoder(conv_net(6).to("meta"), Watched(nn.LazyLinear(4)))
    events.clear()
    online.sized_projector(6)
    assert events == [("cpu",), "drawn"]


# A learner that is saved whole, and loaded elsewhere


@pytest.mark.parametrize("name", WITH_TARGET)
def test_a_learner_is_saved_whole_and_loaded_on_another_device(name: str) -> None:
    learner, images = make(name), torch.rand(8, 3, 32, 32)
    learner(images)
    expected = learner.embed(images)
    file = io.BytesIO()
    torch.save(learner, file)
    file.seek(0)
    other = torch.load(file, map_location="meta", weights_only=False)
    assert all(value.is_meta for value in other.state_dict().values())
    other.to_empty(device="cpu").load_state_dict(learner.state_dict())
    assert torch.equal(other.embed(images), expected)
    for part, whole in ((other.target.net, other.net), (learner.target.net, learner.net)):
        shared = [n for n, p in part.named_parameters() if p is whole.get_parameter(n)]
        pointers = {n: p.data_ptr() for n, p in whole.named_parameters()}
        assert shared == []
        behind = [n for n, p in part.named_parameters() if p.data_ptr() == pointers[n]]
        assert behind == ["8.weight", "8.bias"]


# Devices that a learner cannot be on, or only in part


@pytest.mark.parametrize("last", [nn.Identity, nn.ReLU])
@pytest.mark.parametrize("name", PAPERS)
def test_a_net_without_values_is_read_as_with_them_and_filled(
    name: str, last: type[nn.Module]
) -> None:
    nets = [nn.Sequential(*conv_net(6, classes=5), last()) for _ in range(2)]
    full, empty = (make(name, net=net) for net in (nets[0], nets[1].to("meta")))
    assert empty.representation == full.representation
    assert all(value.is_meta for value in empty.state_dict().values())
    empty.to_empty(device="cpu").load_state_dict(full.state_dict())
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(empty.embed(images), full.embed(images))


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device of PyTorch's own whose tensors have no address either: what XLA's are like."""
    backend = pytest.importorskip("torch._lazy.ts_backend")
    with contextlib.suppress(RuntimeError):
        backend.init()
    # There is no autocast for it, as there is for XLA.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    return "lazy"


def test_a_learner_trains_where_tensors_have_no_address(lazy: str) -> None:
    losses = []
    for device in ("cpu", lazy):
        torch.manual_seed(0)
        learner = make("BYOL", net=conv_net(6, classes=5).to(device))
        assert (learner.representation.layer, learner.representation.side) == ("8", "input")
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
        for k in range(3):
            views = torch.rand(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(k))
            loss = learner(*(view.to(device) for view in views))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            learner.update_moving_average()
            losses.append(loss.item())
        assert learner.health()["target_distance"] > 0
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-4)


def test_where_parameters_cannot_be_moved_in_place_heads_need_a_size(lazy: str) -> None:
    with pytest.raises(ValueError, match=r"On lazy the heads cannot wait.*image_size="):
        BYOL(conv_net(4).to(lazy))


# CUDA graphs


@plays_a_gpu
def test_a_cuda_graph_is_refused_before_anything_is_changed() -> None:
    with Elsewhere() as there:
        learner, view = there_is("BYOL", there.device)
        there.capturing = True
        for step in (
            lambda: learner(view, view),
            lambda: learner(view),
            lambda: learner.views(view),
            learner.update_moving_average,
        ):
            there.operators.clear()
            with pytest.raises(RuntimeError, match=r"CUDA graph.*torch\.compile"):
                step()
            assert there.operators == []
        there.capturing = False
        learner(view, view)


class Overwriting:
    """A compiler's backend that keeps the outputs of a graph no longer than a CUDA graph does.

    What graphs of one call of the compiled module gave is overwritten when the next call runs its
    first graph.
    """

    def __init__(self) -> None:
        self.call, self.ran, self.given = 0, 0, list[Tensor]()

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        def run(*inputs: Any) -> Any:
            if self.ran != self.call:
                self.ran = self.call
                for tensor in self.given:
                    tensor.fill_(math.nan)
                self.given.clear()
            kept = {x.untyped_storage().data_ptr() for x in tensors(inputs, graph)}
            outputs = graph(*inputs)
            for x in tensors(outputs):
                if x.is_floating_point() and x.untyped_storage().data_ptr() not in kept:
                    self.given.append(x.detach())
            return outputs

        return run


def tensors(*trees: Any) -> list[Tensor]:
    modules = [tree for tree in trees if isinstance(tree, nn.Module)]
    own = [x for module in modules for x in (*module.parameters(), *module.buffers())]
    return [x for x in torch.utils._pytree.tree_leaves(trees) if isinstance(x, Tensor)] + own


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_nothing_of_a_graphs_outputs_is_used_after_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("byol_wrap.guard.collapse.LOOK_EVERY", 3)  # one is read at the next
    torch._dynamo.reset()
    found = []
    for compiles in (False, True):
        learner, backend = make("BYOL"), Overwriting()
        model = torch.compile(learner, backend=backend) if compiles else learner
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
        learner.attach(optimizer)
        for k in range(8):
            backend.call += 1
            views = torch.rand(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(k))
            loss = model(*views)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        found.append(learner.health()["std_ratio"])
        assert not compiles or backend.given
    assert found[:9] == pytest.approx(found[9:], rel=1e-3)
