"""Precisions, memory formats, devices and compilation."""

import copy
from typing import Any

import pytest
import torch
from devices import CUDA
from methods import METHODS, PAPERS, WITH_TARGET, make, possible
from nets import conv_net
from torch import Tensor, nn

from byol_wrap import BYOL, Learner

SMALL = {"projection_size": 8, "projection_hidden_size": 16}
DEVICES = ["cpu", CUDA]


def train(learner: nn.Module, inner: Learner, batch: Tensor, steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)
    handle = inner.attach(optimizer)  # which a compiler's traceback may keep alive
    losses = []
    for k in range(steps):
        torch.manual_seed(k)
        loss = learner(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    handle.remove()
    return losses


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize("name", METHODS)
def test_autocast_trains_with_views_and_loss_in_float32(
    name: str, device: str, dtype: torch.dtype, image_size: int | None
) -> None:
    learner = make(name, image_size).to(device)
    batch = torch.rand(16, 3, 32, 32, device=device)
    reference = copy.deepcopy(learner)
    torch.manual_seed(1)
    with torch.autocast(device, dtype=dtype):
        view, _ = learner.views(batch)
        assert view.dtype == torch.float32
        learner.embed(batch)  # must not leave weights without gradient in the autocast cache
        torch.manual_seed(1)
        loss = learner(batch)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None for p in learner.net[:8].parameters())
    torch.manual_seed(1)
    if image_size is not None:
        assert loss.item() == pytest.approx(reference(batch).item(), rel=0.05, abs=0.02)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_backbones_of_another_precision_train(name: str, device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    learner = METHODS[name](conv_net(6, classes=5).to(device, dtype), 32)
    losses = train(learner, learner, torch.rand(16, 3, 32, 32, device=device))
    assert all(possible(name, loss) for loss in losses)
    assert len(set(losses)) == 3
    assert learner.embed(torch.rand(2, 3, 32, 32, device=device)).dtype == dtype
    assert {p.dtype for p in learner.net.parameters()} == {dtype}
    wide = torch.promote_types(dtype, torch.float32)
    assert {p.dtype for p in learner.online.projector.parameters()} == {wide}
    if name in WITH_TARGET:
        assert {p.dtype for p in learner.target.parameters()} == {wide}
    if "MoCo" in name:
        assert learner.queue.dtype == wide


@pytest.mark.parametrize("move", ["before", "after", "lazy"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", PAPERS)
def test_moving_the_learner_moves_all_of_it(name: str, device: str, move: str) -> None:
    if move == "before":
        torch.manual_seed(0)
        learner = METHODS[name](conv_net(6, classes=5).to(device).double(), 32)
    else:
        learner = make(name, None if move == "lazy" else 32).to(device).double()
    batch = torch.rand(8, 3, 32, 32, device=device)
    train(learner, learner, batch)
    for tensor in learner.state_dict().values():
        assert tensor.device.type == device
        assert tensor.dtype in (torch.float64, torch.int64)


@pytest.mark.parametrize("device", DEVICES)
def test_channels_last_gives_the_same_training(device: str) -> None:
    losses = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        learner = BYOL(conv_net(6, classes=5), 32, **SMALL).to(device)
        learner.to(memory_format=memory_format)  # type: ignore[call-overload]
        batch = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        losses.append(train(learner, learner, batch.to(device, memory_format=memory_format)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# The compiler looks at .grad of what enters a graph, and that warns.
DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@DYNAMO
@pytest.mark.parametrize(
    ("name", "image_size", "hidden_layer"),
    [
        *((name, 32, None) for name in METHODS if name != "MoCo"),  # of which there are two others
        *(("BYOL", size, layer) for size in (32, None) for layer in ("3", "")),
        ("BYOL", None, None),
    ],
)
def test_a_compiled_learner_trains_as_the_plain_one(
    name: str, image_size: int | None, hidden_layer: str | None
) -> None:
    torch._dynamo.reset()
    plain = make(name, image_size, hidden_layer=hidden_layer)
    if image_size is None:
        plain.embed(torch.rand(2, 3, 32, 32))  # else the two would draw other heads
    inner = copy.deepcopy(plain)
    counter = CompileCounter()
    batch = torch.rand(8, 3, 32, 32)
    expected = train(plain, plain, batch, steps=4)
    compiled = torch.compile(inner, backend=counter)
    assert train(compiled, inner, batch, steps=4) == pytest.approx(expected, rel=1e-4)
    for a, b in zip(plain.parameters(), inner.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in inner.net.modules())
    if torch.__version__ >= "2.15":  # older compilers run a forward that is left early eagerly
        assert counter.convolutions >= 2  # the whole backbone is in one graph
    graphs = counter.graphs
    train(compiled, inner, batch, steps=1)
    assert counter.graphs == graphs  # hooks that come and go cause no recompilation


class CompileCounter:
    """A backend that runs graphs as they are; counts them, and the convolutions of the largest."""

    def __init__(self) -> None:
        self.graphs = self.convolutions = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        self.graphs += 1
        convolutions = sum("conv" in str(node.target) for node in graph.graph.nodes)
        self.convolutions = max(self.convolutions, convolutions)
        return graph.forward


@DYNAMO
@pytest.mark.parametrize("name", ["BYOL", "SimSiam", "MoCo"])
def test_a_compiled_learner_builds_lazy_heads(name: str) -> None:
    torch._dynamo.reset()
    learner = make(name, None)
    compiled = torch.compile(learner, backend="eager")
    losses = train(compiled, learner, torch.rand(8, 3, 32, 32))
    assert all(possible(name, loss) for loss in losses)
    assert learner.online.projector[0].in_features == 6


@DYNAMO
@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_inductor_trains_as_eager_does(name: str) -> None:
    torch._dynamo.reset()
    plain = make(name)
    inner = copy.deepcopy(plain)
    batch = torch.rand(8, 3, 32, 32)
    expected = train(plain, plain, batch)
    assert train(torch.compile(inner), inner, batch) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("wrap", [torch.compile, "in place"])
def test_a_net_that_is_compiled_already_is_refused(wrap: Any) -> None:
    net = conv_net(6)
    if wrap == "in place":
        net.compile()
    else:
        net = wrap(net)
    with pytest.raises(TypeError, match="compile the learner"):
        BYOL(net, 32)
