"""The moving average, its schedule, and when it is updated."""

import gc
import math
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import FIGURES
from torch import nn
from torch.nn.parameter import is_lazy

from byol_wrap.attachment import is_active, on_step
from byol_wrap.ema import cosine_ema_decay, update_average
from byol_wrap.target import at_least_float32

# The schedule


@pytest.mark.parametrize(
    "row", FIGURES["target_ema"], ids=lambda row: f"{row['base']}-{row['max_steps']}"
)
def test_decay_equals_the_reference(row):
    taus = [cosine_ema_decay(step, row["max_steps"], row["base"]) for step in row["steps"]]
    assert taus == pytest.approx(row["tau"], abs=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    total=st.integers(1, 10**7),
    base=st.floats(0, 1),
    steps=st.lists(st.integers(0, 2 * 10**7), min_size=2, max_size=8),
)
def test_decay_rises_from_base_to_one_and_stays_there(total, base, steps):
    taus = [cosine_ema_decay(step, total, base) for step in sorted(steps)]
    assert all(base - 1e-12 <= tau <= 1 for tau in taus)
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(taus))
    assert cosine_ema_decay(0, total, base) == pytest.approx(base, abs=1e-12)
    assert [cosine_ema_decay(total + k, total, base) for k in (0, 1, 10**9)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "arguments",
    [(-1, 10, 0.9), (0, 0, 0.9), (0, -5, 0.9), (0, 10, -0.1), (0, 10, 1.1), (0, 10, math.nan)],
)
def test_decay_refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="expects step >= 0") as error:
        cosine_ema_decay(*arguments)
    assert all(str(argument) in str(error.value) for argument in arguments)


# The average


def twins(dtype=torch.float64):
    """Two modules of one structure with different weights, and the values of both."""
    torch.manual_seed(0)
    average, online = (
        nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Linear(4, 2)).to(dtype)
        for _ in range(2)
    )
    with torch.no_grad():
        for parameter in (*average.parameters(), *online.parameters()):
            parameter.normal_()
    return average, online


def values(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99, 1.0])
def test_average_follows_the_formula(decay):
    average, online = twins()
    before, source = values(average), values(online)
    assert update_average(average, online, decay) is None
    for name, parameter in average.named_parameters():
        expected = decay * before[name] + (1 - decay) * source[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-12)
    for name, parameter in online.named_parameters():
        assert torch.equal(parameter, source[name])


def test_buffers_are_not_averaged():
    average, online = twins()
    online[1].running_mean.fill_(5)
    average[1].running_mean.fill_(-1)
    update_average(average, online, 0.5)
    assert average[1].running_mean.eq(-1).all()
    assert online[1].running_mean.eq(5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.97, 0.996, 1.0])
def test_equal_tensors_stay_equal_bit_for_bit(decay, dtype):
    average, online = twins(dtype)
    online.load_state_dict(average.state_dict())
    before = values(average)
    for _ in range(10):
        update_average(average, online, decay)
    for name, parameter in average.named_parameters():
        assert torch.equal(parameter, before[name])


def test_bfloat16_source_moves_a_float32_average():
    average, online = nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.fill_(1)
        for parameter in online.parameters():
            parameter.fill_(1 + 2**-7)  # the next bfloat16
    still = nn.Linear(2, 2).bfloat16()
    still.load_state_dict(average.state_dict())

    update_average(average, online, 0.99)
    update_average(still, online, 0.99)

    assert average.weight.dtype == torch.float32
    torch.testing.assert_close(
        average.weight.detach(), torch.full((2, 2), 1 + 0.01 * 2**-7), rtol=0, atol=1e-7
    )
    assert average.weight.ne(1).all()
    assert still.weight.eq(1).all()


def test_integer_parameters_are_left_alone():
    average, online = twins()
    for module, value in ((average, 3), (online, 100)):
        module.count = nn.Parameter(torch.tensor([value]), requires_grad=False)
    source = values(online)
    update_average(average, online, 0.0)
    assert average.count.item() == 3
    assert torch.equal(average[0].weight, source["0.weight"])


def test_lazy_parameters_are_left_alone():
    average, online = (nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)) for _ in range(2))
    update_average(average, online, 0.0)
    assert torch.equal(average[0].weight, online[0].weight)
    assert is_lazy(average[1].weight)


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(2, 3)),
        nn.Sequential(nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2, bias=False)),
    ],
    ids=["shape", "other shape", "more", "fewer"],
)
def test_modules_that_do_not_match_are_refused_unchanged(other):
    average = nn.Sequential(nn.Linear(2, 2))
    before = values(average)
    with pytest.raises(RuntimeError, match="no longer has the parameters"):
        update_average(average, other, 0.5)
    assert all(torch.equal(t, before[name]) for name, t in average.state_dict().items())


def test_one_foreach_call_averages_all(monkeypatch):
    average, online = twins()
    lerp, calls = torch._foreach_lerp_, []

    def counting(targets, *args):
        calls.append(len(targets))
        return lerp(targets, *args)

    monkeypatch.setattr(torch, "_foreach_lerp_", counting)
    update_average(average, online, 0.9)
    assert calls == [6]


def test_average_needs_no_no_grad_and_leaves_no_graph():
    average, online = twins()
    update_average(average, online, 0.5)
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in average.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_the_rest_left(dtype):
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(dtype)
    module.wide = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    weight = module[0].weight.detach().clone()
    at_least_float32(module)
    assert module[0].weight.dtype == module[1].running_mean.dtype == torch.float32
    assert module.wide.dtype == torch.float64
    assert module[1].num_batches_tracked.dtype == torch.long
    assert torch.equal(module[0].weight, weight.float())


# After each real optimizer step


class Counter:
    def __init__(self):
        self.count = 0

    def update(self):
        self.count += 1


def plain(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def fused(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, fused=True)


def step(parameter, optimizer, scaler, gradient, unscale=False):
    optimizer.zero_grad()
    scaler.scale((parameter * torch.tensor([1.0, gradient])).sum()).backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled first"])
@pytest.mark.parametrize("build", [plain, fused])
def test_step_that_grad_scaler_skips_is_no_step(build, unscale):
    parameter = nn.Parameter(torch.ones(2))
    optimizer, scaler, counter = build([parameter]), torch.amp.GradScaler("cpu"), Counter()
    on_step(optimizer, counter.update)
    counts, moved = [], []
    for gradient in (1.0, math.inf, 2.0, math.nan, 3.0):
        before = parameter.detach().clone()
        step(parameter, optimizer, scaler, gradient, unscale)
        counts.append(counter.count)
        moved.append(not torch.equal(before, parameter))
    assert moved == [True, False, True, False, True]
    assert counts == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("build", [plain, fused])
def test_accumulated_batches_count_one_step(build):
    parameter, counter = nn.Parameter(torch.ones(2)), Counter()
    optimizer = build([parameter])
    on_step(optimizer, counter.update)
    for batch in range(6):
        parameter.sum().backward()
        if batch % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    assert counter.count == 2


def test_update_comes_after_the_weights_have_moved():
    parameter, seen = nn.Parameter(torch.ones(1)), []

    class Owner:
        def update(self):
            seen.append(parameter.item())

    owner, optimizer = Owner(), plain([parameter])
    on_step(optimizer, owner.update)
    parameter.sum().backward()
    optimizer.step()
    assert seen == pytest.approx([0.9])


def test_removed_handle_stops_updates():
    parameter, counter = nn.Parameter(torch.ones(2)), Counter()
    optimizer = plain([parameter])
    handle = on_step(optimizer, counter.update)
    parameter.sum().backward()
    optimizer.step()
    assert is_active(handle)
    handle.remove()
    optimizer.step()
    assert counter.count == 1
    assert not is_active(handle)


def test_nothing_is_active_without_a_handle_or_its_optimizer():
    assert not is_active(None)
    optimizer, counter = plain([nn.Parameter(torch.ones(2))]), Counter()
    handle = on_step(optimizer, counter.update)
    assert is_active(handle)
    del optimizer
    gc.collect()
    assert not is_active(handle)


def test_owner_of_the_update_is_not_kept_alive():
    parameter, counter = nn.Parameter(torch.ones(2)), Counter()
    optimizer = plain([parameter])
    on_step(optimizer, counter.update)
    gone = weakref.ref(counter)
    del counter
    gc.collect()
    assert gone() is None
    parameter.sum().backward()
    optimizer.step()
    assert parameter.detach().tolist() == pytest.approx([0.9, 0.9])
