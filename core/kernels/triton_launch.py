"""A Triton kernel with what it is launched with, so that it can be run, or compiled and counted.

The planning functions of `triton_*.py` return launches. The operator runs them; the static
analysis (`tttunet.kernels.static`) plans with tensors on the meta device and compiles them for
targets that are not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        name: of the kernel in tables, e.g. `ttt_linear_scan`.
        kernel: the `triton.jit` function.
        grid: programs along each axis.
        arguments: tensors, integers and floats by parameter name, in the kernel's order.
        constants: the `tl.constexpr` parameters by name; None for an absent pointer.
        num_warps, num_stages: compile options.
        spacious: a thread may have as many registers as there are. NVIDIA's compiler otherwise
            now and then takes half of them and spills, so that two programs are resident.
        flops: floating point operations (2 per multiply-add) of all programs together.
        traffic: bytes read and written, every element counted as often as it must cross the
            memory bus; None: every tensor argument once.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Tensor | int | float]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    spacious: bool = False
    flops: int = 0
    traffic: int | None = None

    def run(self) -> None:
        options = self.options("cuda" if torch.version.hip is None else "hip")
        self.kernel[self.grid](**self.arguments, **self.constants, **options)

    def options(self, backend: str) -> dict[str, int]:
        """Compile options for `cuda` or `hip`."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.spacious and backend == "cuda":
            options["maxnreg"] = min(255, 65536 // (32 * self.num_warps))
        return options

    @property
    def bytes_moved(self) -> int:
        if self.traffic is not None:
            return self.traffic
        tensors = [x for x in self.arguments.values() if isinstance(x, Tensor)]
        return sum(x.numel() * x.element_size() for x in tensors)
