"""A method that the library does not have, written on its public names alone."""

import ast
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nets import conv_net
from torch import nn

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
