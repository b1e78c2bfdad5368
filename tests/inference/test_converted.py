"""The authors' 3D checkpoint, converted, segments a real CT on its own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from golden import case_parameters, load_case
from nnunet_folder import NNUNetFolder
from tttunet.inference.files import FileJob, segment_file
from tttunet.models import convert_checkpoint, load_model

CT = {"mean": 60.0, "std": 150.0, "percentile_00_5": -300.0, "percentile_99_5": 300.0}


@pytest.mark.parametrize("path", case_parameters("uttt_bot_3d"))
def test_a_ct_is_segmented_on_its_own_grid(path: Path, tmp_path: Path, data_dir: Path) -> None:
    case = load_case(path)
    nnunet = NNUNetFolder(tmp_path / "results", case)
    nnunet.configuration["normalization_schemes"] = ["CTNormalization"]
    nnunet.configuration["spacing"] = [4.0, 2.5, 3.5]
    nnunet.plans["foreground_intensity_properties_per_channel"] = {"0": CT}
    nnunet.plans["transpose_forward"] = [1, 0, 2]
    nnunet.dataset["labels"] = {"background": 0, "liver": 1, "kidney_right": 2}
    conversion = convert_checkpoint(nnunet.write(), tmp_path / "abdomen")
    assert conversion.warnings == ()
    model = load_model(conversion.path)
    assert [(label.name, label.color, label.code) for label in model.config.labels] == [
        ("liver", (221, 130, 101), "SCT^10200004^Liver"),
        ("kidney_right", (185, 102, 83), "SCT^64033007^Kidney~SCT^24028007^Right"),
    ]

    source = data_dir / "ctmr_totalseg_demo" / "images" / "ts_ct.nii.gz"
    job = FileJob(source, tmp_path / "labels.nii.gz")
    result = segment_file(job, model, device="cpu")
    before, after = (sitk.ReadImage(str(one)) for one in (source, job.labels))
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(after, what)() == getattr(before, what)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), result.labels)
    assert 0.01 < (result.labels > 0).mean() < 0.99  # the weights are random

    # The same patient stored in another order of axes has the same labels in the same places.
    turned = sitk.Flip(sitk.PermuteAxes(before, (1, 2, 0)), (True, False, True))
    model.config = model.config.model_copy(
        update={"plan": model.config.plan.model_copy(update={"orientation": "LPS"})}
    )
    for name in ("lps", "ras"):
        picture = sitk.DICOMOrient(turned, name.upper())
        sitk.WriteImage(picture, str(tmp_path / f"{name}.nrrd"))
        job = FileJob(tmp_path / f"{name}.nrrd", tmp_path / f"{name}_labels.nrrd")
        segment_file(job, model, device="cpu")
    lps, ras = (sitk.ReadImage(str(tmp_path / f"{name}_labels.nrrd")) for name in ("lps", "ras"))
    again = sitk.GetArrayFromImage(sitk.DICOMOrient(ras, "LPS"))
    np.testing.assert_array_equal(again, sitk.GetArrayFromImage(lps))
