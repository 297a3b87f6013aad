"""What gpu.py runs, what it keeps, and what it writes; its pieces are played by small commands."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
TABLE = "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    import gpu

    (tmp_path / "RESULTS.md").write_text(f"before\n\n{gpu.BEGIN}\n\nold\n\n{gpu.END}\n\nafter\n")
    return gpu


@pytest.fixture
def play(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run pieces that are lines of Python; gives what stands in RESULTS.md then."""

    def run(pieces: dict[str, Any], *arguments: str) -> str:
        made = [
            gpu.Piece(name, name.upper(), lambda minutes, code=code: ["-S", "-c", code], *again)
            for name, (code, *again) in pieces.items()
        ]
        monkeypatch.setattr(gpu, "pieces", lambda args: made)
        gpu.main(["--device", "cpu", "--results", "RESULTS.md", *arguments])
        return Path("RESULTS.md").read_text()

    return run


def test_what_is_done_is_written_and_not_run_again(play: Callable[..., str]) -> None:
    count = "open('runs', 'a').write('x'); print('noise'); "
    pieces = {
        "one": [f"{count}print({TABLE!r})"],
        "two": [f"{count}print('FAILED none\\n3 passed in 2s')"],
    }
    for _ in range(2):
        text = play(pieces)
        assert Path("runs").read_text() == "xx"
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert f"**ONE**\n\n{TABLE}\n\n**TWO**\n\nFAILED none\n3 passed in 2s" in text
    assert "old" not in text
    assert "noise" not in text
    assert "torch 2" in text


def test_a_piece_that_has_more_to_do_goes_on(play: Callable[..., str]) -> None:
    play({"race": ["open('runs', 'a').write('x')", lambda: len(Path("runs").read_text()) < 3]})
    assert Path("runs").read_text() == "xxx"


def test_what_fails_does_not_hold_up_the_rest_and_is_run_again(play: Callable[..., str]) -> None:
    pieces = {"bad": ["open('runs', 'a').write('x'); 1 / 0"], "good": ["print('| a |')"]}
    for k in (1, 2):
        with pytest.raises(SystemExit, match="Not done: bad"):
            play(pieces)
        assert len(Path("runs").read_text()) == k
    text = Path("RESULTS.md").read_text()
    assert "**BAD** (failed)" in text
    assert "**GOOD**\n\n| a |" in text


def test_what_takes_too_long_is_stopped_with_all_that_it_started(
    play: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    child = "import time; time.sleep(0.9); open('late', 'w')"
    sleeps = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    play({"long": [sleeps], "next": ["print('| a |')"]}, "--minutes", "0.008")
    assert json.loads(Path("gpu-results/states.json").read_text()) == {"long": "too long"}
    assert "run this again" in capsys.readouterr().out
    order = "open('order', 'a').write"
    text = play({"long": [f"{order}('l'); print('| a |')"], "next": [f"{order}('n')"]})
    assert Path("order").read_text() == "nl"  # that which may fail again comes last
    assert "**LONG**\n\n| a |\n\n**NEXT**" in text
    time.sleep(0.6)
    assert not Path("late").exists()


def test_the_file_for_the_tables_must_say_where(play: Callable[..., str]) -> None:
    Path("RESULTS.md").write_text("nothing")
    with pytest.raises(SystemExit, match="should hold the lines"):
        play({"one": ["print(1)"]})


def test_pieces_are_small_and_named_apart(gpu: ModuleType) -> None:
    for options in ([], ["--tiny", "--device", "cpu"]):
        made = gpu.pieces(gpu.parse(options))
        names = [piece.name for piece in made]
        assert len(set(names)) == len(names)
        assert names[0] == "tests"
        assert names[1] == "views-32"
        assert names[-1] == "race-0"
        for piece in made:
            command = piece.command(9.0)
            assert command[0] == "-m" or Path(command[0]).exists()
    assert "--minutes" in command
    assert command[command.index("--minutes") + 1] == "7.50"
    assert gpu.BEGIN in (BENCHMARKS / "RESULTS.md").read_text()
