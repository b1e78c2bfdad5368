"""What the compiler makes of the Triton kernels, without a GPU: writes `kernels_static.md`.

Registers, stack, shared memory and occupancy of every kernel at the networks' real extents for
four targets, bytes and operations counted from the extents, and the floor that follows on two
GPUs' data sheets; beside it flash-linear-attention's kernels for TTT-Linear (`pip install
fla-core einops`) compiled the same way. Nothing is timed here.

Takes about an hour of compilation on one core; a second run takes Triton's cache.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from extents import DTYPES, LAYERS, MAPS, Layer

from tttunet.kernels.plans import PASSES, NormProblem, TTTProblem, plan_norm, plan_ttt
from tttunet.kernels.static import GPUS, TARGETS, KernelReport, compile_launch, floor_seconds
from tttunet.kernels.triton_launch import Launch

TABLE = Path(__file__).with_suffix(".md")


FLA_TARGETS = ("sm_80", "sm_90")
#: Extents and chunk size: tokens per inner step, as many as fla takes by default.
FLA_PROBLEMS = ((LAYERS[3], 16),)
#: Products with a d x d matrix and products over a chunk's tokens in each of fla's kernels.
FLA_PRODUCTS = {
    "chunk_ttt_linear_fwd_kernel_h": (2, 0),
    "chunk_ttt_linear_fwd_kernel_o": (1, 3),
    "chunk_ttt_linear_bwd_kernel_h": (2, 0),
    "chunk_ttt_linear_bwd_kernel_dv_local": (0, 3),
    "chunk_ttt_linear_bwd_kernel_norm": (4, 0),
    "chunk_bwd_kernel_dqke": (3, 4),
    "fused_chunk_ttt_linear_fwd_kernel": (3, 3),
    "fused_chunk_ttt_linear_bwd_kernel_h": (3, 2),
    "fused_chunk_ttt_linear_bwd_kernel_dh": (6, 6),
}

INTRODUCTION = """# The Triton kernels, compiled but not timed

Written by `python benchmarks/kernels_static.py` (Triton {triton}). **No GPU was used and nothing
here is a measured time.**

- Each target's column: registers per thread / stack bytes per thread (0: nothing spilled) / KiB of
  shared memory per program / programs that a multiprocessor holds at a time (an estimate from
  registers, shared memory and warps). * after it: no matrix instruction.
- Bytes and operations are counted from the extents: every value once for each time it has to
  cross the memory bus, 2 operations for a multiply-add of a matrix product.
- Floor: the larger of bytes / bandwidth and operations / peak of the arithmetic used, by the data
  sheets of the A100 80GB SXM (2.039 TB/s; 19.5 TFLOP/s fp32, 156 tf32, 312 half) and the H100 SXM
  (3.35 TB/s; 67 fp32, 494.5 tf32, 989.5 half; dense). No kernel can be faster. A kernel of few
  programs or of many dependent steps, as every state scan is, stays far from it.
- Batch 1, one scan direction, mini-batches of 64 tokens, rotary embedding and gated learning rate
  in the kernel. Launches of a pass run in the order of the rows. Forward is that of training.
"""
FLA_INTRODUCTION = """## flash-linear-attention {version}: `chunk` and `fused_chunk` TTT-Linear

A different algorithm, so a comparison of resources and not of equal work: a learning rate per
query row instead of one per key, no rotary embedding, gate or token coefficients in the kernels, q
scaled, the output's norm in further launches (two copies, a group norm and an addition; not
listed), states kept in the dtype of the inputs between kernels, one scan direction, no inner
losses. Chunks of 16 tokens, its default, in place of mini-batches of 64. It picks among its
configurations by timing them on the spot; here it is given the one of 4 warps (on sm_90 of 2 where
it offers no more there) and the fewest stages. bf16.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES], help="of the TTT kernels"
    )
    options = parser.parse_args()
    sections = [INTRODUCTION.format(triton=triton.__version__)]
    for inner, title in (("linear", "TTT-Linear"), ("mlp", "TTT-MLP, 4 d hidden units")):
        sections += [f"## {title}\n", _ttt_table(inner, options.dtypes)]
    sections += ["## InstanceNorm + residual add + LeakyReLU, channels-last\n", _norm_table()]
    sections += _fla_sections()
    options.output.write_text("\n".join(sections))
    print(f"wrote {options.output}")


def _ttt_table(inner: str, dtypes: list[str]) -> str:
    def rows() -> Iterator[list[str]]:
        for layer, name in itertools.product(LAYERS, dtypes):
            problem = TTTProblem(inner, layer.tokens, layer.heads, layer.d, DTYPES[name])
            plans = {
                target: plan_ttt(problem, limits.backend == "hip")
                for target, limits in TARGETS.items()
            }
            for which in PASSES:
                for launches in zip(*(plan[which] for plan in plans.values()), strict=True):
                    cells = _cells(dict(zip(plans, launches, strict=True)))
                    yield [layer.name, str(layer.d), name, which, *cells]

    return _table(["layer", "d", "dtype", "pass"], TARGETS, rows())


def _norm_table() -> str:
    def rows() -> Iterator[list[str]]:
        for map_, (name, dtype) in itertools.product(MAPS, DTYPES.items()):
            problem = NormProblem(math.prod(map_.size), map_.channels, dtype)
            for which, launches in plan_norm(problem).items():
                for launch in launches:
                    cells = _cells(dict.fromkeys(TARGETS, launch))
                    yield [map_.name, str(map_.channels), name, which, *cells]

    return _table(["map", "C", "dtype", "pass"], TARGETS, rows())


def _table(first: list[str], targets: Iterable[str], rows: Iterable[list[str]]) -> str:
    head = [*first, "kernel", "programs x warps", "MB", "GFLOP"]
    head += [*(f"floor {gpu}, us" for gpu in GPUS), *targets]
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cells(launches: dict[str, Launch]) -> list[str]:
    """Of a launch, as it is planned for each target."""
    reports = {target: _compile(launch, target) for target, launch in launches.items()}
    cells = _format(next(iter(launches.values())), reports)
    warps = [str(launch.num_warps) for launch in launches.values()]
    if len(set(warps)) > 1:
        cells[1] = cells[1].partition(" x ")[0] + " x " + "/".join(warps)
    return cells


def _compile(launch: Launch, target: str) -> KernelReport | None:
    """The report, or None where the compiler gives up: that belongs into the table."""
    try:
        return compile_launch(launch, target)
    except Exception as error:
        print(f"{launch.name} for {target}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _format(launch: Launch, reports: dict[str, KernelReport | None]) -> list[str]:
    cells = [_resources(report) for report in reports.values()]
    print(launch.name, *cells, sep=" | ", flush=True)
    floors = []
    for gpu in GPUS.values():
        report = reports[gpu.target]
        floors.append(f"{floor_seconds(launch, report, gpu) * 1e6:.2g}" if report else "")
    return [
        f"`{launch.name}`",
        f"{math.prod(launch.grid)} x {launch.num_warps}",
        f"{launch.bytes_moved / 1e6:.3g}",
        f"{launch.flops / 1e9:.3g}",
        *floors,
        *cells,
    ]


def _resources(report: KernelReport | None) -> str:
    if report is None:
        return "does not compile"
    shared = f"{report.shared / 1024:.3g}"
    mark = "" if report.tensor_cores else " *"
    return f"{report.registers} / {report.stack} / {shared} / {report.occupancy}{mark}"


def _fla_sections() -> list[str]:
    try:
        modules = {name: importlib.import_module(f"fla.ops.ttt.{name}") for name in FLA_OPERATORS}
        version = importlib.import_module("fla").__version__
    except ImportError as error:
        print(f"flash-linear-attention is left out: {error}. pip install fla-core einops")
        return ["flash-linear-attention was not installed when this was written.\n"]

    def rows() -> Iterator[list[str]]:
        for (layer, chunk), name in itertools.product(FLA_PROBLEMS, FLA_OPERATORS):
            for which, kernels in _plan_fla(modules[name], name, layer, chunk).items():
                for choices in kernels:
                    reports = {target: _typical(choices, target) for target in FLA_TARGETS}
                    cells = _format(choices[0], reports)
                    warps = "/".join(str(r.num_warps) if r else "-" for r in reports.values())
                    cells[1] = cells[1].partition(" x ")[0] + f" x {warps}"
                    yield [layer.name, str(layer.d), f"{name}, {chunk}", which, *cells]

    table = _table(["layer", "d", "operator, chunk", "pass"], FLA_TARGETS, rows())
    return [FLA_INTRODUCTION.format(version=version), table]


FLA_OPERATORS = ("chunk", "fused_chunk")


def _plan_fla(
    module: ModuleType, name: str, layer: Layer, chunk: int
) -> dict[str, list[list[Launch]]]:
    """Every kernel that fla launches in a pass, each as one launch per configuration."""
    x = torch.empty(1, layer.tokens, layer.heads, layer.d, dtype=torch.bfloat16, device="meta")
    # fla's kernels want the norm's parameters in the dtype of the tokens.
    norm = torch.empty(layer.heads, layer.d, dtype=x.dtype, device="meta")
    eta = x[..., :1].contiguous()
    state = torch.empty(1, layer.heads, layer.d, layer.d, device="meta")
    bias = state[:, :, :1].contiguous()
    size = {"BT" if name == "fused_chunk" else "chunk_size": chunk}
    shared = (x, x, x, norm, norm, eta, layer.d**-0.5, 1e-6)
    products = 2 * layer.tokens * layer.heads * layer.d
    passes: dict[str, list[list[Launch]]] = {}
    for which in PASSES:
        passes[which] = recorded = []
        kernels = {key: value for key, value in vars(module).items() if key in FLA_PRODUCTS}
        try:
            for key, kernel in kernels.items():
                square, rows = FLA_PRODUCTS[key]
                flops = products * (square * layer.d + rows * chunk)
                setattr(module, key, _Recorder(key, kernel, flops, recorded))
            if which == "forward":
                forward = getattr(module, f"{name}_ttt_linear_fwd")
                forward(*shared, state, bias, True, **size)
            else:
                backward = getattr(module, f"{name}_ttt_linear_bwd")
                initial = {"initial_state": state, "initial_state_bias": bias}
                backward(*shared, x, state, bias, **initial, **size)
        finally:
            for key, kernel in kernels.items():
                setattr(module, key, kernel)
    return passes


class _Recorder:
    """Takes the place of a kernel and notes what it would be launched with."""

    def __init__(self, name: str, kernel: Any, flops: int, recorded: list[list[Launch]]) -> None:
        self.name, self.kernel, self.flops, self.recorded = name, kernel, flops, recorded

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def note(*positional: Any, **named: Any) -> None:
            kernel, rules, configurations = self.kernel, {}, [triton.Config({})]
            while not isinstance(kernel, triton.JITFunction):
                rules |= getattr(kernel, "values", {})
                configurations = getattr(kernel, "configs", configurations)
                kernel = kernel.fn
            arguments = dict(zip(kernel.arg_names, positional, strict=False)) | named
            arguments |= {name: rule(arguments) for name, rule in rules.items()}
            names = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
            names |= {name for name, value in arguments.items() if value is None}
            self.recorded.append(
                [
                    Launch(
                        name=self.name,
                        kernel=kernel,
                        grid=grid,
                        arguments={k: v for k, v in arguments.items() if k not in names},
                        constants={k: arguments[k] for k in names} | chosen.kwargs,
                        num_warps=chosen.num_warps,
                        num_stages=chosen.num_stages,
                        flops=self.flops,
                    )
                    for chosen in configurations
                ]
            )

        return note


def _typical(choices: list[Launch], target: str) -> KernelReport | None:
    """The configuration of 4 warps, or nearly so many, and the fewest stages."""
    # fla offers fewer warps on Hopper where the kernel would otherwise be wrong or slow.
    hopper = target == "sm_90" and choices[0].name == "fused_chunk_ttt_linear_bwd_kernel_dh"
    allowed = [launch for launch in choices if launch.num_warps <= 2 or not hopper]
    return _compile(min(allowed, key=lambda x: (abs(x.num_warps - 4), x.num_stages)), target)


if __name__ == "__main__":
    sys.exit(main())
