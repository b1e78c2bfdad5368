"""Images: reading, axes and geometry, normalisation, tiles, writing.

Everything is imported on first use of a format, so importing this package is cheap.
"""

from tttunet.imaging.image import Image
from tttunet.imaging.normalise import normalise, prepare_channels
from tttunet.imaging.overlay import draw_overlay
from tttunet.imaging.readers import image_stem, image_suffix, load_image, load_labels
from tttunet.imaging.tiles import gaussian_weight, tile_grid
from tttunet.imaging.writers import label_axes, save_labels, save_maps, save_overlay, save_table

__all__ = [
    "Image",
    "draw_overlay",
    "gaussian_weight",
    "image_stem",
    "image_suffix",
    "label_axes",
    "load_image",
    "load_labels",
    "normalise",
    "prepare_channels",
    "save_labels",
    "save_maps",
    "save_overlay",
    "save_table",
    "tile_grid",
]
