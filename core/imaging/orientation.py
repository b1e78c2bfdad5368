"""Which way the axes of a volume run, in the letters of medicine.

Letters are given as ITK gives them: for the axes x, y, z (the last array axis first), the side
that each runs towards: Left or Right, Posterior or Anterior, Superior or Inferior. "LPS" has the
identity as its direction; nibabel's "RAS" names the same thing.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from tttunet.errors import ImageError

#: World axis in array order (z, y, x, as `Image.direction` has them) and sign of every letter.
_LETTERS = {"S": (0, 1), "I": (0, -1), "P": (1, 1), "A": (1, -1), "L": (2, 1), "R": (2, -1)}


def check_orientation(orientation: str) -> str:
    """`orientation` itself.

    Raises:
        ValueError: it does not name each of the three directions once.
    """
    if len(orientation) != 3 or {_LETTERS.get(letter, (3, 0))[0] for letter in orientation} != {
        0,
        1,
        2,
    }:
        raise ValueError(f"'{orientation}' is no orientation such as LPS or RAS")
    return orientation


def orientation_of(direction: np.ndarray) -> str:
    """The letters that come nearest to a direction.

    Args:
        direction: [3, 3], see `Image.direction`.
    """
    order = _nearest(direction)
    names = {place: letter for letter, place in _LETTERS.items()}
    signs = [1 if direction[world, axis] >= 0 else -1 for axis, world in enumerate(order)]
    return "".join(names[world, sign] for world, sign in zip(order, signs, strict=True))[::-1]


def towards(
    direction: np.ndarray, orientation: str
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to permute and flip axes so that they run as nearly as possible as `orientation` says.

    Args:
        direction: [3, 3], see `Image.direction`.
        orientation: such as "LPS".

    Returns:
        For every new axis (z, y, x) which old one it is, and whether it is flipped.

    Raises:
        ImageError: the image has no three spatial axes.
    """
    if direction.shape != (3, 3):
        raise ImageError(
            "The model wants volumes in a fixed orientation, and the image is flat.",
            "Choose a volume, or a model for single images.",
        )
    order = _nearest(direction)
    wanted = [_LETTERS[letter] for letter in reversed(check_orientation(orientation))]
    sources = [order.index(world) for world, _ in wanted]
    flips = [
        bool(direction[world, axis] * sign < 0)
        for axis, (world, sign) in zip(sources, wanted, strict=True)
    ]
    return (sources[0], sources[1], sources[2]), (flips[0], flips[1], flips[2])


def _nearest(direction: np.ndarray) -> tuple[int, ...]:
    """The world axis that each array axis is nearest to, all different."""
    size = np.abs(direction)
    return max(permutations(range(3)), key=lambda p: sum(size[w, a] for a, w in enumerate(p)))
