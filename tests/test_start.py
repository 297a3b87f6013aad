"""What is done to a net after it was wrapped: its target starts from it, or it is told."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from devices import needs_fsdp2
from methods import make
from nets import conv_net
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from byol_wrap import Learner


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32)


def pretrained() -> nn.Module:
    torch.manual_seed(1)
    net = conv_net(6, classes=5)
    net(images())  # moves BatchNorm's statistics
    return net


def equal(learner: Learner) -> bool:
    """Whether the target is what the online network is; statistics that a step moved may differ."""
    return learner.health()["target_distance"] == 0


def loaded(learner: Learner) -> None:
    learner.net.load_state_dict(pretrained().state_dict())


def assigned(learner: Learner) -> None:
    learner.net.load_state_dict(pretrained().state_dict(), assign=True)


def written(learner: Learner) -> None:
    for parameter in learner.net.parameters():
        parameter.data.normal_()


def drawn(learner: Learner) -> None:
    learner.net.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)


def all_drawn(learner: Learner) -> None:
    for module in learner.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def initialised(learner: Learner) -> None:
    learner.apply(lambda m: isinstance(m, nn.Conv2d) and nn.init.kaiming_normal_(m.weight))


def without_values(learner: Learner) -> None:
    """As FSDP2 is begun with, but for the shards."""
    learner.to("meta").to_empty(device="cpu")
    all_drawn(learner)
    assert learner.step == 0


def replaced(learner: Learner) -> None:
    learner.net[3] = nn.Conv2d(6, 6, 3, stride=2, padding=1)


def head_drawn(learner: Learner) -> None:
    for parameter in learner.online.projector.parameters():
        nn.init.normal_(parameter)


def partly_loaded(learner: Learner) -> None:
    state = make("SimCLR", net=pretrained()).state_dict()
    learner.load_state_dict({k: v for k, v in state.items() if "net" in k}, strict=False)


WRITTEN = (loaded, assigned, written, drawn, all_drawn, initialised, without_values)
CHANGES = {f.__name__: f for f in (*WRITTEN, replaced, partly_loaded)}


@pytest.mark.parametrize(
    ("name", "change", "image_size"),
    [
        *(("BYOL", change, 32) for change in CHANGES),
        ("MoCo", "loaded", 32),
        ("MoCo", "drawn", None),
        ("MoCo", "all_drawn", 32),
        ("MoCo", "initialised", None),
    ],
)
def test_a_target_starts_from_the_net_as_training_finds_it(
    name: str, change: str, image_size: int | None
) -> None:
    learner = make(name, image_size)
    CHANGES[change](learner)
    statistics = learner.net[1].running_mean.clone()
    learner.eval()(images())
    assert equal(learner)
    assert torch.equal(learner.target.net[1].running_mean, statistics)
    before = learner.target.net[0].weight.clone()
    learner.train()(images()).backward()
    written(learner)  # by now this is training
    learner(images())
    assert not equal(learner)
    assert torch.equal(learner.target.net[0].weight, before)


AFTER: dict[str, Callable[[Learner], Learner]] = {
    "moved": lambda learner: learner.to(torch.float64).to(torch.float32),
    "copied": copy.deepcopy,
    "pickled": lambda learner: pickle.loads(pickle.dumps(learner)),
    "saved": lambda learner: _resumed(learner.state_dict()),
    "copied, then loaded": lambda learner: _and_loaded(copy.deepcopy(learner)),
    "moved, then loaded": lambda learner: _and_loaded(learner.to(torch.float64).to(torch.float32)),
}


def _resumed(state: dict[str, Any]) -> Learner:
    learner = make("BYOL")
    learner.load_state_dict(state)
    return learner


def _and_loaded(learner: Learner) -> Learner:
    loaded(learner)
    return learner


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("change", [written, all_drawn])
def test_so_does_that_of_a_learner_that_was_moved_or_copied_or_saved_before(
    change: Callable[[Learner], None], after: str
) -> None:
    learner = make("BYOL")
    change(learner)
    learner = AFTER[after](learner)
    learner(images())
    assert equal(learner)


@needs_fsdp2
def test_so_does_a_sharded_one(one_process: Any) -> None:
    """Built without values, then sharded, filled, and drawn anew."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        learner = make("BYOL", total_steps=10)
    fully_shard(learner, mesh=init_device_mesh("cpu", (1,)))
    learner.to_empty(device="cpu")
    for tensor in (*learner.parameters(), *learner.buffers()):
        if tensor.is_floating_point():
            nn.init.constant_(tensor, 0.1 + torch.rand(()).item())
    learner(images()).backward()  # after which parameters are shards again
    assert learner.step == 0
    for own, theirs in zip(learner.target.parameters(), learner.online.parameters(), strict=True):
        assert torch.equal(own.full_tensor(), theirs.full_tensor())


def test_a_head_of_one_s_own_weights_is_where_the_target_starts() -> None:
    learner = make("BYOL")
    head_drawn(learner)
    learner(images())
    assert equal(learner)


def test_a_target_that_was_loaded_or_alone_written_to_is_left_as_it_is() -> None:
    by_hand, resumed, both, net_alone = (make("BYOL") for _ in range(4))
    for parameter in by_hand.target.projector.parameters():
        nn.init.constant_(parameter, 0.5)
    saved = make("BYOL", net=pretrained())
    saved.update_moving_average()
    written(saved)
    resumed.load_state_dict(saved.state_dict())
    both.net.load_state_dict(pretrained().state_dict())
    both.target.load_state_dict(saved.target.state_dict())
    net_alone.target.net.load_state_dict(saved.target.net.state_dict())
    all_drawn(net_alone.online)
    for learner in (by_hand, resumed, both, net_alone, copy.deepcopy(net_alone)):
        before = copy.deepcopy(learner.target.state_dict())
        learner(images())
        assert not equal(learner)
        for name, value in learner.target.named_parameters():
            assert not before[name].numel() or torch.equal(value, before[name])


def test_that_of_an_average_is_the_average_of_targets() -> None:
    learner = make("BYOL")
    averaged = AveragedModel(learner)
    for _ in range(2):
        learner(images()).backward()
        written(learner)
        learner.update_moving_average()
        averaged.update_parameters(learner)
    expected = averaged.module.target.net[0].weight.clone()
    averaged.state_dict()
    averaged.module.embed(images())
    assert torch.equal(averaged.module.target.net[0].weight, expected)
    assert not torch.equal(averaged.module.net[0].weight, expected)


def test_an_update_by_hand_before_any_loss_is_an_update() -> None:
    learner = make("BYOL", moving_average_decay=0.5)
    before = learner.target.net[0].weight.clone()
    with torch.no_grad():
        learner.net[0].weight.add_(1)
    learner.update_moving_average()
    torch.testing.assert_close(learner.target.net[0].weight, before + 0.5)


# Layers


def in_place_of(i: int, layer: nn.Module) -> Callable[[Learner], None]:
    def change(learner: Learner) -> None:
        learner.net[i] = layer

    return change


REPLACED = {
    "another activation": (2, nn.GELU(), r"Layer '2' .* is GELU\(.* has ReLU"),
    "the same with other settings": (3, nn.Conv2d(6, 6, 3, padding=1), "Layer '3' .* Conv2d"),
    "nothing": (9, nn.Identity(), r"Layer '9' .* is Identity\(\).* has AdaptiveAvgPool2d"),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", REPLACED)
def test_a_layer_that_was_replaced_is_told_once(
    monkeypatch: pytest.MonkeyPatch, kind: str, trained: bool
) -> None:
    monkeypatch.setattr("byol_wrap.guard.alike.LOOK_EVERY", 2)
    i, layer, message = REPLACED[kind]
    pool = nn.AdaptiveAvgPool2d(1)
    learner = make("BYOL", net=nn.Sequential(*conv_net(6), nn.Unflatten(1, (6, 1, 1)), pool))
    if trained:
        learner(images())
    learner.net[i] = layer
    with pytest.warns(UserWarning, match=message) as caught:
        [learner(images()) for _ in range(4)]
    assert len(caught) == 1


def compiled(learner: Learner) -> None:
    """As ``torch.compile(layer)`` does."""
    learner.net[3] = nn.ModuleDict({"_orig_mod": learner.net[3]})


def classifier(learner: Learner) -> None:
    learner.net[8] = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


HARMLESS: dict[str, Callable[[Learner], Any]] = {
    "statistics shared": nn.SyncBatchNorm.convert_sync_batchnorm,
    "compiled": compiled,
    "what lies behind": classifier,
    "the same layer anew": replaced,
    "frozen": lambda learner: learner.net[0].requires_grad_(False),
    "a setting": lambda learner: setattr(learner.net[1], "momentum", 0.3),
    "a class of an engine": lambda learner: setattr(
        learner.net[3], "__class__", type("Sharded", (nn.Conv2d,), {})
    ),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_changes_nothing_of_the_target_is_not_told(kind: str) -> None:
    learner = make("BYOL")
    HARMLESS[kind](learner)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if kind in ("statistics shared", "compiled"):  # which do not run everywhere
            assert not learner._watch._alike.replaced(learner, learner.net)
        else:
            learner(images())
