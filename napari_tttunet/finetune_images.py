"""Images between the viewer and a project: which layer is which, and what was corrected."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_tttunet.annotation_restore import Stored
from napari_tttunet.geometry import Transform
from napari_tttunet.layers import label_grid, layer_array
from tttunet.errors import TTTUNetError
from tttunet.projects import Project, ProjectError, Region
from tttunet.projects.schema import ImageReference


@dataclass(frozen=True, eq=False)
class Source:
    """The image that labels belong to.

    Attributes:
        layer: an Image layer.
        axes: one letter per axis of its data, colours included.
        channel: number of the one channel that counts; None: all.
    """

    layer: Any
    axes: str
    channel: int | None = None

    @property
    def kept(self) -> str:
        """The axes of the labels in a project: no channels, nothing of size 1."""
        sizes = zip(self.axes, self.layer_shape, strict=False)
        return "".join(a for a, n in sizes if a not in "CS" and (a in "YX" or n > 1))

    @property
    def layer_shape(self) -> tuple[int, ...]:
        return layer_array(self.layer).shape


@dataclass(frozen=True, eq=False)
class Opened:
    """What a thread has read of an image of the project."""

    image: ImageReference
    stored: list[Stored]
    regions: list[Region]


def add_image(
    project: Project,
    path: str | None,
    window: Any,
    axes: str,
    source: Source,
    fields: Mapping[str, Any],
) -> ImageReference:
    """By reference if the file holds what the layer shows, else as a copy."""
    shape = tuple(n for a, n in zip(axes, window.shape, strict=True) if a in source.kept)
    if path:
        with contextlib.suppress(TTTUNetError, OSError):
            from tttunet.imaging import load_image

            read = load_image(path)
            if read.array.shape[-2:] == shape[-2:] and _label_shape(read) == shape:
                same = read.axes.replace("C", "") == source.kept
                if same and ("C" in read.axes) == ("C" in axes or "S" in axes):
                    return project.add_image(path, channel=source.channel)
    array = np.asarray(window)
    given = {key: fields[key] for key in ("spacing", "origin", "unit", "channel_names", "name")
             if fields.get(key)}  # fmt: skip
    if fields.get("direction"):
        given["direction"] = np.asarray(fields["direction"])
    return project.add_image(array, axes=axes, channel=source.channel, **given)


def _label_shape(image: Any) -> tuple[int, ...]:
    return tuple(n for a, n in zip(image.axes, image.array.shape, strict=True) if a != "C")


def read_corrections(project: Project, image: ImageReference) -> Opened:
    """The corrections of an image, chunk by chunk."""
    corrections = project.corrections(image.id)
    stored = []
    for _index, summary in corrections.summaries():
        if summary.bounds is not None:
            bounds = summary.bounds
            stored.append(Stored(bounds, *corrections.read(bounds), corrections.own(bounds)))
    return Opened(image, stored, corrections.regions)


def layer_of(image: Any, reference: ImageReference, known: Sequence[tuple[Any, str]]) -> Any:
    """The layer of the viewer that shows an image of the project already; None: none does."""
    for layer, path in known:
        if path and image.path is not None and Path(path).resolve() == Path(image.path).resolve():
            return layer
        window = layer_array(layer)
        pixels = image.array if not image.rgb else np.moveaxis(image.array, -3, -1)
        alike = window.shape == pixels.shape and window.dtype == pixels.dtype
        if reference.copied and alike and np.array_equal(np.asarray(window), pixels):
            return layer
    return None


def read_image(
    project: Project, image_id: str, known: Sequence[tuple[Any, str]]
) -> tuple[Opened, Any, Any]:
    """What `show` needs; not for the window's thread.

    Args:
        project: which has it.
        image_id: which.
        known: Image layers of the viewer with their paths.

    Returns:
        The corrections, the image, and its layer (None: there is none).
    """
    image = project.load(image_id)
    opened = read_corrections(project, project.image(image_id))
    return opened, image, layer_of(image, opened.image, known)


def show(viewer: Any, image: Any, opened: Opened, layer: Any) -> tuple[list[Any], Any, Source]:
    """An image of the project in the viewer, and empty labels for its corrections.

    Args:
        viewer: napari's viewer.
        image: with its pixels.
        opened: what the project has of it.
        layer: that shows it already, see `layer_of`; None: there is none.

    Returns:
        The image's layers, the labels, and what they lie on.
    """
    from napari.layers import Labels, Layer

    from napari_tttunet.convert import image_layers

    axes, made = image.axes, [layer]
    if layer is None or layer not in viewer.layers:
        made = [Layer.create(*data) for data in image_layers(image)]
        viewer.layers.extend(made)
        layer = made[-1]
        axes = axes if image.rgb or "C" not in axes else axes.replace("C", "")
    elif "C" in axes and layer.ndim < len(axes) and not layer.rgb:
        axes = axes.replace("C", "")
    if layer.rgb:
        axes = axes.replace("C", "") + "S"
    grid = label_grid(layer, axes)
    arguments = grid.arguments()
    labels = Labels(grid.empty(np.int32), **arguments, name=f"{opened.image.name}: corrections")
    labels.metadata = {
        "tttunet": {**arguments["metadata"]["tttunet"], "image": layer.name, "corrected": True}
    }
    viewer.layers.append(labels)
    return made, labels, Source(layer, axes, opened.image.channel)


def path_of(layer: Any) -> str:
    path = getattr(getattr(layer, "source", None), "path", None)
    return str(path) if path else ""


def is_image(layer: Any) -> bool:
    from napari.layers import Image

    own = layer.metadata.get("tttunet")
    made_here = isinstance(own, dict) and "shows" in own
    return isinstance(layer, Image) and not made_here and not layer.multiscale


def label_axes(layer: Any, source: Source) -> str:
    """The axes of a Labels layer, which must lie on the grid of its image.

    Raises:
        ProjectError: it does not.
    """
    grid = label_grid(source.layer, source.axes)
    if layer.data.shape == grid.shape and np.allclose(
        Transform.of(layer).matrix, grid.transform.matrix, rtol=1e-6, atol=1e-6
    ):
        return grid.axes
    raise ProjectError(
        f"'{layer.name}' does not lie on the pixels of '{source.layer.name}'.",
        "Correct labels that cover the whole image at its full resolution.",
    )


def task_of(layer: Any) -> tuple[str, int] | None:
    """Task and dimension of the model that made labels, if the plugin knows."""
    own = layer.metadata.get("tttunet")
    model = own.get("model") if isinstance(own, dict) else None
    if not isinstance(model, dict) or model.get("task") not in ("instance", "semantic"):
        return None
    dim = model.get("dim")
    return (str(model["task"]), int(dim) if dim in (2, 3) else 2)


def mark_as_corrected(layer: Any) -> None:
    """Keep the plugin from replacing labels that somebody vouches for."""
    own = dict(layer.metadata.get("tttunet") or {})
    if not own.get("corrected"):
        layer.metadata = {**layer.metadata, "tttunet": {**own, "corrected": True}}
