"""All that is noticed of how weights are trained, and of what is done to them beside."""

from collections.abc import Iterator

from torch import Tensor, nn

from byol_wrap.guard.apart import ApartWatch
from byol_wrap.guard.gradients import GradientsWatch
from byol_wrap.guard.jump import JumpWatch
from byol_wrap.guard.little import LittleWatch
from byol_wrap.guard.rates import RatesWatch
from byol_wrap.guard.replaced import ReplacedWatch
from byol_wrap.guard.returns import ReturnsWatch
from byol_wrap.guard.stepping import SteppingWatch
from byol_wrap.guard.still import StillWatch
from byol_wrap.guard.trained import TrainedWatch
from byol_wrap.guard.weighed import WeighedWatch

Told = tuple[str, str]  # a subject, of which one warning is enough, and a message


class WeightsWatch:
    """Asks each watch on weights, gradients and optimizers in turn."""

    def __init__(self) -> None:
        self.apart = ApartWatch()
        self.gradients = GradientsWatch()
        self.jump = JumpWatch()
        self.little = LittleWatch()
        self.rates = RatesWatch()
        self.replaced = ReplacedWatch()
        self.returns = ReturnsWatch()
        self.stepping = SteppingWatch()
        self.still = StillWatch()
        self.trained = TrainedWatch()
        self.weighed = WeighedWatch()

    def follow(self, loss: Tensor, learner: nn.Module) -> None:
        """A training step has its loss."""
        self.trained.follow(loss)
        self.gradients.follow(loss, learner)
        self.still.follow(loss)
        self.weighed.follow(loss, learner)
        self.stepping.follow(loss, learner)

    def updated(self) -> None:
        """The target has followed the net."""
        self.jump.updated()

    def told(self, learner: nn.Module, updates: int, *, is_pretrained: bool) -> Iterator[Told]:
        """What to warn of when a training step begins; a message may be "".

        Args:
            learner: whose step it is.
            updates: how often the user has said that an optimizer stepped.
            is_pretrained: whether the net was trained before.
        """
        nothing = "", ""
        if (steps := self.stepping.steps) is not None:
            stepped = max(updates, steps.others)
            yield self.trained.left_out(learner, stepped, steps) or nothing
            yield self.rates.told(steps.counts) or nothing
            moves = self.little.told(learner, steps.counts, is_pretrained=is_pretrained)
            yield "net", moves
        yield "unscaled", self.weighed.told()
        yield self.stepping.told(self.weighed.usual) or nothing
        yield "gradients", self.gradients.never_cleared()
        yield "net", self.still.stands_still(learner, updates)
        yield "net", self.replaced.replaced(learner)
        yield self.apart.apart(learner) or nothing
        yield self.jump.jumped(learner) or nothing
        yield "written", self.returns.told(learner)
