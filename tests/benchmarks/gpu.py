"""All that a GPU has to show, in pieces of under ten minutes that go on where they stopped.

    python tests/benchmarks/gpu.py --data data       # again, until it says that all is done
    python tests/benchmarks/gpu.py --tiny --device cpu --data tiny.npz      # tries the command out

Runs the tests that need CUDA, views.py, step_time.py piece by piece, and the race of quality.py on
CIFAR-10, which goes on from its own checkpoint. What is done is kept in --folder and not run again;
what failed is run again. After each piece the tables are written into RESULTS.md, between the two
lines that mark their place there.

Needs ``pip install '.[bench,test]'``.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from timing import line, where
from views import SIZES

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- written by gpu.py -->", "<!-- end of what gpu.py writes -->"
JUDGING = 1.5  # minutes that the race may take after it was told to stop
SHORTEST = 0.5  # minutes in which a piece is begun


@dataclass(frozen=True)
class Piece:
    """One command, and what it is about.

    Attributes:
        name: of its files.
        title: of its tables.
        command: what Python runs, given the minutes that are left.
        again: whether it has ended well but has more to do.
    """

    name: str
    title: str
    command: Callable[[float], list[str]]
    again: Callable[[], bool] = lambda: False


def pieces(args: argparse.Namespace) -> list[Piece]:
    """All of them, in the order in which they are run."""
    on = ["--device", args.device]
    few = ["--rounds", "1"] if args.tiny else []

    def script(name: str, title: str, file: str, *options: str) -> Piece:
        command = [str(HERE / file), *on, *few, *options]
        output = ["--output", str(args.folder / f"{name}.json")]
        return Piece(name, title, lambda minutes: [*command, *output])

    chosen = ["-m", "cuda"] if args.device.startswith("cuda") else ["-k", "cpu"]
    suite = HERE.parent / "test_cuda.py" if args.tiny else HERE.parent
    tests = ["-m", "pytest", "-q", "-rf", "--no-header", *chosen, str(suite)]
    found = [Piece("tests", "Tests", lambda minutes: tests)]
    sides = [of if isinstance(of, int) else of[0] for of in SIZES[torch.device(args.device).type]]
    for side in sides[:1] if args.tiny else sides:
        title = f"Two views of images of {side} pixels"
        found.append(script(f"views-{side}", title, "views.py", "--sizes", str(side)))
    peers = {"byol_pytorch": ["byol-pytorch", "byol-pytorch, no SEM"]}
    peers["lightly"] = ["lightly", "lightly, no views"]
    entries = ["floor", "byol_wrap", "byol_wrap, halves"]
    entries += [x for name, own in peers.items() if not args.tiny and find_spec(name) for x in own]
    with_entries = ["--entries", *entries]
    for network in ("small",) if args.tiny else ("small", "resnet18", "resnet50", "vit_s"):
        one = ["--networks", network, *with_entries]
        precisions = ["--precisions", "fp32"] if args.tiny else []
        one_step = ["--only", "step", *one, *precisions]
        found.append(script(f"step-{network}", f"A step, {network}", "step_time.py", *one_step))
        if not args.tiny:
            memory = ["--only", "memory", *one]
            found.append(script(f"memory-{network}", "Memory", "step_time.py", *memory))
            if network in ("small", "resnet18"):
                other = ["--only", "siblings", *one]
                title = f"The other methods, {network}"
                found.append(script(f"siblings-{network}", title, "step_time.py", *other))
    if not args.tiny:
        for table in ("growth", "start"):
            found.append(script(table, table.capitalize(), "step_time.py", "--only", table))
    return [*found, *(race(args, seed) for seed in args.seeds)]


def race(args: argparse.Namespace, seed: int) -> Piece:
    """The race's run from one seed."""
    runs = args.folder / "quality.jsonl"
    command = [str(HERE / "quality.py"), "--data", str(args.data), "--seeds", str(seed)]
    command += ["--race", "cpu" if args.device == "cpu" else "gpu", "--entries", "byol_wrap"]
    command += ["--output", str(runs), "--checkpoints", str(args.folder / "checkpoints")]
    command += ["--images-seen", "512"] if args.tiny else []

    def unfinished() -> bool:
        lines = runs.read_text().splitlines() if runs.exists() else []
        return all(json.loads(run)["seed"] != seed for run in lines if run)

    def within(minutes: float) -> list[str]:
        return [*command, "--minutes", f"{max(minutes - JUDGING, 0.1):.2f}"]

    return Piece(f"race-{seed}", f"The race on CIFAR-10, seed {seed}", within, unfinished)


def run(piece: Piece, folder: Path, minutes: float, whole: bool) -> str:
    """Run a piece in a process of its own: "done", "more", "failed", "stopped" or "too long".

    Args:
        piece: what to run.
        folder: for its output.
        minutes: how long it may take.
        whole: whether that is as long as there is.
    """
    with (folder / f"{piece.name}.txt").open("w") as out:
        command = [sys.executable, *piece.command(minutes)]
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            ended = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            process.wait()
            return "too long" if whole else "stopped"
    if ended:
        return "failed"
    return "more" if piece.again() else "done"


def tables(text: str) -> str:
    """The Markdown tables of a piece's output, and of tests the lines that sum them up."""
    blocks: list[list[str]] = [[]]
    for row in text.splitlines():
        if row.startswith("|"):
            blocks[-1].append(row)
        elif blocks[-1]:
            blocks.append([])
    if blocks[0]:
        return "\n\n".join("\n".join(block) for block in blocks if block)
    return "\n".join(
        row for row in text.splitlines() if (" in " in row and "passed" in row) or "FAILED" in row
    )


def report(found: Sequence[Piece], states: dict[str, str], folder: Path, facts: str) -> str:
    """What RESULTS.md says of all pieces."""
    parts = [facts]
    for piece in found:
        state = states.get(piece.name, "not run yet")
        out = folder / f"{piece.name}.txt"
        said = tables(out.read_text()) if out.exists() else ""
        parts.append(f"**{piece.title}**" + ("" if state == "done" else f" ({state})"))
        parts += [said] if said else []
    return "\n\n".join(parts)


def write(results: Path, said: str) -> None:
    """Put it between the two lines that mark its place.

    Raises:
        SystemExit: the file does not have them.
    """
    text = results.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{results} should hold the lines {BEGIN!r} and {END!r}.")
    results.write_text(f"{before}{BEGIN}\n\n{said}\n\n{END}{after}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="What does a GPU show?", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda")
    add("--minutes", type=float, default=9.5, help="of all pieces of this call")
    add("--data", type=Path, default="data", help="CIFAR-10, as for quality.py")
    add("--seeds", nargs="*", type=int, default=[0], help="of the race; none leaves it out")
    add("--only", nargs="+", help="names of pieces")
    add("--folder", type=Path, default="gpu-results", help="what was done, and what came out")
    add("--results", type=Path, default=HERE / "RESULTS.md", help="where tables are written")
    add("--tiny", action="store_true", help="as little as there is, to try the command out")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is left, as long as there is time, and write the tables."""
    args, began = parse(arguments), time.monotonic()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here; --device cpu --tiny tries it out.")
    args.folder.mkdir(parents=True, exist_ok=True)
    kept = args.folder / "states.json"
    states: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    found = [piece for piece in pieces(args) if not args.only or piece.name in args.only]
    facts = line(where(torch.device(args.device), "kornia", "torchvision"))
    for piece in sorted(found, key=lambda piece: states.get(piece.name) == "too long"):
        while states.get(piece.name) != "done":
            left = args.minutes - (time.monotonic() - began) / 60
            if left < min(SHORTEST, args.minutes / 2):
                print(f"{args.minutes:g} minutes are over: run this again to go on.")
                return
            whole = left > 0.9 * args.minutes
            states[piece.name] = state = run(piece, args.folder, left, whole)
            print(f"{piece.name}: {state}", flush=True)
            kept.write_text(json.dumps(states, indent=1))
            write(args.results, report(found, states, args.folder, facts))
            if state != "more":
                break
    left_over = [piece.name for piece in found if states[piece.name] != "done"]
    if left_over:
        raise SystemExit(f"Not done: {', '.join(left_over)}. See {args.folder}, and run again.")
    print("All is done.")


if __name__ == "__main__":
    main()
