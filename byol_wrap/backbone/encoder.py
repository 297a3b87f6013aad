"""An encoder and its projector, and the probe that sizes them."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from byol_wrap.backbone.modes import eval_mode
from byol_wrap.backbone.representation import Representation
from byol_wrap.backbone.trainable import check_module, check_not_quantised


class Encoder(nn.Module):
    """A net, read at its representation, with a projector on top: f and g of the paper.

    Attributes:
        net: the backbone, whole; it runs as far as the representation.
        projector: from the representation (B, D) to the projection.
        representation: what is read; None until the net has been probed.
    """

    def __init__(self, net: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.projector = projector
        self.representation: Representation | None = None

    @property
    def is_unsized(self) -> bool:
        """Whether the projector waits for the representation's size."""
        return any(is_lazy(parameter) for parameter in self.projector.parameters())

    def size_projector(self, size: int) -> None:
        """Give a projector that waits for it the representation's size; its weights are drawn now.

        They are drawn on the host, so they are the same for any device. Random states stay.

        Raises:
            RuntimeError: the projector takes another size.
        """
        takes = in_features(self.projector)
        if self.is_unsized:
            with torch.random.fork_rng([]):
                set_in_features(self.projector.to("cpu"), size)
            self.projector.to(float_parameter(self.net).device)
        elif takes not in (None, size):
            raise RuntimeError(
                f"The representation has size {size}, but the heads (from a checkpoint?) expect "
                f"{takes}. Wrap the net with the arguments they had."
            )

    def sized_projector(self, size: int) -> nn.Module:
        """A copy of a projector that waits for the representation's size, with it, on the host."""
        projector = copy.deepcopy(self.projector).to("cpu")
        with torch.random.fork_rng([]):
            set_in_features(projector, size)
        return projector

    def represent(self, x: Tensor) -> Tensor:
        """The representation of a batch: (B, ...) in, (B, D) out, in the net's dtype.

        Raises:
            RuntimeError: the layer was not reached; in training, no gradient flows from it.
        """
        assert self.representation is not None, "the learner probes the net before it runs it"
        vector = self.representation.read(self.net, as_input(self.net, x))
        if self.training and torch.is_grad_enabled() and not vector.requires_grad:
            raise RuntimeError(
                f"No gradient flows from {self.representation} in training. Are all layers before "
                "it frozen? Unfreeze some: requires_grad_(True). Does the net detach it, or run it "
                "in a reentrant activation checkpoint? Use checkpoint(..., use_reentrant=False)."
            )
        return vector

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The projection (B, P) and the representation (B, D) of a batch."""
        representation = self.represent(x)
        return self.projector(as_input(self.projector, representation)), representation


MOVED_IN_PLACE = ("cpu", "cuda", "mps", "xpu")
"""Devices between which parameters keep their identity: those without a size move to no other."""


def moved(head: nn.Module, device: torch.device, dtype: torch.dtype, *, waits: bool) -> nn.Module:
    """A head on a device; on the host where it has no size yet, and could not be moved without.

    Raises:
        ValueError: such a head waits for a first batch, when optimizers would not know it again.
    """
    if device.type in MOVED_IN_PLACE or not any(map(is_lazy, head.parameters())):
        return head.to(device, dtype)
    if waits:
        raise ValueError(
            f"On {device.type} the heads cannot wait for a first batch to get their size: give "
            "image_size= to the learner."
        )
    return head.to(dtype)


def in_features(head: nn.Module) -> int | None:
    """The size of a head's input; None while it is not known."""
    first = next(head.parameters(), None)
    return None if first is None or is_lazy(first) else first.shape[-1]


def set_in_features(head: nn.Module, size: int) -> None:
    """Give a head that was built without one the size of its input; its weights are drawn now."""
    first = next(head.parameters(), None)
    if first is not None:
        with torch.no_grad(), eval_mode(head):  # in training it would move BatchNorm's statistics
            head(torch.zeros(1, size, device=first.device, dtype=first.dtype))


def as_input(module: nn.Module, x: Tensor) -> Tensor:
    """Floats in the dtype of a module's parameters: networks of two precisions share one input."""
    return x.to(float_parameter(module).dtype) if x.is_floating_point() else x


def float_parameter(module: nn.Module) -> Tensor:
    """The first parameter of a module that holds floats; tells its device and dtype.

    Raises:
        ValueError: there is none.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter
    raise ValueError(f"{type(module).__name__} has no parameter to train.")


def freeze(module: nn.Module) -> None:
    """Let no parameter ask for a gradient: also of scripted modules, and of sizes not known yet."""
    for parameter in module.parameters():
        parameter.requires_grad = False


def check_net(net: nn.Module, method: str = "BYOL") -> None:
    """Refuse what a learner cannot wrap.

    Args:
        net: what is to be wrapped.
        method: the learner's name, for the message.

    Raises:
        TypeError: not a module, or one that cannot be read or trained: a DDP or DataParallel
            wrapper, a compiled or quantised module, one with lazy parameters that have no size yet,
            one whose ``train`` is no mode, one that holds a learner or a network of one.
        ValueError: nothing in it can be trained.
    """
    check_module(net, method)
    if any(isinstance(module, Encoder) for module in net.modules()):
        raise TypeError(
            f"{type(net).__name__} is or holds a network of a learner, which ends in a projector: "
            f"wrap the backbone itself, {method}(learner.net)."
        )
    if isinstance(net, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise TypeError(
            f"net is wrapped in {type(net).__name__}, which must see the learner's whole forward: "
            f"wrap the plain net, {method}(net.module), and then the learner, "
            "DistributedDataParallel(learner)."
        )
    if any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in net.modules()):
        raise TypeError(
            "net is compiled already, which hides its layers: wrap the plain net and compile the "
            f"learner, torch.compile({method}(net)). torch.compile(net) keeps the plain net as "
            "net._orig_mod."
        )
    if any(is_lazy(tensor) for tensor in (*net.parameters(), *net.buffers())):
        raise TypeError(
            "net has lazy parameters that have no size yet: run one batch through it before "
            "wrapping it."
        )
    check_not_quantised(net)
    float_parameter(net)
