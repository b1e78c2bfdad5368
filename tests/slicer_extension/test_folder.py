"""A folder of volumes, without the scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")

from slicer_nodes import add_volume, array_on_grid, labels_of, load_volume, noise, save  # noqa: E402
from TTTUNetLib.Logic import RequestError  # noqa: E402


def segment(logic: Any, volume: Any, model: str, **options: Any) -> Any:
    return logic.segment(volume, model=model, waitForCompletion=True, **options)


def test_folder_is_segmented_without_the_scene(
    scene: Any, logic: Any, tiny_3d: str, tmp_path: Path
):
    (tmp_path / "in").mkdir()
    volumes = [add_volume(noise((4, 32, 32), n), "oblique", f"CT{n}") for n in range(2)]
    for volume in volumes:
        save(volume, tmp_path / "in" / f"{volume.GetName()}.nrrd")
    (tmp_path / "in" / "broken.nrrd").write_text("NRRD0004\n")
    before = scene.GetNumberOfNodes()
    said: list[str] = []
    task = logic.segmentFolder(
        tmp_path / "in", tmp_path / "out", tiny_3d, onLog=said.append, waitForCompletion=True
    )
    assert [task.result[name] for name in ("done", "skipped", "failed")] == [2, 0, 1]
    assert scene.GetNumberOfNodes() == before
    assert [line for line in said if "CT1.nrrd: done" in line] != []
    assert [line for line in said if "broken.nrrd: failed" in line] != []
    for volume in volumes:
        (written,) = task.output.glob(f"{volume.GetName()}*.nrrd")
        labels = labels_of(segment(logic, volume, tiny_3d).segmentationNode, volume)
        # The model is not trained: rounding decides about a voxel here and there.
        assert (array_on_grid(load_volume(written), volume) != labels).mean() < 1e-3
    again = logic.segmentFolder(tmp_path / "in", task.output, tiny_3d, waitForCompletion=True)
    assert again.result["skipped"] == 2
    with pytest.raises(RequestError, match="no folder"):
        logic.segmentFolder(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(RequestError, match="folder of their own"):
        logic.segmentFolder(tmp_path / "in", tmp_path / "in")
