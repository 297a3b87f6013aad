"""Run the notebooks of examples/ from top to bottom, and keep what they show.

    python tests/execute_notebooks.py                   # all; minutes each
    python tests/execute_notebooks.py quickstart.ipynb

A hash of the code is kept beside the outputs, so that a test can tell outputs that are older.
"""

import argparse
import hashlib
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

EXAMPLES = Path(__file__).parents[1] / "examples"
# Progress bars as text: a page on the web does not run widgets.
TEXT_BARS = """
import sys, warnings
sys.modules["ipywidgets"] = None
warnings.filterwarnings("ignore", message="IProgress not found")
"""


def code_of(notebook: NotebookNode) -> list[str]:
    """The sources of its code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: NotebookNode) -> str:
    """Changes with any code."""
    return hashlib.sha256("\n%%\n".join(code_of(notebook)).encode()).hexdigest()


def execute(
    notebook: NotebookNode, folder: Path, *, before: str = "", seconds: int = 3000, **changed: Any
) -> None:
    """Run all cells in a new kernel, in a folder, and leave their outputs in the notebook.

    Args:
        notebook: what is run; a cell that fails raises.
        folder: where the notebook writes its files.
        before: code that runs ahead of the first cell, and is not kept.
        seconds: that a cell may take.
        changed: other values for names that the cell tagged "parameters" sets.
    """
    cells = list(notebook.cells)
    place = next(
        k for k, cell in enumerate(cells, 1) if "parameters" in cell.metadata.get("tags", [])
    )
    values = "\n".join(f"{name} = {value!r}" for name, value in changed.items())
    injected = [new_code_cell(TEXT_BARS + before), new_code_cell(values)]
    notebook.cells = [injected[0], *cells[:place], injected[1], *cells[place:]]
    client = NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.cells = cells
    ran = (cell for cell in cells if cell.cell_type == "code")
    for number, cell in enumerate(ran, start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if output.get("name") == "stderr" and "%|" in output.text:
                output.name = "stdout"  # a progress bar, which pages show as an error otherwise


def processor_seconds() -> float:
    """Of all kernels that have ended, in all their threads: what an idle machine takes at most."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Execute the named notebooks and write them back."""
    parser = argparse.ArgumentParser(description="Run notebooks, and keep their outputs.")
    parser.add_argument("names", nargs="*", help="files of examples/; all by default")
    parser.add_argument("--before", default="", help="code to run ahead of the first cell")
    args = parser.parse_args()
    for path in [EXAMPLES / name for name in args.names] or sorted(EXAMPLES.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        start, before = time.perf_counter(), processor_seconds()
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder), before=args.before)
        spent = processor_seconds() - before
        notebook.metadata["byol_wrap"] = {
            "code": code_hash(notebook),
            "torch": torch.__version__,
            "processor_seconds": round(spent),
        }
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {spent:.0f} s of processor time")


if __name__ == "__main__":
    main()
