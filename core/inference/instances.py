"""Instances from the network's maps: peaks of the distance map, then a watershed.

The network predicts, per pixel, the probabilities of background, interior and boundary and the
distance to the object's border divided by the object's largest distance. That ratio is 1 in the
middle and small at every border, whatever the object's size, so one prominence tells the peaks of
touching objects from noise; the watershed grows them down the distance map to the limits of the
foreground.
"""

from __future__ import annotations

import numpy as np

from tttunet.models.config import InstanceDecoding


def decode_instances(maps: np.ndarray, decoding: InstanceDecoding) -> np.ndarray:
    """Read instances from the predicted maps.

    Args:
        maps: [4, *spatial] float32: probabilities of background, interior and boundary, and the
            normalised distance. 2D or 3D.
        decoding: thresholds and sizes.

    Returns:
        [*spatial] uint32, 0 background, objects numbered 1..n.
    """
    from scipy import ndimage
    from skimage.morphology import h_maxima
    from skimage.segmentation import watershed

    probability = 1.0 - maps[0]
    foreground = probability > decoding.foreground
    distance = ndimage.gaussian_filter(maps[3].clip(0), decoding.smoothing)
    # Peaks only count inside the foreground; outside the map is noise.
    distance = np.where(foreground, distance, 0)
    peaks = h_maxima(distance, decoding.prominence).astype(bool) & foreground
    seeds, _ = ndimage.label(peaks, ndimage.generate_binary_structure(peaks.ndim, peaks.ndim))
    seeds = _add_unseeded_components(seeds, foreground)
    labels = watershed(-distance, seeds, mask=foreground)
    labels = _drop_uncertain(labels, probability, decoding.confidence)
    return clean_instances(labels, decoding.min_size, decoding.fill_holes)


def _drop_uncertain(labels: np.ndarray, probability: np.ndarray, least: float) -> np.ndarray:
    """Remove objects whose mean foreground probability is below `least`."""
    size = np.bincount(labels.ravel())
    total = np.bincount(labels.ravel(), weights=probability.ravel())
    keep = total >= least * size
    keep[0] = False
    return np.where(keep[labels], labels, 0)


def _add_unseeded_components(seeds: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Give a foreground component without a peak a seed of its own."""
    from scipy import ndimage

    components, count = ndimage.label(foreground)
    has_seed = np.zeros(count + 1, bool)
    has_seed[np.unique(components[seeds > 0])] = True
    has_seed[0] = True
    unseeded = ~has_seed[components]
    return np.where(unseeded, components + seeds.max(), seeds)


def clean_instances(labels: np.ndarray, min_size: int, fill_holes: bool) -> np.ndarray:
    """Drop small objects, fill holes inside objects, number the rest 1..n.

    Args:
        labels: [*spatial] integers, 0 background.
        min_size: in pixels or voxels.
        fill_holes: background enclosed by one object becomes part of it.

    Returns:
        [*spatial] uint32.
    """
    from scipy import ndimage

    size = np.bincount(labels.ravel())
    keep = size >= max(min_size, 1)
    keep[0] = False
    lookup = np.zeros(len(size), np.uint32)
    lookup[keep] = np.arange(1, keep.sum() + 1)
    cleaned = lookup[labels]
    if fill_holes:
        for number, box in enumerate(ndimage.find_objects(cleaned), start=1):
            view = cleaned[box]
            filled = ndimage.binary_fill_holes(view == number)
            view[filled & (view == 0)] = number
    return cleaned
