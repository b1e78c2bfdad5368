"""Reading of the golden cases: tensors computed by the authors' own code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from safetensors.torch import load_file
from torch import Tensor

from tttunet.networks import NetworkConfig, released_config

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class GoldenCase:
    """One file pair: `config` is the JSON, `tensors` everything in the safetensors file."""

    name: str
    config: dict
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}


def case_parameters(*kinds: str) -> list[ParameterSet]:
    """The paths of all cases of these kinds, for `pytest.mark.parametrize`."""
    folder = Path(os.environ.get("TTTUNET_GOLDEN") or REPOSITORY.parent / "shared" / "golden")
    paths = [
        path
        for path in sorted(folder.glob("*.json"))
        if json.loads(path.read_text()).get("kind") in kinds
    ]
    if not paths:
        reason = f"{folder} has no golden case of {kinds}; TTTUNET_GOLDEN names another folder"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(path, id=path.stem) for path in paths]


def load_case(path: Path) -> GoldenCase:
    tensors = load_file(path.with_suffix(".safetensors"))
    return GoldenCase(path.stem, json.loads(path.read_text()), tensors)


def released_network_config(case: GoldenCase) -> NetworkConfig:
    """The network of a case of kind uttt_*."""
    facts = case.config
    return released_config(
        dim=int(facts["kind"][-2]),
        input_channels=facts["input_channels"],
        output_channels=facts["num_classes"],
        features=facts["features_per_stage"],
        kernel_sizes=facts["kernel_sizes"],
        strides=facts["strides"],
        blocks=facts["n_conv_per_stage_given"],
        decoder_blocks=facts["n_conv_per_stage_decoder_given"],
        placement="encoder" if "enc" in facts["kind"] else "bottleneck",
        patch_size=facts["patch_size"],
        deep_supervision=facts["deep_supervision"],
    )


def relative_to_max(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def run_case(
    case: GoldenCase,
    module: torch.nn.Module,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    dtype: torch.dtype,
) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Outputs, gradient of the input, gradients of all parameters by our names."""
    module.load_state_dict(convert(case.group("param.")))
    module.to(dtype).eval()
    x = case.tensors["in.x"].detach().to(dtype).clone().requires_grad_()
    outputs = module.forward_all(x) if hasattr(module, "forward_all") else module(x)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    cotangents = [case.tensors[f"cot.{i}"].to(dtype) for i in range(len(outputs))]
    loss = sum((y * c).sum() / y.numel() ** 0.5 for y, c in zip(outputs, cotangents, strict=True))
    loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return [y.detach() for y in outputs], x.grad, gradients


def check_case(
    case: GoldenCase,
    make: Callable[[], torch.nn.Module],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    output_tolerance: float,
    gradient_tolerance: float,
) -> None:
    """Compare fp32 and (where given) fp64 outputs and every stored gradient with the case.

    fp64 is held to 1e-6: the rest is what forming the rotary angles in fp32 leaves.
    """
    expected = [case.tensors[f"out.{i}"] for i in range(len(case.group("out.")))]
    exact = [case.tensors.get(f"out64.{i}", y) for i, y in enumerate(expected)]
    outputs, grad_x, gradients = run_case(case, make(), convert, torch.float32)
    assert len(outputs) == len(expected)
    for y, reference in zip(outputs, exact, strict=True):
        assert relative_to_max(y, reference) < output_tolerance
    assert relative_l2(grad_x, case.tensors["grad.in.x"]) < gradient_tolerance
    stored = convert(case.group("grad.param."))
    assert stored
    for name, reference in stored.items():
        assert relative_l2(gradients[name], reference) < gradient_tolerance, name
    if "out64.0" in case.tensors:
        outputs, grad_x, _ = run_case(case, make(), convert, torch.float64)
        for y, reference in zip(outputs, exact, strict=True):
            assert relative_to_max(y, reference) < 1e-6
        assert relative_l2(grad_x, case.tensors["grad64.in.x"]) < 1e-5
