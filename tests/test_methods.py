"""What all methods promise, of each of them."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import METHODS, WITH_HALVES, WITH_TARGET, images, make, train
from nets import conv_net
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from byol_wrap import (
    MOCO_VIEW,
    SIMCLR_VIEW,
    SIMSIAM_VIEW,
    VIEW1,
    VIEW2,
    Learner,
    MoCo,
    SimCLR,
    SimSiam,
    moco_loss,
    nt_xent_loss,
)

EACH = pytest.mark.parametrize("name", METHODS)
# The compiler looks at .grad of what enters a graph, and that warns.
DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
BOTH_SIZES = pytest.mark.parametrize("image_size", [32, None])


def everything(learner: Learner) -> dict[str, Any]:
    tensors = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    return {name: type(t) if is_lazy(t) else t.clone() for name, t in tensors.items()}


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = value is second[name] if isinstance(value, type) else value.equal(second[name])
        assert same, name


# A loop


@EACH
@BOTH_SIZES
def test_training_teaches(name: str, image_size: int | None) -> None:
    learner = make(name, conv_net(6, classes=5), image_size)
    before = {n: p.clone() for n, p in learner.net.named_parameters()}
    losses = train(learner, 8)
    assert all(torch.tensor(losses).isfinite())
    changed = {n for n, p in learner.net.named_parameters() if not p.equal(before[n])}
    assert changed >= {n for n in before if not n.startswith("8.") and n.endswith("weight")}
    assert learner.embed(images(3)).shape == (3, 6)
    health = learner.health()
    assert health["std_ratio"] > 0
    assert ("tau" in health) == (name in WITH_TARGET)
    assert ("alignment" in health) == (name not in ("MoCo", "MoCo in parts"))


@EACH
def test_images_are_fed_as_the_two_views_of_the_method(name: str) -> None:
    learner = make(name, conv_net(6))
    recipes = {"BYOL": (VIEW1, VIEW2), "SimSiam": (SIMSIAM_VIEW,) * 2, "SimCLR": (SIMCLR_VIEW,) * 2}
    views = learner._views.augment1, learner._views.augment2
    assert tuple(view.recipe for view in views) == recipes.get(name, (MOCO_VIEW,) * 2)
    twin, batch = copy.deepcopy(learner), images()
    torch.manual_seed(1)
    view1, view2 = twin.views(batch)
    random = torch.get_rng_state()
    torch.manual_seed(1)
    loss = learner(batch)
    torch.set_rng_state(random)
    torch.testing.assert_close(twin(view1, view2), loss)


@EACH
def test_accumulated_batches_are_one_step_of_an_attached_optimizer(name: str) -> None:
    learner = make(name, conv_net(6))
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    learner.attach(optimizer)
    target = copy.deepcopy(learner.target.state_dict()) if name in WITH_TARGET else None
    for k in range(4):
        (learner(images()) / 2).backward()
        if k % 2:
            optimizer.step()
            optimizer.zero_grad()
    if target is None:
        learner.update_moving_average()  # nothing to move, and nothing to say
        assert "step" not in learner.state_dict()
        with pytest.raises(AttributeError, match="tau"):
            _ = learner.tau
    else:
        assert learner.step == 2
        first = next(n for n in target if n.endswith("weight"))
        assert not learner.target.state_dict()[first].equal(target[first])
        with pytest.warns(UserWarning, match="does nothing on a learner that is attached"):
            learner.update_moving_average()


@EACH
def test_halves_or_a_refusal_by_name(name: str) -> None:
    whole = make(name, conv_net(6, classes=5))
    halved = copy.deepcopy(whole)
    view1, view2 = torch.rand(2, 8, 3, 32, 32)
    if name not in WITH_HALVES:
        with pytest.raises(TypeError, match=rf"{type(whole).__name__} needs .*learner\(images\)"):
            list(halved.halves(view1, view2))
        return
    torch.manual_seed(1)
    loss = whole(view1, view2)
    loss.backward()
    torch.manual_seed(1)
    total = 0.0
    for half in halved.halves(view1, view2):
        half.backward()
        total += half.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    for a, b in zip(whole.parameters(), halved.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)
    for a, b in zip(whole.buffers(), halved.buffers(), strict=True):
        torch.testing.assert_close(a, b)


# Precision and compilers


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_views_and_loss_are_float32(name: str, dtype: torch.dtype) -> None:
    learner = make(name, conv_net(6))
    seen: list[torch.dtype] = []
    learner.net[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype):
        loss = learner(images())
    assert loss.dtype == torch.float32
    assert set(seen) == {torch.float32}
    loss.backward()
    assert all(p.grad.isfinite().all() for p in learner.net.parameters())


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_nets_of_another_precision_train(name: str, dtype: torch.dtype) -> None:
    learner = make(name, conv_net(6).to(dtype))
    assert all(torch.tensor(train(learner)).isfinite())
    assert next(learner.net.parameters()).dtype == dtype
    if name in WITH_TARGET:
        wide = torch.promote_types(dtype, torch.float32)
        assert {p.dtype for p in learner.target.parameters()} == {wide}


@EACH
@DYNAMO
def test_a_compiled_learner_trains_as_the_plain_one(name: str) -> None:
    torch._dynamo.reset()
    plain = make(name, conv_net(6, classes=5))
    inner = copy.deepcopy(plain)
    expected = train(plain)
    compiled = torch.compile(inner, backend="eager")
    assert train(inner, model=compiled) == pytest.approx(expected, rel=1e-4)
    for a, b in zip(plain.parameters(), inner.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# Heads, and what they draw


@EACH
def test_lazy_heads_are_trained_by_an_optimizer_made_before(name: str) -> None:
    learner = make(name, conv_net(6), None)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    before = list(learner.parameters())
    assert any(is_lazy(parameter) for parameter in before)
    train(learner, 1, optimizer=optimizer)
    assert all(a is b for a, b in zip(before, learner.online.parameters(), strict=False))
    heads = [p for n, p in learner.named_parameters() if "net." not in n and p.requires_grad]
    assert all(p.grad is not None for p in heads)
    assert {id(p) for p in heads} <= {id(p) for g in optimizer.param_groups for p in g["params"]}


@EACH
@BOTH_SIZES
def test_wrapping_and_building_draw_nothing(name: str, image_size: int | None) -> None:
    net, batch = conv_net(6), images()
    method, sizes = METHODS[name]
    torch.manual_seed(3)
    random = torch.get_rng_state()
    learner = method(net, image_size, **sizes)
    learner.embed(batch)
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(3)
    twin = method(copy.deepcopy(net), image_size, **sizes)
    twin.embed(batch)
    assert_equal(everything(learner), everything(twin))  # the seed alone tells


def shapes(module: nn.Module) -> list[Any]:
    described: list[Any] = []
    for layer in module:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            described.append((layer.in_features, layer.out_features, layer.bias is not None))
        elif isinstance(layer, nn.BatchNorm1d):
            described.append((layer.num_features, layer.affine))
        else:
            described.append(type(layer).__name__)
    return described


def test_heads_have_the_papers_sizes_by_default() -> None:
    simsiam = SimSiam(conv_net(6), 32)
    relu = "ReLU"
    body = [(6, 6, False), (6, True), relu] * 2
    assert shapes(simsiam.online.projector) == [*body, (6, 2048, False), (2048, False)]
    assert shapes(simsiam.predictor) == [(2048, 512, False), (512, True), relu, (512, 2048, True)]
    simclr = SimCLR(conv_net(6), 32)
    expected = [(6, 6, True), (6, True), relu, (6, 128, False), (128, True)]
    assert shapes(simclr.online.projector) == expected
    shift = simclr.online.projector[-1].bias
    assert not shift.requires_grad
    assert not shift.any()
    moco = MoCo(conv_net(6), 32)
    assert shapes(moco.online.projector) == [(6, 6, True), relu, (6, 128, True)]
    assert (moco.queue.shape, moco.temperature, moco.tau) == ((4096, 128), 0.2, 0.999)
    for learner in (simsiam, simclr, moco):
        wide = type(learner)(conv_net(6), 32, projection_hidden_size=11)
        assert shapes(wide.online.projector)[0][:2] == (6, 11)


@pytest.mark.parametrize("name", ["SimSiam", "SimCLR"])
def test_no_copy_of_the_net_is_held(name: str) -> None:
    learner = make(name, conv_net(6))
    nets = [m for m in learner.modules() if isinstance(m, nn.Conv2d)]
    assert len(nets) == 2
    assert not hasattr(learner, "target")
    assert not hasattr(learner, "step")


# States and copies


@EACH
@BOTH_SIZES
def test_a_run_resumes_bit_for_bit(name: str, image_size: int | None, tmp_path: Path) -> None:
    def parts() -> tuple[Learner, torch.optim.Optimizer]:
        learner = make(name, conv_net(6, classes=5), image_size)
        return learner, torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9)

    learner, optimizer = parts()
    train(learner, 2, optimizer=optimizer)
    torch.save({"l": learner.state_dict(), "o": optimizer.state_dict()}, tmp_path / "s.pt")
    expected = train(learner, 2, optimizer=optimizer, seed=2)

    other, again = parts()
    saved = torch.load(tmp_path / "s.pt", weights_only=True)
    other.load_state_dict(saved["l"])
    again.load_state_dict(saved["o"])
    assert train(other, 2, optimizer=again, seed=2) == expected
    assert_equal(learner.state_dict(), other.state_dict())


@EACH
def test_safetensors_hold_a_whole_learner(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    learner = make(name, conv_net(6, classes=5))
    train(learner, 1)
    save_file(learner.state_dict(), tmp_path / "learner.safetensors")
    other = make(name, conv_net(6, classes=5), None, seed=5)
    other.load_state_dict(load_file(tmp_path / "learner.safetensors"))
    other.embed(images())  # now it is known what its target has no use for
    assert_equal(learner.state_dict(), other.state_dict())


@EACH
@BOTH_SIZES
def test_a_state_that_does_not_fit_is_refused_whole(name: str, image_size: int | None) -> None:
    learner = make(name, conv_net(6), image_size)
    before = everything(learner)
    foreign = make("SimCLR" if name != "SimCLR" else "BYOL", conv_net(6)).state_dict()
    wider = make(name, conv_net(7)).state_dict()
    for state in (foreign, wider, make(name, conv_net(6)).net.state_dict()):
        with pytest.raises(RuntimeError, match="does not fit, and the learner is left as it was"):
            learner.load_state_dict(state)
        assert_equal(before, everything(learner))


@EACH
def test_a_learner_pickles_and_copies(name: str) -> None:
    learner = make(name, conv_net(6))
    train(learner, 1)
    file = io.BytesIO()
    torch.save(learner, file)
    file.seek(0)
    twins = (
        copy.deepcopy(learner),
        pickle.loads(pickle.dumps(learner)),
        torch.load(file, weights_only=False),
    )
    expected = train(learner, 2)
    for twin in twins:
        assert train(twin, 2) == expected


@EACH
@BOTH_SIZES
def test_the_backbone_is_the_user_s_own(name: str, image_size: int | None) -> None:
    net = conv_net(6, classes=5)
    net[1].eval()
    net[0].weight.requires_grad_(False)
    hook = net[4].register_forward_hook(lambda *_: None)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    flags = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    learner = make(name, net, image_size)
    assert_equal(before, net.state_dict())
    train(learner, 1)
    assert learner.net is net
    assert flags == (
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
    )
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert sum(hooks) == 1
    hook.remove()
    pickle.dumps(net)
    assert net.state_dict().keys() == before.keys()


@EACH
def test_input_is_refused_before_anything_is_changed(name: str) -> None:
    learner = make(name, conv_net(6))
    before = everything(learner)
    for wrong, error in (
        (images(8)[0], ValueError),
        (images() > 0.5, TypeError),
        (images(1), ValueError),
    ):
        with pytest.raises(error):
            learner(wrong)
    with pytest.raises(ValueError, match=f"cannot train {type(learner).__name__}"):
        learner(images(1))
    assert_equal(before, everything(learner))


# SimCLR


def test_nt_xent_holds_few_similarities_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.seen = max(self.seen, out.numel())
            return out

    monkeypatch.setattr("byol_wrap.methods.losses.LARGEST", 1000)
    z1, z2 = torch.rand(2, 100, 4, requires_grad=True)
    with Largest() as largest:
        nt_xent_loss(z1, z2).backward()
    assert largest.seen == 1000  # of 200 x 200


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_are_positive(temperature: float) -> None:
    rows = torch.eye(3)
    for call in (
        lambda: nt_xent_loss(rows, rows, temperature),
        lambda: moco_loss(rows, rows, rows, temperature),
        lambda: SimCLR(conv_net(6), 32, temperature=temperature),
        lambda: MoCo(conv_net(6), 32, temperature=temperature),
    ):
        with pytest.raises(ValueError, match="positive temperature"):
            call()


# MoCo


def moco(**options: Any) -> MoCo:
    learner = make("MoCo", conv_net(6), **options)
    assert isinstance(learner, MoCo)
    return learner


def test_a_batch_that_does_not_divide_the_queue_wraps_around() -> None:
    learner = moco()
    expected, position = learner.queue.clone(), 0
    for k in range(4):
        view1, view2 = torch.rand(2, 8, 3, 32, 32)
        keys = copy.deepcopy(learner.target).project(view2)
        keys = nn.functional.normalize(keys, dim=1)
        learner(view1, view2)
        for key in keys:
            expected[position] = key
            position = (position + 1) % 20
        torch.testing.assert_close(learner.queue, expected)
        assert learner.queue_position == position == 8 * (k + 1) % 20


def test_a_batch_larger_than_the_queue_is_an_error_that_changes_nothing() -> None:
    learner = moco(queue_size=7)
    before = everything(learner)
    with pytest.raises(ValueError, match=r"8 keys does not fit into a queue of 7.*queue_size=8"):
        learner(images(8))
    assert_equal(before, everything(learner))


@pytest.mark.parametrize("symmetric", [False, True])
def test_keys_enter_once_a_forward_of_training(symmetric: bool) -> None:
    learner = moco(symmetric=symmetric)
    queue = learner.queue.clone()
    with torch.no_grad():
        learner(images())
    learner.eval()(images())
    learner.train().embed(images())
    learner(images(), return_embedding=True)
    assert torch.equal(learner.queue, queue)
    learner(images())
    entered = 16 if symmetric else 8
    assert (learner.queue != queue).any(dim=1).sum() == entered
    assert torch.allclose(learner.queue.norm(dim=1), torch.ones(20))
    assert learner.queue_position == entered


def test_the_loss_is_that_of_the_paper() -> None:
    learner = moco(symmetric=True)
    twin = copy.deepcopy(learner)
    view1, view2 = torch.rand(2, 8, 3, 32, 32)
    loss = learner(view1, view2)
    unit = nn.functional.normalize
    k1, k2 = (unit(twin.target.project(v), dim=1) for v in (view1, view2))
    q1, q2 = (unit(twin.project(v), dim=1) for v in (view1, view2))
    expected = 0.0
    for q, k in ((q1, k2), (q2, k1)):
        for row, key in zip(q, k, strict=True):
            others = (twin.queue @ row / 0.2).exp().sum()
            positive = (row @ key / 0.2).exp()
            expected -= (positive / (positive + others)).log() / 8
    torch.testing.assert_close(loss, expected)


def test_keys_in_parts_come_back_in_order_with_statistics_of_their_own() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    view = images(9)
    for net, alike in ((plain, True), (conv_net(6), False)):
        learner = make("MoCo in parts", net)
        assert isinstance(learner, MoCo)
        expected = copy.deepcopy(learner.target).project(view)
        before = torch.get_rng_state()
        keys = copy.deepcopy(learner).keys(view)
        assert torch.allclose(keys, expected, atol=1e-6) == alike
        assert not torch.equal(torch.get_rng_state(), before)
        learner.key_parts = 1
        before = torch.get_rng_state()
        torch.testing.assert_close(learner.keys(view), expected)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrong", [{"queue_size": 0}, {"queue_size": 2.5}, {"key_parts": -1}, {"key_parts": 1.5}]
)
def test_settings_of_the_queue_are_positive_integers(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} should be a positive integer"):
        moco(**wrong)
