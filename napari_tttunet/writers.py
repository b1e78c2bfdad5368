"""napari saves Labels layers as OME-TIFF, NIfTI, NRRD or MetaImage through this plugin.

NIfTI, NRRD and MetaImage hold the whole place of the labels: spacing, origin and direction, in
millimeters. OME-TIFF holds the pixel size and its unit; for a layer that was moved or turned, a
warning says so.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from napari_tttunet.convert import labels_image


def write_labels(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Writes one Labels layer; the suffix of `path` decides the format: npe2's interface.

    Args:
        path: an existing file is replaced, napari has asked before.
        data: the labels, or the levels of a pyramid, of which the finest is written.
        meta: the layer's attributes.

    Returns:
        The path written.

    Raises:
        ImageError: negative numbers, or a place in the world that no file can hold.
        OutputError: the file cannot be written.
    """
    from tttunet.imaging import save_labels

    image = labels_image(data, meta)
    turned = not np.array_equal(image.direction, np.eye(image.ndim_spatial))
    if path.lower().endswith((".tif", ".tiff")) and (turned or any(image.origin)):
        warnings.warn(
            f"'{image.name}' is {'turned' if turned else 'moved'} in the world, which OME-TIFF "
            "cannot hold; .nii.gz and .nrrd can.",
            stacklevel=2,
        )
    return [str(save_labels(path, image.array, image, overwrite=True))]
