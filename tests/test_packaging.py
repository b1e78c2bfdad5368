"""What is installed is what is in the tree: packages, data files, entry points, versions."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from npe2 import PluginManifest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PROJECT["project"]["version"]

#: Folder in the tree -> import package.
ROOTS = {"core": "tttunet", "resources": "tttunet.resources", "napari_tttunet": "napari_tttunet"}


def files_to_ship() -> set[str]:
    """Every file below the packages' folders, as its path in the wheel."""
    shipped = set()
    for folder, package in ROOTS.items():
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.name != ".gitkeep":
                inside = path.relative_to(REPOSITORY / folder).as_posix()
                shipped.add(f"{package.replace('.', '/')}/{inside}")
    return shipped


def test_every_package_of_the_tree_is_listed():
    found = set()
    for folder, package in ROOTS.items():
        for path in (REPOSITORY / folder).rglob("*.py"):
            inside = path.parent.relative_to(REPOSITORY / folder).parts
            found.add(".".join((package, *inside)))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_package_has_an_init_file():
    for folder in ROOTS:
        for path in (REPOSITORY / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path.parent


def test_wheel_holds_the_tree_and_nothing_else(tmp_path: Path):
    tree = tmp_path / "tree"
    for folder in ROOTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, tree / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree)
    program = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    built = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files_to_ship()


def test_installed_entry_points_resolve():
    distribution = importlib.metadata.distribution("napari-tttunet")
    points = {(point.group, point.name): point for point in distribution.entry_points}
    assert callable(points["console_scripts", "tttunet"].load())
    assert points["napari.manifest", "napari-tttunet"].value == "napari_tttunet:napari.yaml"
    assert distribution.version == VERSION, "install again: make setup"


def test_manifest_is_valid():
    manifest = PluginManifest.from_distribution("napari-tttunet")
    manifest.validate_imports()
    assert manifest.name == PROJECT["project"]["name"]
    package, _, icon = manifest.icon.partition(":")
    picture = importlib.resources.files(package).joinpath(icon).read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_top_level_manifest_is_the_packaged_one():
    link = REPOSITORY / "napari.yaml"
    if not link.is_symlink() and os.name == "nt":
        pytest.skip("git on Windows writes links as text files unless told otherwise")
    assert link.resolve() == REPOSITORY / "napari_tttunet" / "napari.yaml"


def test_users_are_not_capped_and_get_no_toolkit():
    required = {r.name.lower(): r for r in map(Requirement, PROJECT["project"]["dependencies"])}
    assert not {name for name in required if re.match(r"napari|pyqt|pyside|qtpy|triton", name)}
    capped = [str(r) for r in required.values() for s in r.specifier if s.operator != ">="]
    assert capped == []


def test_versions_agree():
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {VERSION}\n" in citation
    assert f"\n## [{VERSION}]" in changelog


def test_slicer_extension_describes_itself():
    extension = REPOSITORY / "slicer_extension"
    entry = json.loads((extension / "TTTUNet.json").read_text(encoding="utf-8"))
    required = {"$schema", "category", "scm_url"}
    optional = {"scm_revision", "scm_type", "build_dependencies", "build_subdirectory"}
    optional |= {"dicom_support_rule", "enabled", "tier"}
    assert required <= set(entry) <= required | optional
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.2.json#")

    cmake = (extension / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "project(TTTUNet)" in cmake
    assert f'set(EXTENSION_CATEGORY "{entry["category"]}")' in cmake
    for module in re.findall(r"add_subdirectory\((\w+)\)", cmake):
        assert (extension / module / "CMakeLists.txt").is_file()
