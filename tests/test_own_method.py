"""A method that the library does not have, written on its public names alone."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import conv_net
from torch import Tensor, nn

from byol_wrap import Learner

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_vicreg_learns_digits(capsys: pytest.CaptureFixture[str]) -> None:
    import own_method

    own_method.main(["--epochs", "1"])
    before, after = map(float, re.findall(r"([\d.]+) %", capsys.readouterr().out))
    assert after > before + 2


def test_the_loss_is_that_of_the_paper() -> None:
    import own_method

    torch.manual_seed(0)
    learner = own_method.VICReg(conv_net(6).double(), 32, width=7)
    views = torch.rand(2, 9, 3, 32, 32, dtype=torch.float64)
    z1, z2 = (learner.project(view) for view in views)
    expected = 25 * F.mse_loss(z1, z2)
    for z in (z1, z2):
        expected = expected + 25 * F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()
        covariance = torch.cov(z.T)
        expected = expected + covariance[~torch.eye(7, dtype=torch.bool)].square().sum() / 7
    # Both variance terms count half in the example, as in the authors' code.
    variance = sum(25 * F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean() for z in (z1, z2))
    torch.testing.assert_close(learner(*views), expected - variance / 2)


def test_it_is_short_and_needs_nothing_private() -> None:
    text = (EXAMPLES / "own_method.py").read_text()
    tree = ast.parse(text)
    (method,) = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    lines = ast.get_source_segment(text, method).splitlines()  # type: ignore[union-attr]
    assert len([line for line in lines if line.strip()]) <= 32
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not [n for n in names if n.startswith("_") and not n.startswith("__")]
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m for m in modules if m and m.startswith("byol_wrap")} == {"byol_wrap"}


def test_what_it_gets_from_the_learner() -> None:
    import own_method

    learner = own_method.VICReg(conv_net(6), 32, width=8)
    other = own_method.VICReg(conv_net(6), None, width=8)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other.load_state_dict(learner.state_dict())
    other(torch.rand(4, 3, 32, 32)).backward()
    optimizer.step()
    other.update_moving_average()
    assert other.health().keys() >= {"std_ratio", "rank", "alignment"}
    assert other.embed(torch.rand(3, 3, 32, 32)).shape == (3, 6)
    assert isinstance(other.online.projector[0], nn.Linear)
    with pytest.raises(TypeError, match=r"VICReg.*does not fall.*learner\(images\)"):
        next(other.halves(torch.rand(4, 3, 32, 32)))
    with pytest.raises(RuntimeError, match="does not fit"):
        other.load_state_dict(own_method.VICReg(conv_net(7), 32, width=8).state_dict())


class Own(Learner):
    """A method of one's own, whose loss is a function of the views' projections."""

    def __init__(
        self, of: Callable[[Tensor], Any], image_size: int | None = 32, **heads: nn.Module
    ) -> None:
        torch.manual_seed(0)
        super().__init__(conv_net(6), image_size, projector=nn.Linear(6, 4), **heads)
        self.head = nn.LazyLinear(3)
        self.of = of

    def loss(self, view1: Tensor, view2: Tensor) -> Any:
        return self.of(self.head(self.project(view1)) - self.project(view2)[:, :3])


WRONG: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "a number": (lambda d: d.square().mean().item(), TypeError, "got float: leave out .item()"),
    "a tuple": (lambda d: (d.square().mean(), d), TypeError, "got tuple: return it alone"),
    "nothing": (lambda d: None, TypeError, "got NoneType"),
    "one for each image": (lambda d: d.square().mean(1), ValueError, r"got \(4,\): take its mean"),
    "an integer": (lambda d: d.sum().long(), TypeError, "return floats, got torch.int64"),
    "no gradient": (lambda d: d.detach().square().mean(), RuntimeError, "without a gradient"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_loss_that_cannot_be_trained_with_is_refused_by_what_it_is(kind: str) -> None:
    of, error, message = WRONG[kind]
    learner = Own(of)
    with pytest.raises(error, match=message):
        learner(torch.rand(4, 3, 32, 32))
    Own(lambda d: d.square().mean().view(1))(torch.rand(4, 3, 32, 32)).backward()


@pytest.mark.parametrize("image_size", [32, None])
def test_a_method_with_another_lazy_layer_is_resumed(image_size: int | None) -> None:
    learner, other = (Own(lambda d: d.square().mean(), size) for size in (32, image_size))
    learner(torch.rand(4, 3, 32, 32)).backward()
    torch.optim.SGD(learner.parameters(), lr=0.1).step()
    other.load_state_dict(learner.state_dict())
    views = torch.rand(2, 4, 3, 32, 32)
    assert torch.equal(learner(*views), other(*views))
    assert other.head.weight.shape == (3, 4)
