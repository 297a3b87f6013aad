"""READING.md: counts by library and outcome, and each miss by its name."""

import platform
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import byol_wrap

PAGE = Path(__file__).with_name("READING.md")
OUTCOMES = ("right", "as good", "told", "silent", "error", "broken")
SECOND, THIRD = "second set", "third set"  # how their libraries' names begin
Row = dict[str, Any]


def outcome(row: Row) -> str:
    """What the table calls a row's outcome."""
    if row["outcome"] == "right":
        return "right"
    if row["fine"]:
        return "as good"
    return "told" if row["outcome"] in ("warned", "refused") else str(row["outcome"])


def page(rows: list[Row], before: list[Row] | None = None, first: list[Row] | None = None) -> str:
    """The page of a run's rows.

    With the counts of an earlier rule's, and of the later sets' first runs, where they are given.
    """
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    today = datetime.now(UTC).date().isoformat()
    head = f"byol_wrap {byol_wrap.__version__}, torch {torch.__version__}, timm {version('timm')}, "
    head += f"transformers {version('transformers')}; {platform.machine()}; {today}; "
    head += f"{sum(row['seconds'] for row in rows) / 60:.0f} minutes on one thread."
    lines = [
        "# Where nets are read",
        "",
        "`pip install -e '.[test,zoo]' && pytest -m slow tests/zoo/test_experts.py` writes this",
        "page, and so does `python tests/zoo/reading.py rows.jsonl`, run again with `--page`. For",
        "each net `experts/` says which value an expert would read, written down before a rule was",
        "run. The net is wrapped with its image size alone (clips, series and tables with nothing,",
        "and fed two views) and takes a step; what the learner reads in training and in eval mode",
        "is compared, number by number, with a hook on that layer of a copy.",
        "",
        "- right: equal in both modes.",
        "- as good: a warning or an error that names the layers, where it was said beforehand that",
        "  none of them stands out (dense outputs, losses, equal heads).",
        "- told: not right, and a warning or an error says so and names the layers.",
        "- silent: not right, and nothing is said; or several values are about equally good, and",
        "  nothing is said of that. error: one that does not say what to do.",
        "- alarm: right, and one value stands out, yet there is a warning. Also counted as right.",
        "",
        "Held back is a third of the first set, by a hash of their names: who wrote the rule was",
        "told the misses of the others alone, until it was used up. The second set was written",
        "down before the rule that warns of equal candidates was run on any of it. That first run",
        "has a row of its own; the rule was mended by what it showed, so the other rows of the set",
        "are no longer of nets that nobody had seen. The third set was written down before the",
        "rule that is judged on it was there, by someone who read no rule and ran none on it.",
        "Where a look into a library's code proved an expectation wrong, a commit of its own mends",
        "it and says why (`git log --grep 'Expectation mended'`).",
        "",
        head,
        "",
        table(rows, libraries, before or [], first or []),
        "",
        *misses(rows),
    ]
    return "\n".join(lines) + "\n"


def table(rows: list[Row], libraries: list[str], before: list[Row], first: list[Row]) -> str:
    """Counts; the third that was held back from those who wrote the rule, by itself."""
    shown = [name for name in OUTCOMES if name != "broken" or any(map(is_broken, rows))]
    lines = [f"| library | nets | {' | '.join(shown)} | alarm |", f"|{'---|' * (len(shown) + 3)}"]
    lines += [
        counts(name, rows, shown, lambda row, n=name: row["library"] == n) for name in libraries
    ]
    lines += [
        counts("**all**", rows, shown, lambda _: True),
        counts("**third set**", rows, shown, is_third),
        counts("**second set**", rows, shown, is_second),
        counts("**first set**", rows, shown, is_first),
        counts("of it held back", rows, shown, lambda row: row["held_back"] and is_first(row)),
    ]
    sets = {"third set": is_third, "second set": is_second}
    lines += [
        counts(f"{name}, the first run of the rule", first, shown, of)
        for name, of in sets.items()
        if any(map(of, first))
    ]
    if before:
        lines.append(counts("all, by the rule before", before, shown, lambda _: True))
    lines += [
        counts(f"{name}, by the rule before", before, shown, of)
        for name, of in sets.items()
        if any(map(of, before))
    ]
    return "\n".join(lines)


def is_second(row: Row) -> bool:
    """Whether the net was added when the third that was held back was used up."""
    return str(row["library"]).startswith(SECOND)


def is_third(row: Row) -> bool:
    """Whether the net is of the set that was held back from whoever wrote the newest rule."""
    return str(row["library"]).startswith(THIRD)


def is_first(row: Row) -> bool:
    """Whether the net is of neither."""
    return not (is_second(row) or is_third(row))


def is_broken(row: Row) -> bool:
    """Whether the catalogue is at fault."""
    return bool(row["outcome"] == "broken")


def counts(name: str, rows: list[Row], shown: list[str], of: Callable[[Row], bool]) -> str:
    """One line of the table."""
    found = Counter(outcome(row) for row in rows if of(row))
    alarms = sum(row.get("alarm", False) for row in rows if of(row))
    cells = [found.total(), *(found[each] for each in shown), alarms]
    return f"| {name} | {' | '.join(map(str, cells))} |"


def misses(rows: list[Row]) -> list[str]:
    """What was not read rightly, and what was read or said."""
    lines = []
    for kind in OUTCOMES[2:]:
        found = [row for row in rows if outcome(row) == kind]
        if found:
            lines += [f"## {kind}", "", "| library | net | read, or the error |", "|---|---|---|"]
            lines += [f"| {row['library']} | {row['net']} | {said(row)} |" for row in found]
            lines.append("")
    return lines[:-1]


def said(row: Row) -> str:
    """What was read, or the beginning of an error's words."""
    if "error" in row:
        words = " ".join(row["error"].split()).replace("|", "/")
        return words if len(words) < 160 else f"{words[:157]}..."
    layer, pool, size = row["read"].rsplit(" ", 2)
    where = layer[:-1] or "the net"
    wrong = f"; wrong in {' and '.join(row['wrong'])}" if len(row["wrong"]) == 1 else ""
    side = "input" if layer.endswith("<") else "output"
    return f"{side} of `{where}`, {pool}, {size} numbers{wrong}"
