"""Sample images for napari's menu File > Open Sample; `resources/samples` says where from.

Each opens with the labels that experts drew, as a hidden layer.
"""

from __future__ import annotations

from importlib.resources import as_file, files

from napari_tttunet.convert import LayerData, image_layers


def fluorescence() -> list[LayerData]:
    return _sample("fluorescence.png")


def fluorescence_crowded() -> list[LayerData]:
    return _sample("fluorescence_crowded.png")


def histology_purple() -> list[LayerData]:
    return _sample("histology_purple.png")


def histology_white() -> list[LayerData]:
    return _sample("histology_white.png")


def ovule_nuclei() -> list[LayerData]:
    return _sample("ovule_nuclei.ome.tif")


def colonoscopy_polyp() -> list[LayerData]:
    return _sample("colonoscopy_polyp.png")


def hippocampus() -> list[LayerData]:
    return _sample("hippocampus.nii.gz")


def ct_liver() -> list[LayerData]:
    return _sample("ct_liver.png")


def mr_kidney() -> list[LayerData]:
    return _sample("mr_kidney.png")


def _sample(file: str) -> list[LayerData]:
    from tttunet.imaging import image_stem, load_image, load_labels

    name = image_stem(file)
    with as_file(files("tttunet.resources") / "samples") as folder:
        image = load_image(folder / file)
        (truth,) = folder.glob(f"{name}_labels.*")
        labels = load_labels(truth)
    ((data, arguments, kind),) = image_layers(
        labels.with_array(labels.array, labels.axes), "labels"
    )
    arguments |= {"name": f"{name}: true labels", "visible": False}
    return [*image_layers(image), (data, arguments, kind)]
