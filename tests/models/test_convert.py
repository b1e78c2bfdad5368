"""Conversion of the authors' checkpoints, from nnU-Net folders made of the golden cases."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from golden import (
    GoldenCase,
    case_parameters,
    load_case,
    relative_to_max,
    released_network_config,
)
from nnunet_folder import NNUNetFolder, old_configuration
from tttunet.errors import ModelError, OutputError
from tttunet.imaging import Image
from tttunet.inference.ensemble import ensemble
from tttunet.inference.segment import decode_maps, predict_maps, segment
from tttunet.models import convert_checkpoint, load_model
from tttunet.models.released import convert_network
from tttunet.networks import build_network, released_config
from tttunet.training.finetune import finetune

every_network = pytest.mark.parametrize(
    "path", case_parameters("uttt_bot_2d", "uttt_bot_3d", "uttt_enc_2d")
)


def convertible(case: GoldenCase, tmp_path: Path) -> NNUNetFolder:
    return NNUNetFolder(tmp_path / "results", case)


@pytest.fixture
def nnunet(tmp_path: Path) -> NNUNetFolder:
    """A tiny network with fresh weights under the authors' names."""
    facts = {
        "kind": "uttt_bot_2d",
        "input_channels": 1,
        "num_classes": 3,
        "features_per_stage": [4, 8, 64],
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage_given": 1,
        "n_conv_per_stage_decoder_given": 1,
        "patch_size": [32, 32],
        "deep_supervision": True,
    }
    case = GoldenCase("tiny", facts, {})
    network = build_network(released_network_config(case))
    names = theirs(network.state_dict())
    case.tensors = {f"param.{name}": value for name, value in names.items()}
    return convertible(case, tmp_path)


def theirs(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names of a bottleneck network with one block per stage -> the authors'."""
    renamed = {}
    for name, value in state.items():
        if ".ttt." in name:
            name = "TTT_layer." + name.split(".ttt.")[1].replace("layer.", "TTTLinear.")
            for ours, official in (
                ("query", "q_proj"),
                ("key", "k_proj"),
                ("value", "v_proj"),
                ("output", "o_proj"),
                ("inner.lr_weight", "learnable_ttt_lr_weight"),
                ("inner.lr_bias", "learnable_ttt_lr_bias"),
                ("inner.position_offset", "learnable_token_idx"),
                ("inner.norm_", "ttt_norm_"),
                ("inner.", ""),
            ):
                name = name.replace(ours, official)
            if name.endswith(("lr_weight", "lr_bias", ".b1")):
                value = value.unsqueeze(1)
        for ours, official in (
            (".blocks.", "."),
            (".shortcut.", ".conv3."),
            ("decoder.upsample.", "decoder.upsample_layers."),
            ("decoder.heads.", "decoder.seg_layers."),
        ):
            name = name.replace(ours, official)
        renamed[name] = value.clone()
    return renamed


@every_network
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_converted_network_computes_what_the_authors_computed(
    path: Path, prefix: str, tmp_path: Path
):
    case = load_case(path)
    nnunet = convertible(case, tmp_path)
    weights = {prefix + name: value for name, value in case.group("param.").items()}
    nnunet.checkpoint["network_weights"] = weights
    conversion = convert_checkpoint(nnunet.write(), tmp_path / "abdomen")
    assert conversion.warnings == ()
    model = load_model(conversion.path)
    expected = case.tensors.get("out64.0", case.tensors["out.0"])
    with torch.no_grad():
        actual = model.network(case.tensors["in.x"])
    assert relative_to_max(actual, expected) < 1e-4
    assert model.config.network.placement == released_network_config(case).placement


def test_regions_are_written_one_over_the_other(nnunet: NNUNetFolder, tmp_path: Path):
    regions = {"whole": [1, 2, 3], "background": 0, "core": [2, 3], "active": 3}
    nnunet.dataset |= {"labels": regions, "regions_class_order": [2, 1, 3]}
    conversion = convert_checkpoint(nnunet.write(), tmp_path / "tumour")
    model = load_model(conversion.path)
    config = model.config
    assert config.regions
    assert [(label.value, label.name) for label in config.labels] == [
        (2, "whole"),
        (1, "core"),
        (3, "active"),
    ]
    array = np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)
    maps = predict_maps(model, array)
    assert maps.shape == (4, 32, 32)
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-6)
    with torch.no_grad():
        probabilities = model.network(torch.tensor(array[None]))[0].sigmoid().numpy()
    expected = np.zeros((32, 32), np.uint8)
    for number, probability in zip((2, 1, 3), probabilities, strict=True):
        expected[probability > 0.5] = number
    assert len(np.unique(expected)) >= 3
    sure = (np.abs(probabilities - 0.5) > 1e-5).all(0)
    np.testing.assert_array_equal(decode_maps(maps, config)[sure], expected[sure])
    several = predict_maps(ensemble([model, model]), array)
    np.testing.assert_allclose(several, maps, atol=1e-5)
    image = Image.from_array(array[0], "YX", spacing=(0.6, 0.6), unit="millimeter")
    kept: list[np.ndarray | None] = []
    for options in ({}, {"maps_done": lambda _, found: kept.append(found)}):
        labels = segment(image, model, device="cpu", **options).labels
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
        assert labels.any()
    assert kept[0] is not None
    assert kept[0].shape == (4, 32, 32)
    with pytest.raises(ModelError, match="overlapping regions, which cannot be fine-tuned"):
        finetune(model, tmp_path, tmp_path / "out")


def test_card_and_plan_of_a_converted_model(nnunet: NNUNetFolder, tmp_path: Path):
    nnunet.dataset["labels"]["ignore"] = 3
    conversion = convert_checkpoint(nnunet.write(), tmp_path / "Abdomen MR")
    config = load_model(conversion.path).config
    assert (config.name, config.task) == ("abdomen-mr", "semantic")
    assert [(label.value, label.name) for label in config.labels] == [
        (1, "organ 1"),
        (2, "organ 2"),
    ]
    plan = config.plan
    assert (plan.patch_size, plan.spacing, plan.unit) == ((32, 32), (0.8, 0.8), "millimeter")
    assert (plan.channels, plan.mirror_axes) == ("as_is", (0, 1))
    assert config.card.title == "TTT-UNet, Dataset702_AbdomenMR"
    assert config.card.training == {
        "framework": "nnU-Net v2",
        "trainer": "nnUNetTrainerUMambaBot",
        "configuration": "2d",
        "fold": "fold_all",
        "epochs": 1000,
        "dataset": "Dataset702_AbdomenMR",
    }
    assert config.network.deep_supervision


@pytest.mark.parametrize("where", ["trainer", "fold", "file"])
def test_checkpoint_is_found_from_its_folders(nnunet: NNUNetFolder, tmp_path: Path, where: str):
    nnunet.write()
    source = {"trainer": nnunet.path, "fold": nnunet.fold, "file": nnunet.file}[where]
    convert_checkpoint(source, tmp_path / "model", name="mine")
    assert load_model(tmp_path / "model").config.name == "mine"


def test_plans_beside_the_checkpoint_and_its_best_epoch(nnunet: NNUNetFolder, tmp_path: Path):
    nnunet.write()
    folder = tmp_path / "flat"
    folder.mkdir()
    for name in ("plans.json", "dataset.json"):
        (nnunet.path / name).rename(folder / name)
    nnunet.file.rename(folder / "checkpoint_best.pth")
    convert_checkpoint(folder, tmp_path / "model")
    load_model(tmp_path / "model")


def test_old_plans_give_the_same_network(nnunet: NNUNetFolder, tmp_path: Path):
    new = convert_checkpoint(nnunet.write(), tmp_path / "new").config
    weights = nnunet.checkpoint["network_weights"]
    facts = {
        "features_per_stage": [4, 8, 64],
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage_given": 1,
        "n_conv_per_stage_decoder_given": 1,
        "patch_size": [32, 32],
    }
    # The features double: 4, 8, 16.
    facts["features_per_stage"] = [4, 8, 16]
    nnunet.plans["configurations"]["2d"] = old_configuration(facts)
    with pytest.raises(ModelError, match="of the wrong shape"):
        convert_checkpoint(nnunet.write(), tmp_path / "old")
    network = released_config(
        dim=2,
        input_channels=1,
        output_channels=3,
        features=(16, 32, 64),
        kernel_sizes=[[3, 3]] * 3,
        strides=[[1, 1], [2, 2], [2, 2]],
        blocks=1,
        decoder_blocks=1,
    )
    facts["features_per_stage"] = [16, 32, 64]
    nnunet.checkpoint["network_weights"] = theirs(build_network(network).state_dict())
    nnunet.plans["configurations"]["2d"] = old_configuration(facts)
    old = convert_checkpoint(nnunet.write(), tmp_path / "old").config
    assert old.network.features == (16, 32, 64)
    assert old.plan == new.plan
    assert len(weights) == len(nnunet.checkpoint["network_weights"])


def test_inherited_configuration(nnunet: NNUNetFolder, tmp_path: Path):
    nnunet.plans["configurations"]["2d_large"] = {"inherits_from": "2d", "patch_size": [64, 64]}
    config = convert_checkpoint(
        nnunet.write(), tmp_path / "model", configuration="2d_large", dtype="fp16"
    ).config
    assert config.plan.patch_size == (64, 64)


def test_one_head_means_no_deep_supervision(nnunet: NNUNetFolder, tmp_path: Path):
    weights = nnunet.checkpoint["network_weights"]
    for name in [name for name in weights if name.startswith("decoder.seg_layers.0.")]:
        del weights[name]
    config = convert_checkpoint(nnunet.write(), tmp_path / "model").config
    assert not config.network.deep_supervision


def test_natural_images_have_no_spacing_and_rgb_channels(tmp_path: Path, nnunet: NNUNetFolder):
    network = released_config(
        dim=2,
        input_channels=3,
        output_channels=3,
        features=(4, 8, 64),
        kernel_sizes=[[3, 3]] * 3,
        strides=[[1, 1], [2, 2], [2, 2]],
        blocks=1,
        decoder_blocks=1,
    )
    nnunet.checkpoint["network_weights"] = theirs(build_network(network).state_dict())
    nnunet.dataset["channel_names"] = {"0": "R", "1": "G", "2": "B"}
    nnunet.plans["image_reader_writer"] = "NaturalImage2DIO"
    plan = convert_checkpoint(nnunet.write(), tmp_path / "model").config.plan
    assert (plan.channels, plan.spacing, plan.unit) == ("rgb", None, None)


CT = {"mean": 99.5, "std": 120.0, "percentile_00_5": -900.0, "percentile_99_5": 800.0}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"normalization_schemes": ["CTNormalization"]}, ("ct", -900, 800, 99.5, 120)),
        ({"normalization_schemes": ["NoNormalization"]}, ("none",)),
        ({"normalization_schemes": ["RescaleTo01Normalization"]}, ("rescale",)),
        ({"normalization_schemes": ["RGBTo01Normalization"]}, ("rgb",)),
        ({"use_mask_for_norm": [True]}, ("zscore_nonzero",)),
        ({}, ("zscore",)),
    ],
)
def test_normalisation_is_the_authors(nnunet, tmp_path, changes, rule):
    nnunet.configuration.update(changes)
    nnunet.plans["foreground_intensity_properties_per_channel"] = {"0": CT}
    conversion = convert_checkpoint(nnunet.write(), tmp_path / "model")
    assert conversion.warnings == ()
    assert conversion.config.card.limitations == ""
    (found,) = conversion.config.plan.intensities
    numbers = (found.low, found.high, found.mean, found.deviation)
    assert (found.scheme, *(n for n in numbers if n is not None)) == rule


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"normalization_schemes": ["MyNormalization"]}, "MyNormalization"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "way of their own"),
        ({"resampling_fn_probabilities_kwargs": {"order": 3}}, "way of their own"),
    ],
)
def test_preprocessing_that_differs_is_told(nnunet, tmp_path, changes, warning):
    nnunet.configuration.update(changes)
    conversion = convert_checkpoint(nnunet.write(), tmp_path / "model")
    (told,) = conversion.warnings
    assert warning in told
    assert conversion.config.card.limitations == told


def test_axes_are_reordered_and_oriented_as_the_authors_do(nnunet: NNUNetFolder, tmp_path: Path):
    plan = convert_checkpoint(nnunet.write(), tmp_path / "plain").config.plan
    assert (plan.transpose, plan.orientation, plan.crop) == (None, None, "nonzero")
    nnunet.plans["transpose_forward"] = [1, 0, 2]
    for reader in ("NibabelIOWithReorient", "SimpleITKIOWithReorient"):
        nnunet.plans["image_reader_writer"] = reader
        conversion = convert_checkpoint(nnunet.write(), tmp_path / "model", overwrite=True)
        plan = conversion.config.plan
        assert conversion.warnings == ()
        assert (plan.transpose, plan.orientation) == ((1, 0, 2), "RAS")
    nnunet.plans["image_reader_writer"] = "TheirOwnIO"
    conversion = convert_checkpoint(nnunet.write(), tmp_path / "model", overwrite=True)
    assert "TheirOwnIO is not known" in conversion.warnings[0]


class Payload:
    """Unpickling it would call `os.mkdir`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_hidden_code_is_not_run(nnunet: NNUNetFolder, tmp_path: Path):
    nnunet.checkpoint["logging"] = Payload(tmp_path / "owned")
    with pytest.raises(ModelError, match=r"Python objects \('\w+.mkdir'\).*was not loaded"):
        convert_checkpoint(nnunet.write(), tmp_path / "model")
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "model").exists()


def test_only_numpy_scalars_are_let_through(nnunet: NNUNetFolder, tmp_path: Path):
    before = set(torch.serialization.get_safe_globals())
    nnunet.checkpoint["logging"] = np.zeros(3)
    with pytest.raises(ModelError, match="Python objects"):
        convert_checkpoint(nnunet.write(), tmp_path / "model")
    assert set(torch.serialization.get_safe_globals()) == before


def rename(start: str, end: str) -> Callable[[NNUNetFolder], None]:
    def apply(nnunet: NNUNetFolder) -> None:
        weights = nnunet.checkpoint["network_weights"]
        renamed = {name.replace(start, end): value for name, value in weights.items()}
        nnunet.checkpoint["network_weights"] = renamed

    return apply


def change(section: str, **fields: Any) -> Callable[[NNUNetFolder], None]:
    return lambda nnunet: getattr(nnunet, section).update(fields)


def drop(section: str, field: str) -> Callable[[NNUNetFolder], None]:
    return lambda nnunet: getattr(nnunet, section).pop(field)


def add_weight(name: str) -> Callable[[NNUNetFolder], None]:
    return lambda nnunet: nnunet.checkpoint["network_weights"].update({name: torch.zeros(1)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda n: setattr(n, "checkpoint", torch.zeros(3)), "no 'network_weights'"),
        (drop("checkpoint", "network_weights"), "no 'network_weights'"),
        (change("checkpoint", network_weights=[1, 2]), "no table of tensors"),
        (rename("TTT_layer.TTTLinear", "mamba_layer.mamba"), "those of U-Mamba"),
        (rename("TTT_layer.TTTLinear.", "other."), "those of another network"),
        (rename("encoder.stem.", "encoder.root."), "lacks the first convolution"),
        (add_weight("encoder.extra.weight"), "'encoder.extra.weight' that no TTT-UNet knows"),
        (add_weight("TTT_layer.TTTLinear.z"), "'TTT_layer.TTTLinear.z' that no TTT layer knows"),
        (add_weight("TTT_layer.gamma"), "'TTT_layer.gamma' that no TTT layer knows"),
        (add_weight("encoder.stages.7.0.conv1.weight"), r"1 unexpected \(encoder.stages.7.blocks"),
        (
            lambda n: n.checkpoint["network_weights"].pop("TTT_layer.norm.weight"),
            r"1 missing \(encoder.stages.2.ttt.norm.weight\)",
        ),
        (
            lambda n: n.checkpoint["network_weights"]["TTT_layer.norm.weight"].fill_(float("nan")),
            "NaN or infinite",
        ),
        (change("plans", configurations={}), "no usable configuration '2d'"),
        (change("configuration", inherits_from="2d"), "no usable configuration '2d'"),
        (drop("configuration", "patch_size"), "lacks the field 'patch_size'"),
        (drop("configuration", "architecture"), "lacks the field 'conv_kernel_sizes'"),
        (change("configuration", patch_size=[8, 32, 32]), "patch_size needs 2 numbers"),
        (change("configuration", patch_size=["a", "b"]), "malformed"),
        (change("configuration", patch_size=7), "malformed"),
        (
            change("configuration", normalization_schemes=["CTNormalization"]),
            "lacks the field 'foreground_intensity",
        ),
        (drop("dataset", "labels"), "dataset.json lacks the field 'labels'"),
        (change("dataset", labels={"background": 0, "a": 1}), "1 labels need 2 outputs"),
        (change("dataset", labels={"background": 0, "whole": [1, 2]}), "`regions_class_order`"),
    ],
)
def test_checkpoint_that_does_not_fit_is_explained(nnunet, tmp_path, damage, message):
    damage(nnunet)
    with pytest.raises(ModelError, match=message) as caught:
        convert_checkpoint(nnunet.write(), tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("fold_all/checkpoint_final.pth", "holds no checkpoint_final.pth"),
        ("plans.json", "There is no plans.json"),
        ("dataset.json", "There is no dataset.json"),
    ],
)
def test_missing_file_is_named(nnunet: NNUNetFolder, tmp_path: Path, missing: str, message: str):
    (nnunet.write() / missing).unlink()
    with pytest.raises(ModelError, match=message):
        convert_checkpoint(nnunet.path, tmp_path / "model")


def test_damaged_files_are_named(nnunet: NNUNetFolder, tmp_path: Path):
    nnunet.write()
    nnunet.file.write_bytes(nnunet.file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="is damaged or no PyTorch checkpoint"):
        convert_checkpoint(nnunet.path, tmp_path / "model")
    for text, message in (("{", "cannot be read"), ("[]", "no JSON object")):
        (nnunet.path / "plans.json").write_text(text)
        with pytest.raises(ModelError, match=rf"plans.json' {message}|plans.json' holds {message}"):
            convert_checkpoint(nnunet.path, tmp_path / "model")
    with pytest.raises(ModelError, match="There is no "):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "model")


def test_fold_must_be_chosen_among_several(nnunet: NNUNetFolder, tmp_path: Path):
    nnunet.write()
    (nnunet.path / "fold_0").mkdir()
    with pytest.raises(ModelError, match=r"several folds \(0, all\)"):
        convert_checkpoint(nnunet.path, tmp_path / "model")
    with pytest.raises(ModelError, match="has no fold_3"):
        convert_checkpoint(nnunet.path, tmp_path / "model", fold="3")
    convert_checkpoint(nnunet.path, tmp_path / "model", fold="all")


def test_existing_output_is_kept(nnunet: NNUNetFolder, tmp_path: Path):
    convert_checkpoint(nnunet.write(), tmp_path / "model")
    with pytest.raises(OutputError, match="exists already"):
        convert_checkpoint(nnunet.path, tmp_path / "model")
    convert_checkpoint(nnunet.path, tmp_path / "model", overwrite=True)


def test_aliases_of_the_official_state_dict_are_ignored():
    config = released_config(
        dim=2,
        input_channels=1,
        output_channels=2,
        features=(4, 8),
        kernel_sizes=[[3, 3]] * 2,
        strides=[[1, 1], [2, 2]],
    )
    aliases = ("decoder.encoder.stem.0.conv1.weight", "encoder.stem.1.conv1.all_modules.0.weight")
    assert convert_network({name: torch.zeros(1) for name in aliases}, config) == {}
