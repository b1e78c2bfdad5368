"""napari starts as fast with the plugin as without: nothing heavy is imported by it."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import napari_tttunet

NEVER = {"torch", "monai", "triton", "lightning_fabric"}
LATE = {
    "skimage",
    "scipy",
    "SimpleITK",
    "matplotlib",
    "tifffile",
    "PIL",
    "pandas",
    "napari",
    "qtpy",
}
#: What has no widgets; widgets import Qt, and are loaded when a dock opens.
PLAIN = sorted(
    path.name.removesuffix(".py")
    for path in files(napari_tttunet).iterdir()
    if path.name.endswith(".py")
    and path.name != "__init__.py"
    and "qtpy" not in path.read_text(encoding="utf-8")
)


def imported(program: str, folder: Path, names: set[str]) -> set[str]:
    check = f"{program}\nimport sys; print('imported:', *({names!r} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", check], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.rpartition("imported:")[2].split())


def test_modules_are_found() -> None:
    assert {"axes", "geometry", "layers", "readers", "writers", "settings"} <= set(PLAIN)


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    program = "".join(f"import napari_tttunet.{name}\n" for name in PLAIN)
    assert imported(program, tmp_path, NEVER | LATE) == set()
    assert imported("import SimpleITK", tmp_path, LATE) == {"SimpleITK"}  # it would be seen


def test_the_gui_never_imports_torch(tmp_path: Path) -> None:
    """Not when samples open and labels are saved, either."""
    program = (
        "from napari_tttunet import layers, readers, regions, sample_data, writers\n"
        "from napari.layers import Layer\n"
        "for open in (sample_data.ovule_nuclei, sample_data.colonoscopy_polyp):\n"
        "    image, truth = (Layer.create(*x) for x in open())\n"
        "    writers.write_labels('labels.nrrd', *truth.as_layer_data_tuple()[:2])\n"
        "    readers.get_reader('labels.nrrd')('labels.nrrd')\n"
    )
    assert imported(program, tmp_path, NEVER) == set()
