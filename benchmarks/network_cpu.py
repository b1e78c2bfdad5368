"""Forward passes on the CPU: our network beside plain PyTorch, ONNX Runtime and OpenVINO.

Ours is what `tttunet segment` runs: it takes OpenVINO for a part of the network where that is
installed and faster; `without openvino` is the same in PyTorch alone.

Same weights, same input, same threads. ONNX Runtime and OpenVINO run the whole network, exported to
ONNX with the mini-batches of its TTT layers one after the other; its output is that of PyTorch. For
TTT-UNet_Enc that is 50,000 nodes, and OpenVINO needs minutes to load them.
`openvino, convolutions` is a bound, no way to get the output: the network with the identity for its
TTT layers, and then our TTT layers on inputs of the right shapes, with nothing counted for the way
between them. OpenVINO is told to compute in fp32; on CPUs with bf16 it would not by itself.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Peer, ratio, rounds_slower, run_in_turns
from record import write_result

from tttunet.networks import NetworkConfig, build_network, released_config
from tttunet.networks.config import uniform_config

FEATURES = (32, 64, 128, 256, 320)
#: Largest difference to plain PyTorch, relative to the range of the output.
TOLERANCE = 1e-3
#: Other engines: the package, and whether the TTT layers are in the exported network.
ENGINES = {
    "onnxruntime": ("onnxruntime", True),
    "openvino": ("openvino", True),
    "openvino, convolutions": ("openvino", False),
}
PEERS = ("without openvino", "plain", *ENGINES)


def cases() -> dict[str, tuple[NetworkConfig, tuple[int, ...]]]:
    """Configurations and input sizes."""
    return {
        "bot2d": (_bot(2, 3, 3), (512, 512)),
        "enc2d": (_enc(), (512, 512)),
        "bot3d": (_bot(3, 1, 14), (32, 128, 128)),
        "nuclei": (_nuclei(), (512, 512)),
        "plain2d": (uniform_config(2, 3, 3, FEATURES, architecture="plain_unet"), (512, 512)),
    }


TITLES = {
    "bot2d": "TTT-UNet_Bot, 5 stages, 3x512x512",
    "enc2d": "TTT-UNet_Enc, 6 stages, 3x512x512",
    "bot3d": "TTT-UNet_Bot, 3D, 5 stages, 1x32x128x128",
    "nuclei": "the shipped model nuclei, 3x512x512",
    "plain2d": "nnU-Net's PlainConvUNet, 5 stages, 3x512x512",
}


def _bot(dim: Any, inputs: int, outputs: int) -> NetworkConfig:
    return released_config(
        dim=dim,
        input_channels=inputs,
        output_channels=outputs,
        features=FEATURES,
        kernel_sizes=((3,) * dim,) * 5,
        strides=((1,) * dim,) + ((2,) * dim,) * 4,
        deep_supervision=False,
    )


def _enc() -> NetworkConfig:
    return released_config(
        dim=2,
        input_channels=3,
        output_channels=3,
        # The paper's eight stages have heads of two channels at this size: their LayerNorm is a
        # sign, and with random weights rounding decides the output.
        features=(32, 64, 128, 256, 512, 512),
        kernel_sizes=((3, 3),) * 6,
        strides=((1, 1),) + ((2, 2),) * 5,
        placement="encoder",
        patch_size=(512, 512),
        deep_supervision=False,
    )


def _nuclei() -> NetworkConfig:
    from tttunet.models.model import load_model

    return load_model("nuclei").config.network


def make_network(case: str, *, ttt: bool = True) -> tuple[torch.nn.Module, torch.Tensor]:
    """The network of a case with the weights of seed 0, and its input."""
    config, size = cases()[case]
    torch.manual_seed(0)
    network = build_network(config).eval()
    x = torch.randn(1, config.input_channels, *size)
    if not ttt:
        weights = {k: v for k, v in network.state_dict().items() if ".ttt." not in k}
        network = build_network(config.model_copy(update={"ttt": None})).eval()
        network.load_state_dict(weights)
    return network, x


def ours(case: str) -> Callable[[], np.ndarray]:
    from tttunet.inference.accelerate import SETTLED, accelerated
    from tttunet.inference.allocator import tune_allocator

    tune_allocator()
    network, x = make_network(case)
    # `accelerated` does not keep the network.
    run = _forward(lambda x: accelerated(network)(x), x)
    for _ in range(SETTLED):
        run()
    return run


def without_openvino(case: str) -> Callable[[], np.ndarray]:
    from tttunet.inference.allocator import tune_allocator

    tune_allocator()
    return _forward(*make_network(case))


def plain(case: str) -> Callable[[], np.ndarray]:
    from plain_network import use_plain_operators

    use_plain_operators()
    return _forward(*make_network(case))


def plain_without_ttt(case: str) -> Callable[[], np.ndarray]:
    from plain_network import use_plain_operators

    use_plain_operators()
    return _forward(*make_network(case, ttt=False))


def exported(case: str, path: str, ttt: bool) -> Callable[[], None]:
    """Writes the network of a case as ONNX."""
    from plain_network import use_plain_operators

    use_plain_operators()
    network, x = make_network(case, ttt=ttt)
    torch.onnx.export(
        network, (x,), path, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"]
    )
    return lambda: None


def by_engine(case: str, name: str, path: str, threads: int) -> Callable[[], np.ndarray]:
    engine, ttt = ENGINES[name]
    run = {"onnxruntime": _onnxruntime, "openvino": _openvino}[engine](path, threads)
    if not ttt:
        return _with_ttt(case, run)
    x = make_network(case)[1].numpy()
    return lambda: np.asarray(run(x))


def _onnxruntime(path: str, threads: int) -> Callable[[np.ndarray], Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def _openvino(path: str, threads: int) -> Callable[[np.ndarray], Any]:
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = ov.Core().compile_model(path, "CPU", settings)
    return lambda x: compiled(x)[0]


def _forward(
    network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> Callable[[], np.ndarray]:
    @torch.inference_mode()
    def run() -> np.ndarray:
        return network(x).numpy()

    return run


@torch.inference_mode()
def _with_ttt(case: str, convolutions: Callable[[np.ndarray], Any]) -> Callable[[], np.ndarray]:
    """The convolutional part by another engine, then our TTT layers on recorded inputs."""
    network, x = make_network(case)
    mixers: list[tuple[torch.nn.Module, torch.Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda m, i, _: mixers.append((m, i[0].clone())))
        for name, module in network.named_modules()
        if name.endswith(".ttt") and any(True for _ in module.parameters())
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    array = x.numpy()

    @torch.inference_mode()
    def run() -> np.ndarray:
        y = convolutions(array)
        for mixer, tokens in mixers:
            mixer(tokens)
        return np.asarray(y)

    return run


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the range of `expected`."""
    return float(np.abs(actual - expected).max() / (expected.max() - expected.min()))


def measure(case: str, peers: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Correctness, then times; a peer that is not installed is left out with the reason."""
    mine = Peer(ours, case, threads=threads)
    running: dict[str, Peer] = {}
    errors: dict[str, float] = {}
    skipped: dict[str, str] = {}
    eager = Peer(plain, case, threads=threads)
    errors["ours"] = difference(mine.result, eager.result)
    if errors["ours"] > TOLERANCE:
        raise SystemExit(f"{case}: our output differs from plain PyTorch's by {errors['ours']:.1e}")
    with tempfile.TemporaryDirectory() as folder:
        for name in peers:
            if name == "plain":
                running[name] = eager
                continue
            if name == "without openvino":
                running[name] = Peer(without_openvino, case, threads=threads)
                errors[name] = difference(running[name].result, eager.result)
                continue
            engine, ttt = ENGINES[name]
            if find_spec(engine) is None or find_spec("onnx") is None:
                skipped[name] = f"{engine} (with onnx) is not installed"
                continue
            path = Path(folder, "ttt.onnx" if ttt else "convolutions.onnx")
            if not path.exists():
                Peer(exported, case, str(path), ttt, threads=threads).close()
            running[name] = Peer(by_engine, case, name, str(path), threads, threads=threads)
            expected = eager.result if ttt else _result_without_ttt(case, threads)
            errors[name] = difference(running[name].result, expected)
        everyone = [mine, *running.values()]
        run_in_turns(everyone, rounds)
        for peer in everyone:
            peer.close()
    if eager not in everyone:
        eager.close()
    return {
        "case": TITLES[case],
        "errors": errors,
        "skipped": skipped,
        "ours": mine.times.summary(),
        "peers": {
            name: {
                **peer.times.summary(),
                "ratio": ratio(peer.times, mine.times),
                "rounds_slower": rounds_slower(peer.times, mine.times),
            }
            for name, peer in running.items()
        },
    }


def _result_without_ttt(case: str, threads: int) -> np.ndarray:
    reference = Peer(plain_without_ttt, case, threads=threads)
    reference.close()
    return reference.result


def table(results: list[dict[str, Any]], rounds: int) -> str:
    """Markdown; ratios are medians over the rounds of peer / ours, in brackets the extremes, and in
    how many rounds the peer took longer."""
    lines = [
        "| network | by | ms, median (quartiles) | CPU ms | slower than ours | error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        rows = {"ours": result["ours"], **result["peers"]}
        for name, row in rows.items():
            low, high = (1e3 * q for q in row["wall_quartiles"])
            times = f"{1e3 * row['wall_median']:.0f} ({low:.0f} to {high:.0f})"
            middle, least, most = row.get("ratio", (1, 1, 1))
            slower = f"{middle:.2f} ({least:.2f} to {most:.2f})" if name != "ours" else ""
            slower += f", in {row['rounds_slower']} of {rounds}" if name != "ours" else ""
            error = f"{result['errors'][name]:.0e}" if name in result["errors"] else ""
            head = result["case"] if name == "ours" else ""
            cpu = f"{1e3 * row['cpu_median']:.0f}"
            lines.append(f"| {head} | {name} | {times} | {cpu} | {slower} | {error} |")
        for name, reason in result["skipped"].items():
            lines.append(f"| | {name} | {reason} | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for case in options.cases:
        results.append(measure(case, options.peers, options.rounds, options.threads))
        print(table(results[-1:], options.rounds), flush=True)
    text = table(results, options.rounds)
    if not options.no_record:
        result = {"threads": options.threads, "rounds": options.rounds, "cases": results}
        write_result("network_cpu", result).with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
