"""Reading `model.json`, without torch."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from tttunet.errors import ModelError
from tttunet.models.config import CARD_NAME, FORMAT_VERSION, WEIGHTS_NAME, ModelConfig


def model_folder(path: str | Path) -> Path:
    """The folder of a model that is named by its folder, its model.json or its weights file."""
    path = Path(path).expanduser()
    return path.parent if path.name in (CARD_NAME, WEIGHTS_NAME) else path


#: The hint of everything that a fresh copy of the model mends.
COPY_AGAIN = "Copy or download the model again."


def no_card(folder: Path) -> ModelError:
    """The error that a folder is no model."""
    return ModelError(
        f"'{folder}' holds no {CARD_NAME}.",
        f"A model is a folder with {CARD_NAME} and {WEIGHTS_NAME}.",
    )


def read_config(folder: Path) -> ModelConfig:
    """Read and validate the model.json of a model folder.

    Raises:
        ModelError: there is none, it is no JSON, it was written by a newer version, or a field is
            missing or wrong; the message names the field.
    """
    path = folder / CARD_NAME
    if not folder.is_dir():
        raise ModelError(f"There is no model folder '{folder}'.")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise no_card(folder) from None
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(f"'{path}' is no valid JSON: {error}.", COPY_AGAIN) from error
    _check_format(content, path)
    try:
        return ModelConfig.model_validate_json(text)
    except ValidationError as error:
        raise ModelError(
            f"'{path}' is no valid model card: {first_problem(error)}.", COPY_AGAIN
        ) from error


def weights_path(config: ModelConfig, folder: Path) -> Path:
    """The weights file of a model, checked for existence and size.

    Raises:
        ModelError: model.json names none, or it is missing or of another size.
    """
    if config.weights is None:
        raise ModelError(f"'{folder / CARD_NAME}' names no weights file.")
    size = config.weights.bytes
    path = folder / config.weights.file
    if not path.is_file():
        raise ModelError(f"The weights file '{path}' is missing.", "Copy or download it again.")
    found = path.stat().st_size
    if found != size:
        state = "is cut short" if found < size else "is too long"
        raise ModelError(
            f"The weights file '{path}' {state}: {found} bytes where {CARD_NAME} says {size}.",
            "Copy or download it again.",
        )
    return path


def card_text(config: ModelConfig) -> str:
    """The text of model.json."""
    return config.model_dump_json(indent=2) + "\n"


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error, as `field: what is wrong with it`."""
    problems = error.errors(include_url=False, include_context=False)
    field = ".".join(str(part) for part in problems[0]["loc"])
    message = problems[0]["msg"].removeprefix("Value error, ")
    text = f"{field}: {message}" if field else message
    return text if len(problems) == 1 else f"{text} (and {len(problems) - 1} more)"


def _check_format(content: object, path: Path) -> None:
    if not isinstance(content, dict):
        raise ModelError(f"'{path}' is no valid model card: it holds no JSON object.")
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelError(
            f"'{path}' has model format {version}, this version reads formats up to "
            f"{FORMAT_VERSION}.",
            "Update napari-tttunet.",
        )
