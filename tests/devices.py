"""Devices that tests run on, and what must not happen there."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch


def needs_cuda(count: int = 1) -> list[pytest.MarkDecorator]:
    """Marks of a test that needs so many CUDA devices."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    what = "a CUDA device" if count == 1 else f"{count} CUDA devices"
    return [pytest.mark.cuda, pytest.mark.skipif(there < count, reason=f"needs {what}")]


def cuda_only(test: Callable[..., None]) -> Callable[..., None]:
    """A test that has nothing to run on elsewhere."""
    for mark in needs_cuda():
        test = mark(test)
    return test


HAS_MPS = torch.backends.mps.is_available()
CUDA = pytest.param("cuda", marks=needs_cuda())
CUDA_1 = pytest.param("cuda:1", marks=needs_cuda(2))
MPS = pytest.param("mps", marks=pytest.mark.skipif(not HAS_MPS, reason="needs an Apple GPU"))
needs_fsdp2 = pytest.mark.skipif(
    torch.__version__ < "2.6", reason="FSDP2 is public, and runs on a CPU, since PyTorch 2.6"
)
DEVICES = ["cpu", CUDA, MPS]


@contextmanager
def no_waits(device: str) -> Iterator[None]:
    """On CUDA, what makes the host wait for the device raises here; elsewhere nothing does."""

    def on_wait(mode: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is a prototype, and says so
            torch.cuda.set_sync_debug_mode(mode)

    if torch.device(device).type != "cuda":
        yield
        return
    on_wait("error")
    try:
        yield
    finally:
        on_wait("default")
