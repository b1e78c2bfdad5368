"""Check the Slicer extension as the extensions index would, without Slicer and without network.

python tools/check_slicer_extension.py              # what must hold at any time
python tools/check_slicer_extension.py --publish    # and what the catalog demands of a listing
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

EXTENSION = Path(__file__).resolve().parents[1] / "slicer_extension"
#: Of the catalog's schema 1.0.2: type of every property; the first three are required.
PROPERTIES: dict[str, type] = {
    "$schema": str,
    "category": str,
    "scm_url": str,
    "scm_revision": str,
    "scm_type": str,
    "build_dependencies": list,
    "build_subdirectory": str,
    "dicom_support_rule": str,
    "enabled": bool,
    "tier": int,
}
REQUIRED = ("$schema", "category", "scm_url")
SCHEMA = re.compile(
    r"https://raw\.githubusercontent\.com/Slicer/Slicer/main/Schemas/"
    r"slicer-extension-catalog-entry-schema-v1\.0\.[0-2]\.json#?"
)
#: Of the index's list, those that could be meant.
CATEGORIES = ("Active Learning", "Cardiac", "Segmentation", "Training")
LICENCES = ("LICENSE", "LICENSE.txt", "License.txt", "license.txt", "COPYING", "COPYING.txt")
ICON_SIZE = 128
_PNG = b"\x89PNG\r\n\x1a\n"


def cmake_values(text: str) -> dict[str, list[str]]:
    """Every `set(NAME value...)` of a CMake file without comments, variables not expanded."""
    plain = re.sub(r"(?m)(^|\s)#.*$", "", text)
    found = {}
    for name, body in re.findall(r"(?i)\bset\s*\(\s*(\w+)([^()]*(?:\$\{\w+\}[^()]*)*)\)", plain):
        found[name] = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', body)]
    return found


def check_description(folder: Path, publish: bool) -> Iterator[str]:
    """The JSON file, against the catalog's schema."""
    files = sorted(folder.glob("*.json"))
    if len(files) != 1:
        yield f"there are {len(files)} .json files, not one description"
        return
    try:
        entry: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"{files[0].name}: no JSON: {error}"
        return
    for name in REQUIRED:
        if not entry.get(name):
            yield f"{files[0].name}: '{name}' is missing"
    for name, value in entry.items():
        if name not in PROPERTIES:
            yield f"{files[0].name}: '{name}' is not in the schema"
        elif type(value) is not PROPERTIES[name]:
            yield f"{files[0].name}: '{name}' is no {PROPERTIES[name].__name__}"
    if not SCHEMA.fullmatch(str(entry.get("$schema", ""))):
        yield f"{files[0].name}: '$schema' is none of the versions 1.0.0 to 1.0.2"
    if entry.get("category") not in CATEGORIES:
        yield f"{files[0].name}: the category '{entry.get('category')}' is not in the index"
    if entry.get("tier", 1) not in range(1, 6):
        yield f"{files[0].name}: 'tier' is not 1 to 5"
    if entry.get("scm_type", "git") not in ("git", "local"):
        yield f"{files[0].name}: 'scm_type' is neither git nor local"
    if publish:
        yield from _check_repository(str(entry.get("scm_url", "")), files[0].name)


def _check_repository(url: str, file: str) -> Iterator[str]:
    parts = urlsplit(url)
    if parts.scheme not in ("https", "git") or not parts.netloc:
        yield f"{file}: 'scm_url' is no https address of a repository"
    elif "slicer" not in Path(parts.path).name.lower():
        yield f"{file}: the repository's name does not contain 'Slicer'"


def check_project(folder: Path, publish: bool) -> Iterator[str]:
    """The top CMakeLists.txt, the licence."""
    text = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
    values = cmake_values(text)
    project = re.search(r"(?i)\bproject\s*\(\s*(\w+)", text)
    descriptions = [path.stem for path in folder.glob("*.json")]
    if project is None or [project.group(1)] != descriptions:
        yield "CMakeLists.txt: the project is not called like the .json file"
    for name in ("CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "DEPENDS"):
        if not values.get(f"EXTENSION_{name}"):
            yield f"CMakeLists.txt: EXTENSION_{name} is not set"
    entry = folder / f"{descriptions[0] if descriptions else ''}.json"
    if entry.is_file():
        category = json.loads(entry.read_text(encoding="utf-8")).get("category")
        if values.get("EXTENSION_CATEGORY") != [category]:
            yield "CMakeLists.txt: the category is not that of the .json file"
    for needed in ("Slicer_USE_FILE", "Slicer_EXTENSION_GENERATE_CONFIG", "Slicer_EXTENSION_CPACK"):
        if f"include(${{{needed}}})" not in text:
            yield f"CMakeLists.txt: include(${{{needed}}}) is missing"
    if not any((folder / name).is_file() for name in LICENCES):
        yield "there is no licence file"
    for name in ("HOMEPAGE", "ICONURL", "SCREENSHOTURLS"):
        urls = " ".join(values.get(f"EXTENSION_{name}", [])).split()
        if not urls and publish:
            yield f"CMakeLists.txt: EXTENSION_{name} is not set"
        for url in urls:
            yield from _check_url(folder, f"EXTENSION_{name}", url)


def _check_url(folder: Path, name: str, url: str) -> Iterator[str]:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.netloc:
        yield f"CMakeLists.txt: {name}: '{url}' is no https address"
    elif name != "EXTENSION_HOMEPAGE":
        # .../OWNER/REPOSITORY/(raw/)BRANCH/PATH: the file must be in this folder too.
        file = Path(*Path(parts.path).parts[4:])
        if not any((folder / Path(*file.parts[i:])).is_file() for i in range(len(file.parts))):
            yield f"CMakeLists.txt: {name}: '{url}' names no file of this folder"


def check_module(folder: Path) -> Iterator[str]:
    """A module's CMakeLists.txt lists every file and no other; icon and .ui can be read."""
    listing = folder / "CMakeLists.txt"
    if not listing.is_file():
        yield f"{folder.name}: there is no CMakeLists.txt"
        return
    text = listing.read_text(encoding="utf-8")
    values = cmake_values(text)
    name = values.get("MODULE_NAME", [""])[0]
    if name != folder.name or not (folder / f"{name}.py").is_file():
        yield f"{folder.name}: MODULE_NAME, folder and .py file have different names"
    if "slicerMacroBuildScriptedModule" not in text:
        yield f"{folder.name}: slicerMacroBuildScriptedModule is not called"
    groups = (("SCRIPTS", "*.py"), ("RESOURCES", "Resources/**/*.*"))
    for group, pattern in groups:
        raw = values.get(f"MODULE_PYTHON_{group}", [])
        listed = {entry.replace("${MODULE_NAME}", name) for entry in raw}
        there = {path.relative_to(folder).as_posix() for path in folder.glob(pattern)}
        if group == "SCRIPTS":
            there |= {p.relative_to(folder).as_posix() for p in folder.glob("*Lib/*.py")}
        yield from (f"{folder.name}: {one} is not there" for one in sorted(listed - there))
        yield from (f"{folder.name}: {one} is not installed" for one in sorted(there - listed))
    yield from _check_icon(folder / "Resources" / "Icons" / f"{name}.png")
    for form in folder.glob("Resources/UI/*.ui"):
        try:
            ElementTree.parse(form)
        except ElementTree.ParseError as error:
            yield f"{form.name}: no form: {error}"


def _check_icon(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name}: the icon is missing"
        return
    head = path.read_bytes()[:24]
    if not head.startswith(_PNG):
        yield f"{path.name}: no PNG"
    elif struct.unpack(">II", head[16:24]) != (ICON_SIZE, ICON_SIZE):
        yield f"{path.name}: not {ICON_SIZE} x {ICON_SIZE}"


def check(folder: Path = EXTENSION, publish: bool = False) -> list[str]:
    """Everything that is wrong, one sentence each.

    Args:
        folder: of the extension.
        publish: also what only a listing in the catalog needs.
    """
    text = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
    modules = re.findall(r"(?m)^\s*add_subdirectory\((\w+)\)", text)
    found = [*check_description(folder, publish), *check_project(folder, publish)]
    if not modules:
        found.append("CMakeLists.txt: there is no module")
    return found + [problem for name in modules for problem in check_module(folder / name)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publish", action="store_true", help="as for a listing in the catalog")
    problems = check(publish=parser.parse_args().publish)
    print("\n".join(problems) or "The extension is as the index wants it.")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
