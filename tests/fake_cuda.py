"""CUDA without a GPU: what a step would ask of it, counted.

Inside ``FakeCuda() as cuda`` tensors on "cuda:0" have shapes, strides and devices, but no values;
those on the CPU are real. What mixes the two raises, as it would there. ``cuda`` notes each launch
of a kernel with the bytes that it has to move and its arithmetic, each copy from the host, each
place where the host would wait, and the most memory that was held at a time. Needs a CUDA build of
PyTorch. There is no backward pass: the autograd engine asks the driver.

A bound on the time is that of the slowest of memory, caches and arithmetic, kernel by kernel, as if
nothing else took any: the machine can only be slower. Tensors count whole, whatever part is read,
and each image as if its crop were all of it.
"""

import math
import traceback
import weakref
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from byol_wrap.views import Normalize

DEVICE = torch.device("cuda:0")
# Of an H100 SXM, by its data sheet: float32 on the plain units; its memory; and its first caches,
# of 128 bytes a clock in each of 132 multiprocessors at 1.755 GHz.
FLOPS, BYTES, CACHED = 67e12, 3.35e12, 29.6e12
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "lift_fresh"}
NOTHING |= {"_unsafe_view", "_reshape_alias"}
READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique2", "masked_select"}


class Launch(NamedTuple):
    """What a kernel moves, reads again from caches and computes; which line of ours asks for it."""

    name: str
    line: str
    bytes: int = 0
    flops: int = 0
    cached: int = 0

    @property
    def seconds(self) -> float:
        return max(self.bytes / BYTES, self.flops / FLOPS, self.cached / CACHED)


class FakeCuda(TorchDispatchMode):
    """See above. ``launches``, ``copies`` and ``waits`` are lists; ``peak`` is in bytes."""

    def __enter__(self) -> "FakeCuda":
        self.forget()
        self._pinned: set[int] = set()
        self._held: dict[int, int] = {}
        self.held = 0
        self._others: list[Any] = [
            FakeTensorMode(allow_non_fake_inputs=True),
            mock.patch.object(Tensor, "pin_memory", lambda tensor: self._pin(tensor)),
            mock.patch("byol_wrap.views.applying.fused_on", self._fused_on),
            mock.patch.object(Normalize, "_on", _kept(Normalize._on)),
            mock.patch("torch.cuda.is_current_stream_capturing", return_value=False),
        ]
        for other in self._others:
            other.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for other in reversed(self._others):
            other.__exit__(*error)

    def forget(self) -> None:
        """Begin to count anew."""
        self.launches: list[Launch] = []
        self.copies: list[Launch] = []
        self.waits: list[Launch] = []
        self.peak = getattr(self, "held", 0)

    @property
    def seconds(self) -> float:
        """The bound."""
        return sum(launch.seconds for launch in self.launches)

    def _pin(self, tensor: Tensor) -> Tensor:
        with unset_fake_temporarily():
            pinned = tensor.clone()
        self._pinned.add(id(pinned))
        weakref.finalize(pinned, self._pinned.discard, id(pinned))
        return pinned

    def _fused_on(self, device: torch.device) -> Any:
        from byol_wrap.views import fused

        def launch(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
            name = kernel.fn.__name__
            tensors = [part for part in arguments if isinstance(part, Tensor)]
            assert all(part.device == device for part in tensors), name
            moved = sum(_bytes(part) for part in tensors)
            moved += _bytes(tensors[0]) if name == "colour_kernel" else 0  # in place: read, written
            flops, cached = _of_taps(name, arguments)
            self.launches.append(Launch(name, _line(), moved, flops, cached))

        def apply(*arguments: Any) -> Tensor:
            with mock.patch.object(fused, "launch", launch):
                return fused.apply(*arguments)

        return apply

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        there = any(isinstance(part, FakeTensor) and part.is_cuda for part in tensors)
        if not there and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            with unset_fake_temporarily():  # the host's own arithmetic
                return func(*args, **kwargs)
        if name in READS or _is_masked(name, args):
            self._wait(name)
            if name != "index_put_":
                return self._read(name, args)
        result = func(*args, **kwargs)
        outs = [part for part in tree_leaves(result) if isinstance(part, Tensor)]
        for out in outs:
            self._hold(out)
        if name in ("_to_copy", "copy_") and self._crosses(name, args, kwargs, outs[0]):
            return outs[0] if outs[0].is_cuda else _some_values(outs[0])
        if name not in NOTHING and not func.is_view and func.namespace == "aten":
            moved = sum(_bytes(part) for part in {id(p): p for p in [*tensors, *outs]}.values())
            self.launches.append(Launch(name, _line(), moved, _flops(name, args)))
        return result

    def _crosses(self, name: str, args: Any, kwargs: Any, out: Tensor) -> bool:
        """Note a copy between host and device, and whether it is one."""
        source = args[name == "copy_"]
        if source.device == out.device:
            return False
        asynchronous = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if out.is_cuda:
            self.copies.append(Launch("copy", _line(), source.nbytes))
        if not asynchronous:
            self._wait(f"a blocking copy to {out.device}")
        elif id(source) not in self._pinned and out.is_cuda:
            self._wait("a copy from memory that is not pinned")
        elif not out.is_cuda:
            self._wait("a read")
        return True

    def _read(self, name: str, args: Any) -> Any:
        """What is read has some value."""
        if name == "nonzero":
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.long, device=DEVICE)
        if name == "index":
            mask = next(part for part in args[1] if part is not None)
            return args[0].new_empty(mask.numel(), *args[0].shape[mask.ndim :])
        return 0.5 if args[0].is_floating_point() else 1

    def _wait(self, what: str) -> None:
        self.waits.append(Launch(what, _line()))

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.is_cuda and storage._cdata not in self._held:
            self._held[storage._cdata] = storage.nbytes()
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, storage: int) -> None:
        self.held -= self._held.pop(storage, 0)


def _kept(on: Any) -> Any:
    """A device's statistics, kept as if fakes were plain tensors."""
    found: dict[Any, Tensor] = {}

    def kept(normalize: Normalize, device: torch.device) -> Tensor:
        if (normalize, device) not in found:
            found[normalize, device] = on(normalize, device)
        return found[normalize, device]

    return kept


def to_cuda(module: nn.Module) -> None:
    """Give a module parameters and buffers there, inside ``with FakeCuda()``."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = parameter.detach().to(DEVICE)
                part._parameters[name] = nn.Parameter(there, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(DEVICE)


def _bytes(tensor: Tensor) -> int:
    """Of a tensor; what is expanded is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _flops(name: str, args: Any) -> int:
    """Of products with matrices; what else is computed hides behind memory."""
    if name in ("mm", "bmm"):
        return 2 * args[0].numel() * args[1].shape[-1]
    return 0


def _of_taps(name: str, arguments: Any) -> tuple[int, int]:
    """Arithmetic and reads from caches of a kernel of ours that weighs several pixels for each."""
    if name == "crop_kernel":
        images, out = arguments[0], arguments[3]
        height, width = images.shape[-2:] if images.ndim == 4 else out.shape[-2:]
        sides = ((height, out.shape[2]), (width, out.shape[3]))
        taps, size = (
            math.prod(math.ceil(4 * max(1, i / o)) + 1 for i, o in sides),
            images.element_size(),
        )
    elif name == "blur_kernel":
        source, target, reach = arguments[0], arguments[1], arguments[-1]
        out, taps, size = min(source, target, key=len), 2 * reach + 1, 4
    else:
        return 0, 0
    return 2 * taps * out.numel(), taps * size * out.numel()


def _is_masked(name: str, args: Any) -> bool:
    if name not in ("index", "index_put_"):
        return False
    masks = [part for part in args[1] if isinstance(part, Tensor) and part.dtype == torch.bool]
    return bool(masks) and (name == "index" or args[2].ndim > 0)


def _some_values(there: Tensor) -> Tensor:
    with unset_fake_temporarily():
        return torch.full(there.shape, 0.5).to(there.dtype)


def _line() -> str:
    own = [frame for frame in traceback.extract_stack() if "byol_wrap/" in frame.filename]
    return f"{own[-1].name}: {own[-1].line}" if own else ""
