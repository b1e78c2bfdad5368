"""Every Triton kernel compiled ahead of time for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip(
    "triton", reason="Triton is not installed (pip install 'napari-tttunet[triton]')"
)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from tttunet.kernels.plans import PASSES, NormProblem, TTTProblem, plan_norm, plan_ttt
from tttunet.kernels.static import (
    GPUS,
    TARGETS,
    KernelReport,
    compile_launch,
    floor_seconds,
    occupancy,
    specialise,
)
from tttunet.kernels.triton_launch import Launch

REPOSITORY = Path(__file__).resolve().parents[2]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

#: Stack bytes per thread of the kernels that spill although their head dimension is at most 64:
#: (kernel, d, dtype, target) -> bytes. A test fails if one grows, and if one is gone: take it out.
STACK: dict[tuple[str, int, str, str], int] = {}
#: The same at head dimension 128 in bf16: (kernel, target) -> bytes.
STACK_128: dict[tuple[str, str], int] = {
    ("ttt_linear_read_backward", "sm_80"): 8,
    ("ttt_linear_scan_backward", "sm_80"): 64,
    ("ttt_linear_scan_backward", "sm_90"): 24,
    ("ttt_mlp_read_out_backward", "sm_80"): 16,
    ("ttt_mlp_scan_backward", "sm_80"): 32,
}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache that the environment names is taken; a kernel that has changed is compiled anew."""
    if os.environ.get("TRITON_CACHE_DIR"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def assert_resources(launch: Launch, report: KernelReport, d: int, dtype: str) -> None:
    limit = TARGETS[report.target].shared_limit
    assert report.shared <= limit, f"{report} of {limit} bytes"
    assert report.occupancy >= 1, report
    known = STACK.get((launch.name, d, dtype, report.target), 0)
    assert report.stack <= known, f"{report} spills; known: {known} bytes"
    assert report.stack or not known, f"{report} spills no longer: take it out of STACK"


def check_ttt(inner: str, d: int, dtype: str, target: str, tokens: int = 4096, **extents) -> None:
    problem = TTTProblem(inner, tokens, heads=8, d=d, dtype=DTYPES[dtype], **extents)
    for launches in plan_ttt(problem, TARGETS[target].backend == "hip").values():
        assert 1 <= len(launches) <= 2
        for launch in launches:
            report = compile_launch(launch, target)
            assert report.tensor_cores, f"{report} uses no matrix instruction"
            assert_resources(launch, report, d, dtype)


def cases() -> list:
    """(inner, d, dtype, target); a few of them in the fast tests."""
    combinations = [(d, dtype) for d in (8, 32, 64) for dtype in ("bf16", "fp32")]
    combinations += [(20, "bf16"), (64, "fp16")]
    fast = {("linear", 64, "bf16", "sm_90"), ("mlp", 32, "bf16", "sm_90")}
    return [
        pytest.param(
            *case,
            id="-".join(map(str, case)),
            marks=[pytest.mark.slow] * (case not in fast),
        )
        for inner in ("linear", "mlp")
        for target in TARGETS
        for d, dtype in combinations
        for case in [(inner, d, dtype, target)]
    ]


@pytest.mark.parametrize(("inner", "d", "dtype", "target"), cases())
def test_ttt_kernels_compile_without_spills(inner, d, dtype, target):
    check_ttt(inner, d, dtype, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("inner", ["linear", "mlp"])
@pytest.mark.parametrize(
    "extents",
    [
        pytest.param({"tokens": 25}, id="one_mini_batch"),
        pytest.param({"tokens": 210, "batch": 2}, id="tail"),
        pytest.param({"tokens": 200, "mini_batch": 16}, id="small_mini_batch"),
        pytest.param({"tokens": 256, "bidirectional": True}, id="both_directions"),
    ],
)
def test_other_extents_compile_too(inner, target, extents):
    check_ttt(inner, 32, "bf16", target, **extents)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("inner", ["linear", "mlp"])
def test_large_heads_compile_within_shared_memory(inner, target):
    problem = TTTProblem(inner, 1024, heads=8, d=128)
    passes = plan_ttt(problem, TARGETS[target].backend == "hip")
    for launch in [launch for launches in passes.values() for launch in launches]:
        report = compile_launch(launch, target)
        assert report.shared <= TARGETS[target].shared_limit, report
        known = STACK_128.get((launch.name, target), 0)
        assert report.stack <= known, f"{report} spills; known: {known} bytes"


@pytest.mark.parametrize(
    ("target", "dtype", "channels", "residual"),
    [
        ("sm_90", "bf16", 32, True),
        pytest.param("sm_90", "fp32", 320, False, marks=pytest.mark.slow),
        *(
            pytest.param(target, dtype, channels, residual, marks=pytest.mark.slow)
            for target in ("sm_80", "sm_100", "gfx942")
            for dtype, channels, residual in [
                ("bf16", 32, True),
                ("fp32", 320, False),
                ("fp16", 33, True),
            ]
        ),
    ],
)
def test_norm_kernels_compile_without_spills(target, dtype, channels, residual):
    problem = NormProblem(4096, channels, DTYPES[dtype], residual=residual)
    for launches in plan_norm(problem).values():
        assert len(launches) == 2
        for launch in launches:
            report = compile_launch(launch, target)
            assert_resources(launch, report, channels, dtype)
            assert report.arithmetic == "fp32"
            # Bandwidth needs warps to wait for memory: at least half of what A100 can hold.
            assert report.occupancy * report.num_warps >= 16, report


def test_every_problem_plans_at_most_two_launches_per_pass():
    for inner in ("linear", "mlp"):
        for tokens in (25, 64, 65, 1024):
            passes = plan_ttt(TTTProblem(inner, tokens, heads=2, d=20))
            assert set(passes) == set(PASSES)
            assert all(len(launches) <= 2 for launches in passes.values())
            assert all(launch.flops > 0 for x in passes.values() for launch in x)


def test_arguments_are_specialised_as_triton_does():
    launch = plan_norm(NormProblem(1001, 33))["backward"][1]
    typed = specialise(launch, "cuda")
    positions = {name: index for index, name in enumerate(typed.signature)}
    assert list(typed.signature) == launch.kernel.arg_names
    assert typed.signature["x_ptr"] == "*bf16"
    assert typed.signature["P"] == "i32"
    assert typed.signature["slope"] == "fp32"
    # One sample: Triton makes a constant of an integer that is 1.
    assert typed.signature["samples"] == "constexpr"
    assert typed.constants["samples"] == 1
    assert typed.attributes[(positions["chunk"],)] == [["tt.divisibility", 16]]
    assert typed.attributes[(positions["x_ptr"],)] == [["tt.divisibility", 16]]
    assert (positions["P"],) not in typed.attributes
    amd = specialise(launch, "hip")
    assert ["tt.pointer_range", 32] in amd.attributes[(positions["x_ptr"],)]


def test_absent_pointers_are_constants():
    launch = plan_norm(NormProblem(64, 32, residual=False))["forward"][1]
    typed = specialise(launch, "cuda")
    assert typed.signature["residual_ptr"] == "constexpr"
    assert typed.constants["residual_ptr"] is None


@pytest.mark.parametrize(
    ("target", "registers", "warps", "shared", "programs"),
    [
        pytest.param("sm_80", 255, 8, 0, 1, id="registers"),
        pytest.param("sm_80", 128, 4, 0, 4, id="more_programs"),
        pytest.param("sm_80", 32, 4, 0, 16, id="warps"),
        pytest.param("sm_80", 16, 1, 0, 32, id="programs"),
        pytest.param("sm_80", 32, 4, 40 * 1024, 4, id="shared"),
        pytest.param("sm_90", 32, 4, 227 * 1024, 1, id="all_shared"),
        pytest.param("gfx942", 128, 4, 0, 4, id="amd_registers"),
        pytest.param("gfx942", 512, 4, 0, 1, id="amd_all_registers"),
        pytest.param("gfx942", 32, 4, 20 * 1024, 3, id="amd_shared"),
    ],
)
def test_occupancy_by_hand(target, registers, warps, shared, programs):
    assert occupancy(TARGETS[target], registers, warps, shared) == programs


def test_tensor_memory_limits_occupancy():
    assert occupancy(TARGETS["sm_100"], 32, 4, 0, tensor_memory=256) == 2


def test_floor_is_bandwidth_or_arithmetic():
    launch = Launch("x", None, (1,), {}, flops=10**12, traffic=10**9)
    plain = KernelReport("x", "sm_90", 32, 0, 0, (), 4, 1)
    tensor = KernelReport("x", "sm_90", 32, 0, 0, ("wgmma.m64n64k16.bf16",), 4, 1)
    tf32 = KernelReport("x", "sm_90", 32, 0, 0, ("mma.m16n8k8.tf32",), 4, 1)
    assert [r.arithmetic for r in (plain, tensor, tf32)] == ["fp32", "half", "tf32"]
    assert floor_seconds(launch, plain, GPUS["H100"]) == pytest.approx(1 / 67)
    assert floor_seconds(launch, tensor, GPUS["H100"]) == pytest.approx(1 / 989.5)
    memory = Launch("x", None, (1,), {}, flops=0, traffic=2_039 * 10**9)
    assert floor_seconds(memory, plain, GPUS["A100"]) == pytest.approx(1)


def test_an_unknown_target_is_named():
    launch = plan_norm(NormProblem(64, 32))["forward"][0]
    with pytest.raises(ValueError, match="sm_75 is none of the targets sm_80, sm_90"):
        compile_launch(launch, "sm_75")


def test_an_argument_too_many_is_named():
    launch = plan_norm(NormProblem(64, 32))["forward"][0]
    wrong = Launch("x", launch.kernel, launch.grid, {**launch.arguments, "y": 1}, launch.constants)
    with pytest.raises(ValueError, match="'y'"):
        specialise(wrong, "cuda")


def test_gpu_benchmark_refuses_politely_without_a_gpu():
    script = REPOSITORY / "benchmarks" / "kernels_gpu.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "needs a GPU" in run.stdout
    assert len(run.stdout.splitlines()) == 1
    assert not run.stderr
