"""The first Labels layer of a session, made where nobody waits for it.

For that one napari imports pandas and loads compiled colour functions: a second in which a window
does not answer, just when the first result arrives. Here a thread does the same beforehand.

It begins only when there is a layer. The first one makes napari read its units, in whatever thread
that is, and until they are read no other thread can make a layer: an image that is opened
meanwhile would be refused.
"""

from __future__ import annotations

import contextlib
import gc
import threading

import numpy as np

_once = threading.Lock()
#: As results and previews come.
_DTYPES = (np.int32, np.uint8)


def warm_up() -> threading.Thread | None:
    """Start the thread; None if there was one before."""
    if not _once.acquire(blocking=False):
        return None
    thread = threading.Thread(target=_make_layers, name="tttunet-warm-up", daemon=True)
    thread.start()
    return thread


def _make_layers() -> None:
    # Modules are many new objects, after which Python looks through all there are, and every
    # thread waits: those from before are left out meanwhile.
    gc.freeze()
    # Whatever fails here is told where a layer is really made.
    with contextlib.suppress(Exception):
        from napari.layers import Labels

        for dtype in _DTYPES:
            Labels(np.eye(2, dtype=dtype))
        import napari._vispy.layers.labels  # noqa: F401
    gc.unfreeze()
