"""The learner: its target, its heads, its state, and its life in a training loop."""

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import conv_net
from torch import Tensor, nn

from byol_wrap import BYOL, byol_loss, cosine_ema_decay

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def images(batch: int = 8) -> Tensor:
    return torch.rand(batch, 3, 32, 32)


def make(image_size: int | None = 32, **kwargs: Any) -> BYOL:
    torch.manual_seed(0)
    return BYOL(conv_net(6, classes=5), image_size, **SMALL, **kwargs)


def step(learner: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> Tensor:
    loss = learner(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def parameters(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


# The algorithm


def test_the_loss_is_the_symmetric_loss_of_the_paper() -> None:
    learner = make()
    for parameter in learner.target.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    view1, view2 = torch.rand(2, 8, 3, 32, 32)
    twin = copy.deepcopy(learner)
    loss = learner(view1, view2)

    def project(encoder: Any, view: Tensor) -> Tensor:
        features = encoder.net[:8](view)
        return encoder.projector(features)

    q1, q2 = (twin.predictor(project(twin.online, v)) for v in (view1, view2))
    z1, z2 = (project(twin.target, v).detach() for v in (view1, view2))
    cos = F.cosine_similarity
    expected = (2 - 2 * cos(q1, z2)).mean() + (2 - 2 * cos(q2, z1)).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for a, b in zip(learner.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(learner.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)  # BatchNorm saw one view after the other, in order


def test_images_are_augmented_and_fed_as_two_views() -> None:
    learner = make()
    batch = images()
    twin = copy.deepcopy(learner)
    torch.manual_seed(1)
    loss = learner(batch)
    torch.manual_seed(1)
    view1, view2 = twin.views(batch)
    assert torch.equal(loss, twin(view1, view2))
    assert not torch.equal(view1, view2)


def test_training_improves_what_is_learned() -> None:
    learner = make(moving_average_decay=0.9)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    learner.attach(optimizer)
    batch = images(32)
    losses = [step(learner, optimizer, batch).item() for _ in range(40)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


# The target


def test_the_target_starts_equal_and_is_only_moved_by_the_update() -> None:
    learner = make()
    for a, b in zip(learner.online.parameters(), learner.target.parameters(), strict=True):
        assert torch.equal(a, b) or not b.numel()
        assert not b.requires_grad
    before = parameters(learner.target)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5, weight_decay=0.1, momentum=0.9)
    step(learner, optimizer, images())
    step(learner, optimizer, images())
    assert all(torch.equal(a, b) for a, b in zip(before, learner.target.parameters(), strict=True))
    assert all(p.grad is None for p in learner.target.parameters())

    online = parameters(learner.online)
    learner.update_moving_average()
    for old, new, now in zip(before, learner.target.parameters(), online, strict=True):
        if new.numel():
            torch.testing.assert_close(new, 0.99 * old + 0.01 * now)
    assert all(torch.equal(a, b) for a, b in zip(online, learner.online.parameters(), strict=True))


def test_the_target_keeps_batch_statistics_of_its_own() -> None:
    learner = make()
    view1, view2 = torch.rand(2, 8, 3, 32, 32)
    for parameter in learner.target.parameters():
        parameter.data.mul_(1.5)
    learner(view1, view2)
    oracle = conv_net(6, classes=5)
    oracle.load_state_dict(make().net.state_dict())
    for parameter in oracle.parameters():
        parameter.data.mul_(1.5)
    oracle(view1)
    oracle(view2)
    statistics = learner.target.net[4].running_mean.clone()
    torch.testing.assert_close(statistics, oracle[4].running_mean)
    assert not torch.allclose(statistics, learner.net[4].running_mean)
    learner.update_moving_average()
    assert torch.equal(statistics, learner.target.net[4].running_mean)


@pytest.mark.parametrize("image_size", [32, None])
def test_updates_before_the_first_step_and_twice_a_step_corrupt_nothing(
    image_size: int | None,
) -> None:
    learner = make(image_size)
    before = parameters(learner.target.net)
    for _ in range(3):
        learner.update_moving_average()
    assert all(
        torch.equal(a, b) for a, b in zip(before, parameters(learner.target.net), strict=True)
    )
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    step(learner, optimizer, images())
    before, online = parameters(learner.target), parameters(learner.online)
    learner.update_moving_average()
    learner.update_moving_average()
    for old, new, now in zip(before, learner.target.parameters(), online, strict=True):
        if new.numel():
            torch.testing.assert_close(new, 0.99**2 * old + (1 - 0.99**2) * now)
    assert math.isfinite(step(learner, optimizer, images()).item())


def test_tau_follows_the_cosine_and_is_kept_in_a_buffer() -> None:
    learner = make(total_steps=5, moving_average_decay=0.9)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    for k in range(7):
        assert learner.tau == cosine_ema_decay(k, 5, 0.9)
        before, tau = parameters(learner.target), learner.tau
        step(learner, optimizer, images())
        online = parameters(learner.online)
        learner.update_moving_average()
        assert learner.step == k + 1
        for old, new, now in zip(before, learner.target.parameters(), online, strict=True):
            if new.numel():
                torch.testing.assert_close(new, tau * old + (1 - tau) * now)
    assert learner.tau == 1
    assert make().tau == make(total_steps=9).tau == 0.99


def test_the_schedule_can_be_read_and_changed_on_the_way() -> None:
    learner = make(moving_average_decay=0.9, total_steps=4)
    assert (learner.moving_average_decay, learner.total_steps) == (0.9, 4)
    learner.moving_average_decay = 0.5
    assert learner.tau == 0.5
    learner.update_moving_average()
    learner.total_steps = 2
    assert learner.tau == pytest.approx(0.75)  # half-way along the cosine from 0.5 to 1
    learner.total_steps = None
    assert learner.tau == 0.5


def test_a_target_that_is_never_updated_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol_wrap.guard.watch.STEPS_WITHOUT_UPDATE", 3)
    learner = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            learner(images())
        learner.update_moving_average()
        for _ in range(3):
            learner(images())
        with torch.no_grad():
            learner(images())
        learner.eval()(images())
        assert not caught
        learner.train()
        for _ in range(4):
            learner(images())
    assert [w.category for w in caught] == [UserWarning]
    assert "has not been updated for 3 training steps" in str(caught[0].message)
    fixed = make(moving_average_decay=1.0)
    for _ in range(5):
        fixed(images())  # a fixed target is meant: no warning


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_target_is_float32_whatever_the_backbone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    learner = BYOL(conv_net(6).to(dtype), 32, **SMALL)
    assert {p.dtype for p in learner.target.parameters()} == {torch.float32}
    assert {p.dtype for p in learner.net.parameters()} == {dtype}
    learner.net[0].weight.data.add_(1e-3)
    for _ in range(100):
        learner.update_moving_average()
    online = learner.net[0].weight.float()
    assert (online - learner.target.net[0].weight).abs().max() < 0.6 * 1e-3
    late = make().to(dtype)
    assert {p.dtype for p in late.target.parameters()} == {torch.float32}
    assert {p.dtype for p in late.online.parameters()} == {dtype}


def test_changing_the_backbone_after_wrapping_is_an_error() -> None:
    learner = make()
    learner.net[3] = nn.Conv2d(6, 7, 3)
    with pytest.raises(RuntimeError, match="wrap it anew"):
        learner.update_moving_average()


# attach


@pytest.mark.parametrize("fused", [False, True])
def test_attach_passes_over_steps_that_the_scaler_skips(fused: bool) -> None:
    learner = make()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, fused=fused)
    learner.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for k in range(4):
        loss = learner(images())
        optimizer.zero_grad()
        scaler.scale(loss * (math.inf if k == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert learner.step == 3


def test_attach_is_forgiving_and_strict_where_it_should_be() -> None:
    learner = make()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    handle = learner.attach(optimizer)
    assert learner.attach(optimizer) is handle  # a cell that is run again
    with pytest.warns(UserWarning, match="does nothing on a learner that is attached"):
        learner.update_moving_average()
    learner.update_moving_average()
    assert learner.step == 0
    handle.remove()
    learner.update_moving_average()
    assert learner.step == 1
    learner.attach(optimizer)
    with pytest.raises(TypeError, match=r"expects a torch.optim.Optimizer"):
        make().attach(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none of the learner's parameters"):
        make().attach(optimizer)
    other = make()
    headless = torch.optim.SGD(other.net.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="does not train the projector and the predictor"):
        other.attach(headless)
    frozen = torch.optim.SGD(learner.target.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="none of the learner's parameters"):
        copy.deepcopy(learner).attach(frozen)


def test_an_optimizer_of_the_net_s_parameters_alone_is_noticed() -> None:
    def train(learner: BYOL, *optimizers: torch.optim.Optimizer) -> None:
        for _ in range(15):
            for optimizer in optimizers:
                optimizer.zero_grad()
            learner(images(4)).backward()
            for optimizer in optimizers:
                optimizer.step()
            learner.update_moving_average()  # while there are gradients, as in most loops

    learner = make()
    with pytest.warns(UserWarning, match="not train the projector and the predictor") as caught:
        train(learner, torch.optim.AdamW(learner.net.parameters()))
    assert len(caught) == 1
    for heads_trained in ("with the net", "apart", "not, as was wished"):
        learner = make()
        optimizers = [torch.optim.AdamW(learner.parameters())]
        if heads_trained != "with the net":
            optimizers = [torch.optim.AdamW(learner.net.parameters())]
        heads = nn.ModuleList([learner.online.projector, learner.predictor])
        if heads_trained == "apart":
            optimizers.append(torch.optim.SGD(heads.parameters(), lr=0.1))
        elif heads_trained == "not, as was wished":
            heads.requires_grad_(False)
        train(learner, *optimizers)


def test_a_copy_is_not_attached_and_the_optimizer_holds_no_learner() -> None:
    learner = make()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    learner.attach(optimizer)
    other = pickle.loads(pickle.dumps(learner))
    step(learner, optimizer, images())
    assert (learner.step, other.step) == (1, 0)
    other.update_moving_average()
    assert other.step == 1
    assert (
        len(pickle.dumps(optimizer)) < 2 * sum(4 * p.numel() for p in learner.parameters()) + 9999
    )


# Heads


def test_heads_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return BYOL(conv_net(6), 32, **SMALL).online.projector[0].weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    learner = make()
    assert not torch.equal(learner.online.projector[3].weight, learner.predictor[3].weight)


def test_heads_have_the_papers_sizes_by_default() -> None:
    learner = BYOL(conv_net(6), 32)
    assert [m.out_features for m in learner.online.projector if isinstance(m, nn.Linear)] == [
        4096,
        256,
    ]
    assert [m.in_features for m in learner.predictor if isinstance(m, nn.Linear)] == [256, 4096]


def test_unbuilt_heads_say_what_to_do_or_work() -> None:
    learner = make(None)
    with pytest.raises(RuntimeError, match=r"give image_size="):
        learner.state_dict()
    other = copy.deepcopy(learner)
    for each in (learner, other, pickle.loads(pickle.dumps(make(None)))):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        step(each, optimizer, images())
        each.update_moving_average()
    moved = make(None).double()
    moved(images())
    assert moved.online.projector[0].weight.dtype == torch.float64


def test_images_of_another_size_fit_heads_that_pool() -> None:
    learner = make(None)
    learner(images())
    learner(torch.rand(4, 3, 48, 40))
    flat = BYOL(conv_net(6)[:6], 32, pool="flatten", **SMALL)
    flat(images())
    with pytest.raises(RuntimeError, match="size that the"):
        flat.embed(torch.rand(2, 3, 48, 48))


# State


def test_state_holds_both_networks_heads_and_step_and_each_key_once() -> None:
    keys = list(make().state_dict())
    assert {k.split(".")[0] for k in keys} == {"step", "online", "predictor", "target", "fed"}
    assert {k.split(".")[1] for k in keys if k.startswith("online")} == {"net", "projector"}
    assert not any(k.startswith("net.") for k in keys)
    full = [t.data_ptr() for t in make().state_dict().values()]
    assert len(set(full)) == len(full) == len(keys)  # the classifier's in both networks, too


def test_a_checkpoint_of_other_heads_or_net_is_an_error() -> None:
    saved = make().state_dict()
    wider = BYOL(conv_net(9, classes=5), **SMALL)
    with pytest.raises(RuntimeError, match=r"shape \(6, 3, 3, 3\) where the learner has \(9, 3"):
        wider.load_state_dict(saved)
    chosen = BYOL(conv_net(6, classes=5), hidden_layer=-1, **SMALL)
    chosen.load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"has size 5, but the heads .* expect 6"):
        chosen(images())


def test_a_whole_learner_pickles_and_copies() -> None:
    learner = make()
    learner(images())
    for other in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        other.eval()
        batch = images(2)
        torch.testing.assert_close(other.embed(batch), copy.deepcopy(learner).eval().embed(batch))
        assert other.net is not learner.net
        assert other.representation == learner.representation


# What else it gives


def test_return_embedding_gives_projection_and_representation_with_gradient() -> None:
    learner = make().eval()
    batch = images(3)
    projection, representation = learner(batch, return_embedding=True)
    assert (projection.shape, representation.shape) == ((3, 8), (3, 6))
    torch.testing.assert_close(representation, learner.embed(batch))
    torch.testing.assert_close(projection, learner.online.projector(representation))
    projection.sum().backward()
    assert learner.net[0].weight.grad is not None
    alone = learner(batch, return_embedding=True, return_projection=False)
    torch.testing.assert_close(alone, representation)
    with pytest.raises(ValueError, match="not a second view"):
        learner(batch, batch, return_embedding=True)


def test_embed_normalises_and_takes_a_batch_of_one() -> None:
    learner = make()
    batch = images(1)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = copy.deepcopy(learner.net[:8]).eval()((batch - mean) / std)
    result = learner.embed(batch)
    assert not result.requires_grad
    torch.testing.assert_close(result, expected.detach())
    torch.testing.assert_close(
        learner.embed((batch * 255).round().byte()), result, atol=2e-2, rtol=0
    )
    lazy = make(None)
    assert lazy.embed(batch).shape == (1, 6)


def test_a_learner_built_in_inference_mode_can_train_afterwards() -> None:
    learner = make(None)
    with torch.inference_mode():
        learner.embed(images(2))
    learner(images()).backward()
    assert learner.online.projector[0].weight.grad is not None


def test_one_image_is_enough_to_build_a_net_that_ends_in_batchnorm() -> None:
    learner = BYOL(nn.Sequential(conv_net(6), nn.BatchNorm1d(6)), **SMALL)
    assert learner.embed(images(1)).shape == (1, 6)


def test_health_tells_a_collapse() -> None:
    learner = make()
    with pytest.raises(RuntimeError, match="nothing to measure before"):
        learner.health()
    learner.eval()(images(1))
    with pytest.raises(RuntimeError, match="two images or more"):
        learner.health()
    view = images(64)
    learner.train()(view, images(64))
    healthy = learner.health()
    assert (healthy["tau"], healthy["updates"]) == (0.99, 0)
    _, representation = learner.online(view)
    oracle = F.normalize(representation).std(0).mean() * 6**0.5
    assert healthy["std_ratio"] == pytest.approx(oracle.item())
    for name, parameter in learner.net.named_parameters():
        if name.endswith("weight"):
            parameter.data.zero_()
    learner.net[4].bias.data.fill_(1)
    learner(images(64))
    assert learner.health()["std_ratio"] < 1e-3


def test_views_of_any_shape_are_taken_as_they_are() -> None:
    encoder = nn.Sequential(nn.Linear(10, 14), nn.BatchNorm1d(14), nn.ReLU(), nn.Linear(14, 8))
    learner = BYOL(encoder, hidden_layer=-1, **SMALL)
    learner(torch.randn(16, 10), torch.randn(16, 10)).backward()
    assert learner.representation is not None
    assert learner.representation.size == 8
    video = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU())
    learner = BYOL(video, **SMALL)
    learner(torch.randn(4, 2, 5, 8, 8), torch.randn(4, 2, 5, 8, 8)).backward()
    assert learner.representation is not None
    assert learner.representation.size == 4
    language = nn.Sequential(nn.Embedding(20, 6), nn.LayerNorm(6))
    learner = BYOL(language, **SMALL)
    tokens = torch.randint(20, (4, 7))
    learner(tokens, tokens).backward()
    assert learner.representation is not None
    assert (learner.representation.pool, learner.representation.size) == ("mean", 6)


def test_a_net_that_was_moved_without_its_learner_is_an_error() -> None:
    learner = make()
    learner.target.to("meta")
    with pytest.raises(RuntimeError, match="move the learner rather than its net"):
        learner(images())


def test_data_parallel_is_refused() -> None:
    learner = make()
    learner._is_replica = True  # what DataParallel sets on the copies it runs
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        learner(images())


@pytest.mark.filterwarnings("ignore:.*torch.jit:Warning")  # scripting is deprecated
def test_a_scripted_net_is_trained_by_its_output() -> None:
    learner = BYOL(torch.jit.script(conv_net(6)), 32, **SMALL)
    assert learner.representation is not None
    assert (learner.representation.layer, learner.representation.size) == ("", 6)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    learner.attach(optimizer)
    before = parameters(learner.target.net)
    step(learner, optimizer, images())
    assert not all(torch.equal(a, b) for a, b in zip(before, learner.net.parameters(), strict=True))
    assert not torch.equal(before[0], next(learner.target.net.parameters()))


def test_old_style_weight_norm_and_cached_outputs_can_be_wrapped() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv_net(6)
            self.cache: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.cache = self.body(x)
            return self.cache

    net = Caching()
    net(images())
    cache = net.cache
    learner = BYOL(net, 32, **SMALL)
    assert net.cache is cache
    learner(images()).backward()


def test_byol_loss_is_what_forward_returns_for_equal_networks() -> None:
    learner = make().eval()
    view = images()
    projection = learner.online.projector(learner.net[:8](view))
    expected = 2 * byol_loss(learner.predictor(projection), projection)
    torch.testing.assert_close(learner(view, view), expected)


def test_labels_given_as_a_second_view_are_recognised() -> None:
    with pytest.raises(ValueError, match=r"looks like labels; .* learner\(images\)"):
        make()(images(), torch.arange(8))
    with pytest.raises(TypeError, match=r"for images, labels in loader: learner\(images\)"):
        make()([images(), torch.arange(8)])


def test_grey_images_for_a_colour_net_are_told_how_to_be_converted() -> None:
    with pytest.raises(ValueError, match=r"expand\(-1, 3, -1, -1\).*pass channels=1"):
        make()(torch.rand(8, 1, 32, 32))


def test_an_augmentation_that_gives_integers_is_refused() -> None:
    learner = make(augment_fn=lambda x: (255 * x).byte())
    with pytest.raises(ValueError, match=r"augment_fn should return floats, got torch.uint8"):
        learner(images())


def test_channels_that_the_first_convolution_does_not_tell_are_three() -> None:
    folding = nn.Sequential(nn.PixelUnshuffle(2), conv_net(6, channels=12))
    learner = BYOL(folding, 32, **SMALL)
    assert learner.channels == 3
    learner(images())
    assert learner.embed(images()).shape[1] == 6
    with pytest.raises(ValueError, match=r"shape \(2, 12, 32, 32\)"):
        BYOL(nn.Sequential(nn.PixelUnshuffle(3), conv_net(6, channels=12)), 32, **SMALL)
    with pytest.raises(ValueError, match=r"shape \(2, 12, 32, 32\)"):
        BYOL(folding, 32, channels=12, **SMALL)
