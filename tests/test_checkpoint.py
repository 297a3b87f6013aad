"""Checkpoints: what does not fit is refused whole, what is cut off is lost alone."""

import os
import pickle
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import METHODS, PAPERS
from methods import make as make_method
from nets import conv_net
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from byol_wrap import BYOL, Learner

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def make(width: int = 6, image_size: int | None = 32, **sizes: int) -> BYOL:
    return BYOL(conv_net(width, classes=5), image_size, **(SMALL | sizes))


def everything(learner: Learner) -> dict[str, Any]:
    """All tensors of a learner; lazy ones by their type."""
    tensors = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    return {name: type(t) if nn.parameter.is_lazy(t) else t.clone() for name, t in tensors.items()}


def unchanged(before: dict[str, Any], learner: Learner) -> bool:
    after = everything(learner)
    return before.keys() == after.keys() and all(
        torch.equal(value, after[name]) if isinstance(value, Tensor) else value is after[name]
        for name, value in before.items()
    )


def train(learner: Learner) -> None:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    learner(torch.rand(4, 3, 32, 32)).backward()
    optimizer.step()
    learner.update_moving_average()


def without(key: str) -> Callable[[], dict[str, Any]]:
    return lambda: {name: value for name, value in make().state_dict().items() if name != key}


def byol_pytorch() -> dict[str, Any]:
    """The keys of byol-pytorch 0.9.1's state, with our backbone in it."""
    net = conv_net(6, classes=5).state_dict()
    return {f"{prefix}{k}": v for prefix in ("net.", "online_encoder.net.") for k, v in net.items()}


FOREIGN: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "another backbone": (
        lambda: BYOL(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), 32, **SMALL).state_dict(),
        r"'online.net.1.weight' is missing",
    ),
    "a wider backbone": (
        lambda: make(9).state_dict(),
        r"'online.net.0.weight' has shape \(9, 3, 3, 3\) where the learner has \(6, 3, 3, 3\)",
    ),
    "another head": (
        lambda: make(projection_hidden_size=12).state_dict(),
        r"'online.projector.* has shape \(12,.* where the learner has \(16,",
    ),
    "a tampered one": (
        lambda: {**make().state_dict(), "predictor.3.weight": "oh"},
        r"'predictor.3.weight' has shape of a str where the learner has \(8, 16\)",
    ),
    "one without a step": (without("step"), "'step' is missing"),
    "one without a target": (without("target.net.8.bias"), "'target.net.8.bias' is missing"),
    "one with more": (
        lambda: {**make().state_dict(), "queue": torch.zeros(3)},
        r"'queue' is not in the learner \(1 in all",
    ),
    "DDP's": (
        lambda: {f"module.{k}": v for k, v in make().state_dict().items()},
        r"parallel.module.state_dict\(\)",
    ),
    "a compiled learner's": (
        lambda: torch.compile(make()).state_dict(),
        r"strip '_orig_mod.'",
    ),
    "byol-pytorch's": (byol_pytorch, r"byol-pytorch's: load its keys under 'net.' into"),
    "the backbone's": (
        lambda: conv_net(6, classes=5).state_dict(),
        r"backbone's own: learner.net.load_state_dict",
    ),
}


@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_checkpoint_is_refused_by_name_and_changes_nothing(
    kind: str, image_size: int | None
) -> None:
    state, message = FOREIGN[kind]
    given = state()
    learner = make(image_size=image_size)
    before = everything(learner)
    with pytest.raises(RuntimeError, match=message):
        learner.load_state_dict(given)
    assert unchanged(before, learner)
    train(learner)


def of_another_queue(name: str) -> dict[str, Any]:
    """Of a queue one longer; of a method without one, with a queue."""
    state = make_method(name).state_dict()
    queue = state.get("queue", torch.zeros(2, 8))
    return state | {"queue": torch.cat([queue, queue[:1]])}


@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize("name", METHODS)
def test_another_method_s_checkpoint_is_refused_whole(name: str, image_size: int | None) -> None:
    # None is a width that is not known while the heads have no size.
    options = {} if name == "BYOL" else {"projection_hidden_size": None}
    given = [make_method(other).state_dict() for other in PAPERS if other != name.split(",")[0]]
    given += [make_method(name, projection_hidden_size=12).state_dict(), of_another_queue(name)]
    given.append({**make_method(name, **options).state_dict(), "online.projector.0.weight": "oh"})
    given.append({k: v.flatten() for k, v in make_method(name, **options).state_dict().items()})
    for state in given:
        learner = make_method(name, image_size, **options)
        learner.net[0].weight.data.add_(1)
        before = everything(learner)
        with pytest.raises(RuntimeError, match="the learner is left as it was"):
            learner.load_state_dict(state)
        assert unchanged(before, learner)
    train(learner)


def test_shapes_are_checked_first_inside_another_module_too() -> None:
    learner = make()
    before = everything(learner)
    inside = nn.ModuleDict({"learner": learner})
    given = make(projection_size=9).state_dict()
    with pytest.raises(RuntimeError, match=r"left as it was: 'online.projector.3.weight'"):
        inside.load_state_dict({f"learner.{k}": v for k, v in given.items()})
    assert unchanged(before, learner)
    inside.load_state_dict({f"learner.{k}": v for k, v in make().state_dict().items()})
    assert not unchanged(before, learner)


class Trainer(nn.Module):
    """Holds a learner deep inside, as an engine's module does."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.ModuleDict({"model": learner})])


HOLDERS: dict[str, tuple[Callable[[Learner], nn.Module], str]] = {
    "a list": (lambda learner: nn.ModuleList([learner]), "0."),
    "a module of modules": (Trainer, "parts.0.model."),
    "an average": (AveragedModel, "module."),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name", PAPERS)
def test_inside_another_module_a_state_that_lacks_names_is_refused_whole(
    name: str, holder: str
) -> None:
    hold, prefix = HOLDERS[holder]
    outer = hold(make_method(name))
    learner = outer.get_submodule(prefix[:-1])
    own = learner.state_dict()
    added = outer.state_dict().keys() - {prefix + key for key in own}
    # SimCLR's has no name that others lack, and shapes that fit MoCo's; nor has the net's alone.
    net = {key: value for key, value in own.items() if key.startswith("online.net.")}
    simclr = {key: value for key, value in own.items() if key.startswith("online.")}
    for lacking in [net] + [simclr] * (name != "SimCLR"):
        given = {prefix + key: value + 1 for key, value in lacking.items()}
        given |= {key: outer.state_dict()[key] for key in added}
        before = everything(learner)
        with pytest.raises(RuntimeError, match=r"left as it was: '.*' is missing \(\d+ in all"):
            outer.load_state_dict(given)
        assert unchanged(before, learner)
        with pytest.raises(RuntimeError, match="' is not in the learner"):
            outer.load_state_dict(outer.state_dict() | {f"{prefix}more.weight": torch.zeros(2)})
        found = outer.load_state_dict(given, strict=False)
        assert not found.unexpected_keys
        assert torch.equal(learner.net[0].weight, given[f"{prefix}online.net.0.weight"])
        outer.load_state_dict({**outer.state_dict(), **{prefix + k: v for k, v in own.items()}})
        assert torch.equal(learner.net[0].weight, own["online.net.0.weight"])


@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize("kind", ["pool", "layer", "normalisation"])
def test_a_state_of_other_arguments_of_the_same_shapes_is_told(
    tmp_path: Path, kind: str, image_size: int | None
) -> None:
    given, message = {
        "pool": ({"pool": "max"}, "its representation is .*'max', this learner's is .*'mean'"),
        "layer": ({"hidden_layer": 4}, "its representation is the output of layer '4' with"),
        "normalisation": ({"mean": (0.1,) * 3, "std": (0.3,) * 3}, r"its normalisation is .*0\.1"),
    }[kind]

    def wrapped(image_size: int | None = 32, **options: Any) -> BYOL:
        net = nn.Sequential(*conv_net(6)[:6])
        return BYOL(net, image_size, **({"hidden_layer": 5, "pool": "mean"} | options), **SMALL)

    torch.save(wrapped(**given).state_dict(), tmp_path / "learner.pt")
    state = torch.load(tmp_path / "learner.pt", weights_only=True)
    learner = wrapped(image_size)

    def load() -> None:
        outer = nn.ModuleDict({"learner": wrapped(**given)})
        nn.ModuleDict({"learner": learner}).load_state_dict(outer.state_dict())
        learner.load_state_dict(state)
        learner(torch.rand(4, 3, 32, 32))

    with pytest.warns(UserWarning, match=message) as caught:
        load()
    assert len(caught) == 1
    for same in (wrapped(**given), wrapped(image_size, **given)):
        same.load_state_dict(state)
        same(torch.rand(4, 3, 32, 32))
    wrapped().load_state_dict(dict(state))  # which keeps tensors alone


@pytest.mark.parametrize("name", PAPERS)
def test_a_state_that_is_not_finite_is_refused_whole(name: str) -> None:
    own = [key for key in make_method(name).state_dict() if key not in ("step", "queue_position")]
    lost = {"online.net.0.weight": torch.nan, own[-1]: torch.inf, "queue": torch.nan}
    for key, wrong in lost.items():
        learner = make_method(name)
        state = learner.state_dict()
        if key not in state or not state[key].is_floating_point():
            continue
        state[key] = state[key].clone().flatten().index_fill(0, torch.tensor(1), wrong)
        state[key] = state[key].view_as(learner.state_dict()[key])
        before = everything(learner)
        with pytest.raises(RuntimeError, match=f"'{key}' is not finite, and the learner is left"):
            learner.load_state_dict(state)
        assert unchanged(before, learner)
    state = make_method(name).state_dict()
    state["online.net.1.running_var"] = torch.full((6,), torch.inf)  # the net's own affair
    make_method(name).load_state_dict(state)
    state["of another module"] = torch.tensor(torch.nan)
    make_method(name).load_state_dict(state, strict=False)


def test_the_target_s_own_state_is_loaded_again() -> None:
    """But for what it shares with the online network, which stays that."""
    learner, other = make(), make()
    for parameter in learner.target.parameters():
        parameter.data.add_(1)
    saved = learner.target.state_dict()
    kept = other.net[8].weight.clone()
    other.target.load_state_dict(saved)
    for name, value in other.target.state_dict().items():
        assert torch.equal(value, saved[name]) != name.startswith("net.8."), name
    assert torch.equal(other.target.net[8].weight, kept)


def test_what_is_not_strict_may_lack_names_but_no_shapes() -> None:
    learner, other = make(), make()
    state = {k: v for k, v in other.state_dict().items() if k.startswith("online.net")}
    found = learner.load_state_dict(state, strict=False)
    assert "step" in found.missing_keys
    assert torch.equal(learner.net[0].weight, other.net[0].weight)
    before = everything(learner)
    with pytest.raises(RuntimeError, match="has shape"):
        learner.load_state_dict(make(9).state_dict(), strict=False)
    assert unchanged(before, learner)


def test_a_net_that_renames_old_keys_still_does() -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.new = nn.Conv2d(3, 8, 3)
            self.register_load_state_dict_pre_hook(self.rename)

        @staticmethod
        def rename(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
            for name in ("weight", "bias"):
                if f"{prefix}old.{name}" in state:
                    state[f"{prefix}new.{name}"] = state.pop(f"{prefix}old.{name}")

        def forward(self, x: Tensor) -> Tensor:
            return self.new(x)

    saved, learner = BYOL(Renamed(), 32, **SMALL), BYOL(Renamed(), 32, **SMALL)
    old = {k.replace(".new.", ".old."): v for k, v in saved.state_dict().items()}
    outer = nn.ModuleDict({"learner": BYOL(Renamed(), 32, **SMALL)})
    outer.load_state_dict({f"learner.{k}": v for k, v in old.items()})
    learner.load_state_dict(old)
    for loaded in (learner, outer["learner"]):
        assert torch.equal(loaded.net.new.weight, saved.net.new.weight)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_an_error_and_changes_nothing(tmp_path: Path, share: float) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(make().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    learner = make()
    before = everything(learner)
    with pytest.raises((RuntimeError, OSError, pickle.UnpicklingError)):
        learner.load_state_dict(torch.load(path, weights_only=True))
    assert unchanged(before, learner)


def test_a_backbone_is_taken_out_of_a_state_for_each_network() -> None:
    learner = make()
    train(learner)
    state, images = learner.state_dict(), torch.rand(2, 3, 32, 32)
    for network in (learner.online, learner.target):
        prefix = "online.net." if network is learner.online else "target.net."
        net = conv_net(6, classes=5)
        net.load_state_dict({k.removeprefix(prefix): state[k] for k in state if prefix in k})
        assert torch.equal(net.eval()(images), network.net.eval()(images))


@pytest.mark.parametrize("image_size", [32, None])
def test_a_state_of_an_earlier_version_that_lacks_what_is_shared_is_loaded(
    image_size: int | None,
) -> None:
    saved, learner = make(), make(image_size=image_size)
    train(saved)
    state = saved.state_dict()
    for name in ("target.net.8.weight", "target.net.8.bias"):
        state[name] = torch.empty(0)
    for other in (learner, nn.ModuleDict({"learner": make(image_size=image_size)})):
        prefix = "" if other is learner else "learner."
        other.load_state_dict({prefix + name: value for name, value in state.items()})
    learner.embed(torch.rand(2, 3, 32, 32))
    for name, value in saved.state_dict().items():
        assert torch.equal(value, learner.state_dict()[name]), name


@pytest.mark.parametrize("name", PAPERS)
def test_what_accelerate_saves_it_loads(tmp_path: Path, name: str) -> None:
    from accelerate import Accelerator

    states = []
    for run in ("saved", "loaded"):
        learner = make_method(name)
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(learner)
        if run == "saved":
            train(learner)
            accelerator.save_state(tmp_path)
        else:
            accelerator.load_state(tmp_path)
        states.append(learner.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize("name", METHODS)
def test_safetensors_hold_a_whole_learner(
    tmp_path: Path, name: str, image_size: int | None
) -> None:
    from safetensors.torch import load_file, save_file

    learner = make_method(name)
    train(learner)
    save_file(learner.state_dict(), tmp_path / "learner.safetensors")
    other = make_method(name, image_size)
    other.load_state_dict(load_file(tmp_path / "learner.safetensors"))
    states = learner.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    if learner.has_target:
        assert int(other.step) == 1


# examples/resume.py


@pytest.fixture
def resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    monkeypatch.chdir(tmp_path)
    import resume

    return resume


def test_a_run_that_stops_and_goes_on_equals_one_that_never_stopped(
    resume: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    resume.main(["--epochs", "3", "--checkpoint", "whole.pt"])
    torch.manual_seed(77)
    resume.main(["--epochs", "3", "--until", "1"])
    random.seed(5)
    torch.rand(9)
    resume.main(["--epochs", "3", "--until", "2"])
    resume.main(["--epochs", "3"])
    assert "going on after epoch 2" in capsys.readouterr().out
    whole, parts = (torch.load(name, weights_only=True) for name in ("whole.pt", "checkpoint.pt"))
    assert flat(whole) == flat(parts)
    assert int(parts["learner"]["step"]) == 3 * 22


def flat(value: Any) -> Any:
    """A nested state in plain values, to be compared bit for bit."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, list | tuple) else value


def save_for_ever(save: Callable[[Path, Any], None], path: Path, learner: Learner) -> None:
    """In a process of its own: checkpoint k has k in every weight."""
    ballast = torch.zeros(1_000_000)
    for k in range(1, 1_000_000):
        state = {name: torch.full_like(t, k) for name, t in learner.state_dict().items()}
        save(path, {"learner": state, "epoch": k, "ballast": ballast})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
@pytest.mark.parametrize("name", PAPERS)
def test_a_process_killed_while_saving_leaves_the_last_good_checkpoint(
    resume: Any, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    learner = make_method(name)
    draws = random.Random(0)
    resume.save(path, {"learner": learner.state_dict(), "epoch": 0})
    for _ in range(5):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                save_for_ever(resume.save, path, learner)
            finally:
                os._exit(1)
        written = path.stat().st_mtime_ns
        deadline = time.monotonic() + 30
        while path.stat().st_mtime_ns == written and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draws.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        saved = torch.load(path, weights_only=True)
        last = saved["epoch"]
        assert last >= 1
        assert all((tensor == last).all() for tensor in saved["learner"].values())
        learner.load_state_dict(saved["learner"])
        loaded = learner.state_dict()
        del loaded["fed"]  # what was fed is none of the numbers that are written here
        assert all((tensor == last).all() for tensor in loaded.values())
    learner.load_state_dict(make_method(name).state_dict())
    learner(torch.rand(8, 3, 32, 32)).backward()


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize(
    ("prefix", "advice"),
    [("module.", "strip 'module"), ("encoder.", "learner.net.load_state_dict")],
)
def test_a_state_of_which_nothing_is_loaded_is_told(name: str, prefix: str, advice: str) -> None:
    learner = make_method(name)
    state = learner.state_dict()
    with pytest.warns(UserWarning, match=f"Nothing was loaded: .*{advice}"):
        learner.load_state_dict({prefix + k: v for k, v in state.items()}, strict=False)
    learner.load_state_dict(dict(list(state.items())[:1]), strict=False)
    learner.load_state_dict({}, strict=False)
