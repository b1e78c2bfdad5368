from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from tttunet.networks import NetworkConfig, TTTConfig, released_config, uniform_config


def small(**changes: Any) -> NetworkConfig:
    config = uniform_config(2, 1, 3, (4, 8, 16)).model_dump()
    return NetworkConfig.model_validate({**config, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": (4, 8)}, "kernel_sizes has 3 entries, 2 expected"),
        ({"features": (4,)}, "at least two stages"),
        ({"features": (4, 0, 16)}, "greater than or equal to 1"),
        ({"strides": ((1, 1), (2, 2))}, "strides has 2 entries, 3 expected"),
        ({"strides": ((1, 1), (2, 2), (2, 2, 2))}, "every entry of strides needs 2 numbers"),
        ({"strides": ((1, 1), (0, 2), (2, 2))}, "greater than or equal to 1"),
        ({"kernel_sizes": ((3, 3), (3, 3), (2, 3))}, "must be odd"),
        ({"encoder_blocks": (1, 1)}, "encoder_blocks has 2 entries, 3 expected"),
        ({"decoder_blocks": (1, 1, 1)}, "decoder_blocks has 3 entries, 2 expected"),
        ({"decoder_blocks": (0, 1)}, "greater than or equal to 1"),
        ({"patch_size": (16, 16, 16)}, "patch_size needs 2 numbers"),
        ({"output_channels": 0}, "greater than or equal to 1"),
        ({"dim": 4}, "Input should be 2 or 3"),
        ({"placment": "encoder"}, "Extra inputs"),
        ({"ttt": {"heads": 0}}, "greater than or equal to 1"),
        ({"ttt": {"mini_batch": 0}}, "greater than or equal to 1"),
        ({"ttt": {"base_lr": -1.0}}, "greater than 0"),
        ({"ttt": {"gate": True}}, "options of the released flavour"),
        ({"ttt": {"share_qk": True}}, "options of the released flavour"),
        ({"ttt": {"conv_kernel": 4}}, "must be odd"),
        ({"flavour": "released", "ttt": {"bidirectional": True}}, "option of the paper flavour"),
    ],
)
def test_inconsistent_configuration_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        small(**changes)


def test_configuration_survives_json():
    config = small(ttt=TTTConfig(inner="mlp", bidirectional=True), patch_size=(64, 48))
    assert NetworkConfig.model_validate_json(config.model_dump_json()) == config


def test_configuration_is_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        small().features = (1, 2, 3)


def test_total_stride():
    config = small(strides=((1, 1), (2, 4), (2, 1)))
    assert config.total_stride == (4, 4)


@pytest.mark.parametrize(
    ("stages", "encoder", "decoder"),
    [
        (5, (2, 2, 2, 1, 1), (2, 2, 2, 1)),
        (6, (2, 2, 2, 1, 1, 1), (2, 2, 2, 1, 1)),
        (7, (2, 2, 2, 2, 1, 1, 1), (2, 2, 2, 2, 1, 1)),
        (8, (2, 2, 2, 2, 1, 1, 1, 1), (2, 2, 2, 2, 1, 1, 1)),
    ],
)
def test_released_networks_have_one_block_in_the_deeper_half(stages, encoder, decoder):
    config = released_config(
        dim=2,
        input_channels=1,
        output_channels=2,
        features=range(8, 8 + stages),
        kernel_sizes=[[3, 3]] * stages,
        strides=[[1, 1]] + [[2, 2]] * (stages - 1),
    )
    assert (config.encoder_blocks, config.decoder_blocks) == (encoder, decoder)
    assert config.stem_blocks == 2


def test_released_config_leaves_its_arguments_alone():
    lists: dict[str, Any] = {
        "features": [8, 16, 32, 64],
        "kernel_sizes": [[3, 3]] * 4,
        "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
        "blocks": [2, 2, 2, 2],
        "decoder_blocks": [2, 2, 2],
        "patch_size": [64, 64],
    }
    before = {name: list(value) for name, value in lists.items()}
    config = released_config(dim=2, input_channels=1, output_channels=2, **lists)
    assert lists == before
    assert config.encoder_blocks == (2, 2, 1, 1)
    again = {**lists, "blocks": config.encoder_blocks, "decoder_blocks": config.decoder_blocks}
    assert released_config(dim=2, input_channels=1, output_channels=2, **again) == config


def test_released_config_names_a_list_of_the_wrong_length():
    with pytest.raises(ValidationError, match="encoder_blocks has 2 entries, 3 expected"):
        released_config(
            dim=2,
            input_channels=1,
            output_channels=2,
            features=(8, 16, 32),
            kernel_sizes=[[3, 3]] * 3,
            strides=[[1, 1], [2, 2], [2, 2]],
            blocks=[2, 2],
        )


def test_configurations_are_imported_without_torch():
    program = "import sys, tttunet.networks, tttunet.networks.config; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
