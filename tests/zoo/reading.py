"""Is each net of the catalogue read where an expert would read it? The numbers are compared.

python tests/zoo/reading.py rows.jsonl              # one line of JSON a net; goes on where it was
python tests/zoo/reading.py rows.jsonl --page       # writes READING.md of them
...                                    --before other.jsonl     # beside another run's counts
...                                    --first early.jsonl      # and the later sets' first runs
"""

import argparse
import copy
import gc
import json
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from check import pictures
from experts import LIBRARIES, Expert, catalogue, is_held_back
from experts.answer import values
from torch import Tensor, nn

from byol_wrap import Learner, SimSiam

LONGEST = 180  # seconds a net
WRAP = partial(SimSiam, projection_size=16, prediction_hidden_size=8)
Row = dict[str, Any]
NOT_ASKED: Row = {"outcome": "silent", "wrong": ["no word that others are as good"]}


@dataclass
class Reading:
    """What a learner gave in a mode, and what its net was fed for it."""

    vectors: Tensor
    fed: Tensor
    state: dict[str, Any] = field(repr=False)
    training: bool


def attempt(expert: Expert, wrap: Callable[..., Learner] = WRAP) -> Row:
    """The net's row.

    Its outcome: "right"; "warned" and "refused", not right, but the user is told, with the names of
    layers; "silent", not right without a word; "error", one that does not tell what to do;
    "broken", where the catalogue is at fault. The row is ``fine`` where it is right, or where it
    was said beforehand that a warning or an error is as good, and there is one. Where an expert
    would ask, a warning is due: without one it is silent, whatever is read. An ``alarm`` is a
    warning where it is right and a value stands out.
    """
    began = time.perf_counter()
    row: Row = {"library": expert.library, "net": expert.name}
    row["held_back"] = is_held_back(expert.name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with time_limit():
                row |= outcome(expert, wrap)
        except Exception as error:
            row |= failure(error)
    said = [str(w.message) for w in caught if "hidden_layer" in str(w.message)]
    row["warned"] = said[:1]
    if row["outcome"] == "silent" and said:
        row["outcome"] = "warned"
    if row["outcome"] == "right" and expert.ask:
        row |= {"outcome": "warned", "wrong": []} if said else NOT_ASKED
    row["alarm"] = row["outcome"] == "right" and bool(said) and not expert.refuse
    row["fine"] = row["outcome"] == "right" or (
        expert.refuse
        and (
            row["outcome"] in ("warned", "refused")
            or (not expert.answers and row.get("by") == "byol_wrap")
        )
    )
    row["seconds"] = round(time.perf_counter() - began, 1)
    gc.collect()
    return row


def outcome(expert: Expert, wrap: Callable[..., Learner]) -> Row:
    """Wrap, take a step, read in both modes, and compare with the answers."""
    torch.manual_seed(0)
    net = stirred(expert.make())
    warnings.simplefilter("always")  # some libraries silence all warnings when they are imported
    truth = twin(net, expert)
    image = isinstance(expert.shape, int)
    learner = wrap(net, expert.shape) if image else wrap(net)
    one, other = inputs(expert)
    learner(one).backward() if image else learner(one, other).backward()
    found = learner.representation
    assert found is not None
    pool = found.pool if isinstance(found.pool, str) else "own"
    read = f"{found.layer}{'<' if found.side == 'input' else '>'} {pool} {found.size}"
    modes = [reading(learner, one, training) for training in (False, True)]
    right = [matches(truth, expert, mode) for mode in modes]
    names = ["evaluation", "training"]
    wrong = [name for name, same in zip(names, right, strict=True) if not same]
    if not wrong and not right[0] & right[1]:
        wrong = ["one of the two modes"]
    return {"outcome": "silent" if wrong else "right", "read": read, "wrong": wrong}


def inputs(expert: Expert) -> tuple[Tensor, Tensor]:
    """Two images, or two items, and a second view of them."""
    torch.manual_seed(1)
    if isinstance(expert.shape, int):
        images = pictures(expert.channels, expert.shape, 2)
        return images, images
    items = torch.randn(2, *expert.shape)
    return items, items + 0.1 * torch.randn(2, *expert.shape)


def twin(net: nn.Module, expert: Expert) -> nn.Module:
    """The same net again, which no learner touches."""
    try:
        return copy.deepcopy(net)
    except Exception:  # weights that are computed from others cannot be copied
        torch.manual_seed(0)
        return stirred(expert.make())


@torch.no_grad()
def stirred(net: nn.Module) -> nn.Module:
    """The net with noise on parameters of one value.

    Tokens that all begin as zeros would be equal, and so would whatever is read of them.
    """
    generator = torch.Generator().manual_seed(3)
    for weight in net.parameters() if isinstance(net, nn.Module) else ():
        if weight.is_floating_point() and weight.numel() > 1 and weight.min() == weight.max():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return net


class BrokenError(Exception):
    """An answer of the catalogue is not there."""


def reading(learner: Learner, x: Tensor, training: bool) -> Reading:
    """The representation that the learner gives of ``x`` in a mode, by its public functions."""
    fed: list[Any] = []

    def listen(_: nn.Module, args: tuple[Any, ...]) -> None:
        fed.append((args[0].detach().clone(), state(learner.net)))
        seed()

    learner.train(training)
    handle = learner.net.register_forward_pre_hook(listen)
    try:
        if training:
            got = learner(x, return_embedding=True, return_projection=False)
        else:
            got = learner.embed(x, prepared=True)
    finally:
        handle.remove()
    assert isinstance(got, Tensor)
    given, before = fed[-1]
    return Reading(got.detach().float(), given, before, training)


def seed() -> None:
    """Before each forward that is compared: dropout then draws the same."""
    torch.manual_seed(2)


def state(net: nn.Module) -> dict[str, Any]:
    """A copy of what a net holds."""
    return {key: value.clone() for key, value in net.state_dict().items() if torch.is_tensor(value)}


def matches(truth: nn.Module, expert: Expert, mode: Reading) -> set[int]:
    """Which of the answers the vectors are equal to.

    Raises:
        BrokenError: in eval mode an answer gives no vectors.
    """
    nn.Module.load_state_dict(truth, mode.state, strict=False)  # some nets narrow their own
    truth.train(mode.training)
    if not expert.answers:
        return set()
    expected = values(truth, expert.answers, mode.fed, seed)
    for answer, vectors in zip(expert.answers, expected, strict=True):
        if not (mode.training or isinstance(vectors, Tensor)):
            raise BrokenError(f"{answer}: {vectors}")
    return {
        index
        for index, vectors in enumerate(expected)
        if isinstance(vectors, Tensor) and equal(mode.vectors, vectors.float())
    }


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether vectors are the same but for rounding."""
    if one.shape != other.shape:
        return False
    scale = max(float(other.abs().max()), 1e-6)
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * scale)


def failure(error: Exception) -> Row:
    """The row of an error: does it tell what to do?"""
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, BrokenError):
        return {"outcome": "broken", "error": words}
    frames = traceback.extract_tb(error.__traceback__)
    by = "byol_wrap" if "byol_wrap" in Path(frames[-1].filename).parts else "others"
    told = by == "byol_wrap" and any(w in words for w in ("hidden_layer", "channels=", "wrap it"))
    return {"outcome": "refused" if told else "error", "error": words[:1000], "by": by}


@contextmanager
def time_limit(seconds: int = LONGEST) -> Iterator[None]:
    """Stops what takes longer; of the main thread alone."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def rows_of(path: Path) -> list[Row]:
    """What has been measured already."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: Row) -> tuple[str, str]:
    """What a net is known by."""
    return row["library"], row["net"]


def measure(part: str, path: Path) -> None:
    """Append the rows that are not there yet, of one part of the catalogue."""
    done = {key(row) for row in rows_of(path)}
    for expert in catalogue(part):
        if (expert.library, expert.name) not in done:
            row = attempt(expert)
            print(
                row["outcome"], *key(row), row.get("read", row.get("error", ""))[:200], flush=True
            )
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def main() -> None:
    """Each part in a process of its own."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("rows", type=Path)
    arguments.add_argument("--part", choices=LIBRARIES)
    arguments.add_argument("--page", action="store_true")
    arguments.add_argument("--before", type=Path, default=Path("none"))
    arguments.add_argument("--first", type=Path, default=Path("none"))
    options = arguments.parse_args()
    if options.page:
        from reading_page import PAGE, page

        runs = (options.rows, options.before, options.first)
        PAGE.write_text(page(*map(rows_of, runs)))
    elif options.part:
        torch.set_num_threads(1)
        measure(options.part, options.rows)
    else:
        for part in LIBRARIES:
            command = [sys.executable, __file__, str(options.rows), "--part", part]
            subprocess.run(command, check=False)


if __name__ == "__main__":
    main()
