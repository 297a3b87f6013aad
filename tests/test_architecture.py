"""The shape of the package: who imports whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import byol_wrap

PACKAGE = Path(byol_wrap.__file__).parent
LEAVES = {"checkpoint", "ema", "heads", "health", "inputs", "losses", "modes", "optim", "pixels"}
ALLOWED = {
    **{leaf: set() for leaf in LEAVES},
    "views": {"pixels"},
    "tap": {"modes"},
    "evaluation": {"modes"},
    "collapse": {"health"},
    "encoder": {"modes", "tap"},
    "byol": LEAVES - {"optim", "pixels"} | {"collapse", "encoder", "tap", "views"},
    "__init__": {"byol", "ema", "evaluation", "losses", "optim", "views"},
}


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
    files = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")}
    assert files.keys() == ALLOWED.keys()
    for module, tree in files.items():
        own = {name.split(".")[1] for name in imports(tree) if name.startswith("byol_wrap.")}
        assert own <= ALLOWED[module], module


def test_outside_the_standard_library_only_torch_is_imported_and_kornia_late() -> None:
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text())
        everywhere = {name.split(".")[0] for name in imports(tree)}
        third_party = everywhere - sys.stdlib_module_names - {"byol_wrap", "torch"}
        assert third_party <= ({"kornia"} if path.stem == "pixels" else set()), path
        at_import = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not any("kornia" in ast.unparse(node) for node in at_import), path


def test_public_names_are_documented() -> None:
    for name in byol_wrap.__all__:
        assert getattr(byol_wrap, name).__doc__


def test_import_adds_little_to_torch() -> None:
    code = (
        "import sys, time, torch; start = time.process_time(); import byol_wrap; "
        "print(time.process_time() - start); "
        "assert not {'kornia', 'torchvision', 'torch._dynamo', 'numpy.f2py'} & sys.modules.keys()"
    )
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 0.1
