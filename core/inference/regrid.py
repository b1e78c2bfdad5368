"""Segmentation where the network's grid is not the image's: there, and exactly back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tttunet.imaging.resample import likeliest, resample_maps

if TYPE_CHECKING:
    from tttunet.imaging.preprocess import Place, Prepared
    from tttunet.inference.tiled import TileDone

Index = tuple[int, ...]
#: predict(plane, losses, tile_done) -> maps: [C, *grid] to [K, *grid], or None for a constant
#: plane. `losses` is None or [2, *grid], to be filled.
Predict = Callable[[np.ndarray, np.ndarray | None, Any], np.ndarray | None]


def labels_on_image(
    prepared: Prepared,
    dim: int,
    predict: Predict,
    values: np.ndarray,
    losses: np.ndarray | None,
    tile_done: TileDone | None,
) -> np.ndarray:
    """Classes of one time point on the image's grid; the maps are never in memory there.

    Args:
        prepared: from `preprocess`.
        dim: of the network; a 2D network takes a volume slice by slice.
        predict: gives the network's maps.
        values: [K], the label of every class.
        losses: [2, *image] float32, receives the adaptation map; or None.
        tile_done: receives finished tiles, on the image's grid.

    Returns:
        [*image] of the dtype of `values`.
    """
    place = prepared.place
    labels = np.full(place.cropped, values[0])
    for index, maps in _planes(prepared, dim, predict, losses, tile_done):
        if maps is not None:
            labels[index] = likeliest(maps, *_target(place, dim), values)
    return place.turned_back(labels, values[0])


def maps_on_image(
    prepared: Prepared,
    dim: int,
    predict: Predict,
    channels: int,
    losses: np.ndarray | None,
    tile_done: TileDone | None,
) -> np.ndarray | None:
    """The network's maps of one time point on the image's grid; None if all of it is constant.

    Args:
        channels: K.
        The others are those of `labels_on_image`.

    Returns:
        [K, *image] float32; certainly background (the first map) outside of a crop.
    """
    place, background = prepared.place, np.eye(1, channels, dtype=np.float32)[0]
    whole: np.ndarray | None = None
    for index, maps in _planes(prepared, dim, predict, losses, tile_done):
        if maps is None:
            continue
        made = resample_maps(maps, *_target(place, dim))
        if not index:  # all there is, so there is nothing to put together
            whole = made
            continue
        if whole is None:
            whole = np.empty((channels, *place.cropped), np.float32)
            whole[...] = background.reshape(-1, 1, 1, 1)
        whole[np.index_exp[:] + index] = made
    return None if whole is None else place.turned_back(whole, background)


def _planes(
    prepared: Prepared,
    dim: int,
    predict: Predict,
    losses: np.ndarray | None,
    tile_done: TileDone | None,
) -> Iterator[tuple[Index, np.ndarray | None]]:
    """Maps of every plane on the network's grid, and its place on the leading axes."""
    place, array = prepared.place, prepared.array
    lead = array.shape[1 : array.ndim - dim]
    kept = None if losses is None else np.zeros((2, *array.shape[1:]), np.float32)
    for index in np.ndindex(lead):
        here = np.index_exp[:] + index
        tell = None if tile_done is None else _on_image(tile_done, place, index)
        yield index, predict(array[here], None if kept is None else kept[here], tell)
    if losses is not None and kept is not None:
        losses[...] = place.to_image_maps(kept)


def _target(place: Place, dim: int) -> tuple[tuple[int, ...], int | None]:
    """Shape of a plane before it was resampled, and its coarse axis."""
    lead = len(place.cropped) - dim
    coarse = place.coarse_back
    return place.cropped[lead:], None if coarse is None or coarse < lead else coarse - lead


def _on_image(tile_done: TileDone, place: Place, index: Index) -> TileDone:
    lead = tuple(slice(i, i + 1) for i in index)

    def tell(tile: tuple[slice, ...], maps: np.ndarray) -> None:
        maps = maps.reshape(len(maps), *(1 for _ in lead), *maps.shape[1:])
        box, there = place.to_image_tile((*lead, *tile), maps)
        if there.size:
            tile_done(box, there)

    return tell
