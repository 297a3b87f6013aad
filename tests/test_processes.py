"""Rows and BatchNorm that two processes share, against one process with all rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from leaving import leave
from torch import Tensor, nn

from byol_wrap import SimCLR, nt_xent_loss
from byol_wrap.backbone.encoder import set_in_features
from byol_wrap.methods.heads import LazySharedBatchNorm1d
from byol_wrap.methods.processes import (
    SharedBatchNorm1d,
    gather,
    own_share,
    same_permutation,
)

SHARES = {"equal": (6, 6), "unequal": (9, 3), "one row": (11, 1)}
NORMS = {"float32": torch.float32, "float64": torch.float64}


def rows(dtype: torch.dtype = torch.float32, batch: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    return (3 + 2 * x).to(dtype)  # far from the running mean at the start


def weights(dtype: torch.dtype) -> Tensor:
    return torch.linspace(-1, 1, 60).view(12, 5).to(dtype)


def norm(kind: type[nn.BatchNorm1d], dtype: torch.dtype, affine: bool) -> nn.BatchNorm1d:
    made = kind(5, affine=affine).to(dtype)
    if affine:
        nn.init.uniform_(made.weight, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(made.bias, generator=torch.Generator().manual_seed(2))
    return made


def use(
    norm: nn.BatchNorm1d, share: slice, dtype: torch.dtype = torch.float32, autocast: bool = False
) -> dict[str, Any]:
    """Three batches in training, then one in eval mode."""
    found: dict[str, Any] = {"out": [], "grad": []}
    for k in range(3):
        x = rows(dtype, k)[share].requires_grad_()
        norm.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = norm(x.bfloat16() if autocast else x)
        (out.to(dtype) * weights(dtype)[share]).square().sum().backward()
        found["out"].append(out.detach())
        found["grad"].append(x.grad)
    found["parameters"] = [p.grad for p in norm.parameters()]
    found["buffers"] = [b.clone() for b in norm.buffers()]
    found["eval"] = norm.eval()(rows(dtype, 9)[share]).detach()
    return found


def shares(kind: str, rank: int) -> slice:
    first, second = SHARES[kind]
    return slice(0, first) if rank == 0 else slice(first, first + second)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # Without a named backend, as init_device_mesh makes a group: gloo and, where it is, nccl.
    dist.init_process_group(init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for kind in SHARES:
        share = shares(kind, rank)
        for name, dtype in NORMS.items():
            for affine in (True, False):
                shared = norm(SharedBatchNorm1d, dtype, affine)
                found[f"{kind}, {name}, {affine}"] = use(shared, share, dtype)
        shared = norm(SharedBatchNorm1d, torch.float32, affine=True)
        found[f"{kind}, autocast"] = use(shared, share, autocast=True)
    lazy = nn.Sequential(LazySharedBatchNorm1d())
    set_in_features(lazy, 5)
    found["lazy"] = lazy(rows()[shares("equal", rank)]).detach()
    found["kind"] = type(lazy[0]).__name__

    x = rows(torch.float64)[shares("equal", rank)].requires_grad_()
    everything = gather(x)
    (everything * weights(torch.float64)).square().sum().backward()
    found |= {"gathered": everything.detach(), "gathered grad": x.grad}
    found["own"] = own_share(everything).detach()
    torch.manual_seed(rank)
    found["order"] = same_permutation(50, torch.device("cpu"))

    torch.manual_seed(0)
    simclr = SimCLR(nn.Sequential(nn.Linear(5, 4)), projection_size=3)
    views = rows(batch=1)[shares("equal", rank)], rows(batch=2)[shares("equal", rank)]
    found["loss"] = simclr(*views).detach()
    found["projections"] = [simclr.project(view).detach() for view in views]
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("kind", SHARES)
def test_batchnorm_is_that_of_all_rows(
    both: list[dict[str, Any]], kind: str, name: str, affine: bool
) -> None:
    dtype = NORMS[name]
    whole = use(norm(nn.BatchNorm1d, dtype, affine), slice(0, 12), dtype)
    one, other = (found[f"{kind}, {name}, {affine}"] for found in both)
    for key in ("out", "grad"):
        for k in range(3):
            close(torch.cat([one[key][k], other[key][k]]), whole[key][k], dtype)
    for k, gradient in enumerate(whole["parameters"]):
        close(one["parameters"][k] + other["parameters"][k], gradient, dtype)
    for k, buffer in enumerate(whole["buffers"]):
        assert torch.equal(one["buffers"][k], other["buffers"][k])
        assert one["buffers"][k].dtype == buffer.dtype
        close(one["buffers"][k], buffer, dtype)
    close(torch.cat([one["eval"], other["eval"]]), whole["eval"], dtype)


@pytest.mark.parametrize("kind", SHARES)
def test_batchnorm_counts_in_float32_under_autocast(both: list[dict[str, Any]], kind: str) -> None:
    whole = use(norm(nn.BatchNorm1d, torch.float32, affine=True), slice(0, 12), autocast=True)
    one, other = (found[f"{kind}, autocast"] for found in both)
    for k in range(3):
        out = torch.cat([one["out"][k], other["out"][k]])
        assert out.dtype == whole["out"][k].dtype == torch.bfloat16
        torch.testing.assert_close(out, whole["out"][k], rtol=2e-2, atol=2e-2)
    for k, buffer in enumerate(whole["buffers"]):
        torch.testing.assert_close(one["buffers"][k], buffer, rtol=1e-3, atol=1e-3)


def test_lazy_batchnorm_becomes_the_shared_one(both: list[dict[str, Any]]) -> None:
    assert both[0]["kind"] == "SharedBatchNorm1d"
    expected = nn.BatchNorm1d(5)(rows()).detach()
    close(torch.cat([found["lazy"] for found in both]), expected, torch.float32)


def test_gathered_rows_are_in_the_processes_order_and_carry_all_gradients(
    both: list[dict[str, Any]],
) -> None:
    x = rows(torch.float64).requires_grad_()
    (2 * (x * weights(torch.float64)).square().sum()).backward()  # a loss of each process
    assert x.grad is not None
    for rank, found in enumerate(both):
        assert torch.equal(found["gathered"], x)
        assert torch.equal(found["own"], x[shares("equal", rank)])
        close(found["gathered grad"], x.grad[shares("equal", rank)], torch.float64)


def test_an_order_is_the_same_in_all_processes(both: list[dict[str, Any]]) -> None:
    assert torch.equal(both[0]["order"], both[1]["order"])
    assert torch.equal(both[0]["order"].sort().values, torch.arange(50))


def test_simclr_has_the_rows_of_all_processes_for_negatives(both: list[dict[str, Any]]) -> None:
    z1, z2 = (torch.cat([found["projections"][k] for found in both]) for k in range(2))
    expected = nt_xent_loss(z1, z2, 0.5)
    for found in both:
        torch.testing.assert_close(found["loss"], expected)


def test_alone_a_process_shares_nothing() -> None:
    x = rows()
    assert gather(x) is x
    assert own_share(x) is x
    for dtype in NORMS.values():
        alone = use(norm(SharedBatchNorm1d, dtype, True), slice(0, 12), dtype)
        plain = use(norm(nn.BatchNorm1d, dtype, True), slice(0, 12), dtype)
        assert all(map(torch.equal, alone["out"], plain["out"]))
        assert all(map(torch.equal, alone["buffers"], plain["buffers"]))
