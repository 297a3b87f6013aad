"""Looks at the first steps that optimizers take: which way they go, and with what gradients."""

from collections import Counter, defaultdict
from statistics import mean

import torch
from torch import Tensor, nn

from byol_wrap.guard.gradients import smallest
from byol_wrap.guard.later import Later
from byol_wrap.guard.look import spread, weights
from byol_wrap.guard.optimizers import OptimizerSteps
from byol_wrap.guard.parts import parts

OF_A_PART = 4  # parameters that are looked at
VALUES = 2**12  # of each, the first ones
ENOUGH, MOST = 16, 64  # looks at each part, at the first steps; looks in all
ALONG = 0.1  # the mean cosine of a step and the gradient, over which steps climb
COUNTED = 130  # training steps in which optimizers' steps are counted, for those who ask
UNTIL = 400  # training steps, after which no look is waited for

NEGATED_MESSAGE = (
    "The loss is maximised: backward() is called on its negative, or on a term in which its weight "
    "is negative. Every method's loss is to be minimised, also where its values are negative."
)
CLIMBS_MESSAGE = (
    "The loss is maximised: the optimizer moves the {} along the gradient, not against it. Has one "
    "of its groups maximize=True, or a learning rate below 0? Every method's loss is to be "
    "minimised, also where its values are negative."
)
WASTED = 0.8  # of the losses that are counted
WASTED_MESSAGE = (
    "Of {} losses {} went backward for nothing: their gradients were cleared before any optimizer "
    "had stepped. Call optimizer.step() after each loss.backward(), in the same loop, and "
    "zero_grad() only after it."
)
ZERO_MESSAGE = (
    "The gradient of the {} was 0 or missing in {} steps of an optimizer that holds it, so that it "
    "learns nothing from the loss. Is zero_grad() called between loss.backward() and "
    "optimizer.step()? Is what the net gives detached, or computed under torch.no_grad()? Have all "
    "images one output by now (learner.health())?"
)


class FirstSteps(OptimizerSteps):
    """Looks at a few values of a few parameters before and after each of the first steps.

    Attributes:
        looks: each with the parts of the parameters that had a gradient, and for each of those the
            product of step and gradient and the size of both.
        seen: how many looks each part had.
    """

    def __init__(self, learner: nn.Module) -> None:
        super().__init__(learner)
        self.looks: list[tuple[list[str], Later]] = []
        self.seen: Counter[str] = Counter()
        self._chosen = {
            id(parameter): name
            for name, part in parts(learner).items()
            for parameter in spread(weights(part) or part, OF_A_PART)
        }
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []  # old values and gradient

    @property
    def are_enough(self) -> bool:
        """Whether there are enough looks at each part that an optimizer steps with, or in all."""
        return len(self.looks) >= MOST or min(self.seen.values(), default=0) >= ENOUGH

    @torch.no_grad()
    def before(self, own: list[Tensor]) -> None:
        """Keep what the values are, and their gradients."""
        self._kept = []
        chosen = [p for p in own if id(p) in self._chosen and p.requires_grad]
        captured = any(p.is_cuda for p in chosen) and torch.cuda.is_current_stream_capturing()
        if self.are_enough or not chosen or captured:
            return
        self.seen.update({self._chosen[id(parameter)] for parameter in chosen})
        for parameter in chosen:
            gradient = parameter.grad
            if gradient is not None and gradient.layout == torch.strided:
                self._kept.append((parameter, _some(parameter).clone(), _some(gradient).clone()))

    @torch.no_grad()
    def after(self) -> None:
        """Compare them with what they are now."""
        if not self._kept:
            return
        numbers = []
        for parameter, old, gradient in self._kept:
            step = _some(parameter) - old
            numbers += [step.dot(gradient), step.norm(), gradient.norm()]
        self.looks.append(([self._chosen[id(p)] for p, _, _ in self._kept], Later(numbers)))
        self._kept = []


class SteppingWatch:
    """Judges the first steps of the optimizers that hold a learner's parameters.

    Attributes:
        steps: what follows them, and what has.
        wasted: losses whose gradients were cleared before a step.
    """

    def __init__(self) -> None:
        self.steps: FirstSteps | None = None
        self.wasted = 0
        self._training_steps = 0
        self._is_done = False
        self._smallest: Tensor | None = None
        self._stepped = -1  # optimizer steps, when the last loss went backward

    def follow(self, loss: Tensor, learner: nn.Module) -> None:
        """A learner has made a loss, and all its heads."""
        if self.steps is None and loss.requires_grad:
            self.steps = FirstSteps(learner)
            self._smallest = smallest(learner)
        if self._training_steps < COUNTED and self._smallest is not None and loss.requires_grad:
            loss.register_hook(self._goes_backward)

    def _goes_backward(self, gradient: Tensor) -> None:
        assert self.steps is not None
        assert self._smallest is not None
        steps, self._stepped = self._stepped, self.steps.count
        self.wasted += steps == self._stepped and self._smallest.grad is None

    def told(self, weight: float | None) -> tuple[str, str] | None:
        """What to warn of, a subject and a message, when a training step begins.

        Args:
            weight: what the loss usually had in what gradients were taken of; None where that
                is not known yet. Where it is 0 the loss is not to be learnt from by now.
        """
        steps = self.steps
        if steps is None or self._training_steps > UNTIL:
            return None
        self._training_steps += 1
        told = self._judge(steps, weight)
        if self._training_steps == COUNTED and steps.count and self.wasted >= WASTED * COUNTED:
            told = "wasted", WASTED_MESSAGE.format(COUNTED, self.wasted)
        if self._training_steps > UNTIL or (self._is_done and self._training_steps > COUNTED):
            steps.remove()
            self._training_steps = UNTIL + 1
        return told

    def _judge(self, steps: FirstSteps, weight: float | None) -> tuple[str, str] | None:
        last = self._training_steps > UNTIL
        if self._is_done or (weight is None and not last):
            return None
        if not (steps.are_enough or last) or not all(later.has_come for _, later in steps.looks):
            return None
        self._is_done = True
        if weight == 0:
            return None
        is_negated = weight is not None and weight < 0
        cosines: dict[str, list[float]] = defaultdict(list)
        learns = set()
        for names, later in steps.looks:
            read = later.read()
            for name, product, step, gradient in zip(
                names, read[::3], read[1::3], read[2::3], strict=True
            ):
                if gradient != 0:  # it may not be finite, which is told elsewhere
                    learns.add(name)
                if step > 0 and gradient > 0:
                    cosines[name].append(product / (step * gradient))
        climbs = {name: mean(found) > ALONG for name, found in cosines.items()}
        if is_negated and not any(climbs.values()):
            return "negated", NEGATED_MESSAGE
        if up := [name for name, climbing in climbs.items() if climbing and not is_negated]:
            return "negated", CLIMBS_MESSAGE.format(" and the ".join(up))
        enough = [name for name, count in steps.seen.items() if count >= ENOUGH]
        if still := [name for name in enough if name not in learns]:
            return "zero", ZERO_MESSAGE.format(" and the ".join(still), ENOUGH)
        return None


def _some(tensor: Tensor) -> Tensor:
    """The first values, which are a view where that can be had."""
    return tensor.detach().reshape(-1)[:VALUES].float()
