"""A device that is not there: a whole step on "cuda:1" or "mps" without one, except for gradients.

Tensors on it have shapes and no values, those on the host are real. What mixes the two raises, as
it would there. ``waits`` tells what the host would wait for, ``unsafe`` which copies may read what
was freed, ``operators`` what was asked of the device.
"""

from types import TracebackType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READ = 0.5  # what every value is that is read

plays_a_gpu = pytest.mark.skipif(
    not torch.backends.cuda.is_built() or torch.cuda.is_available() or torch.__version__ < "2.6",
    reason="needs a CUDA build of PyTorch 2.6 (2.5 asks the driver for fake tensors), and no GPU",
)


class Elsewhere(TorchDispatchMode):
    """Lets PyTorch compute on a device that is not there, and takes notes."""

    def __init__(self, device: str = "cuda:1") -> None:
        super().__init__()
        self.device = torch.device(device)
        self.waits: list[str] = []
        self.unsafe: list[str] = []
        self.operators: list[str] = []
        self.capturing = False
        self.streams = mock.MagicMock()  # torch.cuda.current_stream
        driver = {
            "current_stream": self.streams,
            "get_rng_state": mock.MagicMock(),
            "set_rng_state": mock.MagicMock(),
            "is_bf16_supported": mock.MagicMock(),
            "is_current_stream_capturing": lambda: self.capturing,
            "is_initialized": lambda: self.capturing,
        }
        self.others = [
            FakeTensorMode(allow_non_fake_inputs=True),
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
            mock.patch.multiple(torch.cuda, **driver),
        ]

    def __enter__(self) -> "Elsewhere":
        for other in self.others:
            other.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for other in reversed(self.others):
            other.__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        there = any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs)))
        goal = torch.device(kwargs.get("device") or ("cpu" if not there else self.device))
        if not there and goal.type == "cpu":
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        self.operators.append(name)
        if name == "_local_scalar_dense":
            self.waits.append("a value is read")
            return READ if args[0].is_floating_point() else int(READ)
        if name == "nonzero" or (name == "index" and any(map(is_mask, args[1]))):
            self.waits.append(f"{name}: how many there are is read")
        if name in ("_to_copy", "copy_"):
            to_host = name == "_to_copy" and goal.type == "cpu"
            from_host = not isinstance(args[name == "copy_"], FakeTensor)
            at_once = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if to_host or from_host:
                if at_once:
                    self.waits.append(f"a copy {'from' if to_host else 'to'} the device")
                elif self.device.type != "cuda":
                    self.unsafe.append(name)
            if to_host:
                with unset_fake_temporarily():
                    return torch.full(args[0].shape, READ).to(kwargs.get("dtype", args[0].dtype))
            if name == "_to_copy" and from_host:
                return torch.empty_strided(
                    args[0].shape,
                    args[0].stride(),
                    dtype=kwargs.get("dtype") or args[0].dtype,
                    device=self.device,
                )
        return func(*args, **kwargs)


def is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def move(module: nn.Module, device: torch.device) -> None:
    """Give a module's parameters and buffers to the device, inside ``with Elsewhere()``."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(p.detach().to(device), p.requires_grad)
        for name, b in part._buffers.items():
            part._buffers[name] = None if b is None else b.to(device)
