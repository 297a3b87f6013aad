"""LARS, its groups and its learning rate against the reference; the whole method, step by step."""

from typing import Any

import pytest
import torch
from nets import Tokens, conv_net
from reference import FIGURES, TRAJECTORY, encoder, learner_state, tensor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from byol_wrap import (
    BYOL,
    LARS,
    VIEW1,
    VIEW2,
    Learner,
    MoCo,
    SimCLR,
    SimSiam,
    cosine_schedule,
    param_groups,
    published_recipe,
    warmup_cosine,
)


@pytest.mark.parametrize("figures", FIGURES["learning_rate"])
def test_learning_rate_equals_the_reference(figures: dict[str, Any]) -> None:
    peak = figures["base"] * figures["batch_size"] / 256
    for step, expected in zip(figures["steps"], figures["lr"], strict=True):
        rate = peak * warmup_cosine(step, figures["total_steps"], figures["warmup_steps"])
        assert rate == pytest.approx(expected, rel=1e-6, abs=1e-7 * peak)  # the figures are float32


def test_learning_rate_without_warm_up_and_past_the_end() -> None:
    assert warmup_cosine(0, 10, 0) == 1
    assert warmup_cosine(10, 10, 10) == 1
    assert warmup_cosine(12, 10, 5) == 0


@pytest.mark.parametrize("arguments", [(-1, 10, 2), (0, 10, 11), (0, 0, 0), (0, 10, -1)])
def test_learning_rate_out_of_range_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="warmup_cosine expects"):
        warmup_cosine(*arguments)


def test_lars_equals_the_reference_over_six_steps() -> None:
    figures = FIGURES["lars"]

    def flat(tree: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
        return {f"{a}.{b}": tensor(v) for a, leaf in tree.items() for b, v in leaf.items()}

    parameters = {name: nn.Parameter(value) for name, value in flat(figures["params"]).items()}
    excluded = set(figures["excluded"])
    assert excluded < parameters.keys()
    hyper = figures["hyper"]
    groups = [
        {"params": [p for name, p in parameters.items() if name not in excluded]},
        {
            "params": [parameters[name] for name in excluded],
            "weight_decay": 0.0,
            "lars_exclude": True,
        },
    ]
    rest = {k: hyper[k] for k in ("momentum", "weight_decay", "eta")}
    optimizer = LARS(groups, hyper["learning_rate"], **rest)
    for gradients, after in zip(figures["grads"], figures["params_after"], strict=True):
        for name, gradient in flat(gradients).items():
            parameters[name].grad = gradient
        optimizer.step()
        for name, expected in flat(after).items():
            torch.testing.assert_close(parameters[name].data, expected, rtol=0, atol=1e-8)


def test_lars_takes_up_where_a_checkpoint_left_it() -> None:
    def make() -> tuple[nn.Linear, LARS]:
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        return net, LARS(param_groups(net, 0.1), 0.5)

    def run(net: nn.Linear, optimizer: LARS, steps: int) -> None:
        for _ in range(steps):
            loss = net(torch.ones(4, 3)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    net, optimizer = make()
    run(net, optimizer, 5)
    halfway, first = make()
    run(halfway, first, 2)
    resumed, second = make()
    resumed.load_state_dict(halfway.state_dict())
    second.load_state_dict(first.state_dict())
    run(resumed, second, 3)
    assert torch.equal(net.weight, resumed.weight)
    assert torch.equal(net.bias, resumed.bias)


def test_lars_leaves_parameters_without_gradient_alone() -> None:
    net = nn.Linear(3, 2)
    before = net.weight.clone()
    LARS(param_groups(net, 0.1), 0.5).step()
    assert torch.equal(before, net.weight)
    optimizer = LARS(net.parameters(), 0.5)
    assert optimizer.step(lambda: 3.0) == 3.0


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"momentum": 1}, {"weight_decay": -1}, {"eta": 0}])
def test_lars_refuses_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        LARS([torch.zeros(1)], **{"lr": 1.0, **wrong})


def test_groups_are_told_by_type_and_name() -> None:
    class ScaleNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    tokens = Tokens(class_token=True)
    net = nn.Sequential(conv_net(4, classes=2), tokens, nn.GroupNorm(1, 4), ScaleNorm())
    net[0][0].requires_grad_(False)
    decayed, excluded = param_groups(net, 0.3)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        "0.3.weight",
        "0.8.weight",
        "1.patch.weight",
        "1.cls_token",
    }
    assert {names[id(p)] for p in excluded["params"]} == {
        *("0.1.weight", "0.1.bias", "0.4.weight", "0.4.bias", "0.3.bias", "0.8.bias"),
        *("1.patch.bias", "1.norm.weight", "1.norm.bias"),
        *("2.weight", "2.bias", "3.scale"),
    }
    assert (decayed["weight_decay"], excluded["weight_decay"]) == (0.3, 0.0)


def test_groups_of_an_unbuilt_learner_hold_its_lazy_weights_and_not_its_target() -> None:
    learner = BYOL(conv_net(4), projection_size=8, projection_hidden_size=16)
    decayed, excluded = param_groups(learner, 1e-6)
    first = learner.online.projector[0]
    assert any(p is first.weight for p in decayed["params"])
    assert any(p is first.bias for p in excluded["params"])
    held = {id(p) for group in (decayed, excluded) for p in group["params"]}
    assert held == {id(p) for p in learner.parameters() if p.requires_grad}
    torch.optim.AdamW([decayed, excluded], lr=1e-3)  # any optimizer takes them


def test_parts_have_rates_of_their_own_which_follow_the_cosine() -> None:
    net = nn.Sequential(conv_net(4), nn.Linear(4, 4), nn.Linear(4, 2))
    groups = param_groups(net, 0.1, constant_lr=net[2], rates={net[0]: 0.01, net[2]: 0.5})
    optimizer = torch.optim.SGD(groups, lr=0.2)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rate) == len(list(net.parameters()))
    assert [{rate[id(p)] for p in part.parameters()} for part in net] == [{0.01}, {0.2}, {0.5}]
    schedule = cosine_schedule(optimizer, 2)
    optimizer.step()
    schedule.step()
    halved = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    share = [{round(halved[id(p)] / rate[id(p)], 9) for p in part.parameters()} for part in net]
    assert share == [{0.5}, {0.5}, {1.0}]


@pytest.mark.parametrize(
    ("epochs", "rate", "decay"),
    [
        (4, 0.45, 0.97),
        (40, 0.45, 0.97),
        (65, 0.45, 0.99),
        (100, 0.45, 0.99),
        (300, 0.3, 0.99),
        (600, 0.2, 0.996),
        (1000, 0.2, 0.996),
    ],
)
def test_the_published_recipe_of_byol_is_the_papers(epochs: int, rate: float, decay: float) -> None:
    recipe = published_recipe(BYOL, 224, images=1_281_167, epochs=epochs, batch_size=4096)
    assert recipe.algorithm == "LARS"
    assert recipe.learning_rate == recipe.backbone_learning_rate == rate * 16
    assert recipe.weight_decay == (1.5e-6 if rate == 0.2 else 1e-6)
    assert recipe.steps == epochs * 312
    assert recipe.warmup_steps == min(10, epochs) * 312
    arguments = recipe.arguments()
    assert arguments["moving_average_decay"] == decay
    assert arguments["total_steps"] == recipe.steps
    assert arguments["augment_fn"].recipe == VIEW1
    assert arguments["augment_fn2"].recipe == VIEW2


@pytest.mark.parametrize(
    ("method", "of", "expected"),
    [
        (SimSiam, "ImageNet", ("SGD", 0.1, 1e-4, 0, (0.2, 1.0))),
        (SimCLR, "ImageNet", ("LARS", 0.6, 1e-6, 20, (0.08, 1.0))),
        (SimCLR, "CIFAR-10", ("LARS", 1.0, 1e-4, 20, (0.08, 1.0))),
        (MoCo, "ImageNet", ("SGD", 0.06, 1e-4, 0, (0.2, 1.0))),
        (MoCo, "CIFAR-10", ("SGD", 0.06, 5e-4, 0, (0.2, 1.0))),
    ],
)
def test_published_recipes_of_the_siblings_are_those_of_their_references(
    method: type[Learner], of: Any, expected: tuple[Any, ...]
) -> None:
    recipe = published_recipe(method, 32, images=1024, epochs=200, batch_size=512, of=of)
    assert (
        recipe.algorithm,
        recipe.learning_rate,
        recipe.weight_decay,
        recipe.warmup_steps,
        recipe.crop_area,
    ) == expected
    learner = method(conv_net(4), **recipe.arguments(method))
    optimizer, scheduler = recipe.optimizer(learner)
    assert type(optimizer).__name__ == recipe.algorithm
    for _ in range(recipe.steps):
        optimizer.step()
        scheduler.step()
    rates = {rate for rate in scheduler.get_last_lr() if rate}
    assert rates == ({0.1} if method is SimSiam else set())  # its predictor's, to the end
    if method is MoCo:
        assert learner.tau == (0.99 if of == "CIFAR-10" else 0.999)
        assert recipe.arguments(MoCo)["total_steps"] is None


def test_what_was_not_published_is_refused() -> None:
    options: dict[str, Any] = {"images": 1000, "epochs": 10, "batch_size": 100}
    with pytest.raises(ValueError, match="got BYOL on 'CIFAR-10'"):
        published_recipe(BYOL, 32, **options, of="CIFAR-10")
    with pytest.raises(ValueError, match="got Learner on 'ImageNet'"):
        published_recipe(Learner, 32, **options)
    with pytest.raises(ValueError, match="got SimCLR on 'JFT'"):
        published_recipe(SimCLR, 32, **options, of="JFT")
    with pytest.raises(ValueError, match="images=1000"):
        published_recipe(BYOL, 32, **options | {"batch_size": 1001})


def test_a_part_keeps_its_rate_while_the_others_follow_the_cosine() -> None:
    learner = SimSiam(conv_net(4), projection_size=8, prediction_hidden_size=2)
    groups = param_groups(learner, 0.1, constant_lr=learner.predictor)
    assert [group["weight_decay"] for group in groups] == [0.1, 0, 0.1, 0]
    held = [{id(p) for p in group["params"]} for group in groups]
    assert held[2] | held[3] == {id(p) for p in learner.predictor.parameters()}
    assert held[3] == {
        id(p) for p in (*learner.predictor[1].parameters(), learner.predictor[3].bias)
    }
    trained = [id(p) for p in learner.parameters() if p.requires_grad]
    assert sorted(key for group in held for key in group) == sorted(trained)
    optimizer = torch.optim.SGD(groups, lr=0.5)
    schedule = cosine_schedule(optimizer, 10, 2)
    for k in range(12):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.5 * warmup_cosine(k, 10, 2)] * 2 + [0.5] * 2)
        optimizer.step()
        schedule.step()
    with pytest.raises(ValueError, match="0 <= warmup_steps <= total_steps"):
        cosine_schedule(optimizer, 1, 2)


def test_twelve_steps_of_the_method_equal_the_reference() -> None:
    steps, lr, lars = TRAJECTORY["max_steps"], TRAJECTORY["lr"], TRAJECTORY["lars"]
    learner = BYOL(
        encoder(),
        hidden_layer=-1,
        projection_size=6,
        projection_hidden_size=24,
        moving_average_decay=TRAJECTORY["base_target_ema"],
        total_steps=steps,
    )
    learner.load_state_dict(learner_state(TRAJECTORY["online_init"], TRAJECTORY["target_init"]))
    peak = lr["base_learning_rate"] * lr["batch_size"] / 256
    groups = param_groups(learner, lars["weight_decay"])
    optimizer = LARS(groups, peak, momentum=lars["momentum"], eta=lars["eta"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, lr["total_steps"], lr["warmup_steps"])
    )
    for k in range(steps):
        assert learner.tau == pytest.approx(TRAJECTORY["tau"][k], abs=1e-9)
        rate = optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(TRAJECTORY["learning_rate"][k], rel=1e-6, abs=1e-9)
        # The reference's learning rate is float32; with its very figure the rest is float64.
        for group in optimizer.param_groups:
            group["lr"] = TRAJECTORY["learning_rate"][k]
        loss = learner(tensor(TRAJECTORY["view1"][k]), tensor(TRAJECTORY["view2"][k]))
        assert loss.item() == pytest.approx(TRAJECTORY["loss"][k], abs=1e-8), k
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()
        scheduler.step()
    final = learner_state(TRAJECTORY["online_final"], TRAJECTORY["target_final"])
    for name, parameter in learner.named_parameters():
        torch.testing.assert_close(parameter.data, final[name], rtol=0, atol=1e-8)


class Operators(TorchDispatchMode):
    """Counts what is asked of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_operators_of_lars_do_not_grow_with_the_layers() -> None:
    counts = []
    for layers in (2, 12):
        net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
        optimizer = LARS(param_groups(net, 0.1), 0.5)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        with Operators() as operators:
            optimizer.step()
        counts.append(operators.count)
    assert counts[0] == counts[1] < 25


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_leaves_gradients_alone_and_takes_two_precisions(decay: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).bfloat16())
    optimizer = LARS(param_groups(net, decay), 0.5)
    gradients = [torch.randn_like(p) for p in net.parameters()]
    for _ in range(2):
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        alone = [p.detach().clone() for p in net[1].parameters()]
        momentum = [optimizer.state[p].get("momentum_buffer", 0 * p) for p in net[1].parameters()]
        before = [m.detach().float().clone() for m in momentum]
        optimizer.step()
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            assert torch.equal(parameter.grad, gradient)
    weight, update = alone[0].float(), gradients[2].float() + decay * alone[0].float()
    update = update * 1e-3 * weight.norm() / update.norm()
    expected = weight - 0.5 * (0.9 * before[0] + update)
    torch.testing.assert_close(net[1].weight.data.float(), expected, rtol=1e-2, atol=1e-3)
