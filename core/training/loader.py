"""Patches in an order that depends on the seed alone, so that a run can be resumed exactly."""

from __future__ import annotations

import functools
import itertools
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tttunet.errors import DatasetError
from tttunet.training.augment import AugmentConfig, Augmenter
from tttunet.training.prepare import PreparedCase

Balance = Literal["none", "modality"]
Transform = Callable[[torch.Tensor, torch.Tensor], Any]


class PatchDataset(Dataset):
    """Augmented patches; item i depends on (seed, i) and on nothing else.

    Args:
        cases: from `prepare`.
        patch_size: spatial size of a patch; smaller images are continued by reflection.
        augment: what to do with a patch; None: nothing.
        seed: of the whole order.
        samples: the length; items beyond it exist all the same.
        oversample_foreground: share of patches that are made to contain a random object (or a
            random class that is present).
        balance: "modality" draws a case with weight n ** -balance_exponent, where n is the number
            of cases of its modality: 0 treats cases alike, 1 treats modalities alike.
        transform: called with the result, in the worker: for instance the training targets.

    Items are (image float32 [C, *patch], label int32 [*patch]), or what `transform` makes of them.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        patch_size: tuple[int, ...],
        augment: AugmentConfig | None = None,
        seed: int = 0,
        samples: int = 1000,
        oversample_foreground: float = 0.33,
        balance: Balance = "none",
        balance_exponent: float = 0.5,
        transform: Transform | None = None,
    ) -> None:
        if not cases:
            raise DatasetError("There are no cases to train on.")
        self.cases = list(cases)
        self.patch_size = tuple(patch_size)
        self.augmenter = Augmenter(augment or AugmentConfig.none(), self.patch_size)
        self.seed = seed
        self.samples = samples
        self.oversample_foreground = oversample_foreground
        self.transform = transform
        exponent = balance_exponent if balance == "modality" else 0.0
        self._cumulative = np.cumsum(_weights(self.cases, exponent))
        self._cumulative[-1] = 1.0

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        rng = np.random.default_rng((self.seed, index))
        image, label, locations = self.cases[self.case_index(index)].open()
        start = self._corner(label.shape, locations, rng)
        draw = self.augmenter.draw(rng)
        # To turn and zoom about the patch's centre, its surroundings are needed.
        source = draw.source_size
        start = [s - (n - p) // 2 for s, n, p in zip(start, source, self.patch_size, strict=True)]
        crop, crop_label = (
            torch.from_numpy(np.array(crop_reflected(array, start, source)))
            for array in (image, label)
        )
        result = self.augmenter(crop.float(), crop_label, draw)
        return result if self.transform is None else self.transform(*result)

    def case_index(self, index: int) -> int:
        """Which case item `index` is taken from.

        One epoch (as many items as there are cases) walks through the cumulated weights in equal
        steps, in random order: without balancing every case comes exactly once, with it as evenly
        as its weight allows.
        """
        n = len(self.cases)
        order, offset = _epoch(self.seed, index // n, n)
        return int(np.searchsorted(self._cumulative, (order[index % n] + offset) / n, side="right"))

    def _corner(
        self, shape: tuple[int, ...], locations: np.ndarray, rng: np.random.Generator
    ) -> list[int]:
        """Lowest index of the patch along every axis; negative where the image is smaller."""
        room = [s - p for s, p in zip(shape, self.patch_size, strict=True)]
        if len(locations) and rng.random() < self.oversample_foreground:
            value = rng.choice(np.unique(locations[:, 0]))
            first, last = np.searchsorted(locations[:, 0], [value, value + 1])
            target = locations[rng.integers(first, last), 1:]
            lowest = target - np.array(self.patch_size) + 1
            wanted = rng.integers(np.maximum(lowest, 0), target + 1).tolist()
            return [min(w, r) if r >= 0 else r // 2 for w, r in zip(wanted, room, strict=True)]
        return [int(rng.integers(r + 1)) if r >= 0 else r // 2 for r in room]


def make_loader(
    cases: Sequence[PreparedCase],
    patch_size: tuple[int, ...],
    batch_size: int,
    *,
    augment: AugmentConfig | None = None,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    workers: int = 0,
    pin_memory: bool = False,
    **options: Any,
) -> DataLoader:
    """Batches start_step, start_step + 1, ... of the one order that `seed` stands for.

    Args:
        cases: from `prepare`; keep them on disk (`cache_dir`) when `workers` is not 0.
        steps: number of batches; None: without end.
        workers: processes that prepare batches ahead, one thread each; 0: none.
        options: further arguments of `PatchDataset`.
    """
    return DataLoader(
        PatchDataset(cases, patch_size, augment, seed, **options),
        batch_sampler=_Steps(batch_size, start_step, steps),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
    )


def crop_reflected(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Cut `size` out of the last axes of `array`; beyond its borders it is mirrored.

    Args:
        array: [..., *spatial].
        start: lowest index per spatial axis; may be negative.
        size: extent per spatial axis.
    """
    first = array.ndim - len(start)
    mirrored = []
    for axis, (low, length) in enumerate(zip(start, size, strict=True), start=first):
        last = array.shape[axis] - 1
        if low >= 0 and low + length <= last + 1:
            inside = slice(low, low + length)
        else:
            index = np.abs(np.arange(low, low + length)) % max(2 * last, 1)
            index = np.minimum(index, 2 * last - index)
            inside = slice(index.min(), index.max() + 1)
            mirrored.append((axis, index - index.min()))
        array = array[(slice(None),) * axis + (inside,)]
    for axis, index in mirrored:
        array = array.take(index, axis)
    return np.asarray(array)


class _Steps(Sampler[list[int]]):
    """Index lists of consecutive batches."""

    def __init__(self, batch_size: int, start: int, steps: int | None) -> None:
        self.batch_size = batch_size
        self.start = start
        self.steps = steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.islice(itertools.count(self.start), self.steps):
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, n: int) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng((seed, epoch, n))
    return rng.permutation(n), rng.random()


def _weights(cases: Sequence[PreparedCase], exponent: float) -> np.ndarray:
    """Probability of every case: n ** -exponent for a modality of n cases, normalised."""
    counts = Counter(case.modality for case in cases)
    weights = np.array([counts[case.modality] ** -exponent for case in cases], dtype=float)
    return weights / weights.sum()


def _init_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C is for the main process, which still wants to save a checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
