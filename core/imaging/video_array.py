"""A video as an array of frames that are decoded when they are asked for."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tttunet.errors import ImageError
from tttunet.imaging.frames import picture_of, video_errors

#: Decoded frames that are kept.
_KEPT = 32
#: A frame so little ahead is reached by decoding on; others by a jump to the key frame before.
_NEAR = 48


class VideoArray:
    """The frames of a video, [T, Y, X, 3] or [T, Y, X]; enough of an array for a viewer.

    Opening reads through the file once, for the time of every frame, without decoding.

    Args:
        path: of the video.

    Raises:
        ImageError: it cannot be read, or PyAV is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        with video_errors(self.path) as av:
            self._container = av.open(str(self.path))
            if not self._container.streams.video:
                raise ImageError(f"'{path}' holds no pictures, only sound.")
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            times = (_time(packet) for packet in self._container.demux(self._stream))
            self._times = sorted({time for time in times if time is not None})
        self._reading: Iterator[Any] = iter(())
        self._next = -1
        first = self[0]
        self.shape = (len(self._times), *first.shape)
        self.dtype = first.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Any index of numpy along the frames, and further ones into each.

        Raises:
            ImageError: a frame cannot be decoded.
        """
        first, *rest = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis:
            first, rest = slice(None), [Ellipsis, *rest] if rest else []
        numbers = np.arange(len(self))[first]
        inside = tuple(rest)
        if numbers.ndim == 0:
            return self._frame(int(numbers))[inside]
        found = [self._frame(int(number))[inside] for number in numbers.ravel()]
        if not found:
            return np.zeros((0, *self.shape[1:]), self.dtype)[(slice(None), *inside)]
        return np.stack(found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _frame(self, number: int) -> np.ndarray:
        with self._lock:
            if number not in self._kept:
                self._decode(number)
            self._kept.move_to_end(number)
            return self._kept[number]

    def _decode(self, number: int) -> None:
        """Decode up to a frame, from where the last one ended or from the key frame before."""
        if self._next < 0 or not 0 <= number - self._next <= _NEAR:
            with video_errors(self.path):
                self._container.seek(self._times[number], stream=self._stream)
                self._reading = iter(self._container.decode(self._stream))
        with video_errors(self.path):
            for frame in self._reading:
                time = _time(frame)
                place = len(self) if time is None else bisect.bisect_left(self._times, time)
                self._next = place + 1
                if place < number:
                    continue
                self._kept[number] = picture_of(frame)[0]
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
                return
        self._next = -1
        raise ImageError(f"Frame {number} of '{self.path}' cannot be decoded.")


def _time(one: Any) -> int | None:
    """Of a packet or a frame, in the units of the stream; AVI files have no times to show."""
    return one.dts if one.pts is None else one.pts
