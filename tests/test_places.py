"""Where people put a learner: defaults of their own, engines, exporters, optimizers in wrappers."""

import copy
import gc
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods import METHODS, PAPERS, WITH_TARGET, make
from nets import conv_net
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from byol_wrap import Learner, MoCo, knn_accuracy, linear_probe, linear_probe_sgd
from byol_wrap.evaluation import verdict

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def images(count: int = 8) -> Tensor:
    numbers = torch.Generator("cpu").manual_seed(0)
    return torch.rand(count, 3, 32, 32, generator=numbers, dtype=torch.float32, device="cpu")


# Defaults of one's own


@pytest.fixture
def defaults() -> Iterator[Callable[[Any], None]]:
    def use(default: Any) -> None:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
        else:
            torch.set_default_device(default)

    yield use
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def trained(name: str, net: nn.Module, size: int | None) -> list[float]:
    torch.manual_seed(0)
    learner = METHODS[name](net, size)
    optimizer = SGD(learner.parameters(), lr=0.1)
    learner.attach(optimizer)
    figures = []
    for k in range(2):
        torch.manual_seed(k)
        loss = learner(images())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        figures += [loss.item(), learner.embed(images()).sum().item()]
    return [*figures, learner.health()["std_ratio"]]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"], ids=str)
@pytest.mark.parametrize(
    ("name", "size"), [*((n, None) for n in PAPERS), ("BYOL", 32), ("MoCo", 72)]
)
def test_defaults_change_nothing(
    name: str, size: int | None, default: Any, defaults: Callable[[Any], None]
) -> None:
    """Draws of views, of heads and of the queue are the same to the last bit."""
    torch.manual_seed(1)
    net = conv_net(6, classes=5)
    expected = trained(name, copy.deepcopy(net), size)
    defaults(default)
    assert trained(name, net, size) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", PAPERS)
def test_a_net_of_another_default_dtype_trains(
    name: str, dtype: torch.dtype, defaults: Callable[[Any], None]
) -> None:
    defaults(dtype)
    torch.manual_seed(0)
    learner = METHODS[name](conv_net(6, classes=5), 32)
    assert learner.views(images())[0].dtype == torch.float32
    learner(images()).backward()
    assert learner.embed(images()).dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert {p.dtype for p in learner.online.projector.parameters()} == {wide}


@pytest.mark.parametrize("default", [torch.bfloat16, "meta"], ids=str)
def test_evaluation_does_not_depend_on_defaults(
    default: Any, defaults: Callable[[Any], None]
) -> None:
    torch.manual_seed(0)
    features, numbers = torch.randn(72, 6), [255.0 + k % 3 for k in range(72)]
    features[:, 0] += torch.tensor(numbers) - 256
    tasks: list[Callable[[Any], Any]] = [
        lambda y: knn_accuracy(features, y, features, y, k=5),
        lambda y: linear_probe(features, y, features, y, max_iter=5),
        lambda y: linear_probe_sgd(features, y, features, y, epochs=2),
        lambda y: verdict(features, 2 * features, y, labels_per_class=2, draws=4),
    ]
    for labels in (numbers, [str(number) for number in numbers]):
        expected = [task(labels) for task in tasks]
        defaults(default)
        assert [task(labels) for task in tasks] == expected
        defaults(torch.float32)
        defaults("cpu")


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    n = np.int64
    net = conv_net(6, classes=5)
    learner = MoCo(
        net,
        (n(32), n(24)),
        n(-2),  # type: ignore[arg-type]
        channels=n(3),  # type: ignore[arg-type]
        projection_size=np.uint8(8),  # type: ignore[arg-type]
        projection_hidden_size=n(16),  # type: ignore[arg-type]
        queue_size=n(32),  # type: ignore[arg-type]
        key_parts=n(2),  # type: ignore[arg-type]
        total_steps=n(5),  # type: ignore[arg-type]
    )
    assert learner.representation is not None
    assert learner.representation.layer == "7"
    assert type(learner.channels) is type(learner.key_parts) is int
    learner(images()).backward()
    features, labels = torch.rand(20, 4), [k % 2 for k in range(20)]
    task = (features, labels, features, labels)
    assert linear_probe_sgd(*task, epochs=n(2), batch_size=n(8), seed=n(1)) == (  # type: ignore[arg-type]
        linear_probe_sgd(*task, epochs=2, batch_size=8, seed=1)
    )
    assert knn_accuracy(*task, k=n(3), chunk_size=n(7)) == knn_accuracy(*task, k=3)  # type: ignore[arg-type]
    for wrong in ({"projection_size": 8.0}, {"queue_size": n(0)}, {"channels": n(0)}):
        with pytest.raises(ValueError, match="positive integer"):
            MoCo(conv_net(6), 32, **wrong)  # type: ignore[arg-type]


# Modes


class Caches(nn.Module):
    """Keeps what eval mode may compute once, and drops it in ``train(True)``."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = conv_net(6), nn.Parameter(torch.rand(6, 6))
        self.cached: Tensor | None = None

    def train(self, mode: bool = True) -> "Caches":
        if mode:
            self.cached = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.body(x) @ self.weight.exp()
        if self.cached is None:
            self.cached = self.weight.exp()
        return self.body(x) @ self.cached


class Merges(nn.Module):
    """Adds an adapter to its weights in eval mode, and takes it out again, as LoRA may."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = conv_net(6), nn.Linear(6, 6)
        self.adapter = nn.Parameter(torch.rand(6, 6))
        self.merged = False

    def train(self, mode: bool = True) -> "Merges":
        super().train(mode)
        if self.merged == mode:
            self.fc.weight.data += -self.adapter.data if mode else self.adapter.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.fc(x) if self.merged else self.fc(x) + x @ self.adapter.T


class Freezes(nn.Module):
    """Keeps its BatchNorm in eval mode, whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_net(6)

    def train(self, mode: bool = True) -> "Freezes":
        super().train(mode)
        self.body[1].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Stays(Freezes):
    """Has no other mode than eval, unless its flag is set by hand."""

    def train(self, mode: bool = True) -> "Stays":
        return nn.Module.train(self, False)


@pytest.mark.parametrize("build", [Caches, Merges, Freezes, Stays])
@pytest.mark.parametrize("name", PAPERS)
def test_modes_are_changed_as_a_user_would(name: str, build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = build()
    learner = METHODS[name](net, 32, hidden_layer="")
    copy.deepcopy(learner)
    net.body[4].eval()  # type: ignore[index]
    net.body[1].training = True  # type: ignore[index]
    optimizer = SGD(learner.parameters(), lr=0.5)
    for _ in range(2):
        flags = [module.training for module in learner.modules()]
        embedded = learner.embed(images())
        assert [module.training for module in learner.modules()] == flags
        twin = copy.deepcopy(net).train().eval()
        torch.testing.assert_close(embedded, twin(learner._views.normalized(images())).detach())
        optimizer.zero_grad()
        learner(images()).backward()
        optimizer.step()


# Nets that are none, and weights that cannot be trained


class Trains(nn.Module):
    """An object around a net, as ultralytics' ``YOLO`` is: ``train`` starts a training."""

    def __init__(self) -> None:
        super().__init__()
        self.session, self.model = None, conv_net(6)

    def train(self, trainer: Any = None, **settings: Any) -> Any:  # type: ignore[override]
        raise AssertionError("a training was started")

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Fits(nn.Module):
    """A net with a training of its own under the name of what sets a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def train(self, epochs: int, data: Any) -> Any:  # type: ignore[override]
        raise AssertionError("a training was started")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


class Estimator:
    """An object with a net in it, that is no module."""

    def __init__(self) -> None:
        self.norm, self.model, self.optimizer = nn.BatchNorm1d(3), conv_net(6), None


@pytest.mark.parametrize(
    ("net", "path"),
    [
        (Trains(), r"net\.model"),
        (nn.Sequential(Trains()), r"net\.0\.model"),
        (Estimator(), r"net\.model"),
    ],
)
@pytest.mark.parametrize("name", PAPERS)
def test_what_holds_a_net_is_refused_with_the_way_to_it(name: str, net: Any, path: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\({path}\)"):
        METHODS[name](net, 32)


@pytest.mark.parametrize("net", [Fits(), nn.Sequential(Fits())])
def test_a_net_that_trains_itself_is_told_to_call_it_otherwise(net: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"Fits.train\(epochs.*another name, such as fit"):
        METHODS["BYOL"](net, 32)


class Packed(Tensor):
    """Stands for a tensor of a quantisation library: floats, it says, but few functions take it."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "lerp" in getattr(function, "__name__", ""):
            raise NotImplementedError(f"{function.__name__} of Packed")
        return super().__torch_function__(function, types, args, kwargs or {})


def with_weight(weight: Tensor) -> nn.Module:
    net = conv_net(6, classes=5)
    net[7].packed = nn.Linear(4, 4, bias=False)
    net[7].packed.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
    return net


def packed() -> nn.Module:
    return with_weight(torch.rand(4, 4).as_subclass(Packed))


def whole_numbers() -> nn.Module:
    return with_weight(torch.ones(90, 90, dtype=torch.int8))


def dynamic() -> nn.Module:
    net = conv_net(6, classes=5)
    net[7].packed = torch.ao.nn.quantized.dynamic.Linear(4, 4)
    return net


class InWholeNumbers(nn.Module):
    """A Linear as quantisation libraries keep one: its weight is a buffer, or asks for nothing."""

    def __init__(self, dtype: torch.dtype, as_buffer: bool) -> None:
        super().__init__()
        bounds = torch.iinfo(dtype)
        packed = torch.randint(bounds.min, bounds.max, (6, 6), dtype=torch.long).to(dtype)
        self.register_buffer("scales", torch.rand(6, 1) / bounds.max)
        if as_buffer:
            self.register_buffer("packed", packed)
        else:
            self.packed = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.packed * self.scales).T


def layers_in(dtype: torch.dtype, as_buffer: bool) -> Callable[[], nn.Module]:
    """One such layer in a net of far more floats."""
    return lambda: nn.Sequential(conv_net(6), InWholeNumbers(dtype, as_buffer), nn.Linear(6, 5))


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.* are deprecated")
@pytest.mark.parametrize(
    "build",
    [
        *(
            packed,
            whole_numbers,
            dynamic,
            layers_in(torch.int8, False),
            layers_in(torch.int8, True),
        ),
        *(layers_in(torch.uint8, True), layers_in(torch.int32, True)),
    ],
)
@pytest.mark.parametrize("name", PAPERS)
def test_quantised_nets_are_refused(name: str, build: Callable[[], nn.Module]) -> None:
    with pytest.raises(
        TypeError, match=r"packed.* is quantised .*, and quantise it after training"
    ):
        METHODS[name](build(), 32)


@pytest.mark.parametrize("build", [whole_numbers, layers_in(torch.int8, True)])
def test_adapters_beside_frozen_whole_numbers_are_no_mistake(
    build: Callable[[], nn.Module],
) -> None:
    net = build()
    next(net.parameters()).requires_grad_(False)
    learner = METHODS["BYOL"](net, 32)
    learner(images()).backward()


class WithIndices(nn.Module):
    """Whole numbers that are no weights, many more than its floats."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(300))
        self.register_buffer("floor", torch.tensor(-1e4))
        for name, dtype in (("wide", torch.long), ("narrow", torch.int32), ("short", torch.int16)):
            self.register_buffer(name, torch.arange(2401).reshape(49, 49).to(dtype) % 169)
        self.index = nn.Parameter(self.narrow[:5].clone(), requires_grad=False)
        for name, dtype in (("mask", torch.bool), ("old_mask", torch.uint8)):
            self.register_buffer(name, torch.ones(64, 64, dtype=dtype).tril())
        self.register_buffer("colours", torch.arange(256, dtype=torch.uint8))  # fewer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[self.wide].mean() + self.table[self.index.long()].mean()


@pytest.mark.parametrize("name", PAPERS)
def test_indices_and_masks_are_not_taken_for_weights(name: str) -> None:
    net = nn.Sequential(conv_net(6), WithIndices(), nn.Linear(6, 5))
    METHODS[name](net, 32)(images()).backward()


# Averages of buffers


@pytest.mark.parametrize("total_steps", [None, 20])
@pytest.mark.parametrize("kind", ["equal weights", "exponential"])
@pytest.mark.parametrize("name", ["BYOL", "MoCo"])
def test_the_count_of_updates_survives_averages_of_buffers(
    name: str, kind: str, total_steps: int | None
) -> None:
    learner = make(name, total_steps=total_steps)
    average = None if kind == "equal weights" else get_ema_multi_avg_fn(0.9)
    averaged = AveragedModel(learner, use_buffers=True, multi_avg_fn=average)
    for k in range(4):
        averaged.update_parameters(learner)
        learner.update_moving_average()
        assert learner.step == k + 1
        if k == 2:
            assert averaged.module.step == 3
    assert averaged.module.state_dict()["step"] == 4
    assert averaged.module.tau == learner.tau
    # As Lightning's callback ends: the average, count and all, replaces what was averaged.
    for mine, other in zip(learner.buffers(), averaged.module.buffers(), strict=True):
        mine.data.copy_(other.data // 2)
    assert learner.state_dict()["step"] == learner.step == 4


def test_the_count_of_a_copy_is_its_own() -> None:
    learner = make("BYOL", total_steps=20)
    learner.update_moving_average()
    twin = copy.deepcopy(learner)
    for _ in range(3):
        learner.update_moving_average()
    assert (learner.step, twin.step) == (4, 1)
    twin.update_moving_average()
    dict(twin.named_buffers())["step"].fill_(1)  # by another process, say
    assert (learner.step, twin.step) == (4, 2)
    learner.load_state_dict(twin.state_dict())  # a state may be of an earlier step
    assert learner.step == 2
    assert learner.tau == twin.tau < 1


# A module that holds a learner


class Holder(nn.Module):
    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.method = learner

    def forward(self, x: Tensor) -> Tensor:
        return self.method(x)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", PAPERS)
def test_ddp_of_a_module_that_holds_a_learner_says_what_to_do(name: str, group: None) -> None:
    holder = Holder(make(name))
    parallel = DistributedDataParallel(holder)
    with pytest.raises(RuntimeError, match=r"'method\.online\.net\.8\.\w+', lie behind"):
        parallel(images()).backward()
    holder._ddp_params_and_buffers_to_ignore = [  # as the message says
        f"method.{name}" for name in holder.method._ddp_params_and_buffers_to_ignore
    ]
    for parallel in (
        DistributedDataParallel(holder),
        DistributedDataParallel(Holder(make(name)), find_unused_parameters=True),
    ):
        for _ in range(2):
            parallel(images()).backward()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", PAPERS)
def test_ddp_of_a_learner_that_was_loaded_before_it_ran_says_what_to_do(
    name: str, known: bool, group: None
) -> None:
    saved, learner = make(name, None), make(name, None)
    saved.embed(torch.rand(4, 3, 32, 32))
    learner.load_state_dict(saved.state_dict())
    if known:
        learner.embed(torch.rand(4, 3, 32, 32))
    parallel = DistributedDataParallel(learner)
    if known:
        [parallel(torch.rand(4, 3, 32, 32)).backward() for _ in range(2)]
        return
    with pytest.raises(
        RuntimeError, match=r"such as 'online\.net\..* learner\.embed\(images\) once"
    ):
        parallel(torch.rand(4, 3, 32, 32)).backward()


def test_ddp_whose_classifier_is_trained_by_another_loss_is_left_alone(group: None) -> None:
    class Both(Holder):
        def forward(self, x: Tensor) -> Tensor:
            return self.method(x) + self.method.net(x).square().mean()

    parallel = DistributedDataParallel(Both(make("BYOL")))
    for _ in range(2):
        parallel(images()).backward()


class Keeps(nn.Module):
    """Keeps its last features, as nets do whose attention is to be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = conv_net(6), None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        return self.last * 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [Caches, Keeps])
@pytest.mark.parametrize("name", PAPERS)
def test_a_learner_is_copied_whatever_its_net_keeps(
    name: str, build: Callable[[], nn.Module], training: bool
) -> None:
    learner = make(name, net=build().train(training), hidden_layer="")
    for _ in range(2):
        twin = copy.deepcopy(learner)
        assert torch.equal(twin.embed(images()), learner.embed(images()))
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in learner.parameters()}
        learner(images()).backward()


# Optimizers in wrappers


def steps(learner: Learner, optimizer: Any, backward: Callable[[Tensor], None]) -> int:
    for _ in range(3):
        optimizer.zero_grad()
        backward(learner(images()))
        optimizer.step()
    return int(learner.step)


class Outer:
    """A wrapper of no library in particular."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.wrapped = optimizer

    def zero_grad(self) -> None:
        self.wrapped.zero_grad()

    def step(self) -> None:
        self.wrapped.step()


class ByName(Optimizer):
    """An optimizer by name, that never was constructed as one and calls no hooks."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.base, self.param_groups = optimizer, optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step()


def by_accelerate(optimizer: Optimizer) -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare(optimizer)


def by_fabric(optimizer: Optimizer) -> Any:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fabric.setup(nn.Linear(1, 1), optimizer)[1]


@pytest.mark.parametrize(
    "wrap", [by_accelerate, by_fabric, Outer, ByName, lambda o: Outer(Outer(o))]
)
def test_attach_finds_the_optimizer_in_its_wrapper(wrap: Callable[[Optimizer], Any]) -> None:
    learner = make("BYOL")
    optimizer = SGD(learner.parameters(), lr=0.1)
    wrapped = wrap(optimizer)
    handle = learner.attach(wrapped)
    assert learner.attach(optimizer) is handle  # the same, and once
    assert steps(learner, wrapped, Tensor.backward) == 3


@pytest.mark.parametrize("name", PAPERS)
def test_attach_moves_to_another_optimizer_with_a_word(name: str) -> None:
    learner = make(name)
    first, second, third = (SGD(learner.parameters(), lr=0.1) for _ in range(3))
    learner.attach(first)
    for other in (second, third, second):  # each time
        with pytest.warns(UserWarning, match="was attached to another optimizer") as said:
            learner.attach(other)
        learner.attach(other)
        assert len(said) == 1
    assert learner._attachment.optimizer is second
    if name in WITH_TARGET:
        assert steps(learner, first, Tensor.backward) == 0
        assert steps(learner, second, Tensor.backward) == 3
    del second, third, other, said
    gc.collect()
    learner.attach(first)  # the other is gone, as it is where a cell is run again


@pytest.mark.parametrize("wrong", [SGD, "SGD", "scheduler", "list"])
def test_what_is_no_optimizer_is_refused(wrong: Any) -> None:
    learner = make("BYOL")
    optimizer = SGD(learner.parameters(), lr=0.1)
    given = {
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        "list": [optimizer],
    }.get(wrong, wrong)
    with pytest.raises(TypeError, match=f"got {type(given).__name__}; give the optimizer itself"):
        learner.attach(given)


# Exporters


class Embedder(nn.Module):
    """What README gives to exporters."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> Tensor:
        return self.learner.embed(images)


BATCH = {"images": {0: torch.export.Dim("batch")}}


@pytest.mark.parametrize("name", ["BYOL", "SimCLR"])
def test_embed_is_exported(name: str, tmp_path: Path) -> None:
    learner = make(name)
    flags = [module.training for module in learner.modules()]
    program = torch.export.export(
        Embedder(learner), (images(),), dynamic_shapes=BATCH, strict=False
    )
    torch.export.save(program, tmp_path / "embed.pt2")
    exported = torch.export.load(tmp_path / "embed.pt2").module()
    assert [module.training for module in learner.modules()] == flags
    torch.testing.assert_close(exported(images(3)), learner.embed(images(3)))
    assert not any("linear" in str(node.target) for node in program.graph.nodes)  # no classifier
    learner(images()).backward()  # nothing of the record stays behind


@pytest.mark.parametrize(
    ("batch", "prepared"),
    [((images() * 255).to(torch.uint8), False), (images() * 4 - 2, True)],
)
def test_what_is_exported_prepares_as_training_did(batch: Tensor, prepared: bool) -> None:
    learner = make("BYOL")
    if prepared:
        learner(batch, batch)
    program = torch.export.export(Embedder(learner), (batch,), strict=False)
    torch.testing.assert_close(program.module()(batch), learner.embed(batch, prepared=prepared))


def test_the_online_network_is_exported() -> None:
    learner = make("BYOL").eval()
    projection, representation = torch.export.export(
        learner.online, (images(),), strict=False
    ).module()(images())
    torch.testing.assert_close((projection, representation), learner.online(images()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize("name", ["SimSiam", "MoCo"])
def test_embed_is_traced_without_a_warning(name: str) -> None:
    learner = make(name)
    traced = torch.jit.trace(Embedder(learner), images())
    torch.testing.assert_close(traced(images(3)), learner.embed(images(3)))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_embed_in_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    learner, file = make("BYOL"), tmp_path / "embed.onnx"
    torch.onnx.export(Embedder(learner), (images(),), file, dynamo=True, dynamic_shapes=BATCH)
    session = runtime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: images(3).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), learner.embed(images(3)))


def test_what_is_not_known_yet_is_not_exported() -> None:
    learner = Learner(conv_net(6), projector=nn.Linear(6, 4))
    with pytest.raises(RuntimeError, match="nothing to export: give image_size="):
        torch.export.export(Embedder(learner), (images(),), strict=False)


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_no_plain_net_is_refused_in_the_method_s_own_name(name: str) -> None:
    parallel = nn.DataParallel(conv_net(6))
    with pytest.raises(TypeError, match=rf"wrap the plain net, {name}\(net\.module\)"):
        make(name, net=parallel)
    held = types.SimpleNamespace(model=conv_net(6))
    with pytest.raises(TypeError, match=rf"the net in it is net\.model: {name}\(net\.model\)"):
        make(name, net=held)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["BYOL", "MoCo"])
def test_the_target_drops_as_much_as_the_net_does_by_now(name: str) -> None:
    dropout = nn.Dropout(0.1)
    learner = make(name, net=nn.Sequential(conv_net(6), dropout, nn.Linear(6, 6)))
    learner(torch.rand(4, 3, 32, 32))
    dropout.p = 0.5
    learner(torch.rand(4, 3, 32, 32))
    assert learner.target.net[1].p == 0.5


def test_a_number_of_updates_that_is_written_is_gone_on_from() -> None:
    learner = make("BYOL", total_steps=100)
    [learner.update_moving_average() for _ in range(3)]
    learner.step.fill_(50)
    assert learner.tau == pytest.approx(0.995)
    learner.update_moving_average()
    assert learner.step == 51
