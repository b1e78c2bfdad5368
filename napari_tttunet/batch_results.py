"""What a batch left behind, shown in the viewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari_tttunet.class_labels import described_classes, look_of_classes
from napari_tttunet.convert import LayerData, image_layers
from napari_tttunet.readers import read_videos


@dataclass(frozen=True)
class Result:
    """The layers of an image and of its labels."""

    images: list[LayerData]
    labels: list[LayerData]

    def show(self, viewer: Any) -> None:
        """Add them to a viewer, on the same grid; an image that is there already stays."""
        from napari.layers import Layer

        for data, arguments, kind in (*self.images, *self.labels):
            known = _layer(viewer, arguments)
            if known is not None and kind == "image":
                continue
            if known is not None and not _is_same(known.data, data):
                known = None  # the user, or another model, changed the labels
            layer = known or viewer.add_layer(Layer.create(data, arguments, kind))
            viewer.layers.selection.active = layer


def load_result(source: str, labels: str, fields: Mapping[str, Any]) -> Result:
    """Read an image and its labels, with the readers that the batch itself uses; not a whole video.

    Classes get the names and colours of the model, if it is still in the library.

    Args:
        source, labels: the files.
        fields: of the batch file: `axes`, `model` and `frames`.

    Raises:
        ImageError: one of them cannot be read.
    """
    from tttunet.imaging import load_image, load_labels
    from tttunet.imaging.frames import is_video

    if is_video(source):
        images = read_videos(source)
    elif fields["frames"] and Path(source).is_dir():
        images = _film(Path(source), fields["axes"])
    else:
        images = image_layers(load_image(source, fields["axes"]), "image")
    found = image_layers(load_labels(labels), "labels")
    for layers, path in ((images, source), (found, labels)):
        for _, arguments, _ in layers:
            arguments["metadata"]["tttunet"]["path"] = path
    own = {"model": fields["model"], "classes": _classes(fields["model"])}
    for _, arguments, _ in found:
        arguments |= look_of_classes(own)
        arguments["metadata"]["tttunet"] |= own
    return Result(images, found)


def _film(folder: Path, axes: str | None) -> list[LayerData]:
    """The pictures of a folder as frames, each of which is read when it is shown."""
    import dask
    import dask.array as da

    from tttunet.imaging import Image, load_image
    from tttunet.imaging.frames import open_frames

    frames = open_frames(folder, axes)

    def layers(image: Image) -> list[LayerData]:
        frame = replace(image, array=image.array[None], axes="T" + image.axes, name=frames.name)
        return image_layers(frame)

    read = dask.delayed(lambda file, place: layers(load_image(file, axes))[place][0])

    def stack(place: int, like: Any) -> Any:
        shown = (read(file, place) for file in frames.files)
        return da.concatenate([da.from_delayed(one, like.shape, like.dtype) for one in shown])

    return [
        (stack(place, first), arguments, kind)
        for place, (first, arguments, kind) in enumerate(layers(frames.first))
    ]


def _classes(model: str | list[str]) -> list[dict[str, Any]]:
    from napari_tttunet.dock_work import read_library

    names = [model] if isinstance(model, str) else model  # that are averaged find the same
    for entry in read_library():
        if {entry["name"], entry["path"]} & set(names) and entry["error"] is None:
            return described_classes(entry)
    return []


def _layer(viewer: Any, arguments: Mapping[str, Any]) -> Any:
    """The layer that shows a file already."""
    path = arguments["metadata"]["tttunet"]["path"]
    for layer in viewer.layers:
        own = layer.metadata.get("tttunet") or {}
        if own.get("path") == path and layer.name.startswith(arguments["name"]):
            return layer
    return None


def _is_same(shown: Any, data: Any) -> bool:
    return bool(shown.shape == data.shape and (shown == data).all())
