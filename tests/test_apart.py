"""Processes that train apart, or all on the same images, are told so; others are not."""

import itertools
import json
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from leaving import leave
from methods import PAPERS, make
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from byol_wrap.guard.apart import ApartWatch

SOON = {"AT": 4, "LOOK_EVERY": 2, "UNTIL": 16}


def train(run: nn.Module, rank: int) -> list[str]:
    """Twelve steps, each process on images of its own; what was warned of."""
    optimizer = torch.optim.SGD([p for p in run.parameters() if p.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            optimizer.zero_grad()
            run(torch.rand(8, 3, 32, 32, generator=generator)).backward()
            optimizer.step()
            dist.barrier()
    return [str(w.message) for w in caught]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    with mock.patch.multiple("byol_wrap.guard.apart", **SOON):
        for name in PAPERS:
            found[name] = train(make(name), rank)
            found[f"{name}, as one"] = train(DistributedDataParallel(make(name)), rank)
            found[f"{name}, same images"] = train(DistributedDataParallel(make(name)), 0)
        learner = make("BYOL")
        beside = DistributedDataParallel(learner.net)
        found["around the net"] = train(learner, rank)
        del beside
    torch.save(found, f"{folder}/{rank}")
    leave()


def test_processes_that_train_apart_are_told(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / str(rank))
        for kind, messages in found.items():
            shared = [m for m in messages if "8 of 8 in the batch of step 4 were in another" in m]
            told = [m for m in messages if "of 2 processes each trains weights of its own" in m]
            assert len(shared) == ("same images" in kind), (kind, messages)
            assert len(told) == ("as one" not in kind and not shared), (kind, messages)
            assert len(messages) == len(told) + len(shared), (kind, messages)
            assert all("wrap the learner" in message for message in told)


@pytest.mark.parametrize(("more", "told"), [(0, True), (3, False)])
def test_another_net_s_values_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, more: int, told: bool
) -> None:
    store, learner = dist.HashStore(), make("BYOL")
    for name, value in SOON.items():
        monkeypatch.setattr(f"byol_wrap.guard.apart.{name}", value)
    monkeypatch.setattr("byol_wrap.guard.apart._in_group", lambda: True)
    monkeypatch.setattr(ApartWatch, "_compared", itertools.count(7))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    watch = ApartWatch()

    def steps(count: int) -> list[Any]:
        found = []
        for _ in range(count):
            watch.saw(torch.rand(4, 3, 8, 8))
            found.append(watch.apart(learner))
        return found

    found = steps(6)
    assert not any(found), "the other process has not come there yet"
    own, images = json.loads(store.get("byol_wrap/7/0"))
    store.set("byol_wrap/7/1", json.dumps([[2.0] * (len(own) + more), images]))
    found += steps(12)
    assert sum(map(bool, found)) == told
