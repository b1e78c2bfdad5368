"""A batch as a file: which images, which model, what to write. No torch is needed to make one."""

from __future__ import annotations

import glob
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from tttunet.engine.messages import Segment, model_reference
from tttunet.errors import TTTUNetError
from tttunet.files import atomic_write
from tttunet.inference.files import LABELS_ENDING, OFFERED_SUFFIXES, Existing
from tttunet.models.card import first_problem
from tttunet.models.library import list_models
from tttunet.networks.config import StrictModel

_SUFFIXES = (".yaml", ".yml", ".json")


class BatchError(TTTUNetError):
    """A batch file cannot be read, or says something impossible."""


class Batch(StrictModel):
    """The content of a batch file; paths in it start from its folder.

    Attributes:
        version: of this format.
        inputs: files, folders and globs; a folder of DICOM slices is one image.
        output: folder of the results; for a single image also the name of the label file.
        model: name or path; of several the probabilities are averaged.
        ending: what the names of label files end in.
        format: of the label files; `auto` keeps NIfTI, NRRD and MHA, makes NRRD of DICOM, and
            OME-TIFF of others.
        overlay: write a picture with outlines.
        table: write a table of the objects.
        adaptation_map: write where the TTT layers had to adapt.
        axes: one letter per dimension, if the files do not say it.
        channel: the one to segment, name or number.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        tile: tile size, one number or one per axis; empty: automatic.
        overlap: share of a tile that neighbours share.
        mirror: average over flips.
        adaptation: how TTT layers adapt, see `tttunet.layers.adaptation.Mode`.
        decoding: changed thresholds of the model.
        frames: TIFF stacks and folders of pictures are frames over time, read and written one by
            one, as videos always are.
        smoothing: average the probabilities of so many frames (odd); 1: each by itself.
        existing: `skip` goes on with a batch that was interrupted: images whose results are
            complete are left out. `overwrite` writes all again, `error` refuses.
    """

    version: Literal[1] = 1
    inputs: tuple[str, ...] = Field(min_length=1)
    output: str
    model: str | tuple[str, ...] = "nuclei"
    ending: str = LABELS_ENDING
    format: str = "auto"
    overlay: bool = False
    table: bool = False
    adaptation_map: bool = False
    axes: str | None = None
    channel: str | None = None
    device: str = "auto"
    tile: tuple[int, ...] = ()
    overlap: float = Field(0.25, ge=0, le=0.9)
    mirror: bool = False
    adaptation: Literal["off", "tile", "image", "both"] = "tile"
    decoding: dict[str, Any] = Field(default_factory=dict)
    frames: bool = False
    smoothing: int = Field(1, ge=1)
    existing: Existing = "skip"

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,) if isinstance(self.model, str) else self.model

    @field_validator("model", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
            raise ValueError("write a name or a path, or several in brackets")
        if not names:
            raise ValueError("there is none")
        return names[0] if len(names) == 1 else tuple(names)

    @field_validator("inputs", "tile", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int) else value

    @field_validator("channel", mode="before")
    @classmethod
    def _number_or_name(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("tile")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(n < 1 for n in value):
            raise ValueError("sizes must be positive")
        return value

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value not in ("auto", *OFFERED_SUFFIXES):
            raise ValueError(f"choose auto or one of {', '.join(OFFERED_SUFFIXES)}")
        return value

    @field_validator("ending")
    @classmethod
    def _no_folder(cls, value: str) -> str:
        if not value or set(value) & set("/\\"):
            raise ValueError("it must be a part of a file name")
        return value

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "The batch") -> Batch:
        """Check the content of a batch file.

        Raises:
            BatchError: names the field.
        """
        try:
            return cls.model_validate(dict(content))
        except ValidationError as error:
            raise BatchError(
                f"{source} has a mistake: {first_problem(error)}.",
                f"The fields are {', '.join(cls.model_fields)}.",
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> Batch:
        """Read a YAML or JSON file; its paths become absolute.

        Raises:
            BatchError: it cannot be read, is no YAML, or a field is missing, unknown or wrong.
        """
        import yaml

        path = Path(path).expanduser()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BatchError(f"'{path}' cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            place = getattr(error, "problem_mark", None)
            where = f" in line {place.line + 1}" if place else ""
            raise BatchError(f"'{path}' is no valid YAML{where}.", "Check its indents.") from error
        if not isinstance(content, dict):
            raise BatchError(f"'{path}' holds no fields.", "Write lines such as `model: nuclei`.")
        return cls.from_dict(content, f"'{path}'").absolute(path.absolute().parent)

    def write(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Save as YAML, or as JSON if the name ends so, without the fields that have their default.

        Raises:
            OutputError: the file exists or cannot be written.
            BatchError: the name ends in something else.
        """
        path = Path(path)
        if path.suffix.lower() not in _SUFFIXES:
            raise BatchError(f"'{path}' is no name of a batch file.", "Let it end in .yaml.")
        content = {"version": self.version, **self.model_dump(mode="json", exclude_defaults=True)}
        with atomic_write(path, overwrite=overwrite) as temporary:
            temporary.write_text(_text(content, path), encoding="utf-8")
        return path

    def absolute(self, folder: str | Path | None = None) -> Batch:
        """The same with absolute paths, from `folder` or else the working folder."""
        base = Path(folder or Path.cwd())

        def place(text: str) -> str:
            ending = "/" if text.endswith(("/", "\\")) else ""
            path = base / Path(text).expanduser()
            if glob.has_magic(text) and not path.exists():
                # Brackets in the name of the folder are no pattern.
                path = Path(glob.escape(str(base))) / Path(text).expanduser()
            return str(path) + ending

        models = tuple(one if _is_name(one, base) else place(one) for one in self.models)
        changes = {
            "inputs": tuple(map(place, self.inputs)),
            "output": place(self.output),
            "model": models if len(models) > 1 else models[0],
        }
        return self.model_copy(update=changes)


def _is_name(model: str, base: Path) -> bool:
    """Whether it is a name in the library rather than a path, as in `library.resolve`."""
    if model_reference(model) != model:
        return False
    return model in {entry.name for entry in list_models()} or not (base / model).is_dir()


def _text(content: dict[str, Any], path: Path) -> str:
    if path.suffix.lower() == ".json":
        return json.dumps(content, indent=2) + "\n"
    import yaml

    title = "# tttunet batch FILE runs this; it goes on where it was interrupted.\n"
    return title + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def command_line(request: Segment, output: str) -> str | None:
    """The command that does the same as a request; None for an image that is in no file.

    Args:
        request: what to do.
        output: folder or file for the labels.
    """
    if not request.image.path:
        return None
    words = ["tttunet", "segment", request.image.path, "--output", output]
    words += ["--model", request.model]
    words += ["--adaptation-map"] if request.adaptation_map else []
    fields = {name: getattr(request, name) for name in _OPTIONS if name != "axes"}
    return shlex.join(words + _options({**fields, "axes": request.image.axes}))


def segment_command(plan: Mapping[str, Any]) -> str | None:
    """The `tttunet segment` that does what a batch does; None if it has no such options.

    Args:
        plan: the fields of a batch file; of those that are missing the defaults count.
    """
    if plan["ending"] != LABELS_ENDING or plan["format"] != "auto":
        return None
    words = ["tttunet", "segment", *map(str, plan["inputs"]), "--engine"]
    models = [plan["model"]] if isinstance(plan["model"], str) else plan["model"]
    words += ["--output", plan["output"] or "labels/"]
    words += [word for model in models for word in ("--model", model)]
    extras = ("overlay", "table", "adaptation_map")
    words += [f"--{name.replace('_', '-')}" for name in extras if plan.get(name)]
    words += ["--frames"] if plan.get("frames") else []
    words += ["--smooth", str(plan["smoothing"])] if plan.get("smoothing", 1) != 1 else []
    words += ["--overwrite"] if plan["existing"] == "overwrite" else []
    return shlex.join(words + _options(plan))


#: What a request and a batch have in common, and what it usually is.
_OPTIONS: dict[str, Any] = {
    "axes": "",
    "channel": "",
    "device": "auto",
    "tile": (),
    "overlap": Segment.overlap,
    "mirror": False,
    "adaptation": Segment.adaptation,
    "decoding": {},
}


def _options(given: Mapping[str, Any]) -> list[str]:
    """Options of `tttunet segment` for what is not as usual."""
    found = {name: given.get(name) or usual for name, usual in _OPTIONS.items()}
    found["overlap"] = given.get("overlap", Segment.overlap)  # 0 means none
    words = []
    for name in ("axes", "channel", "device", "tile", "overlap", "adaptation"):
        value = found[name]
        text = ",".join(map(str, value)) if name == "tile" else str(value)
        words += [f"--{name}", text] if value != _OPTIONS[name] else []
    words += ["--tta"] if found["mirror"] else []
    for name, value in found["decoding"].items():
        words += ["--decoding", f"{name}={json.dumps(value)}"]
    return words
