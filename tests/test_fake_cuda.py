"""What views would ask of a GPU, counted on a machine without one."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from fake_cuda import DEVICE, FakeCuda, to_cuda
from fake_cuda_step import plays_a_gpu
from torch import Tensor, nn

from byol_wrap import BYOL
from byol_wrap.guard.feeding import Feeding
from byol_wrap.views import RandomView, Views, applying, normalization

pytestmark = plays_a_gpu


def images(side: int = 32, batch: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(batch, 3, side, side, device=DEVICE, dtype=dtype)


def views(size: int = 32) -> Views:
    return Views(None, None, (size, size), normalization(None, None, 3))


# The harness sees what it is there for

FAULTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a blocking copy": (lambda x: x + torch.rand(32).to(DEVICE), "a blocking copy to cuda:0"),
    "a tensor of numbers": (lambda x: x + torch.tensor([0.5], device=DEVICE), "a blocking copy"),
    "a pageable copy": (
        lambda x: x + torch.rand(32).to(DEVICE, non_blocking=True),
        "a copy from memory that is not pinned",
    ),
    "a mask": (lambda x: x[x[:, 0, 0, 0] > 0], "index"),
    "a written mask": (lambda x: x.index_put_((x > 0,), x.flatten()), "index_put_"),
    "indices of a mask": (lambda x: (x > 0).nonzero(), "nonzero"),
    "a read": (lambda x: x.sum().item(), "_local_scalar_dense"),
    "a decision": (lambda x: 1 if x.sum() > 0 else 0, "_local_scalar_dense"),
    "a copy to the host": (lambda x: x.cpu(), "a blocking copy to cpu"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_waits_is_seen(fault: str) -> None:
    call, name = FAULTS[fault]
    with FakeCuda() as cuda:
        call(images())
        assert [wait.name for wait in cuda.waits if wait.name.startswith(name)]


def test_a_forgotten_to_raises() -> None:
    with FakeCuda(), pytest.raises(RuntimeError, match="cpu"):
        images() + torch.rand(32)


def test_what_does_not_wait_is_counted() -> None:
    with FakeCuda() as cuda:
        x = images()
        cuda.forget()
        held = cuda.peak
        y = x[:4].mul(2).add_(torch.ones(32).pin_memory().to(DEVICE, non_blocking=True))
        assert torch.ones(3).sum().item() == 3  # the host's own arithmetic is real
        assert cuda.waits == []
        assert [launch.name for launch in cuda.launches] == ["mul", "add_"]
        assert [copy.bytes for copy in cuda.copies] == [4 * 32]
        half, row = 4 * x[:4].numel(), 4 * 32
        assert [launch.bytes for launch in cuda.launches] == [2 * half, half + row]
        assert cuda.peak - held == half + row
        y @ y
        assert cuda.launches[-1].flops == 2 * 4 * 3 * 32**3
        del x, y


# What views cost there


@pytest.mark.parametrize(("side", "milliseconds"), [(256, 3), (500, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_two_views_of_256_images(side: int, milliseconds: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pipeline = views(224)
    with FakeCuda() as cuda:
        batch = images(side, 256, dtype)
        pipeline(batch[:2])  # sends what stays there
        cuda.forget()
        held = cuda.held
        made = pipeline(batch)
        assert [view.shape for view in made] == [(256, 3, 224, 224)] * 2
        assert cuda.waits == []
        assert len(cuda.copies) == 2
        assert len(cuda.launches) <= 12
        assert 1e3 * cuda.seconds < milliseconds
        assert (cuda.peak - held) / 1e9 < 0.5
        del batch, made


@pytest.mark.parametrize("kind", ["one channel", "no kernels", "a list", "a list, no kernels"])
def test_other_views_wait_for_nothing_either(kind: str) -> None:
    with FakeCuda() as cuda, pytest.MonkeyPatch.context() as monkeypatch:  # which is undone first
        channels = 1 if kind == "one channel" else 3
        pipeline = Views(None, None, (64, 64), normalization(None, None, channels))
        if "no kernels" in kind:
            monkeypatch.setattr(applying, "fused_on", lambda device: None)
        batch: Any = images(80, 8)[:, :channels]
        if "a list" in kind:
            batch = [torch.empty(3, 70 + i, 90, device=DEVICE) for i in range(8)]
        pipeline(batch)
        cuda.forget()
        pipeline(batch)
        assert cuda.waits == []
        assert len(cuda.copies) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_what_a_pipeline_made_of_images_is_looked_at_without_a_wait(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    streams = mock.MagicMock()
    streams.return_value.record_event.return_value.query.return_value = False
    monkeypatch.setattr(torch.cuda, "current_stream", streams)
    with FakeCuda() as cuda:
        feeding, batch = Feeding(), images(64, 8, dtype)
        for normalize in (None, normalization(None, None, 3)):
            view = torch.empty(8, 3, 64, 64, device=DEVICE)
            feeding.look(batch, view, normalize)  # sends the statistics
            cuda.forget()
            for given in (batch, [*batch]):
                feeding.look(given, view, normalize)
            assert not feeding.is_prepared  # which has not come
            reads = [read.line for read in cuda.waits]
            assert len(reads) == 2
            assert all("non_blocking=first.is_cuda" in line for line in reads)


def test_a_default_device_leaves_draws_on_the_host() -> None:
    with FakeCuda() as cuda:
        pipeline, batch = views(), images()
        pipeline(batch)
        cuda.forget()
        with torch.device(DEVICE):
            pipeline(batch)
        assert cuda.waits == []
        assert len(cuda.copies) == 2


def test_a_view_in_a_container_of_kornia_s_sends_its_draws_once() -> None:
    with FakeCuda() as cuda:
        view, batch = RandomView(applying.Recipe(), 32), images()
        chain = nn.Sequential(view).to(DEVICE)
        chain(batch)
        assert cuda.waits == []
        assert len(cuda.copies) == 1


def test_a_learner_s_views_after_the_batches_that_are_checked() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learner = BYOL(net, 32, projection_size=4, projection_hidden_size=8)
    with FakeCuda() as cuda:
        to_cuda(learner)
        for _ in range(10):
            learner.views(images())
        cuda.forget()
        learner.views(images())
        assert cuda.waits == []
        assert len(cuda.copies) == 2
