"""Time to segment a 512 x 512 image on the CPU with a shipped model, and where it goes.

The image is a mosaic of a shipped sample, so that the decoding has real objects to find. All parts
are timed alternately in one run; the floor is the network's arithmetic at the rate of a large
matrix product on the same threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.resources import files

import numpy as np
import torch
from record import write_result

from tttunet.imaging import Image, load_image, normalise, prepare_channels
from tttunet.inference.instances import decode_instances
from tttunet.inference.segment import predict_maps, segment
from tttunet.models.model import load_model
from tttunet.networks.cost import count_cost

SIZE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    plan, network = model.config.plan, model.config.network
    image = _mosaic()
    array = normalise(
        prepare_channels(image, plan.channels, network.input_channels),
        plan.normalisation,
        plan.percentiles,
    )
    maps = predict_maps(model, array)
    parts: dict[str, Callable[[], object]] = {
        "segment": lambda: segment(image, model, device="cpu"),
        "network": lambda: predict_maps(model, array),
        "decoding": lambda: decode_instances(maps, plan.decoding),
    }
    times = {name: [_seconds(part)] for name, part in parts.items()}
    for _ in range(options.rounds):
        for name, part in parts.items():
            times[name].append(_seconds(part))
    macs = count_cost(network, (SIZE, SIZE)).macs
    rate = _matrix_rate()
    result = {
        "model": f"{model.config.name} {model.config.version}",
        "size": [SIZE, SIZE],
        "objects": int(segment(image, model, device="cpu").count),
        "seconds": {
            name: {
                "first": round(t[0], 3),
                "best": round(min(t[1:]), 3),
                "median": round(statistics.median(t[1:]), 3),
            }
            for name, t in times.items()
        },
        "network_gmacs": round(macs / 1e9, 2),
        "matrix_product_gmacs_per_second": round(rate / 1e9, 1),
        "network_floor_seconds": round(macs / rate, 3),
    }
    for key, value in result.items():
        print(key, value)
    write_result("segment_speed", result)


def _mosaic() -> Image:
    sample = files("tttunet.resources") / "samples" / "fluorescence_crowded.png"
    array = load_image(str(sample)).array
    array = array[0] if array.ndim == 3 else array
    repeats = [-(-SIZE // n) for n in array.shape]
    return Image.from_array(np.tile(array, repeats)[:SIZE, :SIZE].copy(), axes="YX")


def _seconds(part: Callable[[], object]) -> float:
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def _matrix_rate(n: int = 2048) -> float:
    """Multiply-accumulates per second of a large fp32 matrix product."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return n**3 / min(_seconds(lambda: a @ b) for _ in range(5))


if __name__ == "__main__":
    main()
