"""A pretrained net: how it is told, and how it is treated."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from methods import SMALL
from torch import Tensor, nn

from byol_wrap import (
    BYOL,
    VIEW1,
    VIEW2,
    Learner,
    MoCo,
    SimCLR,
    SimSiam,
    param_groups,
    training_recipe,
)
from byol_wrap.backbone.pretrained import is_pretrained

METHODS = [BYOL, SimSiam, SimCLR, MoCo]


def conv_net(norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8))


def seen(net: nn.Module, batches: int) -> nn.Module:
    """A net whose BatchNorm layers have settled statistics, and say that they saw so many."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(30):
            net(2 + torch.randn(4, 3, 8, 8, generator=generator))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.num_batches_tracked.fill_(batches)
    return net


def spread(net: nn.Module, by: float) -> nn.Module:
    """A net whose normalisation weights training has spread."""
    for layer in net.modules():
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            with torch.no_grad():
                layer.weight += by * torch.randn_like(layer.weight)
    return net


def test_a_net_is_pretrained_where_its_statistics_are_settled() -> None:
    assert not is_pretrained(conv_net())
    assert not is_pretrained(seen(conv_net(), 3))
    assert not is_pretrained(seen(conv_net(), 300))
    assert is_pretrained(seen(conv_net(), 20_000))


def test_a_checkpoint_without_counts_is_of_a_pretrained_net() -> None:
    state = {n: v for n, v in seen(conv_net(), 5).state_dict().items() if "num_batches" not in n}
    net = conv_net()
    net.load_state_dict(state, strict=False)
    assert int(net[1].num_batches_tracked) == 0
    assert is_pretrained(net)


@pytest.mark.parametrize("norm", [lambda size: nn.GroupNorm(2, size)])
def test_a_net_without_statistics_is_pretrained_where_its_weights_are_spread(norm: Any) -> None:
    torch.manual_seed(0)
    assert not is_pretrained(conv_net(norm))
    assert not is_pretrained(spread(conv_net(norm), 0.005))
    assert is_pretrained(spread(conv_net(norm), 0.3))


def test_nothing_is_told_of_a_net_without_normalisation_layers() -> None:
    assert not is_pretrained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()))


def test_zero_initialised_weights_are_none_of_a_pretrained_net() -> None:
    net = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))
    nn.init.zeros_(net[1].weight)
    assert not is_pretrained(net)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_of_a_pretrained_net_are_kept(method: type[Learner]) -> None:
    torch.manual_seed(0)
    net = seen(conv_net(), 20_000)
    before = [value.clone() for value in net.buffers()]
    learner = method(net, 16, **SMALL)
    assert learner.pretrained
    assert all(module.training for module in net.modules()), "construction changes no flag"
    for _ in range(2):
        learner.train()  # as after a validation pass
        loss = learner(torch.rand(8, 3, 16, 16))
        loss.backward()
        learner.update_moving_average()
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert net.training
    assert not net[1].training
    if learner.has_target:
        assert torch.equal(learner.target.net[1].running_mean, net[1].running_mean)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_of_a_new_net_are_trained(method: type[Learner]) -> None:
    net = conv_net()
    learner = method(net, 16, **SMALL)
    learner(torch.rand(8, 3, 16, 16))
    assert not learner.pretrained
    assert net[1].training
    assert int(net[1].num_batches_tracked) > 0


def test_the_user_may_say_otherwise() -> None:
    net = seen(conv_net(), 20_000)
    learner = BYOL(net, 16, pretrained=False, **SMALL)
    learner(torch.rand(8, 3, 16, 16))
    assert int(net[1].num_batches_tracked) > 20_000
    assert BYOL(conv_net(), 16, pretrained=True, **SMALL).pretrained


def test_what_training_feeds_a_pretrained_net_is_what_eval_mode_makes_of_it() -> None:
    torch.manual_seed(0)
    net = seen(conv_net(), 20_000)
    learner = SimSiam(net, 16, augment_fn=lambda images: images, mean=(0,) * 3, std=(1,) * 3)
    images = torch.rand(8, 3, 16, 16)
    given: list[Tensor] = []
    net[4].register_forward_hook(lambda module, inputs, output: given.append(output.detach()))
    learner(images)
    net.eval()
    assert torch.allclose(given[0], net(images))


@pytest.mark.parametrize("method", METHODS)
def test_the_default_views_of_a_pretrained_net_crop_from_half_of_the_area(
    method: type[Learner],
) -> None:
    gentle, usual = (
        method(seen(conv_net(), 20_000), 16, pretrained=known, **SMALL)._views.augment1.recipe
        for known in (True, False)
    )
    assert gentle.crop_area == (0.5, 1.0)
    assert replace(gentle, crop_area=usual.crop_area) == usual
    assert usual.crop_area[0] < 0.5


def test_views_of_ones_own_are_left_alone() -> None:
    own = lambda images: images  # noqa: E731
    learner = BYOL(conv_net(), 16, pretrained=True, augment_fn=own, **SMALL)
    assert learner._views.augment1 is own
    assert VIEW1.crop_area == VIEW2.crop_area == (0.08, 1.0)


# The rate


def images_of(size: int = 16) -> Tensor:
    return torch.rand(16, 3, size, size, generator=torch.Generator().manual_seed(0))


def loop(learner: Learner, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        loss = learner(images_of())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()


@pytest.mark.parametrize("method", [BYOL, SimCLR])
def test_a_rate_that_ruins_a_pretrained_net_is_told_once(method: type[Learner]) -> None:
    torch.manual_seed(0)
    learner = method(seen(conv_net(), 20_000), 16, **SMALL)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    with pytest.warns(UserWarning, match=r"moved by \d+ % in 20 steps") as told:
        loop(learner, optimizer, 25)
    assert len(told) == 1


def test_a_rate_that_suits_it_is_not() -> None:
    torch.manual_seed(0)
    learner = BYOL(seen(conv_net(), 20_000), 16, **SMALL)
    rates = {learner.net: 2e-4}
    loop(learner, torch.optim.AdamW(param_groups(learner, 1e-4, rates=rates), lr=1e-3), 25)


def test_a_new_net_may_go_as_far_as_it_likes() -> None:
    torch.manual_seed(0)
    learner = BYOL(conv_net(), 16, **SMALL)
    loop(learner, torch.optim.AdamW(learner.parameters(), lr=1e-2), 25)


def test_a_rate_that_rises_later_is_told_too() -> None:
    torch.manual_seed(0)
    learner = BYOL(seen(conv_net(), 20_000), 16, **SMALL)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.0)
    loop(learner, optimizer, 99)
    optimizer.param_groups[0]["lr"] = 1e-2
    with pytest.warns(UserWarning, match="moved by"):
        loop(learner, optimizer, 25)


# The recipe


def test_the_recipe_of_a_pretrained_net_is_careful_with_it() -> None:
    new, old = (
        training_recipe(net, 16, steps=300) for net in (conv_net(), seen(conv_net(), 20_000))
    )
    assert (new.pretrained, old.pretrained) == (False, True)
    assert new.backbone_learning_rate == new.learning_rate
    assert old.backbone_learning_rate < old.learning_rate
    assert (new.heads_alone, old.heads_alone) == (0, 100)
    assert old.crop_area == (0.5, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_trains_every_method(method: type[Learner]) -> None:
    torch.manual_seed(0)
    net = seen(conv_net(), 20_000)
    recipe = training_recipe(net, 16, steps=9)
    arguments = recipe.arguments(method)
    assert arguments["augment_fn"].recipe == replace(method.recipes[0], crop_area=(0.5, 1.0))
    learner = method(net, **arguments)
    optimizer, scheduler = recipe.optimizer(learner)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    moved = []
    for _ in range(recipe.steps):
        loss = learner(images_of())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        learner.update_moving_average()
        pairs = zip(before, net.parameters(), strict=True)
        moved.append(any(not torch.equal(old, new) for old, new in pairs))
    assert moved.index(True) > recipe.heads_alone - 1, "the heads learn alone first"
    assert moved[-1]
    assert all(g["lr"] == 0 for g in optimizer.param_groups if not g.get("constant_lr"))
    if learner.has_target:
        assert learner.tau == 1


def test_a_recipe_leaves_a_width_that_is_smaller_alone() -> None:
    recipe = training_recipe(conv_net(), 16, steps=9)
    assert recipe.arguments(BYOL)["projection_hidden_size"] == recipe.projection_hidden_size
    assert "projection_hidden_size" not in recipe.arguments(SimSiam)


def test_rates_of_a_recipe_rise_and_fall() -> None:
    learner = BYOL(conv_net(), 16, pretrained=True, **SMALL)
    recipe = training_recipe(learner.net, 16, steps=100, pretrained=True)
    optimizer, scheduler = recipe.optimizer(learner)
    heads, backbone = [], []
    for _ in range(recipe.steps):
        rates = {group["lr"] for group in optimizer.param_groups[:2]}
        heads.append(max(rates))
        backbone.append(max(group["lr"] for group in optimizer.param_groups[2:]))
        optimizer.step()
        scheduler.step()
    assert max(heads) == pytest.approx(recipe.learning_rate)
    assert max(backbone) == pytest.approx(recipe.backbone_learning_rate)
    assert backbone[: recipe.heads_alone] == [0] * recipe.heads_alone
    assert heads.index(max(heads)) == recipe.warmup_steps


@pytest.mark.parametrize("waits", [29, 30])
def test_heads_may_learn_alone_to_the_end_or_almost(waits: int) -> None:
    learner = BYOL(conv_net(), 16, pretrained=True, **SMALL)
    recipe = training_recipe(learner.net, 16, steps=30, pretrained=True)
    optimizer, scheduler = replace(recipe, heads_alone=waits).optimizer(learner)
    for _ in range(30):
        assert all(group["lr"] == 0 for group in optimizer.param_groups[2:])
        optimizer.step()
        scheduler.step()


def test_a_long_run_is_as_papers_have_it_and_one_between_lies_between() -> None:
    between, long = (training_recipe(conv_net(), 16, steps=n) for n in (31_623, 400_000))
    assert long.crop_area == (pytest.approx(0.08), 1.0)
    assert long.moving_average_decay == pytest.approx(0.996)
    assert (between.projection_hidden_size, long.projection_hidden_size) == (2896, 4096)
    assert between.crop_area[0] == pytest.approx((0.7 * 0.08) ** 0.5, rel=1e-4)


def test_a_recipe_is_read_a_setting_a_line() -> None:
    recipe = replace(training_recipe(conv_net(), 32, steps=3000), learning_rate=0.1 + 0.2)
    title, *lines = str(recipe).splitlines()
    assert title == "TrainingRecipe"
    assert [line.split()[0] for line in lines] == [field.name for field in fields(recipe)]
    assert max(map(len, lines)) < 80
    said = {name: " ".join(rest) for name, *rest in map(str.split, lines)}
    assert said["learning_rate"] == "0.3"
    assert said["crop_area"] == "(0.7, 1)"
    assert said["moving_average_decay"] == "0.9 (of a target network)"
    assert said["projection_hidden_size"] == "2048 (of heads that would be wider)"
    assert "of a target" not in said["weight_decay"]
    assert eval(repr(recipe), {"TrainingRecipe": type(recipe)}) == recipe


def test_simsiams_predictor_keeps_its_rate() -> None:
    learner = SimSiam(conv_net(), 16, projection_size=8, prediction_hidden_size=4)
    optimizer, scheduler = training_recipe(learner.net, 16, steps=4).optimizer(learner)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    held = {id(p) for p in learner.predictor.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["lr"] > 0) == (id(parameter) in held)


def test_a_recipe_needs_a_step() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        training_recipe(conv_net(), 16, steps=0)


def test_a_scheduler_that_is_forgotten_is_told() -> None:
    net = conv_net()
    recipe = training_recipe(net, 16, steps=300)
    learner = BYOL(net, **recipe.arguments())
    optimizer, _ = recipe.optimizer(learner)
    with pytest.warns(UserWarning, match=r"call scheduler.step\(\)") as told:
        loop(learner, optimizer, 30)
    assert len(told) == 1


class Own(Learner):
    """A method with arguments of its own and those of every learner."""

    def __init__(self, net: nn.Module, image_size: int, **options: Any) -> None:
        super().__init__(net, image_size, projector=nn.LazyLinear(8), **options)


def test_a_recipe_reaches_a_method_of_ones_own() -> None:
    net = seen(conv_net(), 20_000)
    recipe = replace(training_recipe(net, 16, steps=9), crop_area=(0.4, 1.0))
    learner = Own(net, **recipe.arguments(Own))
    assert learner._views.augment1.recipe.crop_area == (0.4, 1.0)
    assert learner.pretrained
    assert not learner.has_target


@pytest.mark.parametrize(
    ("pretrained", "steps", "says"), [(False, 1999, True), (False, 2000, False), (True, 100, False)]
)
def test_a_recipe_says_where_a_new_net_may_end_worse(
    pretrained: bool, steps: int, says: bool
) -> None:
    recipe = training_recipe(conv_net(), 16, steps=steps, pretrained=pretrained)
    assert ("may leave features worse" in str(recipe)) == says


def test_a_new_net_is_trained_at_a_rate_for_its_kind_of_layers() -> None:
    told = [
        (recipe.algorithm, recipe.learning_rate, recipe.backbone_learning_rate)
        for recipe in (
            training_recipe(conv_net(norm), 16, steps=9, batch_size=128)
            for norm in (nn.BatchNorm2d, lambda size: nn.GroupNorm(1, size))
        )
    ]
    assert told == [("SGD", 0.06, 0.06), ("AdamW", 6e-4, 6e-4)]


def test_a_rate_is_changed_with_the_backbones_in_proportion() -> None:
    recipe = training_recipe(conv_net(), 16, steps=9, pretrained=True).at_rate(0.01)
    assert (recipe.learning_rate, recipe.backbone_learning_rate) == (0.01, pytest.approx(0.002))


def test_rates_of_a_pretrained_net_grow_with_the_batch() -> None:
    recipe = training_recipe(conv_net(), 16, steps=9, batch_size=128, pretrained=True)
    rates = recipe.learning_rate, recipe.backbone_learning_rate
    assert rates == (pytest.approx(2e-3), pytest.approx(4e-4))


def test_what_is_no_recipe_is_refused() -> None:
    net = conv_net()
    recipe = training_recipe(net, 16, steps=9)
    for wrong in (nn.Linear, BYOL(net, 16, **SMALL)):
        with pytest.raises(TypeError, match="class of learners"):
            recipe.arguments(wrong)
    with pytest.raises(TypeError, match="takes a learner"):
        recipe.optimizer(net)
    with pytest.raises(ValueError, match="'AdamW', 'SGD' or 'LARS'"):
        replace(recipe, algorithm="Adam")
    with pytest.raises(TypeError, match=r"get_model\('resnet18'\)"):
        training_recipe("resnet18", 16, steps=9)
    with pytest.raises(TypeError):
        training_recipe(net, 16, steps=1.5)
    with pytest.raises(ValueError, match="image_size"):
        training_recipe(net, -1, steps=9)
