"""The shape of the package: who imports whom, and what an import costs."""

import ast
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import byol_wrap

PACKAGE = Path(byol_wrap.__file__).parent
# What each folder, and each module beside them, may import of the package besides itself.
ALLOWED = {
    "backbone": set(),
    "data": set(),
    "views": {"warning"},
    "warning": set(),
    "training": set(),
    "evaluation": {"backbone", "data"},
    "guard": {"evaluation", "warning"},
    "attachment": set(),
    "target": {"backbone", "ema"},
    "ema": set(),
    "networks": {"backbone", "guard", "target", "views"},
    "updates": {"attachment", "backbone", "ema", "guard", "networks"},
    "learner": {"backbone", "evaluation", "guard", "updates", "views"},
    "methods": {"learner", "views"},
    "recipe": {"backbone", "learner", "methods", "training", "views", "warning"},
    "published": {"learner", "methods", "recipe"},
    "__init__": {
        "backbone",
        "evaluation",
        "learner",
        "ema",
        "methods",
        "published",
        "recipe",
        "training",
        "views",
    },
}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The folder of the package that a file is in; its own name at the top level."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of all modules that a syntax tree imports; ``from a import b`` gives a.b too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_point_one_way() -> None:
    assert {room(path) for path in files()} == ALLOWED.keys()
    for path in files():
        own = {n.split(".")[1] for n in imports(ast.parse(path.read_text())) if "byol_wrap." in n}
        assert own <= ALLOWED[room(path)] | {room(path)}, path


def test_inside_a_folder_imports_do_not_go_round() -> None:
    for folder in {path.parent for path in files()} - {PACKAGE}:
        arrows = {
            f"byol_wrap.{folder.name}.{path.stem}": imports(ast.parse(path.read_text()))
            for path in folder.glob("*.py")
            if path.stem != "__init__"
        }
        left = dict(arrows)
        while left:
            free = [name for name, to in left.items() if not to & (left.keys() - {name})]
            assert free, f"in {folder.name} these import each other: {sorted(left)}"
            for name in free:
                del left[name]


def test_methods_do_not_know_each_other() -> None:
    methods = {"byol", "simsiam", "simclr", "moco"}
    for method in methods:
        own = imports(ast.parse((PACKAGE / "methods" / f"{method}.py").read_text()))
        assert not own & {f"byol_wrap.methods.{other}" for other in methods - {method}}


# What a folder may import of other libraries, inside functions only,
LATE = {"data": {"PIL"}, "views": {"kornia", "triton"}, "evaluation": {"matplotlib"}}
# or in a file that is itself imported inside functions only.
BOUND_LATE = {f"views/{name}.py" for name in ("random_view", "stock", "fused", "kernels")}


def test_outside_the_standard_library_only_torch_is_imported_at_once() -> None:
    for path in files():
        tree = ast.parse(path.read_text())
        everywhere = {name.split(".")[0] for name in imports(tree)}
        third_party = everywhere - sys.stdlib_module_names - {"byol_wrap", "torch"}
        late = LATE.get(room(path), set())
        assert third_party <= late, path
        at_import = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        if path.relative_to(PACKAGE).as_posix() not in BOUND_LATE:
            late = late | {Path(name).stem for name in BOUND_LATE}
            found = {part for n in at_import for name in imports(n) for part in name.split(".")}
            assert not found & late, path


def test_no_file_and_no_class_is_too_long_to_be_read() -> None:
    for path in files():
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert (node.end_lineno or 0) - node.lineno < 250, f"{path}: {node.name}"
    assert (PACKAGE / "methods" / "byol.py").read_text().count("\n") < 130


def test_public_names_are_documented() -> None:
    for name in byol_wrap.__all__:
        assert getattr(byol_wrap, name).__doc__


def test_import_adds_little_to_torch(tmp_path: Path) -> None:
    """Compiled once before, as an installed package is."""
    code = (
        "import sys, time, torch; start = time.process_time(); import byol_wrap; "
        "print(time.process_time() - start); "
        "late = {'kornia', 'torchvision', 'triton', 'torch._dynamo', 'numpy.f2py'}; "
        "assert not late & sys.modules.keys()"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    options: dict[str, Any] = {"env": kept | {"PYTHONPYCACHEPREFIX": str(tmp_path)}}
    run = partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, check=True)
    seconds = [float(run(**options).stdout) for _ in range(4)]
    assert min(seconds) < 0.06
