"""How the benchmarks of speed measure: interleaved, medians, ratios of the same round."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from statistics import median

import torch

Run = Callable[[], object]
now = time.perf_counter


def clock(device: torch.device) -> float:
    """Seconds, when all that was launched so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return now()


def seconds(run: Run, device: torch.device) -> float:
    """What one run takes."""
    began = clock(device)
    run()
    return clock(device) - began


def interleaved(
    entries: Mapping[str, Run], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each entry in each round; all entries run in each, after one round unmeasured."""
    for run in entries.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(rounds):
        for name, run in entries.items():
            times[name].append(seconds(run, device))
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """The median over rounds of how much longer one takes than the other in the same round."""
    return median(ours / theirs for ours, theirs in zip(times, base, strict=True))


def where(device: torch.device, *packages: str) -> dict[str, object]:
    """The machine, the versions, the threads and the day."""
    machine = f"{processor()}, {platform.machine()}"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    return {
        "machine": machine,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "byol_wrap", *packages) if installed(name)},
        "date": datetime.now(UTC).date().isoformat(),
    }


def installed(name: str) -> bool:
    """Whether there is such a package here."""
    return next(distributions(name=name), None) is not None


def processor() -> str:
    """What Linux calls the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def line(facts: Mapping[str, object]) -> str:
    """Where it was measured, in one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())
