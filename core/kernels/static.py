"""Triton kernels compiled ahead of time, without a GPU: registers, stack, shared memory, floors.

A `Launch` planned with tensors on the meta device is compiled for a target as Triton would on the
first call with real tensors. What the compiler says is exact; occupancy is computed from it and
the limits of the architecture; a floor is the least time that memory bandwidth and arithmetic
allow on paper. Nothing here is a measured time.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tttunet.kernels.triton_launch import Launch

KIB = 1024


@dataclass(frozen=True)
class Target:
    """Limits of an architecture; "multiprocessor" is NVIDIA's SM and AMD's compute unit.

    Sources: CUDA C++ Programming Guide, table of technical specifications per compute
    capability; AMD Instinct MI300 (CDNA 3) instruction set guide.

    Attributes:
        backend, arch, warp_size: of Triton's `GPUTarget`.
        registers: 32-bit registers of a multiprocessor, in all lanes together.
        register_step: registers of a thread are allocated in steps of this.
        warps, programs: most resident ones of a multiprocessor.
        shared: bytes of shared memory of a multiprocessor.
        shared_limit: most bytes that one program may have.
        shared_reserved: bytes that each program takes beside its own.
        schedulers: registers and warps are dealt in equal parts to these.
        tensor_memory: columns of tensor memory.
    """

    backend: str
    arch: int | str
    warp_size: int
    registers: int
    register_step: int
    warps: int
    programs: int
    shared: int
    shared_limit: int
    shared_reserved: int = 0
    schedulers: int = 4
    tensor_memory: int = 0


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 65536, 8, 64, 32, 164 * KIB, 163 * KIB, shared_reserved=KIB),
    "sm_90": Target("cuda", 90, 32, 65536, 8, 64, 32, 228 * KIB, 227 * KIB, shared_reserved=KIB),
    "sm_100": Target(
        "cuda",
        100,
        32,
        65536,
        8,
        64,
        32,
        228 * KIB,
        227 * KIB,
        shared_reserved=KIB,
        tensor_memory=512,
    ),
    "gfx942": Target("hip", "gfx942", 64, 4 * 512 * 64, 8, 32, 32, 64 * KIB, 64 * KIB),
}


@dataclass(frozen=True)
class Gpu:
    """What a data sheet promises.

    Attributes:
        target: name in `TARGETS`.
        bandwidth: of the memory, bytes per second.
        peaks: dense floating point operations per second by arithmetic: `fp32` outside the
            tensor cores, `tf32` and `half` (bf16 and fp16) inside.
    """

    target: str
    bandwidth: float
    peaks: Mapping[str, float]


#: NVIDIA A100 80GB (SXM) and H100 (SXM) data sheets; the H100's tensor core rates there are with
#: sparsity, twice those here.
GPUS = {
    "A100": Gpu("sm_80", 2.039e12, {"fp32": 19.5e12, "tf32": 156e12, "half": 312e12}),
    "H100": Gpu("sm_90", 3.35e12, {"fp32": 67e12, "tf32": 494.5e12, "half": 989.5e12}),
}


@dataclass(frozen=True)
class KernelReport:
    """What the compiler made of a launch.

    Attributes:
        name: of the launch.
        target: name in `TARGETS`.
        registers: per thread.
        stack: bytes per thread in local memory; more than 0 goes with spilled registers.
        shared: bytes of shared memory per program.
        tensor_cores: the matrix instructions found, by shape and type, e.g.
            `mma.m16n8k16.bf16`; empty: none.
        num_warps: per program.
        occupancy: programs that a multiprocessor can hold, by registers, shared memory and
            warps; an estimate.
    """

    name: str
    target: str
    registers: int
    stack: int
    shared: int
    tensor_cores: tuple[str, ...]
    num_warps: int
    occupancy: int

    @property
    def arithmetic(self) -> str:
        """Key of `Gpu.peaks`: the fastest arithmetic that the kernel uses."""
        if not self.tensor_cores:
            return "fp32"
        half = any(re.search(r"f16|kind::f16", name) for name in self.tensor_cores)
        return "half" if half else "tf32"


def compile_launch(launch: Launch, target: str) -> KernelReport:
    """Compile a launch for a target that need not be there.

    Triton caches what it compiled in `TRITON_CACHE_DIR`.

    Args:
        launch: planned with tensors of any device, meta included.
        target: name in `TARGETS`.

    Raises:
        ImportError: Triton is not installed.
        ValueError: the target is not known.
        RuntimeError: the kernels were imported with TRITON_INTERPRET=1.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if target not in TARGETS:
        raise ValueError(f"{target} is none of the targets {', '.join(TARGETS)}.")
    if not isinstance(launch.kernel, triton.JITFunction):
        raise RuntimeError(
            f"{launch.name} cannot be compiled: it was imported with TRITON_INTERPRET=1."
        )
    limits = TARGETS[target]
    typed = specialise(launch, limits.backend)
    compiled = triton.compile(
        ASTSource(
            fn=launch.kernel,
            signature=typed.signature,
            constexprs=typed.constants,
            attrs=typed.attributes,
        ),
        target=GPUTarget(limits.backend, limits.arch, limits.warp_size),
        options=launch.options(limits.backend),
    )
    metadata = compiled.metadata
    if limits.backend == "hip":
        registers, stack = _amd_resources(compiled.asm["amdgcn"])
        tensor_cores = _names(r"v_s?mfma_(?:f32|i32)_(\w+)", compiled.asm["amdgcn"], "mfma.")
    else:
        registers, stack = _nvidia_resources(compiled.asm["cubin"])
        tensor_cores = _nvidia_tensor_cores(compiled.asm["ptx"])
    columns = getattr(metadata, "tmem_size", None) or 0
    return KernelReport(
        name=launch.name,
        target=target,
        registers=registers,
        stack=stack,
        shared=metadata.shared,
        tensor_cores=tensor_cores,
        num_warps=metadata.num_warps,
        occupancy=occupancy(limits, registers, metadata.num_warps, metadata.shared, columns),
    )


class Specialisation(NamedTuple):
    """Arguments of Triton's `ASTSource`."""

    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list[list[Any]]]


_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
MAX_INT_32 = 2**31 - 1


def specialise(launch: Launch, backend: str) -> Specialisation:
    """Types and constants of a launch's arguments, as Triton chooses them at run time.

    An integer of 1 is a constant; integers and addresses are told to be divisible by 16 where
    they are, and to AMD's compiler also which tensors are smaller than 2 GiB. A tensor is taken
    to start at an address divisible by 16, as every allocation does, plus its storage offset.

    Raises:
        ValueError: an argument is missing, not known to the kernel, or of another kind.
    """
    given = {**launch.arguments, **launch.constants}
    parameters = launch.kernel.params
    unknown = set(given) - {parameter.name for parameter in parameters}
    missing = {parameter.name for parameter in parameters} - set(given)
    if unknown or missing:
        raise ValueError(f"{launch.name}: arguments {unknown or missing} are unknown or missing.")
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(parameters):
        value = given[parameter.name]
        specialised = not parameter.do_not_specialize
        aligned = specialised and not parameter.do_not_specialize_on_alignment
        is_one = type(value) is int and value == 1 and specialised
        if parameter.is_constexpr or value is None or is_one:
            signature[parameter.name] = "constexpr"
            # What `triton_common.dot_precision` chooses on a machine with such a GPU.
            missing_there = backend == "hip" and value == "tf32x3"
            constants[parameter.name] = "ieee" if missing_there else value
            continue
        signature[parameter.name] = _type_of(value, f"{launch.name}: {parameter.name}")
        facts = _facts(value, backend) if aligned else []
        if facts:
            attributes[(index,)] = facts
    return Specialisation(signature, constants, attributes)


def _type_of(value: Tensor | int | float, name: str) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -MAX_INT_32 - 1 <= value <= MAX_INT_32 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise ValueError(f"{name} is a {type(value).__name__}; it must be a tensor or a number.")


def _facts(value: Tensor | int | float, backend: str) -> list[list[Any]]:
    if isinstance(value, Tensor):
        facts = []
        if value.storage_offset() * value.element_size() % 16 == 0:
            facts.append(["tt.divisibility", 16])
        if backend == "hip" and value.untyped_storage().nbytes() <= MAX_INT_32:
            facts.append(["tt.pointer_range", 32])
        return facts
    divisible = type(value) is int and value % 16 == 0
    return [["tt.divisibility", 16]] if divisible else []


def occupancy(
    limits: Target, registers: int, num_warps: int, shared: int, tensor_memory: int = 0
) -> int:
    """Programs that a multiprocessor holds at a time.

    Args:
        limits: of the architecture.
        registers: per thread.
        num_warps: per program.
        shared: bytes per program.
        tensor_memory: columns per program.
    """
    step = limits.register_step
    per_warp = -(-max(registers, 1) // step) * step * limits.warp_size
    warps_of_scheduler = min(
        limits.registers // limits.schedulers // per_warp, limits.warps // limits.schedulers
    )
    fits = [limits.programs, warps_of_scheduler * limits.schedulers // num_warps]
    if shared:
        fits.append(limits.shared // (shared + limits.shared_reserved))
    if tensor_memory:
        fits.append(limits.tensor_memory // tensor_memory)
    return min(fits)


def floor_seconds(launch: Launch, report: KernelReport, gpu: Gpu) -> float:
    """The least time of a launch that a data sheet allows: no kernel is faster, most are slower.

    The larger of bytes / bandwidth and operations / peak of the fastest arithmetic that the
    kernel uses. Start-up, dependences between steps and programs too few to fill the GPU are
    left out.
    """
    arithmetic = launch.flops / gpu.peaks[report.arithmetic]
    return max(launch.bytes_moved / gpu.bandwidth, arithmetic)


def _nvidia_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread, by the cuobjdump in Triton's wheel."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump told no registers: {text[:500]}")
    return int(found[1]), int(found[2])


def _amd_resources(assembly: str) -> tuple[int, int]:
    """Vector registers (accumulation registers included) and scratch bytes per lane."""
    counts = []
    for key in ("vgpr_count", "private_segment_fixed_size"):
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"The assembly tells no .{key}.")
        counts.append(int(found[1]))
    return counts[0], counts[1]


def _names(pattern: str, text: str, prefix: str) -> tuple[str, ...]:
    return tuple(sorted({prefix + name for name in re.findall(pattern, text)}))


def _nvidia_tensor_cores(ptx: str) -> tuple[str, ...]:
    found = set()
    for kind, shape, types in re.findall(
        r"\b(wgmma\.mma_async|mma)\.sync\.aligned\.(m\d+n\d+k\d+)\.([\w.]+)", ptx
    ):
        # D.A.B.C or D.A.B: the inputs' type is A.
        inputs = [t for t in types.split(".") if t not in ("row", "col", "satfinite")][1]
        found.add(f"{kind.partition('.')[0]}.{shape}.{inputs}")
    found |= {f"tcgen05.{kind}" for kind in re.findall(r"tcgen05\.mma\.\S*?kind::(\w+)", ptx)}
    return tuple(sorted(found))
