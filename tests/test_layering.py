"""The architecture, held by reading the source: who may import whom, and what nobody may do."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

#: Who stands on whom: a part of the core imports only parts with a smaller number, and itself.
LEVELS = {
    "__main__": 10,
    "cli": 9,
    "__init__": 8,  # the public API
    "bench": 7,
    "engine": 6,
    "training": 5,
    "inference": 4,
    "evaluation": 4,
    "projects": 3,
    "models": 3,
    "networks": 2,
    "imaging": 2,
    "layers": 1,
    "kernels": 0,
    "files": -1,
    "errors": -2,
    "resources": -3,  # data only
}
FACES = ("napari_tttunet", "slicer_extension")
TOOLKITS = {"qt", "ctk", "qtpy", "superqt", "magicgui", "napari", "vispy", "vtk", "vtkmodules"}
TOOLKITS |= {"slicer", "sitkUtils", "PyQt5", "PyQt6", "PySide2", "PySide6", *FACES}
NUMERICS = {"torch", "monai", "skimage", "scipy", "triton", "lightning_fabric"}
SLOW_TO_IMPORT = NUMERICS | {"matplotlib", "SimpleITK", "batchgeneratorsv2"}
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}
MAX_LINES = 500


@dataclass(frozen=True)
class Import:
    """`name` is everything that is named, e.g. `tttunet.layers.ttt.TTTLayer`."""

    name: str
    line: int
    at_start: bool  # executed when the module is imported

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]


parse = functools.cache(ast.parse)


def find_imports(source: str, package: str) -> Iterator[Import]:
    """Every import of a module, those inside functions included.

    Args:
        source: the module's text.
        package: the package that the module is in, for relative imports.
    """
    yield from _imports_below(parse(source), package, at_start=True)


def _imports_below(node: ast.AST, package: str, at_start: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        yield from (Import(name, child.lineno, at_start) for name in _names(child, package))
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            later = True
        yield from _imports_below(child, package, at_start and not later)


def _names(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:  # one dot is the package itself, each further one its parent
            relative = package.split(".")
            base = ".".join([*relative[: len(relative) - node.level + 1], base]).strip(".")
        return [f"{base}.{alias.name}" for alias in node.names]
    by_name = isinstance(node, ast.Call) and called(node) in ("import_module", "__import__")
    if by_name and node.args and isinstance(node.args[0], ast.Constant):
        return [str(node.args[0].value)]
    return []


def called(call: ast.Call) -> str:
    """`load` for both `load(...)` and `torch.load(...)`."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def part_of_core(name: str) -> str:
    """`tttunet.layers.ttt` is in `layers`; `tttunet` and `tttunet.segment` in `__init__`."""
    part = [*name.split("."), ""][1]
    return part if part in LEVELS else "__init__"


def upward_imports(source: str, module: str, package: str) -> list[str]:
    here = part_of_core(module)
    targets = [
        (found.line, part_of_core(found.name))
        for found in find_imports(source, package)
        if found.root == "tttunet"
    ]
    return [
        f"{module}:{line} ({here}) imports {target}"
        for line, target in targets
        if target != here and LEVELS[target] >= LEVELS[here]
    ]


def imports_of(roots: Iterable[str], source: str, module: str, *, at_start=False) -> list[str]:
    return [
        f"{module}:{found.line} imports {found.name}"
        for found in find_imports(source, module)
        if {found.root, found.name} & set(roots) and (found.at_start or not at_start)
    ]


def pickle_uses(source: str, module: str) -> list[str]:
    """Imports of picklers, and calls that would unpickle a file."""
    uses = imports_of({*PICKLERS, "torch.load"}, source, module)
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Call) and called(node) == "load" and _may_unpickle(node):
            uses.append(f"{module}:{node.lineno} may unpickle: {ast.unparse(node)}")
    return uses


def _may_unpickle(load: ast.Call) -> bool:
    owner = ast.unparse(load.func).removesuffix("load").removesuffix(".")
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in load.keywords}
    if owner == "torch" or owner.endswith("fabric"):
        return keywords.get("weights_only") != "True"
    return keywords.get("allow_pickle", "False") != "False"


def sources(*folders: str) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")


def core_modules() -> Iterator[tuple[str, str, str]]:
    """Module name, the package it is in, and source."""
    for path, source in sources("core"):
        parts = ("tttunet", *path.relative_to(REPOSITORY / "core").with_suffix("").parts)
        yield ".".join(parts), ".".join(parts[:-1]), source


def test_every_part_of_the_core_has_a_level():
    core = REPOSITORY / "core"
    parts = {p.stem for p in core.glob("*.py")} | {p.parent.name for p in core.glob("*/*.py")}
    assert parts - set(LEVELS) == set(), "give it a level in LEVELS"


def test_imports_inside_the_core_point_down():
    assert [
        v for name, package, text in core_modules() for v in upward_imports(text, name, package)
    ] == []


def test_core_imports_no_viewer():
    assert [v for name, _, text in core_modules() for v in imports_of(TOOLKITS, text, name)] == []


def test_faces_contain_no_numerics():
    found = [v for path, text in sources(*FACES) for v in imports_of(NUMERICS, text, str(path))]
    assert found == []


def test_command_line_and_public_api_import_heavy_libraries_late():
    found = [
        violation
        for name, _, text in core_modules()
        if part_of_core(name) in ("__init__", "__main__", "cli")
        for violation in imports_of(SLOW_TO_IMPORT, text, name, at_start=True)
    ]
    assert found == []


@pytest.mark.parametrize("module", ["tttunet", "tttunet.cli", "napari_tttunet.sample_data"])
def test_importing_loads_no_heavy_library(module: str, tmp_path: Path):
    program = f"import sys, {module}; print(*sorted({SLOW_TO_IMPORT!r} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (loaded.returncode, loaded.stdout.split()) == (0, []), loaded.stderr


def test_nothing_is_unpickled():
    folders = ("core", *FACES, "resources", "benchmarks")
    assert [v for path, text in sources(*folders) for v in pickle_uses(text, str(path))] == []


def test_no_file_is_long():
    folders = ("core", *FACES, "resources", "benchmarks", "tests", "tools")
    lengths = {path.relative_to(REPOSITORY): text.count("\n") for path, text in sources(*folders)}
    assert {str(path): lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


# The checks above pass on a tree without violations; these show that they would not on one with.


@pytest.mark.parametrize(
    ("module", "source", "target"),
    [
        ("tttunet.kernels.dual", "from tttunet.layers.ttt import TTTLayer", "layers"),
        ("tttunet.kernels.dual", "from ..layers import ttt", "layers"),
        ("tttunet.kernels.dual", "def f():\n    import tttunet.models.config", "models"),
        ("tttunet.kernels.dual", "importlib.import_module('tttunet.engine')", "engine"),
        ("tttunet.imaging.tiles", "from tttunet.networks import build_network", "networks"),
        ("tttunet.inference.run", "from tttunet import segment", "__init__"),
        ("tttunet.errors", "from tttunet import files", "files"),
    ],
)
def test_upward_import_is_detected(module: str, source: str, target: str):
    (violation,) = upward_imports(source, module, module.rpartition(".")[0])
    assert violation.endswith(f"imports {target}")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tttunet.layers.ttt", "from tttunet import kernels"),
        ("tttunet.layers.ttt", "from tttunet.layers.config import TTTConfig"),
        ("tttunet.layers.ttt", "from . import config"),
        ("tttunet.kernels.dual", "from tttunet.errors import TTTUNetError\nimport torch"),
        ("tttunet.cli", "import tttunet"),
    ],
)
def test_downward_import_is_allowed(module: str, source: str):
    assert upward_imports(source, module, module.rpartition(".")[0]) == []


def test_late_import_is_told_from_an_early_one():
    late = "def f():\n    import torch\nif TYPE_CHECKING:\n    from torch import Tensor\n"
    early = "try:\n    import torch.nn as nn\nexcept ImportError:\n    nn = None\n"
    assert imports_of(NUMERICS, late, "m", at_start=True) == []
    assert imports_of(NUMERICS, early, "m", at_start=True) == ["m:2 imports torch.nn"]
    assert imports_of(TOOLKITS, "from PySide6.QtCore import Qt", "m") != []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "self.fabric.load(path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_unpickling_is_detected(source: str):
    assert len(pickle_uses(source, "m")) == 1


@pytest.mark.parametrize(
    "source",
    ["torch.load(path, weights_only=True)", "np.load(path)", "safetensors.torch.load(content)"],
)
def test_safe_loading_is_allowed(source: str):
    assert pickle_uses(source, "m") == []
