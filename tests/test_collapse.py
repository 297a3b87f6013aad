"""Real collapses, and the warning that names their causes."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from byol_wrap import BYOL, LARS
from byol_wrap.evaluation.health import Outputs
from byol_wrap.guard.collapse import FIRST, LOOK_EVERY, LOOKS, CollapseWatch, likely_causes


def clusters():
    """Again and again two noisy views of 64 points, from ten clusters that can be told apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 16, generator=generator)
    while True:
        points = centres[torch.randint(0, 10, (64,), generator=generator)]
        noise = torch.randn(2, 64, 16, generator=generator)
        yield points + 0.5 * noise[0], points + 0.5 * noise[1]


def make(**kwargs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    return BYOL(net, hidden_layer=-1, projection_size=16, projection_hidden_size=32, **kwargs)


def train(learner, optimizer, steps, batch=64, update=True):
    """Train; gives health and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _, (view1, view2) in zip(range(steps), clusters(), strict=False):
            loss = learner(view1[:batch], view2[:batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if update:
                learner.update_moving_average()
    return learner.health(), [str(w.message) for w in caught]


def adamw(learner, lr=1e-2, weight_decay=1.0):
    return torch.optim.AdamW(learner.parameters(), lr=lr, weight_decay=weight_decay)


# Real collapses


def test_without_predictor_at_tau_0_representations_collapse():
    learner = make(moving_average_decay=0.0)
    learner.predictor = nn.Identity()
    optimizer = adamw(learner)
    before, _ = train(learner, optimizer, 1)
    after, messages = train(learner, optimizer, 800)
    assert before["std_ratio"] > 0.5
    assert before["rank"] > 5
    assert after["std_ratio"] < 0.05
    assert after["rank"] < 1.5
    assert after["alignment"] < 0.01
    assert after["uniformity"] > -0.05
    assert len(messages) == 1
    assert "Training has collapsed" in messages[0]
    assert "with tau at 0 " in messages[0]
    assert "the predictor has nothing to learn with" in messages[0]
    assert "BatchNorm" not in messages[0]


def test_without_predictor_projections_collapse_while_representations_stay():
    learner = make(moving_average_decay=0.0)
    learner.predictor = nn.Identity()
    health, messages = train(learner, adamw(learner, lr=5e-3, weight_decay=0.0), 800)
    assert health["projection_std_ratio"] < 0.05
    assert health["std_ratio"] > 0.5
    assert len(messages) == 1
    assert "the predictor has nothing to learn with" in messages[0]


def test_with_predictor_and_average_the_same_run_stays_sound():
    learner = make()
    health, messages = train(learner, adamw(learner, lr=5e-3, weight_decay=0.0), 800)
    assert messages == []
    assert health["std_ratio"] > 0.5
    assert health["projection_std_ratio"] > 0.5


def test_a_target_never_updated_is_named_first_among_the_causes():
    learner = make()
    optimizer = adamw(learner, lr=0.2)
    handle = learner.attach(optimizer)
    handle.remove()
    health, messages = train(learner, optimizer, 800, update=False)
    assert health["updates"] == 0
    assert health["target_distance"] > 0.5
    assert any("target network has not been updated" in message for message in messages)
    (collapse,) = [message for message in messages if "Training has collapsed" in message]
    assert health["projection_std_ratio"] < 0.1 or health["std_ratio"] < 0.1
    causes = collapse.split("Likely causes in this run: ")[1]
    assert causes.startswith("the target has not been updated for")


def test_a_learning_rate_of_lars_given_to_adam_is_named():
    learner = make()
    optimizer = adamw(learner, lr=0.2)
    learner.attach(optimizer)
    _, messages = train(learner, optimizer, 800, update=False)
    at_once, collapse = messages
    assert "AdamW's learning rate is 0.2, at which" in at_once
    assert "AdamW's learning rate is 0.2 (try 0.001)" in collapse
    assert "not been updated" not in collapse
    assert "BatchNorm" not in collapse


def test_the_warning_comes_once_and_a_copy_gives_its_own():
    learner = make(moving_average_decay=0.0)
    learner.predictor = nn.Identity()
    optimizer = adamw(learner)
    assert len(train(learner, optimizer, 800)[1]) == 1
    assert train(learner, optimizer, 800)[1] == []
    for twin in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        few, many = LOOK_EVERY * (LOOKS - 1), LOOK_EVERY * 3
        told = train(twin, adamw(twin), few)[1]
        assert not [m for m in told if "collapsed: images" in m]  # looks of the original
        told = train(twin, adamw(twin), many)[1]
        assert len([m for m in told if "collapsed: images" in m]) == 1


# Likely causes


def causes(**kwargs):
    sound = {
        "steps_since_update": 1,
        "tau": 0.99,
        "batch_size": 64,
        "predictor": nn.Linear(2, 2),
        "optimizer": torch.optim.AdamW([torch.zeros(1)], lr=1e-3),
    }
    return likely_causes(**{**sound, **kwargs})


def test_a_sound_setting_leaves_general_causes():
    (cause,) = causes()
    assert "try a tenth" in cause


def two_rates():
    groups = [{"params": [torch.zeros(1)], "lr": rate} for rate in (0.1, 30.0)]
    return torch.optim.SGD(groups)


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"steps_since_update": LOOK_EVERY}, "has not been updated for 20 training steps"),
        ({"tau": 0.0}, "with tau at 0 "),
        ({"batch_size": 4}, "batches of 4 "),
        ({"predictor": nn.Identity()}, "the predictor"),
        ({"optimizer": None}, "1e-4 to 5e-3 is usual for Adam"),
        ({"optimizer": torch.optim.Adam([torch.zeros(1)], 0.2)}, "Adam's learning rate is 0.2"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], 30.0)}, "SGD's learning rate is 30 "),
        ({"optimizer": two_rates()}, "SGD's learning rate is 30 "),
        ({"optimizer": LARS([torch.zeros(1)], 100.0)}, "LARS's learning rate is 100 "),
    ],
)
def test_each_cause_is_named_alone(kwargs, names):
    (cause,) = causes(**kwargs)
    assert names in cause


@pytest.mark.parametrize(
    "kwargs",
    [
        {"steps_since_update": LOOK_EVERY - 1},
        {"tau": 0.5},
        {"batch_size": 16},
        {"optimizer": torch.optim.SGD([torch.zeros(1)], 0.5)},
        {"optimizer": LARS([torch.zeros(1)], 4.8)},
        {"optimizer": torch.optim.Adagrad([torch.zeros(1)], 0.5)},
    ],
)
def test_what_is_usual_is_no_cause(kwargs):
    assert causes(**kwargs) == causes()


# The watch


def outputs(representation_spread, projection_spread=1.0, size=8):
    noise = torch.randn(64, size, generator=torch.Generator().manual_seed(0))
    representation = 1 + representation_spread * noise
    return Outputs(representation, representation, 1 + projection_spread * noise)


def steps_until_told(watch, seen, limit=1000):
    looked = (step for step in range(1, limit) if watch.look(seen) and watch.is_collapsed)
    return next(looked, None)


@pytest.mark.parametrize("seen", [outputs(0.01), outputs(1.0, 0.01)])
def test_the_watch_tells_after_ten_looks_in_a_row(seen):
    told = LOOK_EVERY * (LOOKS + 1)  # a look is read at the next one
    watch = CollapseWatch()
    assert steps_until_told(watch, seen) == told
    assert steps_until_told(watch, seen) == LOOK_EVERY


def test_the_watch_gives_both_ratios():
    watch = CollapseWatch()
    for _ in range(LOOK_EVERY * (LOOKS + 1)):
        watch.look(outputs(0.01, 2.0))
    assert watch.is_collapsed
    assert watch.ratios["representations"] < 0.1 < watch.ratios["projections"]


def test_one_sound_look_starts_the_count_anew():
    watch = CollapseWatch()
    for _ in range(LOOK_EVERY * LOOKS):
        watch.look(outputs(0.01))
        assert not watch.is_collapsed
    for _ in range(LOOK_EVERY):
        watch.look(outputs(1.0))
    assert steps_until_told(watch, outputs(0.01)) == LOOK_EVERY * (LOOKS + 1)


def test_so_it_does_of_projections_along_a_line():
    watch, line = CollapseWatch(), along(1.0, 0.1)
    for seen, looks in ((line, LOOKS - 1), (along(1.0, 1.0), 1), (line, LOOKS)):
        for _ in range(LOOK_EVERY * looks):
            watch.look(seen)
            assert not watch.is_narrow


@pytest.mark.parametrize("seen", [outputs(1.0), outputs(0.15, 0.15)])
def test_the_watch_says_nothing_of_what_is_spread_out(seen):
    assert steps_until_told(CollapseWatch(), seen) is None


def along(line, sideways, batch=32):
    """Projections on either side of 0 along one line, and a little beside it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, 8, generator=generator)
    noise[:, 0] = line * noise[:, 0].sign()
    noise[:, 1:] *= sideways
    return Outputs(noise, noise, noise)


def narrow_after(seen, first, limit=1000):
    watch = CollapseWatch()
    for _ in range(FIRST):
        watch.look(first)
    steps = (step for step in range(1, limit) if watch.look(seen) and watch.is_narrow)
    return next(steps, None)


def test_projections_along_a_line_are_noticed_though_they_are_spread():
    seen = along(1.0, 0.1)
    watch = CollapseWatch()
    for _ in range(FIRST):
        watch.look(along(1.0, 1.0))  # wide, when it began
    for _ in range(LOOK_EVERY * (LOOKS + 1) - FIRST):
        assert not watch.is_narrow
        watch.look(seen)
    assert watch.is_narrow
    assert not watch.is_collapsed
    assert 1 < watch.participation < 1.4
    assert min(watch.ratios.values()) > 0.15


def test_a_net_that_begins_with_features_much_alike_has_collapsed_at_half_of_that():
    for factor, told in ((1.2, False), (0.6, False), (0.3, True)):
        watch = CollapseWatch()
        watch.look(outputs(0.06))
        assert (steps_until_told(watch, outputs(0.06 * factor)) is not None) == told
    assert steps_until_told(CollapseWatch(), outputs(0.01)), "as one that was collapsed before"


@pytest.mark.parametrize("seen", [along(1.0, 1.0), along(1.0, 0.5), along(1.0, 0.1, batch=15)])
def test_what_lies_along_several_lines_or_is_few_is_not_narrow(seen):
    assert narrow_after(seen, along(1.0, 1.0)) is None


def test_what_began_along_a_line_has_not_collapsed_to_it():
    line, wide = along(1.0, 0.1), along(1.0, 1.0)
    assert narrow_after(line, line) is None
    assert narrow_after(line, wide) == LOOK_EVERY * (LOOKS + 1) - FIRST
    watch = CollapseWatch()
    for seen, steps in ((line, 300), (wide, 100), (line, LOOK_EVERY * (LOOKS + 1))):
        assert not watch.is_narrow
        for _ in range(steps):
            watch.look(seen)
    assert watch.is_narrow


def test_a_learner_whose_projections_lie_along_a_line_says_so_once():
    learner = make()
    last = learner.online.projector[-1]
    train(learner, torch.optim.SGD(learner.parameters(), lr=0.01), 2)
    with torch.no_grad():
        last.weight[1:] = 0
    last.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.01)
    _, messages = train(learner, optimizer, LOOK_EVERY * (LOOKS + 3))
    assert len(messages) == 1
    assert "collapsed to a line: the projections of 64 images" in messages[0]
    assert "participation ratio 1.0" in messages[0]


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_between_looks_a_step_computes_nothing_for_the_watch():
    watch, seen = CollapseWatch(), outputs(1.0)
    for _ in range(FIRST):
        watch.look(seen)
    with Counting() as counting:
        for _ in range(LOOK_EVERY - 1 - FIRST):
            watch.look(seen)
    assert counting.calls == []
    with Counting() as counting:
        watch.look(seen)
    assert counting.calls.count("std") == 2
