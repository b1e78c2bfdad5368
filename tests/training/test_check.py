from __future__ import annotations

import shutil

import numpy as np
import pytest

from tttunet.training.check import check_dataset
from tttunet.training.dataset import open_dataset

from .volumes import ball, describe, write_case, write_volume


@pytest.fixture
def balls(tmp_path):
    """Five good volumes."""
    for number in range(5):
        image, label = ball(seed=number)
        write_case(tmp_path, f"v{number}", image, label, spacing=(2, 1, 1))
    return describe(tmp_path)


def problems(folder) -> dict[str, list[tuple[bool, str]]]:
    """By case: whether fatal, and the text."""
    found: dict[str, list[tuple[bool, str]]] = {}
    for problem in check_dataset(folder).problems:
        found.setdefault(problem.where, []).append((problem.fatal, problem.text))
    return found


def test_nothing_wrong(balls):
    calls = []
    found = check_dataset(balls, lambda done, total: calls.append((done, total)))
    assert (found.problems, found.errors) == ([], 0)
    assert calls[-1] == (5, 5)


def test_everything_at_once(balls):
    image, label = ball(seed=9)
    images, labels = balls / "imagesTr", balls / "labelsTr"
    (images / "v0_0000.nii.gz").unlink()
    write_volume(labels / "v1.nii.gz", label * 7, spacing=(2, 1, 1))
    write_volume(labels / "v2.nii.gz", label, spacing=(2, 1, 1.5))
    (images / "v3_0000.nii.gz").write_bytes(b"no image")
    write_volume(labels / "v4.nii.gz", label[:-1], spacing=(2, 1, 1))
    write_volume(images / "stray_0000.nii.gz", image)
    found = problems(balls)
    assert {name for name, (first, *_) in found.items() if first[0]} == {
        "v0",
        "v1",
        "v2",
        "v3",
        "v4",
    }
    for name, text in (
        ("v0", "is missing"),
        ("v1", "values without a class: [7]"),
        ("v2", "differ in spacing: 2 x 1 x 1, 2 x 1 x 1.5"),
        ("v3", "damaged"),
        ("v4", "differ in shape: 12 x 24 x 24, 11 x 24 x 24"),
        ("stray_0000.nii.gz", "not used: it has no label"),
    ):
        assert text in found[name][0][1], found[name]


@pytest.mark.parametrize(
    ("geometry", "text", "fatal"),
    [
        ({"origin": (0.2, 0, 0)}, "differ in origin, by 0.2 voxels", False),
        ({"origin": (0, 0, 2)}, "differ in origin, by 1 voxels", True),
        ({"direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1)}, "differ in direction", True),
    ],
)
def test_labels_in_another_place(balls, geometry, text, fatal):
    _, label = ball()
    write_volume(balls / "labelsTr" / "v3.nii.gz", label, spacing=(2, 1, 1), **geometry)
    ((found, message),) = problems(balls)["v3"]
    assert (found, text in message) == (fatal, True), message


def test_warnings(balls):
    image, label = ball(seed=9)
    shutil.copy(balls / "imagesTr" / "v0_0000.nii.gz", balls / "imagesTr" / "v1_0000.nii.gz")
    write_case(balls, "v2", image, label * 0, spacing=(2, 1, 1))
    write_case(balls, "v3", np.full_like(image, 5), label, spacing=(2, 1, 1))
    describe(balls, labels={"background": 0, "ball": 1, "cube": 2})
    found = problems(balls)
    texts = [text for rows in found.values() for fatal, text in rows if not fatal]
    assert len(texts) == sum(map(len, found.values())) == 4
    for part in (
        "the same image as",
        "nothing but background",
        "the same value everywhere",
        "No image has the class 'cube'",
    ):
        assert any(part in text for text in texts), part
    assert check_dataset(balls).warnings == 4


def test_channels_and_dimensions(balls):
    describe(balls, ("T1", "T2"))
    assert all(
        "is missing" in rows[0][1] or "not 2" in rows[0][1] for rows in problems(balls).values()
    )
    assert len(problems(balls)) == 5
    describe(balls)
    image, label = ball(seed=9)
    write_case(balls, "v1", np.stack([image, image]), label, spacing=(2, 1, 1))
    found = problems(balls)
    assert list(found) == ["v1_0001.nii.gz"]
    assert "too high a channel number" in found["v1_0001.nii.gz"][0][1]
    (balls / "imagesTr" / "v2_0000.nii.gz").rename(balls / "imagesTr" / "v2.nii.gz")
    assert "lacks the number of the channel" in problems(balls)["v2.nii.gz"][0][1]


def test_nothing_labelled(balls):
    for number in range(5):
        image, label = ball(seed=number)
        write_case(balls, f"v{number}", image, label * 0, spacing=(2, 1, 1))
    found = check_dataset(balls)
    assert found.errors == 1
    assert found.problems[-1].text == "Nothing is labelled in any image."
    assert open_dataset(balls).dim == 3


def test_not_a_number(tmp_path):
    for number in range(2):
        image, label = ball(seed=number)
        image[0, 0, : 2 * number] = np.nan
        write_volume(tmp_path / "imagesTr" / f"v{number}_0000.mha", image)
        write_volume(tmp_path / "labelsTr" / f"v{number}.mha", label)
    describe(tmp_path, file_ending=".mha")
    (found,) = check_dataset(tmp_path).problems
    assert (found.where, found.fatal) == ("v1", False)
    assert "no numbers (0.03%)" in found.text
