"""Segment a volume through the Slicer extension, and render the scene as Slicer's views show it.

Slicer's own displayable managers draw into off-screen windows: three slices and the surfaces, as in
the layout Four-Up. It is no screenshot of the application: there is no panel around the views.

    TTTUNET_PYTHON=.venv/bin/python .venv-slicer/bin/python tools/render_slicer_views.py \
        volume.nii.gz --model MODEL -o views.png
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / "slicer_extension" / "TTTUNet"), str(REPOSITORY / "tests")]

import slicer  # noqa: E402
import vtk  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

from slicer_application import set_up  # noqa: E402
from slicer_nodes import load_volume  # noqa: E402
from TTTUNetLib.Logic import TTTUNetLogic  # noqa: E402

#: Name and orientation of the slice views, with the colours of Slicer's title bars.
SLICES = {
    "Red": ("Axial", (243, 74, 51)),
    "Green": ("Coronal", (110, 176, 75)),
    "Yellow": ("Sagittal", (237, 213, 76)),
}
_THREE_D = (0.75, 0.76, 0.9), (0.46, 0.47, 0.68)
_BAR, _GAP = 20, 4


def _window(size: tuple[int, int]) -> tuple[Any, Any]:
    window, renderer = vtk.vtkRenderWindow(), vtk.vtkRenderer()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(8)
    window.SetSize(*size)
    window.AddRenderer(renderer)
    interactor = vtk.vtkGenericRenderWindowInteractor()  # the managers ask for it
    interactor.SetRenderWindow(window)
    return window, renderer


def _managers(factory_class: Any, logic: Any, names: list[str], renderer: Any, node: Any) -> Any:
    """Slicer's displayable managers for a view; to be kept as long as it is rendered."""
    factory = factory_class.GetInstance()
    factory.SetMRMLApplicationLogic(logic)
    for name in names:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.Initialize(factory, renderer)
    group.SetMRMLDisplayableNode(node)
    return group


def _pixels(window: Any) -> np.ndarray:
    """[rows, columns, 3] of what a window shows."""
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    columns, rows, _ = image.GetDimensions()
    values = vtk_to_numpy(image.GetPointData().GetScalars())
    return values.reshape(rows, columns, -1)[::-1, :, :3]


def render_slice(
    application: Any, name: str, volume: Any, at: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """A slice view with everything that is visible in it.

    Args:
        application: the application's logic.
        name: a key of `SLICES`.
        volume: in the background.
        at: a point of the slice, in RAS.
        size: columns and rows.
    """
    window, renderer = _window(size)
    renderer.GetActiveCamera().ParallelProjectionOn()
    logic = slicer.vtkMRMLSliceLogic()
    logic.SetMRMLApplicationLogic(application)
    logic.SetMRMLScene(slicer.mrmlScene)
    node = logic.AddSliceNode(name)
    node.SetOrientation(SLICES[name][0])
    logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
    logic.ResizeSliceNode(*size)
    logic.FitSliceToBackground()
    node.JumpSliceByCentering(*at)
    logic.FitSliceToBackground()
    node.JumpSliceByOffsetting(*at)

    mapper, actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    mapper.SetInputConnection(logic.GetImageDataConnection())
    actor.SetMapper(mapper)
    actor.GetProperty().SetDisplayLocationToBackground()
    renderer.AddViewProp(actor)
    names = ["vtkMRMLSegmentationsDisplayableManager2D"]
    factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory
    group = _managers(factory, application, names, renderer, node)
    seen = _pixels(window)
    group.SetMRMLDisplayableNode(None)
    return seen


def render_3d(application: Any, size: tuple[int, int]) -> np.ndarray:
    """The 3D view, from the front, a little from the left and above."""
    window, renderer = _window(size)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLViewNode", "View1")
    node.SetBoxVisible(False)
    node.SetAxisLabelsVisible(False)
    names = ["vtkMRMLSegmentationsDisplayableManager3D"]
    factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory
    group = _managers(factory, application, names, renderer, node)
    renderer.SetGradientBackground(True)
    renderer.SetBackground(_THREE_D[0])
    renderer.SetBackground2(_THREE_D[1])
    window.Render()
    camera = renderer.GetActiveCamera()
    camera.SetFocalPoint(0, 0, 0)
    camera.SetPosition(-0.8, 1.0, 0.5)
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera()
    camera.Zoom(1.2)
    seen = _pixels(window)
    group.SetMRMLDisplayableNode(None)
    return seen


def _legend(segmentation: Any, table: Any) -> Iterator[tuple[tuple[int, ...], str]]:
    """Colour and text of every segment."""
    content = segmentation.GetSegmentation()
    for row in range(content.GetNumberOfSegments()):
        segment = content.GetNthSegment(row)
        colour = tuple(round(255 * x) for x in segment.GetColor())
        yield colour, f"{segment.GetName()}: {float(table.GetCellText(row, 2)):.2f} ml"


def compose(volume: Any, segmentation: Any, table: Any, application: Any, edge: int) -> Image.Image:
    """The four views with their title bars, and a legend."""
    ijk_to_ras = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(ijk_to_ras)
    mask = np.zeros(slicer.util.arrayFromVolume(volume).shape, bool)
    content = segmentation.GetSegmentation()
    for number in range(content.GetNumberOfSegments()):
        name = content.GetNthSegmentID(number)
        mask |= slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, name, volume) > 0
    centre = np.argwhere(mask).mean(0)[::-1] if mask.any() else np.array(mask.shape[::-1]) / 2
    at = np.array(ijk_to_ras.MultiplyPoint([*centre.round(), 1.0])[:3])

    views = {name: render_slice(application, name, volume, at, (edge, edge)) for name in SLICES}
    segmentation.CreateClosedSurfaceRepresentation()
    picture = Image.new("RGB", (2 * edge + _GAP, 2 * (edge + _BAR) + _GAP), (40, 40, 40))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    places = {"Red": (0, 0), "3D": (1, 0), "Green": (0, 1), "Yellow": (1, 1)}
    for name, (column, row) in places.items():
        left, top = column * (edge + _GAP), row * (edge + _BAR + _GAP)
        orientation, colour = SLICES.get(name, ("3D", (150, 152, 200)))
        draw.rectangle((left, top, left + edge - 1, top + _BAR - 1), fill=colour)
        draw.text((left + 6, top + 2), orientation, fill=(0, 0, 0), font=font)
        view = render_3d(application, (edge, edge)) if name == "3D" else views[name]
        picture.paste(Image.fromarray(np.ascontiguousarray(view)), (left, top + _BAR))
    left, top = edge + _GAP + 8, _BAR + 8
    for row, (colour, text) in enumerate(_legend(segmentation, table)):
        y = top + 18 * row
        draw.rectangle((left, y + 2, left + 11, y + 13), fill=colour, outline=(0, 0, 0))
        draw.text((left + 17, y), text, fill=(0, 0, 0), font=font)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volume", type=Path)
    parser.add_argument("--model", default="nuclei", help="name or folder")
    parser.add_argument("-o", "--output", type=Path, default=Path("views.png"))
    parser.add_argument("--edge", type=int, default=400, help="of a view, in pixels")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        application = set_up(Path(folder))
        volume = load_volume(given.volume)
        volume.CreateDefaultDisplayNodes()
        logic = TTTUNetLogic()
        try:
            task = logic.segment(volume, model=given.model, waitForCompletion=True)
        finally:
            logic.close()
        compose(volume, task.segmentationNode, task.tableNode, application, given.edge).save(
            given.output
        )
        for _, text in _legend(task.segmentationNode, task.tableNode):
            print(text)
        slicer.mrmlScene.Clear(0)


if __name__ == "__main__":
    main()
