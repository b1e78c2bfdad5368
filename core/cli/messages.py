"""From an exception to one sentence."""

from __future__ import annotations

import errno

from tttunet.errors import TTTUNetError


def explain(error: Exception) -> str:
    """What a user reads about an error: what is wrong, and what to do about it."""
    if isinstance(error, TTTUNetError):
        return str(error)
    # torch's error is known by its name: torch may not have been imported.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "There is not enough memory. Close other programs, or choose a smaller --tile."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full. Free some space or choose another folder."
    text = (str(error).strip().splitlines() or [""])[0]
    name = type(error).__name__
    return f"Unexpected {name}{f': {text}' if text else ''}. Run again with --debug to see more."
