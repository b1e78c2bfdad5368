"""PNG, JPEG and BMP."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging.image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_AS_STORED = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N", "F", "LA", "RGB", "RGBA")
_COLOUR_TYPES = (2, 4, 6)


def read_raster(path: Path, axes: str | None, name: str, palette_numbers: bool) -> Image:
    """Reads a PNG, JPEG or BMP file, whichever it is by its content.

    The resolution in these files is that of a printer or screen, so the spacing is 1 pixel.

    Args:
        path: an existing file.
        axes: overrides the axes (YX or YXS), one letter per dimension.
        name: name of the image.
        palette_numbers: keep the numbers of a palette image (labels) rather than its colours.

    Raises:
        ImageError: the axes do not fit. Errors of the decoders pass through.
    """
    from PIL import Image as Pillow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
        try:
            with Pillow.open(path, formats=("PNG", "JPEG", "BMP")) as picture:
                array = _decode(picture, path, palette_numbers)
        except Pillow.DecompressionBombError as error:
            raise ImageError(
                f"'{path}' has too many pixels for this format.", "Save it as a TIFF file."
            ) from error
    if axes is None:
        axes = "YX" if array.ndim == 2 else "YXS"
    return Image.from_array(array, axes, name=name, path=path)


def _decode(picture, path: Path, palette_numbers: bool) -> np.ndarray:
    if picture.format == "PNG":
        with path.open("rb") as file:
            depth, colour_type = file.read(26)[24:26]
        if depth == 16 and colour_type in _COLOUR_TYPES:
            # Pillow reduces 16-bit colour to 8 bits.
            import imagecodecs

            return imagecodecs.png_decode(path.read_bytes())
    if picture.mode in _AS_STORED or (picture.mode == "P" and palette_numbers):
        return np.asarray(picture)
    colours = np.asarray(picture.convert("RGB"))
    grey = picture.mode in ("P", "PA") and (colours == colours[..., :1]).all()
    return colours[..., 0] if grey else colours
