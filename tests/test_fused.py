"""The fused kernels give what the steps give: on a GPU, or else in Triton's interpreter."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fused_errors
import pytest
import torch
from devices import CUDA

from byol_wrap.views import applying

if find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)


@pytest.fixture(scope="module", params=["interpreter", CUDA])
def errors(request: pytest.FixtureRequest) -> dict[str, float]:
    if request.param == "cuda":
        return fused_errors.errors("cuda")
    command = [sys.executable, "-W", "ignore", fused_errors.__file__, "cpu"]
    path = os.pathsep.join([str(Path(applying.__file__).parents[2]), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", fused_errors.CASES)
def test_fused_views_equal_those_made_step_by_step(errors: dict[str, float], case: str) -> None:
    assert errors[case] < 2e-5


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_that_is_not_there() -> None:
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from byol_wrap.views import kernels

    tile, pixels = {"ROWS": 8, "COLUMNS": 64}, {"PIXELS": 512}
    sizes = "i32 i32 i32 i32"
    for kernel, types, constants in (
        (kernels.crop_kernel, f"*u8 *i64 *fp32 *fp32 *fp32 {sizes} fp32", tile),
        (kernels.crop_kernel, f"*fp32 *i64 *fp32 *fp32 *fp32 {sizes} fp32", tile),
        (kernels.colour_kernel, f"*fp32 *fp32 *fp32 {sizes}", {"TILES": 128, **pixels}),
        (kernels.blur_kernel, f"*fp32 *fp32 *fp32 *i64 {sizes} i32", {"ALONG_ROWS": 1, **pixels}),
        (kernels.blur_kernel, f"*fp32 *fp32 *fp32 *i64 {sizes} i32", {"ALONG_ROWS": 0, **pixels}),
    ):
        names = [name for name in kernel.arg_names if name not in constants]
        signature = dict(zip(names, types.split(), strict=True))
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made = compiled(source, target=GPUTarget("cuda", 90, 32))
        assert len(made.asm["cubin"]) > 0
        assert ".local" not in made.asm["ptx"], "registers are spilled"
        assert ".f64" not in made.asm["ptx"], "doubles are slow there"


def test_kernels_that_do_not_run_are_left_with_a_word(monkeypatch: Any) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("byol_wrap.views.fused.apply", fails)
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    with pytest.warns(UserWarning, match="RuntimeError: no such thing. Views are made step by"):
        assert applying.fused_on.__wrapped__(torch.device("cpu")) is None
    monkeypatch.setattr("byol_wrap.views.fused.apply", lambda _, images, size: images.new_zeros(1))
    with pytest.warns(UserWarning, match="ArithmeticError: they are off by"):
        assert applying.fused_on.__wrapped__(torch.device("cpu")) is None
    right = applying._one_by_one
    monkeypatch.setattr("byol_wrap.views.fused.apply", right)
    assert applying.fused_on.__wrapped__(torch.device("cpu")) is right
    assert torch.equal(torch.get_rng_state(), expected)
