"""The programs of both READMEs run from top to bottom; the commands are those of the check."""

import re
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = (ROOT / "examples" / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:Importing from timm")
def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos" / "holiday"
    photos.mkdir(parents=True)
    for k in range(20):
        image = to_pil_image(torch.rand(3, 120, 100 + k))
        image.save(photos / f"{k}.JPG")
        image.save(photos.parent / f"{k}.png")
    for name, text, fewest in (("README", README, 3), ("examples/README", EXAMPLES, 8)):
        programs = blocks("python", text)
        assert len(programs) >= fewest
        namespace: dict[str, object] = {}
        for number, program in enumerate(programs):
            exec(compile(program, f"{name} block {number}", "exec"), namespace)
    assert (tmp_path / "improved.pt").exists()


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_every_example_has_its_line() -> None:
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - {"digits.py"}
    assert set(re.findall(r"^\| \[(\w+\.py)\]", EXAMPLES, flags=re.MULTILINE)) == scripts


def test_what_readme_prints_is_what_is_printed() -> None:
    from torchvision import models

    from byol_wrap import BYOL

    assert f"# {BYOL(models.resnet18(), 32).representation}\n" in README


def test_the_check_runs_readmes_commands() -> None:
    check = (ROOT / ".ci" / "run").read_text()
    commands = [part for block in blocks("bash") for part in block.strip().split(" && ")]
    assert len(commands) == 4
    for command in commands:
        words = command.replace("pip install", "pip install -q").split("#")[0].strip()
        assert words in check, command
