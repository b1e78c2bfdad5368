"""PNG, JPEG and BMP."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image as Pillow

from tttunet.errors import ImageError
from tttunet.imaging import load_image, load_labels


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".jpg", ".jpeg"])
def test_grey_and_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for shape, axes in (((5, 6), "YX"), ((5, 6, 3), "CYX")):
        Pillow.fromarray(ramp(*shape)).save(path)
        image = load_image(path)
        assert (image.axes, image.rgb, image.name) == (axes, axes == "CYX", "a")
        if "j" not in suffix:
            expected = ramp(*shape) if axes == "YX" else ramp(*shape).transpose(2, 0, 1)
            np.testing.assert_array_equal(image.array, expected)


@pytest.mark.parametrize(("mode", "shape"), [("LA", (5, 6, 2)), ("RGBA", (5, 6, 4))])
def test_alpha_is_dropped(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(ramp(*shape), mode).save(path)
    image = load_image(path)
    assert image.rgb == (mode == "RGBA")
    np.testing.assert_array_equal(
        np.moveaxis(np.atleast_3d(image.array), 0, -1) if image.rgb else image.array[..., None],
        ramp(*shape)[..., :-1],
    )


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 2), (5, 6, 3), (5, 6, 4)])
def test_sixteen_bits(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.png"
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.uint16) * 300
    path.write_bytes(imagecodecs.png_encode(array))
    image = load_image(path)
    assert image.array.dtype == np.uint16
    expected = array if array.ndim == 2 else array[..., : image.channels].transpose(2, 0, 1)
    np.testing.assert_array_equal(image.array, expected.squeeze())


def test_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    array = ramp(5, 6) % 3 == 0
    Pillow.fromarray(array).save(path)
    assert load_image(path).array.dtype == bool
    labels = load_labels(path).array
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, array)


def test_palette_is_colour_for_images_and_numbers_for_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    numbers = ramp(5, 6) % 3
    picture = Pillow.fromarray(numbers, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(path)
    image = load_image(path)
    assert image.rgb
    np.testing.assert_array_equal(image.array[0] == 255, numbers == 1)
    np.testing.assert_array_equal(load_labels(path).array, numbers)


def test_grey_palette_is_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = Pillow.fromarray(ramp(5, 6) % 3, "P")
    picture.putpalette([0, 0, 0, 100, 100, 100, 200, 200, 200])
    picture.save(path)
    image = load_image(path)
    assert image.axes == "YX"
    np.testing.assert_array_equal(image.array, ramp(5, 6) % 3 * 100)


def test_content_decides_between_the_formats(tmp_path: Path) -> None:
    path = tmp_path / "really_a.png"
    Pillow.fromarray(ramp(5, 6)).save(path, "BMP")
    np.testing.assert_array_equal(load_image(path).array, ramp(5, 6))


def test_axes_override(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(ramp(5, 6, 3)).save(path)
    image = load_image(path, "YXC")
    assert (image.axes, image.rgb) == ("CYX", False)
    with pytest.raises(ImageError, match="needs 3 axes"):
        load_image(path, "YX")


def test_colour_picture_is_no_label_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(ramp(5, 6, 3)).save(path)
    with pytest.raises(ImageError, match=r"colour image.*single-channel"):
        load_labels(path)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(ramp(5, 6)).save(path)
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="too many pixels"):
        load_image(path)
