"""The notebooks of examples/: each runs in short form; what is committed is what its code shows."""

import ast
import copy
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from execute_notebooks import EXAMPLES, code_hash, code_of, execute
from PIL import Image

SHORT: dict[str, dict[str, Any]] = {
    "dive_into_byol.ipynb": {"EPOCHS": 1, "BATCH_SIZE": 256},
    "finetune.ipynb": {"STEPS": 2, "SIZE": 32, "BATCH_SIZE": 8, "FOLDER": "photos"},
    "quickstart.ipynb": {"EPOCHS": 1, "BATCH_SIZE": 256},
}
# Warnings are errors, but for those of the kernel's own machinery.
STRICT = """
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel|jupyter_client|tornado|traitlets|zmq")
warnings.filterwarnings("ignore", message="IProgress not found")
import torch
torch.set_num_threads(1)
"""

notebooks = pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda p: p.name)


def made_photographs(folder: Path) -> None:
    """Three classes of 45, reddish, greenish and bluish."""
    draws = np.random.default_rng(0)
    for number in range(135):
        pixels = draws.integers(0, 128, (40, 40 + number % 3, 3), np.uint8)
        pixels[..., number % 3] += 120
        (folder / str(number % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / str(number % 3) / f"{number}.png")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.filterwarnings("ignore")  # nbclient's and zmq's own; the kernel has its own filters
@notebooks
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    notebook = read(path)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    made_photographs(tmp_path / "photos")
    execute(notebook, tmp_path, before=STRICT, seconds=300, **SHORT[path.name])
    shown = outputs(notebook)
    assert not [
        output.name
        for output in shown
        if output.get("name") == "stderr" and "%|" not in output.text
    ]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 3


@notebooks
def test_outputs_are_of_this_code(path: Path) -> None:
    notebook = read(path)
    assert notebook.metadata["byol_wrap"]["code"] == code_hash(notebook), (
        f"The code is newer than the outputs: python tests/execute_notebooks.py {path.name}"
    )
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < 1_500_000
    assert notebook.metadata["byol_wrap"]["processor_seconds"] < 600  # five minutes of two cores


def test_a_change_of_code_is_told() -> None:
    notebook = read(EXAMPLES / "quickstart.ipynb")
    changed = copy.deepcopy(notebook)
    changed.cells[0].source += "More prose."
    assert code_hash(changed) == code_hash(notebook)
    changed.cells[-2].source += "\n"
    assert code_hash(changed) != code_hash(notebook)


@notebooks
def test_stands_alone(path: Path) -> None:
    """The first cell installs what is missing, and nothing beside the notebook is imported."""
    install, *code = code_of(read(path))
    assert 'find_spec("byol_wrap") is None' in install
    assert "%pip install" in install
    for source in code:
        tree = ast.parse(source)
        found = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {
            (node.module or "").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        }
        assert not found & {script.stem for script in EXAMPLES.glob("*.py")}
