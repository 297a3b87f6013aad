"""Where a target network starts: from the online network as it is when training begins."""

from collections.abc import Collection
from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from byol_wrap.guard.look import Look

ON_HOST = ("cpu",)


class Start:
    """Notices what is written into the online network between its copy and its training.

    Such as weights that are loaded into the user's net after it was wrapped, or drawn anew in the
    whole learner. The target then starts from them, as if it had been copied afterwards. One that
    alone was written to is left as it is.
    """

    def __init__(self, online: nn.Module, target: nn.Module, shared: Collection[str]) -> None:
        """``shared``: names of the target's parameters that are the online network's own."""
        self._both_written = False
        self.look(online, target, shared)

    def look(self, online: nn.Module, target: nn.Module, shared: Collection[str]) -> None:
        """Look at them anew: what holds their values is another."""
        self._shared = shared
        self._looks = self._look(online), self._look(target)

    def catch_up(self, online: nn.Module, target: nn.Module, from_both: bool) -> None:
        """Let the target be what the online network is now, if that was written to.

        Args:
            online: the network as it is now.
            target: its copy.
            from_both: also where both were. Not of a copy of a learner, which may be an average.
        """
        before, own_before = self._looks
        is_same = self._look(online).is_like(before)
        if is_same and not self._both_written:
            return
        if not is_same and not self._look(target).is_like(own_before):
            self._both_written = True
        if from_both or not self._both_written:
            _copy(online, target)
            self._both_written = False
            self._looks = self._look(online), self._look(target)

    def _look(self, network: nn.Module) -> Look:
        parameters = network.named_parameters()
        return Look((p for name, p in parameters if name not in self._shared), ON_HOST)


@torch.no_grad()
def _copy(online: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers by name; layers that were replaced may have none of the name."""
    named = dict(chain(online.named_parameters(), online.named_buffers()))
    for name, own in chain(target.named_parameters(), target.named_buffers()):
        theirs = named.get(name)
        if theirs is None or is_lazy(theirs) or is_lazy(own) or theirs.shape != own.shape:
            continue
        own.copy_(theirs)
