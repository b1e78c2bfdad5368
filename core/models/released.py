"""Names of the authors' weights (github.com/rongzhou7/TTT-Unet) -> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from tttunet.errors import ModelError
from tttunet.networks.config import NetworkConfig

#: The authors' name -> ours.
_LAYER_NAMES = {
    "q_proj.": "query.",
    "k_proj.": "key.",
    "v_proj.": "value.",
    "o_proj.": "output.",
    "g_proj.": "gate.",
    "conv_q.": "conv_query.",
    "conv_k.": "conv_key.",
    "post_norm.": "post_norm.",
    "learnable_ttt_lr_weight": "inner.lr_weight",
    "learnable_ttt_lr_bias": "inner.lr_bias",
    "learnable_token_idx": "inner.position_offset",
    "ttt_norm_weight": "inner.norm_weight",
    "ttt_norm_bias": "inner.norm_bias",
    "W1": "inner.W1",
    "b1": "inner.b1",
    "W2": "inner.W2",
    "b2": "inner.b2",
}
#: Theirs have an axis of length one after the heads.
_WITH_SINGLETON_AXIS = {"learnable_ttt_lr_weight", "learnable_ttt_lr_bias", "b1", "b2"}

#: Repeated or unused entries of the authors' state dicts.
_ALIAS = re.compile(r"^decoder\.encoder\.|\.all_modules\.")

_CONVOLUTIONAL = re.compile(
    r"encoder\.(stem|stages)\.|decoder\.(stages|upsample_layers|seg_layers)\."
)


def convert_layer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the authors' TTTLinear or TTTMLP -> that of `layers.ttt.TTTLayer`."""
    return dict(_convert_layer_entry(name, name, value) for name, value in state.items())


def convert_mixer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the authors' TTTLayer wrapper -> that of `layers.block.ReleasedMixer`."""
    return dict(_convert_mixer_entry(name, name, value) for name, value in state.items())


def convert_network(state: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """State dict of the authors' UTTTBot/UTTTEnc networks -> that of `networks.TTTUNet`.

    Args:
        state: the official state dict, or a part of it. Its aliases are ignored.
        config: from `tttunet.networks.released_config`.

    Raises:
        ModelError: an entry belongs to no TTT-UNet.
    """
    last = config.stages - 2
    converted = {}
    for name, value in state.items():
        if _ALIAS.search(name):
            continue
        head = re.match(r"decoder\.seg_layers\.(\d+)\.(.+)", name)
        if head and not config.deep_supervision:
            if int(head[1]) == last:
                converted[f"decoder.heads.0.{head[2]}"] = value
            continue
        ours, value = _convert_network_entry(name, value, config.stages - 1)
        converted[ours] = value
    return converted


def _convert_layer_entry(entry: str, name: str, value: Tensor) -> tuple[str, Tensor]:
    """`entry` is the full name in the checkpoint, for the error; `name` is inside the module."""
    for theirs, ours in _LAYER_NAMES.items():
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            if theirs in _WITH_SINGLETON_AXIS:
                value = value.squeeze(1)
            return ours + name[len(theirs) :], value
    raise ModelError(f"The checkpoint has an entry '{entry}' that no TTT layer knows.")


def _convert_mixer_entry(entry: str, name: str, value: Tensor) -> tuple[str, Tensor]:
    prefix, _, rest = name.partition(".")
    if prefix == "norm":
        return name, value
    if prefix != "TTTLinear":
        raise ModelError(f"The checkpoint has an entry '{entry}' that no TTT layer knows.")
    ours, value = _convert_layer_entry(entry, rest, value)
    return f"layer.{ours}", value


def _convert_network_entry(name: str, value: Tensor, last_stage: int) -> tuple[str, Tensor]:
    ttt = re.match(r"(?:TTT_layer|encoder\.mamba_layers\.(\d+))\.(.+)", name)
    if ttt:
        stage = last_stage if ttt[1] is None else int(ttt[1])
        ours, value = _convert_mixer_entry(name, ttt[2], value)
        return f"encoder.stages.{stage}.ttt.{ours}", value
    if not _CONVOLUTIONAL.match(name):
        raise ModelError(f"The checkpoint has an entry '{name}' that no TTT-UNet knows.")
    renamed = name
    for pattern, replacement in (
        (r"^encoder\.stages\.(\d+)\.", r"encoder.stages.\1.blocks."),
        (r"^decoder\.upsample_layers\.", "decoder.upsample."),
        (r"^decoder\.seg_layers\.", "decoder.heads."),
        (r"\.conv3\.", ".shortcut."),
        (r"\.conv(\d)\.conv\.", r".conv\1."),
        (r"\.conv(\d)\.norm\.", r".norm\1."),
    ):
        renamed = re.sub(pattern, replacement, renamed)
    return renamed, value
