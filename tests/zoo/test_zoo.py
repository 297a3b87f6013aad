"""Backbones that people use: a sample always, all of them with ``pytest -m slow tests/zoo``.

The slow tests write RESULTS.md.
"""

import gc
import platform
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from backbones import CLASSIFIERS, SAMPLE, ZOO, torchvision_families
from check import Backbone, TooLargeError, check
from torchvision import models

import byol_wrap

RESULTS = Path(__file__).with_name("RESULTS.md")
TARGETS = {"torchvision": 1.0, "timm": 0.97, "transformers": 1.0, "awkward": 1.0}
COLUMNS = ("net", "layer", "side", "pool", "size", "warns", "seconds")

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, of what is to come


def sample() -> list[Backbone]:
    nets = [net for make in ZOO.values() for net in make() if net.name in SAMPLE]
    assert {net.name for net in nets} == SAMPLE
    return nets


def attempt(backbone: Backbone, method: str = "BYOL") -> dict[str, Any]:
    """The net's row; where it is to be refused, or fails, with the error's words."""
    row: dict[str, Any] = {"net": backbone.name, "works": True}
    kind, words = backbone.refused or ((), "")
    start = time.perf_counter()
    try:
        row |= check(backbone, method)
        row["works"] = backbone.refused is None
    except kind as error:
        row |= {"works": words in str(error), "error": f"refused: {error}"}
    except TooLargeError as error:
        row |= {"works": False, "ours": True, "error": str(error)}
    except Exception as error:
        ours = "byol_wrap" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts
        row |= {"works": False, "ours": ours, "error": f"{type(error).__name__}: {error}"}
    row.setdefault("seconds", round(time.perf_counter() - start, 1))
    gc.collect()
    print(row, flush=True)
    return row


@pytest.mark.parametrize("backbone", sample(), ids=lambda backbone: backbone.name)
def test_sample(backbone: Backbone) -> None:
    row = attempt(backbone)
    assert row["works"], row


SIBLINGS = ["SimSiam", "SimCLR", "MoCo"]
QUICK = [net for net in sample() if isinstance(net.size, int) and net.size <= 64]


@pytest.mark.parametrize(
    ("backbone", "method"),
    [(backbone, SIBLINGS[i % 3]) for i, backbone in enumerate(QUICK[::2])],
    ids=lambda value: getattr(value, "name", value),
)
def test_siblings_take_turns_on_every_other_small_net(backbone: Backbone, method: str) -> None:
    row = attempt(backbone, method)
    assert row["works"], row


@pytest.mark.slow
@pytest.mark.parametrize("method", SIBLINGS)
@pytest.mark.parametrize("backbone", sample(), ids=lambda backbone: backbone.name)
def test_sample_of_each_sibling(backbone: Backbone, method: str) -> None:
    row = attempt(backbone, method)
    assert row["works"], row


def test_every_family_of_torchvision_is_here() -> None:
    covered = {models.get_model_builder(name).__module__ for name in CLASSIFIERS}
    assert covered == torchvision_families()


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, list[dict[str, Any]]]]:
    """The rows of each library; written when all are there."""
    found: dict[str, list[dict[str, Any]]] = {}
    yield found
    if found.keys() == ZOO.keys():
        RESULTS.write_text(page(found))


@pytest.mark.slow
@pytest.mark.parametrize("library", ZOO)
def test_library(library: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    rows[library] = [attempt(backbone) for backbone in ZOO[library]()]
    failed = [row for row in rows[library] if not row["works"]]
    assert len(failed) <= (1 - TARGETS[library]) * len(rows[library]), failed
    assert all(row.get("ours") for row in failed), failed
    classifiers = [r for r in rows[library] if (r.get("side"), r.get("pool")) == ("input", "none")]
    assert library == "awkward" or not [row for row in classifiers if row["warns"]]


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """RESULTS.md."""
    versions = ", ".join(
        f"{library.__name__} {library.__version__}"
        for library in (byol_wrap, torch, torchvision, timm, transformers)
    )
    today = datetime.now(UTC).date().isoformat()
    machine = f"{platform.machine()}, threads: {torch.get_num_threads()}"
    lines = [
        "# The zoo",
        "",
        "`pip install -e '.[test]' && pytest -m slow tests/zoo` writes this page. Each net is",
        "wrapped with nothing but its image size (and what its name says), takes one training step",
        "on four images (two of more than 512 pixels), embeds them, and is taken out again;",
        "`check.py` holds what is checked; a net that warns is one of whose reading a learner says",
        "that it may be wrong. Seconds are for all of that.",
        "",
        f"{versions}; {machine}; {today}.",
        "",
        "| library | nets | work, or are refused as they should be |",
        "|---|---|---|",
    ]
    for library, rows in found.items():
        works = sum(row["works"] for row in rows)
        lines.append(f"| {library} | {len(rows)} | {works} |")
    for library, rows in found.items():
        lines += [
            "",
            f"## {library}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
        ]
        lines += [line(row) for row in rows]
    return "\n".join(lines) + "\n"


def line(row: dict[str, Any]) -> str:
    """A net's line; an error takes the place of the layer."""
    if "error" in row:
        words = " ".join(row["error"].split()).replace("|", "/")
        return f"| {row['net']} | {words} | | | | | {row['seconds']} |"
    layer = f"`{row['layer']}`" if row["layer"] else "the net"
    cells = [row["net"], layer, *(row[key] for key in COLUMNS[2:])]
    return f"| {' | '.join(str(cell) for cell in cells)} |"
