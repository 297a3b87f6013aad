"""MoCo's queue and its keys."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import conv_net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from byol_wrap import MoCo

SMALL = {"projection_size": 8, "projection_hidden_size": 16}


def make(queue_size: int = 20, net: nn.Module | None = None, **options: object) -> MoCo:
    torch.manual_seed(0)
    net = conv_net(6, classes=5) if net is None else net
    return MoCo(net, 32, queue_size=queue_size, **SMALL, **options)


def two_views(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    view1, view2 = torch.rand(2, batch, 3, 32, 32, generator=generator)
    return view1, view2


def keys_of(learner: MoCo, view: Tensor) -> Tensor:
    """What the target makes of a view in one forward, with statistics of the batch: unit rows."""
    twin = copy.deepcopy(learner.target)
    with torch.no_grad():
        return F.normalize(twin.projector(twin.net[:8](view)), dim=1)


def test_the_queue_starts_with_unit_rows_that_are_the_same_whatever_the_seed() -> None:
    learner = make()
    torch.testing.assert_close(learner.queue.norm(dim=1), torch.ones(20))
    torch.manual_seed(9)
    assert torch.equal(MoCo(conv_net(6), 32, queue_size=20, **SMALL).queue, learner.queue)
    assert learner.queue.shape == (20, 8)
    assert learner.queue_position == 0
    assert {"queue", "queue_position"} <= learner.state_dict().keys()


def test_keys_replace_the_oldest_and_wrap_around() -> None:
    learner = make(queue_size=20)
    oracle = learner.queue.clone()
    for k in range(6):  # 48 keys: past the end of 20 rows twice, each time at another row
        view1, view2 = two_views(8, seed=k)
        keys = keys_of(learner, view2)
        for i, key in enumerate(keys):
            oracle[(8 * k + i) % 20] = key
        learner(view1, view2)
        torch.testing.assert_close(learner.queue, oracle)
        assert learner.queue_position == 8 * (k + 1) % 20


def test_negatives_are_the_queue_as_it_was_before() -> None:
    learner = make(queue_size=8)
    view1, view2 = two_views(8)
    twin = copy.deepcopy(learner)
    before, key = learner.queue.clone(), keys_of(learner, view2)
    loss = learner(view1, view2)
    query = F.normalize(twin.online.projector(twin.net[:8](view1)), dim=1)
    similarity = torch.cat([(query * key).sum(1, keepdim=True), query @ before.T], dim=1)
    expected = F.cross_entropy(similarity / 0.2, torch.zeros(8, dtype=torch.long))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(learner.queue, key)


def test_a_symmetric_loss_adds_both_directions_and_enqueues_both_views() -> None:
    learner = make(symmetric=True)
    view1, view2 = two_views(8)
    one_way = [make(), make()]
    key1, key2 = keys_of(learner, view1), keys_of(learner, view2)
    before = learner.queue.clone()
    loss = learner(view1, view2)
    expected = one_way[0](view1, view2) + one_way[1](view2, view1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(learner.queue[:16], torch.cat([key1, key2]))
    assert torch.equal(learner.queue[16:], before[16:])
    assert learner.queue_position == 16


def without_gradient(learner: MoCo) -> None:
    with torch.no_grad():
        learner(*two_views(8))


def in_eval_mode(learner: MoCo) -> None:
    learner.eval()(*two_views(8)).backward()


def by_embedding(learner: MoCo) -> None:
    learner(two_views(8)[0], return_embedding=True)
    learner.embed(two_views(8)[0])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("use", [without_gradient, in_eval_mode, by_embedding])
def test_keys_enter_in_training_with_gradient_alone(
    use: Callable[[MoCo], None], symmetric: bool
) -> None:
    learner = make(queue_size=8 if not symmetric else 16, symmetric=symmetric)
    before = learner.queue.clone()
    use(learner)
    assert torch.equal(learner.queue, before)
    assert learner.queue_position == 0
    learner.train()(*two_views(7))
    assert learner.queue_position == (14 if symmetric else 7)


def test_a_batch_may_be_larger_than_the_queue_where_no_key_enters() -> None:
    learner = make(queue_size=4)
    without_gradient(learner)
    in_eval_mode(learner)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("in_halves", [False, True])
def test_a_batch_larger_than_the_queue_is_refused_before_anything_is_changed(
    symmetric: bool, in_halves: bool
) -> None:
    if in_halves and not symmetric:
        pytest.skip("it has no halves")
    learner = make(queue_size=15, symmetric=symmetric)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    views = two_views(8 if symmetric else 16)
    with pytest.raises(ValueError, match=r"batch of 16 keys .* queue of 15: give queue_size=16"):
        _ = next(learner.halves(*views)) if in_halves else learner(*views)
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, before[name]), name  # BatchNorm's statistics, too
    learner(*two_views(7)).backward()


def test_keys_that_are_not_finite_do_not_enter() -> None:
    learner = make(queue_size=20)
    before = learner.queue.clone()
    key = torch.ones(8, 8)
    key[3, 2], key[5, 0] = float("nan"), float("inf")
    learner.enqueue(key)
    assert learner.queue.isfinite().all()
    assert torch.equal(learner.queue[[3, 5]], before[[3, 5]])
    assert (learner.queue[[0, 7]] > 0).all()
    assert learner.queue_position == 8


# Keys in parts


def without_batchnorm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )


@pytest.mark.parametrize("batch", [8, 11, 3])
def test_keys_in_parts_are_the_same_keys_in_the_same_order(batch: int) -> None:
    whole, parts = (make(net=without_batchnorm(), key_parts=n) for n in (None, 4))
    parts.load_state_dict(whole.state_dict())
    view1, view2 = two_views(batch)
    torch.testing.assert_close(parts.keys(view2), whole.keys(view2), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(parts(view1, view2), whole(view1, view2))
    torch.testing.assert_close(parts.queue, whole.queue)


class Sizes(nn.BatchNorm2d):
    """BatchNorm that notes the sizes of the batches that it has statistics of."""

    seen: tuple[int, ...] = ()

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.seen = (*self.seen, len(input))
        return super().forward(input)


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (None, (11,)),
        (1, (11,)),
        (2, (6, 5)),
        (4, (3, 3, 3, 2)),
        (9, (3, 2, 2, 2, 2)),  # a part of one image would have no statistics
    ],
)
def test_each_part_has_statistics_of_its_own(parts: int | None, sizes: tuple[int, ...]) -> None:
    net = conv_net(6)
    net[1] = Sizes(6)
    learner = make(net=net)
    learner.key_parts = parts  # an attribute, too
    _, view2 = two_views(11)
    keys = F.normalize(learner.keys(view2), dim=1)
    seen = learner.target.net[1].seen
    assert seen == sizes
    assert learner.net[1].seen == ()
    same = torch.allclose(keys, keys_of(learner, view2), atol=1e-5)
    assert same == (parts in (None, 1))


def test_parts_are_of_shuffled_images() -> None:
    learner = make(key_parts=2)
    _, view2 = two_views(8)
    ordered = torch.cat([keys_of(learner, part) for part in view2.chunk(2)])
    drawn = []
    for seed in range(3):
        torch.manual_seed(seed)
        drawn.append(F.normalize(learner.keys(view2), dim=1))
    assert not any(torch.allclose(keys, ordered, atol=1e-4) for keys in drawn)
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-4)
    torch.manual_seed(0)
    assert torch.equal(F.normalize(learner.keys(view2), dim=1), drawn[0])


def test_in_eval_mode_keys_come_in_one_forward_and_draw_nothing() -> None:
    learner = make(key_parts=4).eval()
    state = torch.get_rng_state()
    view1, view2 = two_views(8)
    with torch.no_grad():
        assert torch.equal(learner.keys(view2), learner.target.project(view2))
        learner(view1, view2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "8"])
@pytest.mark.parametrize("name", ["queue_size", "key_parts"])
def test_numbers_that_are_not_positive_integers_are_refused(name: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=f"{name} should be a positive integer, got {wrong!r}"):
        MoCo(conv_net(6), **{name: wrong})  # type: ignore[arg-type]


def test_an_activation_checkpoint_around_the_learner_does_not_enqueue_twice() -> None:
    views = two_views(4)
    asks = torch.ones((), requires_grad=True)
    learner = make()
    loss = checkpoint(learner, *views, use_reentrant=False)
    with pytest.raises(RuntimeError, match="MoCo cannot be run again in backward"):
        loss.backward()
    assert learner.queue_position == 4
    learner = make()
    for _ in range(2):  # the other kind runs forward without a gradient, and so but once
        checkpoint(lambda _, *v: learner(*v), asks, *views, use_reentrant=True).backward()
    assert learner.queue_position == 8


def test_activation_checkpoints_within_the_net_change_nothing() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Sequential(*conv_net(6)[:3]), nn.Sequential(*conv_net(6)[3:])
            self.saves = False

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.first, x, use_reentrant=False) if self.saves else self.first(x)
            return self.rest(x)

    plain, saving = (make(net=Blocks()) for _ in range(2))
    saving.load_state_dict(plain.state_dict())
    saving.net.saves = True
    for learner in (plain, saving):
        for seed in range(2):
            learner(*two_views(4, seed)).backward()
    assert torch.equal(plain.queue, saving.queue)
    assert plain.queue_position == saving.queue_position == 8
