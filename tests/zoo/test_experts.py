"""Where nets of many libraries are read: the judge on small nets, the catalogue if asked for."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import reading
import torch
from experts.answer import Answer, Expert
from experts.catalogue import LIBRARIES, catalogue
from nets import conv_net
from reading_page import PAGE, outcome, page
from torch import nn


def net() -> nn.Module:
    """A classifier whose last convolution gives 8 numbers, the head 5."""
    return nn.Sequential(conv_net(), nn.Linear(8, 5))


def expert(*answers: str, make: Any = net, refuse: bool = False, ask: bool = False) -> Expert:
    parsed = tuple(map(Answer.parse, answers))
    return Expert("a net", "ours", make, 32, parsed, refuse, ask=ask)


class Streams(nn.Module):
    """Two of them; their scores are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = net(), net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = (self.one(x) + self.two(x)) / 2
        return mean


def test_answers_are_read_as_they_are_written() -> None:
    answer = Answer.parse("body.0>mean@maps@-1")
    assert (answer.layer, answer.side, answer.pool) == ("body.0", ">", "mean")
    deep = torch.arange(12.0).reshape(1, 3, 2, 2)
    vector = answer.vector({"maps": (torch.zeros(1, 9, 4, 4), deep)})
    assert vector.tolist() == [[1.5, 5.5, 9.5]]
    assert Answer.parse("fc<").vector(torch.ones(2, 3, 1, 1)).shape == (2, 3)
    assert Answer.parse(">token").vector(deep[0]).tolist() == deep[0, :, 0].tolist()
    with pytest.raises(ValueError, match="no answer"):
        Answer.parse("fc")


@pytest.mark.parametrize(
    ("answers", "hidden_layer", "expected"),
    [
        (("1<",), None, "right"),
        (("0>", "1<"), "0", "right"),
        (("0.0>mean",), None, "silent"),
        (("1<",), "1", "silent"),
        (("nowhere>",), None, "broken"),
    ],
)
def test_the_judge_compares_numbers(
    answers: tuple[str, ...], hidden_layer: str | None, expected: str
) -> None:
    wrap = partial(reading.WRAP, hidden_layer=hidden_layer)
    row = reading.attempt(expert(*answers), wrap)
    assert row["outcome"] == expected, row
    assert row["fine"] == (expected == "right")


def test_the_judge_looks_at_training_mode_too() -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(conv_net(), nn.Dropout(0.5), nn.Linear(8, 5))

    assert reading.attempt(expert("2<", make=dropping))["outcome"] == "right"
    row = reading.attempt(expert("0>", make=dropping))
    assert (row["outcome"], row["wrong"]) == ("silent", ["training"])


class TwoTokens(nn.Module):
    """Two tokens that begin as zeros; the first is the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(2, 8))
        self.body, self.norm, self.fc = conv_net(), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.norm(self.body(x)[:, None] + self.tokens)[:, 0])
        return scores


def test_tokens_that_begin_alike_are_told_apart() -> None:
    assert reading.attempt(expert("norm>token", make=TwoTokens))["outcome"] == "right"
    assert reading.attempt(expert("norm>last", make=TwoTokens))["outcome"] == "silent"


def test_errors_are_judged_by_what_they_say() -> None:
    unclear = reading.attempt(expert("1<", make=partial(conv_net, width=-1)))
    assert unclear["outcome"] == "error"
    unfit = reading.attempt(expert("1<", make=partial(nn.Linear, 7, 5)))
    assert unfit["outcome"] == "refused"
    assert "channels=" in unfit["error"]
    named = partial(reading.WRAP, hidden_layer="nowhere")
    assert reading.attempt(expert("1<"), named)["by"] == "byol_wrap"
    allowed = reading.attempt(expert(make=nn.Flatten, refuse=True), reading.WRAP)
    assert allowed["fine"]
    assert outcome(allowed) == "as good"


def test_where_an_expert_would_ask_a_warning_is_due() -> None:
    asked = reading.attempt(expert("one.1<", make=Streams, ask=True, refuse=True))
    assert (asked["outcome"], asked["fine"], asked["alarm"]) == ("warned", True, False)
    row = reading.attempt(expert("one.1<", make=Streams))
    assert (row["outcome"], row["alarm"]) == ("right", True)
    row = reading.attempt(expert("1<", ask=True, refuse=True))
    assert (row["outcome"], row["fine"]) == ("silent", False)


def test_the_page_counts_each_set_by_itself() -> None:
    names = ["timm", "second set, by hand", "second set, libraries", "third set, by hand"]
    rows = [
        {"library": name, "net": "a", "outcome": "right", "fine": True, "held_back": True,
         "seconds": 1.0}
        for name in names
    ]  # fmt: skip
    found = page(rows, before=rows[:1], first=rows[3:]).splitlines()
    cells = [line.strip("|").split("|") for line in found if line.startswith("|")]
    nets = {row[0].strip(" *"): row[1].strip() for row in cells}
    counted = ("all", "first set", "of it held back", "second set", "third set")
    assert [nets[name] for name in counted] == ["4", "1", "1", "2", "1"]
    assert nets["third set, the first run of the rule"] == "1"
    assert "second set, the first run of the rule" not in nets
    assert not {"second set, by the rule before", "third set, by the rule before"} & nets.keys()


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, list[reading.Row]]]:
    """The rows of each part; written when all are there."""
    found: dict[str, list[reading.Row]] = {}
    yield found
    if found.keys() == LIBRARIES.keys():
        PAGE.write_text(page([row for part in found.values() for row in part]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the libraries' own, of what is to come
@pytest.mark.parametrize("part", LIBRARIES)
def test_part(part: str, rows: dict[str, list[reading.Row]]) -> None:
    rows[part] = [reading.attempt(each) for each in catalogue(part)]
    for row in rows[part]:
        print(json.dumps(row), flush=True)
    faults = [row for row in rows[part] if outcome(row) in ("silent", "error", "broken")]
    assert not faults
    fine = sum(row["fine"] for row in rows[part])
    assert fine >= 0.9 * len(rows[part])
