"""The parts of a project that are no images: what it is, its models and its history."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from tttunet.files import output_error
from tttunet.projects.journal import Journal
from tttunet.projects.lock import FolderLock
from tttunet.projects.recovery import INFO_NAME
from tttunet.projects.schema import ProjectError, ProjectInfo, write_json
from tttunet.projects.versions import Version, keep, list_versions, next_name

Self = TypeVar("Self", bound="ProjectFolder")  # typing has it from Python 3.11 on


class ProjectFolder:
    """An open project folder; `Project` adds the images.

    Attributes:
        folder: absolute.
        read_only: nothing can be written.
    """

    def __init__(
        self, folder: Path, info: ProjectInfo, journal: Journal, lock: FolderLock | None
    ) -> None:
        self.folder = folder
        self.read_only = lock is None
        self._info, self._journal, self._lock = info, journal, lock
        self._problems: dict[str, None] = {}
        self._guard = threading.RLock()

    def close(self) -> None:
        """Let others write."""
        self.read_only = True
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        return self._info.name

    @property
    def task(self) -> str:
        """`instance` or `semantic`."""
        return self._info.task

    @property
    def dim(self) -> int:
        """2 or 3."""
        return self._info.dim

    @property
    def classes(self) -> dict[int, str]:
        """Names of the label numbers, a copy."""
        return dict(self._info.classes)

    @property
    def model(self) -> str:
        """The current model: a name in the library, or `models/<name>` in the project."""
        return self._info.model

    @property
    def settings(self) -> dict[str, Any]:
        """What the faces remember, a copy."""
        return json.loads(json.dumps(self._info.settings))

    def update(
        self,
        *,
        name: str | None = None,
        classes: Mapping[int, str] | None = None,
        model: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Change what is not None, on the disk too.

        Raises:
            ProjectError: it makes no sense, or the project is open for reading only.
            OutputError: it cannot be written.
        """
        given = {"name": name, "classes": classes, "model": model, "settings": settings}
        changes: dict[str, Any] = {
            key: dict(value) if isinstance(value, Mapping) else value
            for key, value in given.items()
            if value is not None
        }
        with self._guard:
            self._check_writable()
            info = replace(self._info, **changes)
            if info.fault():
                raise ProjectError(f"The project cannot be changed: {info.fault()}.")
            try:
                data = json.loads(json.dumps(info.to_json()))
            except (TypeError, ValueError) as error:
                raise ProjectError(f"The settings cannot be saved: {error}.") from error
            write_json(self.folder / INFO_NAME, data)
            self._info = replace(info, settings=data["settings"])  # a copy, as it will be read
            self.note("project changed", project=data)

    def set_setting(self, name: str, value: Any) -> None:
        """Change one of `settings`; others may be changed in other threads meanwhile.

        Args:
            name: which.
            value: JSON; None removes it.

        Raises:
            ProjectError, OutputError: see `update`.
        """
        with self._guard:
            settings = self.settings
            if value is not None:
                settings[name] = value
            elif settings.pop(name, None) is None:
                return
            self.update(settings=settings)

    @property
    def versions(self) -> list[Version]:
        """The models that the project keeps."""
        found, problems = list_versions(self.folder / "models")
        for problem in problems:
            self._tell(problem)
        return found

    def keep_model(self, source: str | Path, base: str, *, use: bool = True) -> Version:
        """Copy a model into the project as its next version.

        Args:
            source: its folder, e.g. in `runs/`.
            base: the name of the model it came from.
            use: make it the project's current model.

        Raises:
            ProjectError: it is no model, or the project is open for reading only.
            OutputError: the project cannot be written.
        """
        with self._guard:
            self._check_writable()
            models = self.folder / "models"
            name = next_name(base, models)
            keep(Path(source), models, name)
            self.note("model kept", model=name, parent=self.model)
            if use:
                self.update(model=f"models/{name}")
            return next(version for version in self.versions if version.name == name)

    def model_path(self) -> Path | None:
        """The folder of the current model, if it is one of the project's."""
        return next((v.folder for v in self.versions if f"models/{v.name}" == self.model), None)

    def new_run(self) -> Path:
        """A new working folder of a fine-tuning.

        Raises:
            ProjectError: the project is open for reading only.
            OutputError: it cannot be made.
        """
        self._check_writable()
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        path = self.folder / "runs" / f"{stamp}-{secrets.token_hex(2)}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise output_error(path, error) from error
        return path

    def note(self, event: str, **values: Any) -> None:
        """Append a line to the history.

        Args:
            event: what happened, in words.
            values: JSON.

        Raises:
            ProjectError: the project is open for reading only.
            OutputError: the history cannot be written.
        """
        self._check_writable()
        self._journal.add(event, **values)

    def history(self) -> list[dict[str, Any]]:
        """All events, oldest first, each with `time` and `event`."""
        return self._journal.events()

    @property
    def problems(self) -> list[str]:
        """Sentences about what is damaged, missing or changed, as far as it was met."""
        return list(self._problems)

    def _tell(self, problem: str) -> None:
        self._problems[problem] = None

    def _check_writable(self) -> None:
        if self.read_only:
            raise ProjectError("The project is open for reading only.", "Open it for writing.")
