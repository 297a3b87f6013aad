"""What is set after wrapping works, or is refused; nothing is set in vain."""

import copy
import inspect
import pickle

import pytest
import torch
from methods import PAPERS, make
from nets import conv_net
from torch import Tensor, nn

from byol_wrap import Learner, MoCo

WORKS = {"moving_average_decay", "total_steps", "temperature", "symmetric", "key_parts"}
ARGUMENTS = [(name, a) for name in PAPERS for a in inspect.signature(type(make(name))).parameters]


@pytest.mark.parametrize(("name", "argument"), [(n, a) for n, a in ARGUMENTS if a not in WORKS])
def test_an_argument_that_is_read_once_cannot_be_set(name: str, argument: str) -> None:
    learner = make(name)
    for copied in (learner, copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        with pytest.raises(AttributeError, match=f"^{argument} is settled when the net is wrapped"):
            setattr(copied, argument, conv_net())


def test_the_rest_can_be_and_works() -> None:
    assert {a for _, a in ARGUMENTS} - WORKS == {
        a for name in PAPERS for a in type(make(name))._settled if a not in ("projector", "recipes")
    }
    view1, view2 = torch.rand(2, 8, 3, 32, 32)
    for name, argument, value in (
        ("SimCLR", "temperature", 0.1),
        ("MoCo", "temperature", 0.9),
        ("MoCo", "symmetric", True),
        ("MoCo", "key_parts", 4),
    ):
        torch.manual_seed(0)
        before = make(name)(view1, view2)
        learner = make(name)
        setattr(learner, argument, value)
        assert abs(learner(view1, view2) - before) > 1e-4, argument
    for name in ("BYOL", "MoCo"):
        learner = make(name)
        learner.moving_average_decay, learner.total_steps = 0.3, 4
        assert learner.tau == pytest.approx(0.3)
        learner.update_moving_average()
        assert 0.35 < learner.tau < 0.5


def test_a_method_of_one_s_own_has_what_it_likes() -> None:
    class Own(Learner):
        def __init__(self) -> None:
            super().__init__(conv_net(6), 32, projector=nn.Linear(6, 4))
            self.queue_size, self.projection_size, self.temperature = 5, 4, 0.1

        def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
            return (self.project(view1) - self.project(view2)).square().mean()

    assert Own().queue_size == 5
    with pytest.raises(AttributeError, match=r"net is settled.*Wrap the other net: Own"):
        Own().net = conv_net(6)
    with pytest.raises(AttributeError, match=r"new = MoCo\(learner.net, queue_size=\.\.\.\)"):
        MoCo(conv_net(6), 32, queue_size=8).queue_size = 9


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_never_trained_is_not_unfrozen_with_the_rest(name: str) -> None:
    def trained(learner: Learner) -> set[str]:
        return {n for n, parameter in learner.named_parameters() if parameter.requires_grad}

    learner, other = make(name), make(name)
    before = trained(learner)
    assert learner.requires_grad_(False) is learner
    assert not trained(learner)
    learner.requires_grad_(True)
    assert trained(learner) == before
    for parameter in other.parameters():  # as engines do it
        parameter.requires_grad = True
    other(torch.rand(4, 3, 32, 32))
    assert not any(n.startswith("target.") for n in trained(other))
