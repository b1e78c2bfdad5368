"""Sequences of volumes: all frames in one run, and a sequence of segmentations of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from TTTUNetLib import Results
from TTTUNetLib.Results import SegmentLabel
from TTTUNetLib.Volumes import RequestError, VolumeImage, matrix_of, read_volume


class _Frames:
    """The frames of a sequence as one array [t, k, j, i] that the engine reads frame by frame."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = list(arrays)
        self.shape = (len(arrays), *arrays[0].shape)
        self.dtype = np.result_type(*arrays)
        self.chunks = (1, *arrays[0].shape)

    def __getitem__(self, part: Any) -> np.ndarray:
        first, *rest = part if isinstance(part, tuple) else (part,)
        if isinstance(first, int):
            return self._arrays[first][tuple(rest)]
        return np.stack([array[tuple(rest)] for array in self._arrays[first]])


def read_sequence(node: Any) -> VolumeImage:
    """Describe the volumes of a sequence; nothing is copied.

    Args:
        node: a sequence of scalar volumes on one grid.

    Raises:
        RequestError: it is empty, its items are no scalar volumes, or their grids differ.
    """
    frames = [node.GetNthDataNode(i) for i in range(node.GetNumberOfDataNodes())]
    if not frames:
        raise RequestError(_("The sequence '{0}' is empty.").format(node.GetName()))
    images = [read_volume(frame) for frame in frames]
    first, matrix = images[0], matrix_of(frames[0].GetIJKToRASMatrix)
    if first.axes != "ZYX":
        raise RequestError(
            _("'{0}' is a sequence of colours.").format(node.GetName()), _("Choose scalars.")
        )
    for frame, image in zip(frames, images, strict=True):
        same = np.array_equal(matrix_of(frame.GetIJKToRASMatrix), matrix)
        if not same or image.array.shape != first.array.shape:
            raise RequestError(
                _("The volumes of '{0}' are not on one grid.").format(node.GetName()),
                _("Segment them singly."),
            )
    stack = _Frames([image.array for image in images])
    return VolumeImage(
        array=stack,
        axes="TZYX",
        spacing=first.spacing,
        origin=first.origin,
        direction=first.direction,
        box=tuple(slice(0, size) for size in stack.shape),
        whole=stack.shape,
    )


def create_sequence(
    source: Any, labels: np.ndarray, wanted: Sequence[SegmentLabel], name: str
) -> Any:
    """A sequence of segmentations with the index of the input, played together with it.

    Args:
        source: the sequence that was segmented.
        labels: [t, k, j, i].
        wanted: segments of every frame.
        name: of the node.
    """
    result = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    result.SetIndexName(source.GetIndexName())
    result.SetIndexUnit(source.GetIndexUnit())
    result.SetIndexType(source.GetIndexType())
    for number, frame_labels in enumerate(labels):
        frame = source.GetNthDataNode(number)
        one = Results.create_segmentation(frame, frame_labels, wanted, name)
        # The frame's ID means another node outside its sequence.
        one.SetNodeReferenceID(one.GetReferenceImageGeometryReferenceRole(), None)
        result.SetDataNodeAtValue(one, source.GetNthIndexValue(number))
        slicer.mrmlScene.RemoveNode(one)
    for browser in slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"):
        if browser.IsSynchronizedSequenceNode(source, True):
            browser.AddSynchronizedSequenceNode(result)
    return result
