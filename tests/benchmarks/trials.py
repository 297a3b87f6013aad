"""How the short recipes of SimSiam, SimCLR and MoCo were found: one number changed at a time.

    python tests/benchmarks/trials.py                 # all trials, one seed

The race of quality.py with 25,600 images from another seed than its tables begin with. The test
images take no part: the first 40,000 training images are trained on and voted with, the last 10,000
are classified. Takes the same options as quality.py, and resumes like it.

Needs ``pip install '.[bench]'``.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import entries
import quality

CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "SimSiam": {"": {}, "rate 0.06": {"rate": 0.06}, "batch 32": {"batch_size": 32}},
    "SimCLR": {
        "": {},
        "rate 0.12": {"rate": 0.12},
        "temperature 0.5": {"temperature": 0.5},
        "batch 64": {"batch_size": 64},
    },
    "MoCo": {
        "": {},
        "rate 0.06": {"rate": 0.06},
        "temperature 0.1": {"temperature": 0.1},
        "tau 0.9": {"moving_average_decay": 0.9},
    },
}
MAKE = {
    "SimSiam": entries.ByolWrapSimSiam,
    "SimCLR": entries.ByolWrapSimCLR,
    "MoCo": entries.ByolWrapMoCo,
}


def trials() -> dict[str, entries.Make | None]:
    """Each change of each method's short recipe, by name."""
    return {
        f"{method}, {change}" if change else method: partial(
            MAKE[method], recipe=replace(entries.SHORT[method], **settings)
        )
        for method, changes in CHANGES.items()
        for change, settings in changes.items()
    }


def without_test_images(data: quality.Data) -> quality.Data:
    """The last fifth of the training images in place of the test images."""
    images, labels = data.train_images, data.train_labels
    kept = len(images) * 4 // 5
    return quality.Data(images[:kept], labels[:kept], images[kept:], labels[kept:])


if __name__ == "__main__":
    quality.ENTRIES["cpu"] = trials()
    load = quality.load
    quality.load = lambda path: without_test_images(load(path))  # type: ignore[assignment]
    defaults = {
        "entries": list(quality.ENTRIES["cpu"]),
        "images_seen": 25_600,
        "seeds": [1],
        "output": Path("trials.jsonl"),
        "checkpoints": Path("trials-checkpoints"),
    }
    question = "Which short recipe suits each sibling of BYOL?"
    quality.main(sys.argv[1:], question, **defaults)
