"""Times of the fused operators on a GPU beside PyTorch, torch.compile and flash-linear-attention.

Every kernel first has to agree with the references in fp64; then the medians of
`triton.testing.do_bench` are taken, forward and forward + backward. Prints a markdown table and
writes `results/kernels_gpu.json`. flash-linear-attention computes a different algorithm (see
`kernels_static.md`) and is left out where it is not installed (`pip install fla-core einops`).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from extents import DTYPES, LAYERS, MAPS, Layer, Map
from record import write_result
from torch import Tensor

from tttunet import kernels
from tttunet.kernels.reference import inner_gradient, layer_norm

MINI_BATCH = 64
ROPE_THETA = 10000.0
SLOPE = 0.01
#: Largest error of the output and every gradient, relative to the largest value.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
#: Four whole mini-batches and a tail: enough for the gate, where the reference goes by tokens.
GATE_TOKENS = 4 * MINI_BATCH + 17

Run = Callable[..., Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: all")
    parser.add_argument("--milliseconds", type=int, default=300, help="of timing per entry")
    options = parser.parse_args()
    if not (torch.cuda.is_available() and find_spec("triton")):
        print("This benchmark needs a GPU that PyTorch can use, and Triton; nothing was timed.")
        return 1
    dtypes = [DTYPES[name] for name in options.dtype or DTYPES]
    failures = [*_ttt_failures(dtypes), *_norm_failures(dtypes)]
    if failures:
        print("Nothing was timed: the kernels disagree with the references.", *failures, sep="\n")
        return 1
    entries = [*_time_ttt(dtypes, options.milliseconds), *_time_norm(dtypes, options.milliseconds)]
    print(markdown(entries))
    properties = torch.cuda.get_device_properties(0)
    gpu = {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "runtime": torch.version.cuda or torch.version.hip,
    }
    write_result("kernels_gpu", {"gpu": gpu, "unit": "milliseconds", "entries": entries})
    return 0


def ttt_leaves(layer: Layer, tokens: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """q, k, v, logits of the rates, coefficient, W, b, norm weight, norm bias."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    heads, d = layer.heads, layer.d
    # The layer's projections are [batch, tokens, heads, d].
    qkv = [normal(1, tokens, heads, d).to(dtype).transpose(1, 2) for _ in range(3)]
    coefficient = 1 / torch.arange(1, MINI_BATCH + 1, device=device)
    affine = [1 + 0.1 * normal(heads, d), 0.1 * normal(heads, d)]
    state = [0.02 * normal(heads, d, d), 0.02 * normal(heads, d)]
    return [*qkv, normal(1, heads, tokens), coefficient, *state, *affine]


def run_ttt(backend: str) -> Run:
    def run(q, k, v, lr, coefficient, W, b, weight, bias) -> Tensor:
        return kernels.ttt_linear(
            *(q, k, v, lr, coefficient, (W, b), weight, bias),
            base_lr=1.0,
            rope_theta=ROPE_THETA,
            backend=backend,
        )

    return run


def run_ttt_loop(q, k, v, lr, coefficient, W, b, weight, bias) -> Tensor:
    """The dual form, one mini-batch after the other, as the released networks do it."""
    d = q.shape[-1]
    q, k, v = (x.float() for x in (q, k, v))
    q, k = (kernels.rotary_embedding(x, MINI_BATCH, ROPE_THETA) for x in (q, k))
    rate = torch.sigmoid(lr) / d
    weight, bias, b = weight[:, None], bias[:, None], b[:, None]
    outputs = []
    for start in range(0, q.shape[2], MINI_BATCH):
        rows = slice(start, start + MINI_BATCH)
        queries, keys, values = q[:, :, rows], k[:, :, rows], v[:, :, rows]
        gradient = inner_gradient(keys @ W + b, values - keys, weight, bias, 1e-6)
        eta = coefficient[: keys.shape[2], None] * rate[:, :, None, rows]
        scores = torch.tril(queries @ keys.transpose(-1, -2))
        read = queries @ W + b - (eta * scores) @ gradient - torch.tril(eta) @ gradient
        outputs.append(queries + layer_norm(read, weight, bias, 1e-6))
        step = eta[:, :, -1, :, None] * gradient
        W, b = W - keys.transpose(-1, -2) @ step, b - step.sum(2, keepdim=True)
    return torch.cat(outputs, dim=2)


def fla_peers() -> dict[str, Run]:
    """flash-linear-attention's operators with the same mini-batches; empty if not installed."""
    if not find_spec("fla"):
        return {}
    from fla.ops.ttt import chunk_ttt_linear, fused_chunk_ttt_linear

    def peer(operator: Callable[..., Any]) -> Run:
        def run(q, k, v, lr, coefficient, W, b, weight, bias) -> Tensor:
            q, k, v, rate = (x.transpose(1, 2) for x in (q, k, v, torch.sigmoid(lr) / q.shape[-1]))
            affine = (weight.to(q.dtype), bias.to(q.dtype))
            return operator(
                *(q, k, v, *affine, rate[..., None].to(q.dtype)),
                chunk_size=MINI_BATCH,
                initial_state=W[None],
                initial_state_bias=b[None, :, None],
            )[0]

        return run

    return {"fla chunk": peer(chunk_ttt_linear), "fla fused_chunk": peer(fused_chunk_ttt_linear)}


def with_gradients(run: Run, leaves: list[Tensor]) -> list[Tensor]:
    """Output and the gradient of every leaf that the output depends on."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = run(*leaves)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(output.shape, generator=generator).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


def disagreement(
    name: str, run: Run, expected: Run, leaves: list[Tensor], tolerance: float
) -> list[str]:
    """One line for each result that is further from the reference in fp64 than the tolerance."""
    actual = with_gradients(run, leaves)
    exact = with_gradients(expected, [leaf.double() for leaf in leaves])
    lines = []
    for index, (a, e) in enumerate(zip(actual, exact, strict=True)):
        error = float((a.double() - e).abs().max() / e.abs().max())
        if not error <= tolerance:
            what = f"gradient {index - 1}" if index else "output"
            lines.append(f"{name}: {what} is off by {error:.1e} of its maximum.")
    return lines


def _ttt_failures(dtypes: list[torch.dtype]) -> Iterator[str]:
    for layer, dtype in itertools.product(LAYERS, dtypes):
        leaves = ttt_leaves(layer, GATE_TOKENS, dtype, "cuda")
        name = f"ttt_linear, d = {layer.d}, {dtype}"
        reference = run_ttt("reference")
        yield from disagreement(name, run_ttt("triton"), reference, leaves, TOLERANCE[dtype])


def norm_leaves(map_: Map, dtype: torch.dtype, device: str) -> list[Tensor]:
    """x, weight, bias and residual; the maps are channels-last."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, *map_.size, map_.channels)
    maps = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2)]
    x, residual = (tensor.movedim(-1, 1) for tensor in maps)
    weight = torch.linspace(0.5, 1.5, map_.channels, device=device)
    return [x, weight, weight - 1, residual]


def run_norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return kernels.instance_norm(x, weight, bias, residual, slope=SLOPE, backend="triton")


def run_torch_norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    normalised = F.instance_norm(x, weight=weight.to(x.dtype), bias=bias.to(x.dtype))
    return F.leaky_relu(normalised + residual, SLOPE)


def run_torch_norm_planar(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return run_torch_norm(x.contiguous(), weight, bias, residual.contiguous())


def _norm_failures(dtypes: list[torch.dtype]) -> Iterator[str]:
    for map_, dtype in itertools.product(MAPS, dtypes):
        leaves = norm_leaves(map_, dtype, "cuda")
        name = f"instance_norm, {map_.name}, {dtype}"
        yield from disagreement(name, run_norm, run_torch_norm, leaves, TOLERANCE[dtype])


def _time_ttt(dtypes: list[torch.dtype], milliseconds: int) -> Iterator[dict[str, Any]]:
    methods = {
        "triton": run_ttt("triton"),
        "dual, eager": run_ttt("dual"),
        "dual, torch.compile": torch.compile(run_ttt("dual"), dynamic=False),
        "loop, eager": run_ttt_loop,
        **fla_peers(),
    }
    for layer, dtype in itertools.product(LAYERS, dtypes):
        leaves = ttt_leaves(layer, layer.tokens, dtype, "cuda")
        yield from _time(f"ttt_linear, {layer.name}", methods, leaves, milliseconds)


def _time_norm(dtypes: list[torch.dtype], milliseconds: int) -> Iterator[dict[str, Any]]:
    methods = {
        "triton": run_norm,
        "torch, channels-last": run_torch_norm,
        "torch.compile, channels-last": torch.compile(run_torch_norm, dynamic=False),
        "torch, channels-first with copies": run_torch_norm_planar,
    }
    for map_, dtype in itertools.product(MAPS, dtypes):
        leaves = norm_leaves(map_, dtype, "cuda")
        yield from _time(f"instance_norm, {map_.name}", methods, leaves, milliseconds)


def _time(
    problem: str, methods: dict[str, Run], leaves: list[Tensor], milliseconds: int
) -> Iterator[dict[str, Any]]:
    from triton.testing import do_bench

    for method, run in methods.items():
        entry: dict[str, Any] = {"problem": problem, "dtype": str(leaves[0].dtype)[6:]}
        entry["method"] = method
        try:
            with torch.no_grad():
                forward = do_bench(
                    lambda run=run: run(*leaves), rep=milliseconds, quantiles=[0.5, 0.2, 0.8]
                )
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            both = _time_both(run, leaves, milliseconds)
            entry |= {"forward": forward, "forward + backward": both}
            entry["peak bytes"] = torch.cuda.max_memory_allocated() - before
        except Exception as error:
            # A peer that cannot run here must not take the others' times with it.
            entry["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        print(entry, file=sys.stderr, flush=True)
        yield entry


def _time_both(run: Run, leaves: list[Tensor], milliseconds: int) -> list[float]:
    from triton.testing import do_bench

    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    cotangent = torch.ones_like(run(*leaves))

    def step() -> None:
        torch.autograd.grad(run(*leaves), leaves, cotangent, allow_unused=True)

    return do_bench(step, rep=milliseconds, quantiles=[0.5, 0.2, 0.8])


def markdown(entries: list[dict[str, Any]]) -> str:
    """The entries as a table of medians."""
    lines = ["| problem | dtype | method | forward, ms | forward + backward, ms | peak MB |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for entry in entries:
        cells = [entry["problem"], entry["dtype"], entry["method"]]
        if "error" in entry:
            cells += [entry["error"], "", ""]
        else:
            cells += [f"{entry[which][0]:.3f}" for which in ("forward", "forward + backward")]
            cells.append(f"{entry['peak bytes'] / 1e6:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
