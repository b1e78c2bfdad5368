"""Tiled inference on the CPU beside nnU-Net v2's predictor: same weights, image and tiles.

Three processes take turns, so that none profits from what another one changes (allocator, caches):

    ours                    our tiled inference with our network
    nnU-Net, plain network  nnU-Net's predictor with the network as plain PyTorch code: what its
                            users run
    nnU-Net, our network    nnU-Net's predictor with our network: what the tiling alone is worth

Before anything is timed, all three must label the pixels alike. nnU-Net adds up logits in half
precision; we add up probabilities in single precision, so pixels where two classes are equally
likely may differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from paired import Peer, ratio, run_in_turns
from record import write_result

OVERLAP = 0.25
#: Share of pixels that may be labelled differently.
GATE_TOLERANCE = 1e-3
MODELS = {2: "nuclei", 3: "hippocampus-mr"}
MISSING = """nnU-Net v2 is not installed, so there is nothing to compare with. Install it without \
its own dependencies, which would bring a CUDA build of PyTorch, into a folder of its own:
  pip install --no-deps --target DIR nnunetv2 dynamic-network-architectures acvl-utils seaborn \
yacs blosc2 graphviz tqdm msgpack ndindex nibabel numexpr httpx httpcore anyio h11 sniffio
  PYTHONPATH=DIR python benchmarks/tiled_inference.py"""

Segment = Callable[[], np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, choices=(2, 3), default=2)
    parser.add_argument("--model", help="default nuclei in 2D, hippocampus-mr in 3D")
    parser.add_argument("--tile", type=int, help="side; default 512 in 2D, 64 in 3D")
    parser.add_argument("--tiles", type=int, help="per axis; default 3 in 2D, 2 in 3D")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", help="name of the result file")
    options = parser.parse_args()
    if find_spec("nnunetv2") is None:
        print(MISSING)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        return _compare(options, Path(folder))


def _compare(options: argparse.Namespace, work: Path) -> int:
    settings = _prepare(options, work)
    tile = settings["tile"]
    peers = {
        "ours": Peer(ours, work, tile, threads=options.threads),
        "nnU-Net, plain network": Peer(nnunet, work, tile, True, threads=options.threads),
        "nnU-Net, our network": Peer(nnunet, work, tile, False, threads=options.threads),
    }
    reference = peers["ours"]
    differ = {name: float((p.result != reference.result).mean()) for name, p in peers.items()}
    if max(differ.values()) > GATE_TOLERANCE:
        print(f"Nothing was timed: too many pixels are labelled differently ({differ}).")
        return 1
    run_in_turns(peers.values(), options.rounds)
    for peer in peers.values():
        peer.close()
    arms = {}
    for name, peer in peers.items():
        cpu = [a / b for a, b in zip(peer.times.cpu, reference.times.cpu, strict=True)]
        arms[name] = {
            **peer.times.summary(),
            "times_slower": [round(x, 3) for x in ratio(peer.times, reference.times)],
            "times_more_cpu": round(float(np.median(cpu)), 3),
            "pixels_labelled_differently": differ[name],
        }
        print(name, arms[name])
    write_result(options.result or f"tiled_inference_{options.dim}d", {**settings, "arms": arms})
    return 0


def _prepare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Write the model and the image for the peers; gives the settings."""
    from tttunet.bench.inference import make_image
    from tttunet.imaging import normalise, prepare_channels
    from tttunet.models.model import load_model

    model = load_model(options.model or MODELS[options.dim])
    model.save(work / "model")
    tile = options.tile or (512 if options.dim == 2 else 64)
    count = options.tiles or (3 if options.dim == 2 else 2)
    # A whole number of steps, so that the tiles of both lie in the same places.
    side = tile + (count - 1) * int(tile * (1 - OVERLAP))
    config = model.config
    if any(side % stride for stride in config.network.total_stride):
        raise SystemExit(f"An image of {side} would be padded: choose another --tile.")
    image = make_image(model, (side,) * options.dim)
    channels = prepare_channels(image, config.plan.channels, config.network.input_channels)
    array = normalise(channels, config.plan.normalisation, config.plan.percentiles)
    np.save(work / "image.npy", array.astype(np.float32))
    return {
        "model": f"{config.name} {config.version}",
        "image": list(array.shape),
        "tile": [tile] * options.dim,
        "tiles": count**options.dim,
        "overlap": OVERLAP,
        "threads": options.threads,
        "rounds": options.rounds,
    }


def ours(work: Path, tile: list[int]) -> Segment:
    """Set up our own arm."""
    from tttunet.inference.allocator import tune_allocator
    from tttunet.inference.tiled import activation_of, predict

    tune_allocator()
    model, image, classes = _load(work)

    def segment() -> np.ndarray:
        maps = predict(
            model.network,
            image,
            activation_of(model.config),
            tile=tile,
            stride=model.config.network.total_stride,
            overlap=OVERLAP,
        )
        return torch.from_numpy(maps)[:classes].argmax(0).numpy()

    return segment


def nnunet(work: Path, tile: list[int], plain: bool) -> Segment:
    """Set up nnU-Net's predictor, with the network in plain PyTorch or as we have it."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from plain_network import use_plain_operators

    if plain:
        use_plain_operators()
    model, image, classes = _load(work)
    predictor = nnUNetPredictor(
        tile_step_size=1 - OVERLAP,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    heads = SimpleNamespace(num_segmentation_heads=model.config.network.output_channels)
    predictor.manual_initialization(
        network=model.network,
        plans_manager=SimpleNamespace(get_label_manager=lambda _: heads),
        configuration_manager=SimpleNamespace(patch_size=tuple(tile)),
        parameters=None,
        dataset_json={},
        trainer_name="",
        inference_allowed_mirroring_axes=None,
    )
    # It takes a 2D image as a stack of one slice.
    source = torch.from_numpy(image if image.ndim == 4 else image[:, None])

    def segment() -> np.ndarray:
        logits = predictor.predict_sliding_window_return_logits(source)
        labels = logits[:classes].argmax(0).numpy()
        return labels if image.ndim == 4 else labels[0]

    return segment


def _load(work: Path) -> tuple[Any, np.ndarray, int]:
    """Model, image, and how many outputs are classes: the last one of instance models is none."""
    from tttunet.models.model import load_model

    model = load_model(work / "model")
    classes = model.config.network.output_channels - (model.config.task == "instance")
    return model, np.load(work / "image.npy"), classes


if __name__ == "__main__":
    sys.exit(main())
