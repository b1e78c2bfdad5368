"""Peak memory and time of a large CT on its way to the network's grid and back.

The network itself is left out: its maps are made up (a ball per class). Everything else is what
`segment` does. The formulas are those of `tttunet.engine.memory` and of
`Place.to_image_labels`.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from tttunet.imaging import Image
from tttunet.imaging.intensity import Intensity
from tttunet.imaging.preprocess import preprocess
from tttunet.imaging.resample import SLAB
from tttunet.models.config import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(600, 512, 512))
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.0, 0.8, 0.8))
    parser.add_argument("--target", type=float, nargs=3, default=(1.5, 1.5, 1.5))
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1000, options.shape, np.int16)
    image = Image.from_array(array, "ZYX", spacing=options.spacing, unit="millimeter")
    rule = Intensity(scheme="ct", low=-950, high=950, mean=40, deviation=300)
    plan = Plan(
        patch_size=(128,) * 3,
        spacing=tuple(options.target),
        unit="millimeter",
        orientation="LPS",
        intensities=(rule,),
    )
    prepared, there = measured(lambda: preprocess(image, plan, 1))
    place = prepared.place
    large, small = math.prod(options.shape), math.prod(place.grid)
    del prepared
    maps = made_up_maps(place.grid, options.classes)
    values = np.arange(options.classes, dtype=np.uint8)
    labels, back = measured(lambda: place.to_image_labels(maps, values))
    if labels.shape != tuple(options.shape) or len(np.unique(labels)) != options.classes:
        raise SystemExit("The labels are wrong.")
    there["formula_gb"] = round((8 * large + 12 * small) / 1e9, 2)
    back["formula_gb"] = round((2 * large + 5 * small + 8 * min(SLAB, large)) / 1e9, 2)
    total = array.nbytes + maps.nbytes
    result: dict[str, Any] = {
        "shape": list(options.shape),
        "grid": list(place.grid),
        "classes": options.classes,
        "image_gb": round(array.nbytes / 1e9, 2),
        "maps_gb": round(maps.nbytes / 1e9, 2),
        "there": there,
        "back": back,
        "peak_of_all_gb": round(
            max(array.nbytes / 1e9 + there["peak_gb"], total / 1e9 + back["peak_gb"]), 2
        ),
    }
    print(result)
    if options.record:
        write_result("volume_memory", result)


def made_up_maps(grid: tuple[int, ...], classes: int) -> np.ndarray:
    """[K, *grid] float32 probabilities: a soft ball per organ, the rest background."""
    axes = np.ogrid[tuple(slice(0, n) for n in grid)]
    maps = np.empty((classes, *grid), np.float32)
    rng = np.random.default_rng(1)
    for one in maps[1:]:
        centre = [rng.uniform(0.3, 0.7) * n for n in grid]
        distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        np.divide(1, 1 + np.exp((np.sqrt(distance) - 0.08 * min(grid)).clip(-30, 30)), out=one)
    maps[0] = 0.3
    maps /= maps.sum(0)
    return maps


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """The result, with seconds and the peak of memory above what was in use (Linux only)."""
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    peak = status("VmHWM") - before
    return result, {"peak_gb": round(peak / 1e9, 2), "seconds": round(seconds, 1)}


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


if __name__ == "__main__":
    main()
