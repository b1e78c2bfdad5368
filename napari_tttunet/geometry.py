"""Where the pixels of a layer lie in napari's world, and which pixels a place in the world has.

napari maps the data coordinates p of a layer to the world by

    world = affine @ (rotate @ shear @ diag(scale) @ p + translate)

with integers at the centres of pixels. `Transform` holds these five parts as they are, so that a
Labels layer on another grid (a crop, a level of a pyramid) gets the image layer's own rotate,
shear and affine rather than numbers that were taken apart again.

Layers are only read here, through attributes that napari 0.5.6 to 0.9 share; neither napari nor
Qt is imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tttunet.errors import ImageError

#: First and last-plus-one index per data axis (without the colour axis of an RGB layer).
Bounds = tuple[tuple[int, int], ...]

#: A corner this close to the border between two pixels (in pixels) lies on it.
_ON_BORDER = 1e-6


@dataclass(frozen=True, eq=False)
class Transform:
    """How data coordinates become world coordinates, for n axes.

    Attributes:
        scale, translate: [n].
        rotate, shear: [n, n].
        affine: [n + 1, n + 1], applied last.
    """

    scale: np.ndarray
    translate: np.ndarray
    rotate: np.ndarray
    shear: np.ndarray
    affine: np.ndarray

    @classmethod
    def of(cls, layer: Any) -> Transform:
        """The transform of a layer (of level 0, if it has several)."""
        n = layer.ndim
        return cls.build(
            n, layer.scale, layer.translate, layer.rotate, layer.shear, layer.affine.affine_matrix
        )

    @classmethod
    def build(
        cls,
        ndim: int,
        scale: Any = None,
        translate: Any = None,
        rotate: Any = None,
        shear: Any = None,
        affine: Any = None,
    ) -> Transform:
        """From the keyword arguments of a layer, in any of the forms that napari takes.

        Raises:
            ImageError: the parts are not finite or do not fit `ndim`.
        """
        try:
            transform = cls(
                _vector(scale, ndim, 1.0),
                _vector(translate, ndim, 0.0),
                _matrix(_rotation(rotate), ndim),
                _matrix(_shear(shear), ndim),
                _matrix(getattr(affine, "affine_matrix", affine), ndim + 1),
            )
        except ValueError as error:
            raise ImageError(f"The layer's transform cannot be used: {error}.") from error
        if not np.isfinite(transform.matrix).all():
            raise ImageError("The layer's transform has numbers that are not finite.")
        return transform

    @property
    def ndim(self) -> int:
        return len(self.scale)

    @property
    def matrix(self) -> np.ndarray:
        """[n + 1, n + 1], all five parts composed."""
        physical = np.eye(self.ndim + 1)
        physical[:-1, :-1] = self.rotate @ self.shear @ np.diag(self.scale)
        physical[:-1, -1] = self.translate
        return self.affine @ physical

    def to_world(self, points: Any) -> np.ndarray:
        """Data coordinates [..., n] to world coordinates."""
        matrix = self.matrix
        return np.asarray(points, float) @ matrix[:-1, :-1].T + matrix[:-1, -1]

    def to_data(self, points: Any) -> np.ndarray:
        """World coordinates [..., n] to data coordinates.

        Raises:
            ImageError: the transform flattens an axis.
        """
        matrix = self.matrix
        return _solve(matrix[:-1, :-1], np.asarray(points, float) - matrix[:-1, -1])

    def regrid(self, factors: ArrayLike, offsets: ArrayLike) -> Transform:
        """The transform of another grid, whose point p lies at `factors * p + offsets` here."""
        linear = self.rotate @ self.shear @ np.diag(self.scale)
        return replace(
            self,
            scale=self.scale * np.asarray(factors, float),
            translate=self.translate + linear @ np.asarray(offsets, float),
        )

    def without(self, axis: int) -> Transform | None:
        """The transform of the other axes; None if they are not independent of `axis`."""
        parts = (self.rotate, self.shear, self.affine[:-1, :-1])
        if any(_mixes(part, axis) for part in parts):
            return None
        kept = [i for i in range(self.ndim + 1) if i != axis]
        return Transform(
            self.scale[kept[:-1]],
            self.translate[kept[:-1]],
            self.rotate[np.ix_(kept[:-1], kept[:-1])],
            self.shear[np.ix_(kept[:-1], kept[:-1])],
            self.affine[np.ix_(kept, kept)],
        )

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of a layer with this transform; identity parts are left out."""
        arguments: dict[str, Any] = {"scale": self.scale, "translate": self.translate}
        for name in ("rotate", "shear", "affine"):
            part = getattr(self, name)
            if not np.array_equal(part, np.eye(len(part))):
                arguments[name] = part
        return arguments


# Grids


def level_factors(shape: Sequence[int], level_shape: Sequence[int]) -> tuple[float, ...]:
    """Pixels of level 0 per pixel of a level, per axis, as napari shows it."""
    return tuple(a / max(b, 1) for a, b in zip(shape, level_shape, strict=True))


def level_transform(transform: Transform, factors: Sequence[float]) -> Transform:
    """The transform of a level of a pyramid; the outer borders of all levels coincide."""
    steps = np.asarray(factors, float)
    return transform.regrid(steps, (steps - 1) / 2)


def crop_transform(transform: Transform, bounds: Bounds) -> Transform:
    """The transform of the part `bounds` of the data."""
    return transform.regrid(np.ones(len(bounds)), [start for start, _ in bounds])


def full_bounds(shape: Sequence[int]) -> Bounds:
    return tuple((0, int(size)) for size in shape)


def scale_bounds(bounds: Bounds, factors: Sequence[float], shape: Sequence[int]) -> Bounds:
    """Bounds of level 0 as bounds of a level: every pixel that has a share in them.

    Args:
        bounds: of level 0.
        factors: see `level_factors`.
        shape: of the level.
    """
    low = [start / f - 0.5 for (start, _), f in zip(bounds, factors, strict=True)]
    high = [stop / f - 0.5 for (_, stop), f in zip(bounds, factors, strict=True)]
    return pixel_bounds(low, high, shape)


def pixel_bounds(low: Sequence[float], high: Sequence[float], shape: Sequence[int]) -> Bounds:
    """The pixels that a box of data coordinates has a share in, at least one per axis.

    Raises:
        ImageError: the box lies outside the data.
    """
    bounds = []
    for a, b, size in zip(low, high, shape, strict=True):
        start = int(np.floor(np.clip(a + 0.5 + _ON_BORDER, -1, size + 1)))
        stop = int(np.ceil(np.clip(b + 0.5 - _ON_BORDER, -1, size + 1)))
        start, stop = max(start, 0), min(max(stop, start + 1), size)
        if start >= stop:
            raise ImageError("The chosen region lies outside the image.", "Move it onto the image.")
        bounds.append((start, stop))
    return tuple(bounds)


def bounds_of_points(
    transform: Transform, points: np.ndarray, axes: Sequence[int], shape: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """The pixels around points of the world that are known along some axes only.

    The other axes are left out of the transform, which is what napari does when it draws a plane
    of more dimensions.

    Args:
        transform: of the data.
        points: world coordinates, [points, len(axes)].
        axes: the world axes of these coordinates, which are also the data axes.
        shape: of the data, all axes.

    Returns:
        Bounds per axis of `axes`.

    Raises:
        ImageError: the points lie outside the data, or the transform flattens an axis.
    """
    chosen = list(axes)
    matrix = transform.matrix
    block = matrix[np.ix_(chosen, chosen)]
    data = _solve(block, np.asarray(points, float) - matrix[chosen, -1])
    found = pixel_bounds(data.min(0), data.max(0), [shape[axis] for axis in chosen])
    return dict(zip(chosen, found, strict=True))


def corners(low: Iterable[float], high: Iterable[float]) -> np.ndarray:
    """The 2**n corners of a box, [2**n, n]."""
    return np.array(list(itertools.product(*zip(low, high, strict=True))), float)


# Parts of a transform in the forms that napari takes


def _vector(values: Any, ndim: int, default: float) -> np.ndarray:
    """napari pads what is too short with the default at the front."""
    vector = np.full(ndim, default)
    if values is not None and len(values):
        vector[ndim - len(values) :] = values
    return vector


def _matrix(values: Any, size: int) -> np.ndarray:
    """Embedded at the end of an identity matrix, as napari does."""
    matrix = np.eye(size)
    if values is not None:
        values = np.asarray(values, float)
        if values.ndim != 2 or values.shape[0] != values.shape[1] or len(values) > size:
            raise ValueError(f"a matrix of shape {values.shape} for {size} axes")
        matrix[size - len(values) :, size - len(values) :] = values
    return matrix


def _rotation(rotate: Any) -> Any:
    if rotate is None or np.ndim(rotate) == 2:
        return rotate
    if np.ndim(rotate) == 0:
        return _turn(2, (0, 1), float(rotate))
    if len(rotate) != 3:
        raise ValueError(f"a rotation by {len(rotate)} angles")
    # Yaw, pitch and roll, in degrees.
    planes = ((0, 1), (2, 0), (1, 2))
    first, second, third = (_turn(3, p, a) for p, a in zip(planes, rotate, strict=True))
    return first @ second @ third


def _turn(size: int, plane: tuple[int, int], degrees: float) -> np.ndarray:
    matrix, angle = np.eye(size), np.deg2rad(degrees)
    i, j = plane
    matrix[[i, j], [i, j]] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def _shear(shear: Any) -> Any:
    """A vector holds the entries above the diagonal, row by row."""
    if shear is None or np.ndim(shear) == 2:
        return shear
    size = round((1 + np.sqrt(1 + 8 * len(shear))) / 2)
    matrix = np.eye(size)
    matrix[np.triu_indices(size, 1)] = shear
    return matrix


def _mixes(linear: np.ndarray, axis: int) -> bool:
    """Whether `axis` depends on other axes, or they on it."""
    others = [i for i in range(len(linear)) if i != axis]
    return bool(np.any(linear[axis, others]) or np.any(linear[others, axis]))


def _solve(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.solve(matrix, values.T.reshape(len(matrix), -1)).T.reshape(values.shape)
    except np.linalg.LinAlgError as error:
        raise ImageError(
            "The layer's transform makes an axis flat.", "Check its scale, shear and affine."
        ) from error
