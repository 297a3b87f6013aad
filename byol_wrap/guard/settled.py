"""What is settled when a net is wrapped, and cannot be set later."""

from collections.abc import Collection
from typing import Any, ClassVar

from torch import nn

INSTEAD = {
    "net": "Wrap the other net: {kind}(net).",
    "augment_fn": "Give two views of your own, learner(view1, view2), or wrap the net anew.",
}
ANEW = (
    "Wrap the net anew, new = {kind}(learner.net, {name}=...); where no shape changes, "
    "new.load_state_dict(learner.state_dict()) keeps what was trained."
)


class Settled(nn.Module):
    """A module of which some arguments cannot be set later, instead of being set in vain."""

    _settled: ClassVar[Collection[str]] = ()  # names of them

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute.

        Raises:
            AttributeError: it is an argument that is read once, when the net is wrapped.
        """
        if name in self._settled:
            instead = INSTEAD.get(name, ANEW).format(kind=type(self).__name__, name=name)
            raise AttributeError(
                f"{name} is settled when the net is wrapped; setting it later would change "
                f"nothing. {instead} A subclass keeps values of its own under other names."
            )
        super().__setattr__(name, value)
