"""Sample images for napari's menu File > Open Sample; `resources/samples` says where from."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tttunet.imaging.image import Image

#: What napari adds a layer from: data, keyword arguments of the layer, type of the layer.
LayerData = tuple[Any, dict[str, Any], str]


def fluorescence() -> list[LayerData]:
    return [_sample("fluorescence")]


def fluorescence_crowded() -> list[LayerData]:
    return [_sample("fluorescence_crowded")]


def histology_purple() -> list[LayerData]:
    return [_sample("histology_purple")]


def histology_white() -> list[LayerData]:
    return [_sample("histology_white")]


def _sample(name: str) -> LayerData:
    from tttunet.imaging.readers import load_image

    with as_file(files("tttunet.resources") / "samples" / f"{name}.png") as path:
        return image_layer(load_image(path))


def image_layer(image: Image) -> LayerData:
    """An image as napari wants it: colour last, other channels as layers of their own.

    Args:
        image: any `Image`; its spacing becomes the layer's scale, time has scale 1.
    """
    data = image.array
    arguments: dict[str, Any] = {"name": image.name}
    if "C" in image.axes:
        channel = image.axes.index("C")
        if image.rgb:
            others = [axis for axis in range(data.ndim) if axis != channel]
            data = data.transpose(*others, channel)
            arguments["rgb"] = True
        else:
            arguments["channel_axis"] = channel
    time = (1.0,) if "T" in image.axes else ()
    arguments["scale"] = (*time, *image.spacing)
    return data, arguments, "image"
