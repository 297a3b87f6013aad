"""The package as pip installs it: what the wheel holds, and where it runs."""

import os
import re
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import byol_wrap

ROOT = Path(__file__).parents[1]
NEEDS = {"torch", "torchvision", "kornia"}
FLOOR = ("torch==2.5.1", "torchvision==0.20.1", "kornia==0.9.0", "transformers<5")  # 5: torch 2.6


def run(*command: object, folder: Path, seconds: float = 60, **environment: str) -> str:
    """What a program prints; a failure shows all of it."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=os.environ | environment, capture_output=True, text=True,
        timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel made from it, and in ``direct`` one from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    run(*build, folder, ROOT, folder=folder)
    run(*build, folder / "direct", "--wheel", ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The wheel made from the sdist."""
    return next(dist.glob("*.whl"))


def first_program() -> str:
    """README's loop of ten lines."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert found
    return found[1]


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "byol_wrap").rglob("*.py")}
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        about = Parser().parsestr(archive.read(metadata).decode())
    assert names == here | {"byol_wrap/py.typed"}
    assert about["Version"] == byol_wrap.__version__
    assert about["Requires-Python"] == ">=3.11"
    needed = [text for text in about.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert {re.split(r"[^\w.-]", text)[0] for text in needed} == NEEDS


def test_the_sdist_makes_the_same_wheel(dist: Path, wheel: Path) -> None:
    assert wheel.read_bytes() == (dist / "direct" / wheel.name).read_bytes()
    sdist = next(dist.glob("*.tar.gz"))
    shutil.unpack_archive(sdist, dist / "unpacked", filter="data")
    (source,) = (dist / "unpacked").iterdir()
    assert {path.name for path in source.iterdir()} == {
        ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "byol_wrap",
        "pyproject.toml",
    }  # fmt: skip


def test_the_index_would_take_both(dist: Path, wheel: Path) -> None:
    sdist = next(dist.glob("*.tar.gz"))
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, folder=dist)


def test_a_build_leaves_nothing_behind(dist: Path) -> None:
    left = {path.name for path in ROOT.iterdir()} & {"build", "dist", "byol_wrap.egg-info"}
    assert not left


# New environments, which take minutes and gigabytes


def environment(folder: Path, python: str, *packages: object) -> Path:
    """A new one with packages; gives its interpreter."""
    run(python, "-m", "venv", folder, folder=folder.parent)
    new = folder / "bin" / "python"
    install = (new, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    run(*install, *packages, folder=folder.parent, seconds=3000)
    return new


def newest_python() -> str:
    """The newest interpreter at hand that runs: on the path, or one of pyenv's."""
    homes = [*os.get_exec_path(), *map(str, Path.home().glob(".pyenv/versions/*/bin"))]
    found = [path for home in homes for path in Path(home).glob("python3.[0-9][0-9]")]
    found.sort(key=lambda path: int(path.name.split(".")[1]), reverse=True)
    runs = (
        path for path in found if not subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL)
    )
    return str(next(runs))


@pytest.mark.slow
def test_readmes_loop_runs_from_the_wheel_alone_in_the_newest_python(
    wheel: Path, tmp_path: Path
) -> None:
    python = environment(tmp_path / "venv", newest_python(), wheel)
    program = f"{first_program()}\nimport byol_wrap\nprint(byol_wrap.__file__)\n"
    (tmp_path / "loop.py").write_text(program)
    printed = run(python, "-W", "error", "loop.py", folder=tmp_path, PYTHONPATH="")
    assert Path(printed.split()[-1]).is_relative_to(tmp_path / "venv")
    assert (tmp_path / "backbone.pt").exists()


@pytest.mark.slow
def test_the_suite_passes_with_the_oldest_versions(tmp_path: Path) -> None:
    """All fast tests, where nothing that the package needs is newer than it has to be."""
    python = environment(tmp_path / "venv", sys.executable, "-e", f"{ROOT}[test]", *FLOOR)
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    run(python, *tests, folder=ROOT, seconds=3000, PYTHONPATH="")
