"""TTT-UNet: segmentation of microscopy images and medical volumes.

    import tttunet

    image = tttunet.load_image("cells.tif")
    model = tttunet.load_model("nuclei")
    result = tttunet.segment(image, model)
    result.labels

Everything is imported on first use, so `import tttunet` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tttunet.evaluation import evaluate
    from tttunet.imaging import load_image, load_labels
    from tttunet.inference.segment import segment
    from tttunet.models.model import load_model
    from tttunet.training.finetune import finetune
    from tttunet.training.run import train

    __version__: str

__all__ = [
    "__version__",
    "evaluate",
    "finetune",
    "load_image",
    "load_labels",
    "load_model",
    "segment",
    "train",
]

_HOMES = {
    "evaluate": "evaluation",
    "finetune": "training.finetune",
    "load_image": "imaging",
    "load_labels": "imaging",
    "load_model": "models.model",
    "segment": "inference.segment",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("napari-tttunet")
    except PackageNotFoundError:
        return "0+unknown"  # a source tree that is not installed
