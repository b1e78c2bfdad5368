"""The extension's description and build files, against what the extensions index demands."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool() -> Any:
    path = REPOSITORY / "tools" / "check_slicer_extension.py"
    spec = importlib.util.spec_from_file_location("check_slicer_extension", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "slicer_extension", tmp_path / "extension"))


def test_the_extension_is_in_order(tool: Any):
    assert tool.check() == []


def test_what_a_listing_needs_is_told(tool: Any):
    problems = tool.check(publish=True)
    assert [p for p in problems if "scm_url" in p] != []
    for name in ("HOMEPAGE", "ICONURL", "SCREENSHOTURLS"):
        assert [p for p in problems if f"EXTENSION_{name}" in p] != []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"category": None}, "'category' is missing"),
        ({"category": "Organs"}, "not in the index"),
        ({"author": "me"}, "'author' is not in the schema"),
        ({"tier": "1"}, "'tier' is no int"),
        ({"tier": 6}, "1 to 5"),
        ({"$schema": "https://example.org/v2.json"}, "none of the versions"),
        ({"scm_type": "svn"}, "neither git nor local"),
    ],
)
def test_faults_of_the_description_are_found(
    tool: Any, copy: Path, changes: dict[str, Any], problem: str
):
    path = copy / "TTTUNet.json"
    entry = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in entry.items() if v is not None}))
    assert [p for p in tool.check(copy) if problem in p] != []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("project(TTTUNet)", "project(Other)", "not called like"),
        ('set(EXTENSION_DEPENDS "NA")', "", "EXTENSION_DEPENDS is not set"),
        ('"Segmentation"', '"Training"', "not that of the .json"),
        ("include(${Slicer_USE_FILE})", "", "Slicer_USE_FILE"),
        ("add_subdirectory(TTTUNet)", "", "no module"),
        ("add_subdirectory(TTTUNet)", "add_subdirectory(Nothing)", "Nothing: there is no"),
        (
            "## NEXT_MODULE",
            'set(EXTENSION_ICONURL "https://example.org/me/SlicerX/main/nothing.png")',
            "names no file",
        ),
    ],
)
def test_faults_of_the_project_are_found(tool: Any, copy: Path, old: str, new: str, problem: str):
    path = copy / "CMakeLists.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert [p for p in tool.check(copy) if problem in p] != []


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("LICENSE", "no licence"),
        ("TTTUNet/Resources/Icons/TTTUNet.png", "icon is missing"),
        ("TTTUNet/TTTUNetLib/Logic.py", "Logic.py is not there"),
        ("TTTUNet/Resources/UI/TTTUNet.ui", "TTTUNet.ui is not there"),
        ("TTTUNet/TTTUNet.py", "different names"),
    ],
)
def test_missing_files_are_found(tool: Any, copy: Path, file: str, problem: str):
    (copy / file).unlink()
    assert [p for p in tool.check(copy) if problem in p] != []


def test_a_file_that_would_not_be_installed_is_found(tool: Any, copy: Path):
    (copy / "TTTUNet" / "TTTUNetLib" / "New.py").write_text("")
    assert tool.check(copy) == ["TTTUNet: TTTUNetLib/New.py is not installed"]


def test_broken_pictures_and_forms_are_found(tool: Any, copy: Path):
    resources = copy / "TTTUNet" / "Resources"
    (resources / "Icons" / "TTTUNet.png").write_bytes(b"GIF")
    (resources / "UI" / "TTTUNet.ui").write_text("<ui>")
    assert [p.partition(":")[0] for p in tool.check(copy)] == ["TTTUNet.png", "TTTUNet.ui"]


def test_slicers_python_needs_nothing_but_numpy():
    allowed = {
        *sys.stdlib_module_names,
        "numpy",
        "slicer",
        "vtk",
        "vtkITK",
        "qt",
        "ctk",
        "SampleData",
    }
    allowed |= {"TTTUNetLib", "tttunet"}  # tttunet is read from the worker's environment
    found = {
        f"{path.name}: {name}"
        for path in (REPOSITORY / "slicer_extension").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _imported(node)
        if name.partition(".")[0] not in allowed
    }
    assert found == set()


def test_what_the_user_is_told_can_be_translated():
    found = {
        f"{path.name}:{text.lineno}"
        for path in (REPOSITORY / "slicer_extension").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        for text in call.args[: {"RequestError": 2, "say": 1, "addItem": 1}.get(_name(call), 0)]
        if _has_words(text)
    }
    assert found == set()


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", "") or getattr(call.func, "attr", "")


def _has_words(text: ast.AST) -> bool:
    """It is a text with words of its own, apart from the values of a format."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    plain = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
    return any(letter.isalpha() for part in plain for letter in part)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []
