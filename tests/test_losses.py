"""The loss, against the reference implementation's figures and formulas by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import FIGURES, tensor

from byol_wrap.methods.losses import byol_loss

REFERENCE = FIGURES["regression_loss"]


def test_each_sample_equals_the_reference():
    x, y = tensor(REFERENCE["x"]), tensor(REFERENCE["y"])
    losses = torch.stack([byol_loss(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(losses, tensor(REFERENCE["per_sample"]), rtol=0, atol=1e-9)


def test_batch_is_the_mean_of_the_reference():
    loss = byol_loss(tensor(REFERENCE["x"]), tensor(REFERENCE["y"]))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(tensor(REFERENCE["per_sample"]).mean().item(), abs=1e-9)


def test_gradient_equals_the_reference():
    x = tensor(REFERENCE["x"]).requires_grad_()
    byol_loss(x, tensor(REFERENCE["y"])).backward()
    torch.testing.assert_close(
        x.grad, tensor(REFERENCE["grad_x_of_mean"]), rtol=0, atol=1e-9, check_dtype=True
    )


def test_target_gets_a_gradient_unless_the_caller_stops_it():
    x = tensor(REFERENCE["x"])
    y = tensor(REFERENCE["y"]).requires_grad_()
    byol_loss(x, y).backward()
    # The loss is symmetric, so the target's gradient is that of the swapped call.
    swapped = y.detach().clone().requires_grad_()
    byol_loss(swapped, x).backward()
    torch.testing.assert_close(y.grad, swapped.grad, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 8),
    size=st.integers(1, 16),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e3, 1e12]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
)
def test_loss_lies_between_0_and_4(seed, batch, size, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    x, y = (scale * torch.randn(2, batch, size, generator=generator)).to(dtype)
    assert -1e-6 <= byol_loss(x, y).item() <= 4 + 1e-5


def test_extremes_are_0_and_4_whatever_the_length():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert byol_loss(x, 3 * x).item() == pytest.approx(0, abs=1e-12)
    assert byol_loss(x, -0.1 * x).item() == pytest.approx(4, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 64, 32, generator=generator).to(dtype)
    loss = byol_loss(x, y)
    assert loss.dtype == torch.float32
    expected = 2 - 2 * torch.cosine_similarity(x.double(), y.double()).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_norm_of_large_float16_vectors_does_not_overflow():
    x = torch.full((2, 64), 30000.0, dtype=torch.float16)
    assert byol_loss(x, -x).item() == pytest.approx(4, abs=1e-5)


def test_autocast_does_not_lower_the_precision():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 64, 32, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = byol_loss(x, y)
    assert loss.dtype == torch.float32
    assert loss.item() == byol_loss(x, y).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", ["prediction", "target", "both"])
def test_zero_vectors_give_a_finite_loss_and_gradient(zero, dtype):
    x, y = torch.ones(2, 3, 4, dtype=dtype)
    if zero != "target":
        x[1] = 0
    if zero != "prediction":
        y[1] = 0
    x.requires_grad_()
    loss = byol_loss(x, y)
    loss.backward()
    # |0 - z/|z||^2 is 1 where one of the two is zero, 0 where both are.
    assert loss.item() == pytest.approx(0 if zero == "both" else 1 / 3, abs=1e-6)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("prediction", "target"), [((4, 3), (4, 2)), ((4, 3), (3, 3)), ((4,), (4,)), ((4, 3, 2),) * 2]
)
def test_other_shapes_are_refused_and_named(prediction, target):
    with pytest.raises(ValueError, match="two matrices of one shape") as error:
        byol_loss(torch.ones(prediction), torch.ones(target))
    assert str(prediction) in str(error.value)
    assert str(target) in str(error.value)
