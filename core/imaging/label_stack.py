"""Labels of frames as an OME-TIFF file that grows page by page."""

from __future__ import annotations

import contextlib
import hashlib
import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tttunet.errors import ImageError, OutputError
from tttunet.files import atomic_write
from tttunet.imaging import tiff
from tttunet.imaging.image import Image
from tttunet.imaging.readers import image_suffix
from tttunet.imaging.writers import label_axes, ome_metadata, tiff_resolution

if TYPE_CHECKING:
    import tifffile


class LabelStack:
    """Takes the labels of one frame after the other, see `label_stack`.

    Attributes:
        frames: how many were written.
    """

    def __init__(self, file: tifffile.TiffWriter) -> None:
        self._file = file
        self._first: Image | None = None
        self._content = hashlib.sha256()
        self.frames = 0

    def add(self, labels: np.ndarray, like: Image) -> None:
        """Write the labels of the next frame.

        Args:
            labels: unsigned integers, shape of `like` without its C axis; all frames alike.
            like: the frame.

        Raises:
            ImageError: shape or dtype are not those of the frame or of the frames before.
        """
        image = like.with_array(labels, label_axes(like))
        expected = (self._first or image).array
        if (labels.shape, labels.dtype) != (expected.shape, expected.dtype):
            raise ImageError(
                f"The labels of frame {self.frames} are {labels.dtype} of the shape "
                f"{labels.shape}, the first ones {expected.dtype} of {expected.shape}."
            )
        planes = np.ascontiguousarray(labels).reshape(-1, *labels.shape[-2:])
        self._content.update(planes.data)
        for number, plane in enumerate(planes):
            self._file.write(
                plane,
                photometric="minisblack",
                compression="zlib",
                metadata=None,
                description=None if self.frames or number else "-",  # replaced at the end
                **tiff_resolution(image),
            )
        self._first = self._first or image
        self.frames += 1

    def description(self, interval: float | None) -> str:
        """OME-XML that says what the pages are."""
        import tifffile

        if self._first is None:
            raise ImageError("There are no frames to write labels of.")
        shape = (self.frames, *self._first.array.shape)
        metadata = ome_metadata(self._first)
        if interval:
            metadata |= {"TimeIncrement": interval, "TimeIncrementUnit": "s"}
        # Equal labels give equal files.
        content = uuid.uuid5(uuid.NAMESPACE_OID, self._content.hexdigest())
        xml = tifffile.OmeXml(UUID=str(content))
        stored = (math.prod(shape[:-2]), 1, 1, *shape[-2:], 1)
        axes = "T" + self._first.axes
        xml.addimage(self._first.array.dtype, shape, stored, axes=axes, **metadata)
        return xml.tostring()


@contextlib.contextmanager
def label_stack(
    path: str | Path, *, interval: float | None = None, overwrite: bool = False
) -> Iterator[LabelStack]:
    """Labels of any number of frames in a file that appears when all are written.

        with label_stack("labels.ome.tif") as stack:
            for image, labels in ...:
                stack.add(labels, image)

    The file is a BigTIFF with a compressed page per plane. Its description is written last, so
    nobody needs to know the number of frames before; one frame is in memory at a time.

    Args:
        path: ends in .ome.tif or .tif.
        interval: seconds between two frames; None: not known.
        overwrite: replace an existing file.

    Raises:
        OutputError: the name is no TIFF file's, or the file cannot be written.
        ImageError: there was no frame.
    """
    import tifffile

    if image_suffix(path) not in tiff.SUFFIXES:
        raise OutputError(
            f"'{path}' is of a type that labels of frames cannot be written to.",
            "Choose a name that ends in .ome.tif.",
        )
    with atomic_write(path, overwrite=overwrite) as temporary:
        with tifffile.TiffWriter(temporary, bigtiff=True) as file:
            stack = LabelStack(file)
            yield stack
        tifffile.tiffcomment(temporary, stack.description(interval).encode())
