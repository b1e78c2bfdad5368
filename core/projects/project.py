"""A project: images, corrections, models by version and their history in one folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttunet.files import output_error
from tttunet.projects import images as image_files
from tttunet.projects.adding import Geometry, Source, finished, from_array, from_file, from_image
from tttunet.projects.corrections import Corrections
from tttunet.projects.folder import ProjectFolder
from tttunet.projects.images import file_fields
from tttunet.projects.journal import Journal
from tttunet.projects.lock import FolderLock
from tttunet.projects.recovery import INFO_NAME, Content, read_folder, remove_leftovers_below
from tttunet.projects.schema import (
    Bounds,
    ImageReference,
    ProjectError,
    ProjectInfo,
    make_id,
    now,
    set_aside,
    write_json,
)

if TYPE_CHECKING:
    from tttunet.imaging import Image


@contextlib.contextmanager
def _unlocked_on_error(lock: FolderLock) -> Iterator[FolderLock]:
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


class Project(ProjectFolder):
    """An open project. Make one with `Project.create` or `Project.open`, and close it.

    Attributes:
        folder: absolute.
        read_only: nothing can be written; several may read while one writes.
    """

    def __init__(
        self, folder: Path, content: Content, journal: Journal, lock: FolderLock | None
    ) -> None:
        super().__init__(folder, content.info, journal, lock)
        self._images = content.images
        self._problems |= dict.fromkeys(content.problems)
        self._corrections: dict[str, Corrections] = {}
        self._loaded: tuple[str, Image] | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        name: str = "",
        task: str = "instance",
        dim: int = 2,
        classes: Mapping[int, str] | None = None,
        model: str = "",
    ) -> Project:
        """Make a new project in a new or empty folder, and open it.

        Args:
            folder: where.
            name: for people; by default the folder's name.
            task: `instance` or `semantic`.
            dim: 2 or 3. A 2D project takes stacks and films too, slice by slice.
            classes: names of the label numbers; for `instance` the name of the objects as
                number 1, by default "object".
            model: the model to start from: a name in the library.

        Raises:
            ProjectError: the folder is not empty, or an argument makes no sense.
            OutputError: the folder cannot be written.
        """
        folder = Path(folder).expanduser().absolute()
        if classes is None and task == "instance":
            classes = {1: "object"}
        info = ProjectInfo(
            name=name or folder.name, task=task, dim=dim, classes=dict(classes or {}),
            created=now(), model=model,
        )  # fmt: skip
        if info.fault():
            raise ProjectError(f"The project cannot be created: {info.fault()}.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ProjectError(f"'{folder}' is not empty.", "Choose a new folder.")
            for part in ("images", "corrections", "models", "runs"):
                (folder / part).mkdir()
        except OSError as error:
            raise output_error(folder, error) from error
        with _unlocked_on_error(FolderLock(folder)) as lock:
            project = cls(folder, Content(info), Journal(folder), lock)
            project.note("project created", project=info.to_json())
            write_json(folder / INFO_NAME, info.to_json())
        return project

    @classmethod
    def open(cls, folder: str | Path, *, read_only: bool = False) -> Project:
        """Open a project; what is damaged is told in `problems`, the rest is there.

        Args:
            folder: where; `project.json` in it works too.
            read_only: works while another program has it open, and on disks without permission.

        Raises:
            ProjectError: it is no project, saved by a newer version, open elsewhere, or
                `project.json` is damaged beyond repair.
            OutputError: it cannot be written; `read_only` may work.
        """
        folder = Path(folder).expanduser().absolute()
        if folder.name == INFO_NAME:
            folder = folder.parent
        journal = Journal(folder)
        if not folder.is_dir():
            raise ProjectError(f"'{folder}' does not exist.", "Check the name and the folder.")
        content = read_folder(folder, journal)  # before anything is written into the folder
        if read_only:
            project = cls(folder, content, journal, None)
        else:
            with _unlocked_on_error(FolderLock(folder)) as lock:
                content = read_folder(folder, journal)  # nobody changes it from here on
                project = cls(folder, content, journal, lock)
                project._repair(content, lock)
        for image in project.images:
            project.corrections(image.id).check()
        return project

    def _repair(self, content: Content, lock: FolderLock) -> None:
        if not lock.supported:
            self._tell("This disk knows no locks: do not open the project twice at a time.")
        remove_leftovers_below(self.folder, self._tell)
        for path in content.rebuilt:
            set_aside(path)
            if path.name == INFO_NAME and path.parent == self.folder:
                write_json(path, self._info.to_json())
            else:
                write_json(path, self._images[path.stem].to_json())

    def close(self) -> None:
        """Finish the history and let others write. Close the autosavers before."""
        for corrections in self._corrections.values():
            corrections.close()
        self._loaded = None
        super().close()

    @property
    def images(self) -> tuple[ImageReference, ...]:
        """In the order in which they were added."""
        return tuple(self._images.values())

    def image(self, image_id: str) -> ImageReference:
        """Raises `ProjectError` if there is none with this id."""
        try:
            return self._images[image_id]
        except KeyError:
            raise ProjectError(f"The project has no image '{image_id}'.") from None

    def add_image(
        self,
        source: str | Path | np.ndarray | Image,
        *,
        name: str = "",
        copy: bool = False,
        axes: str = "",
        shape: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        origin: Sequence[float] | None = None,
        direction: np.ndarray | None = None,
        unit: str = "",
        channel: int | None = None,
        channel_names: Sequence[str] = (),
        rgb: bool = False,
    ) -> ImageReference:
        """Add an image by reference or as a copy; the same one twice gives the first.

        Args:
            source: a file, or a folder of one DICOM series, is referred to with its hash; an
                array is copied into the project; an `Image` is referred to if it has a path.
            name: for people; by default the file's name.
            copy: copy the pixels of a file too.
            axes: with a file and no `shape`: its axes, where it tells them wrongly. Otherwise
                the axes of the array, from TCZYX or with S for colour samples.
            shape: of what a file holds, in the order of `axes` (from TCZYX): a caller who has
                read it says so, and it is not read again. `rgb` counts only then.
            spacing, origin, direction, unit, channel_names: as in `Image`; with an array or with
                `shape`.
            channel: use only this one; None: all.

        Raises:
            ProjectError: it does not fit the project, or the project is open for reading only.
            ImageError: it cannot be read, or its axes are ambiguous.
            OutputError: the project cannot be written.
        """
        self._check_writable()
        said = Geometry(
            axes, shape, spacing, origin, direction, unit, tuple(channel_names), rgb
        )  # fmt: skip
        if isinstance(source, str | Path):
            found = from_file(Path(source), self.folder, said, name, copy)
        elif isinstance(source, np.ndarray):
            found = from_array(source, said, name)
        else:
            found = from_image(source, name)
            if source.path is not None and not copy:
                place = {**file_fields(Path(source.path), self.folder), "copied": False}
                found = Source({**found.fields, **place}, None)
        return self._add({**found.fields, "channel": channel}, found.array)

    def _add(self, fields: dict[str, Any], array: np.ndarray | None) -> ImageReference:
        with self._guard:
            kept = (path.name for path in (self.folder / "corrections").glob("*"))
            image_id = make_id(fields["name"], [*self._images, *kept])
            image = finished({**fields, "id": image_id}, self.dim)
            for known in self._images.values():
                same = known.sha256 == image.sha256 and known.channel == image.channel
                if same and known.axes == image.axes and known.shape == image.shape:
                    return known
            if array is not None:
                place = image_files.copy_path(image.id, self.folder)
                image = replace(image, **image_files.save_copy(array, place))
            write_json(self.folder / "images" / f"{image.id}.json", image.to_json())
            self._images[image.id] = image
            self.note("image added", image=image.to_json())
            return image

    def remove_image(self, image_id: str) -> None:
        """Remove an image from the project with its corrections; its own file is not touched.

        Raises:
            ProjectError: there is none, or the project is open for reading only.
            OutputError: the project cannot be written.
        """
        with self._guard:
            self._check_writable()
            image = self.image(image_id)
            self.corrections(image_id).close()  # an autosaver may still hold them
            self.note("image removed", image=image_id)
            self._loaded = None
            try:
                (self.folder / "images" / f"{image_id}.json").unlink(missing_ok=True)
                if image.copied:
                    image_files.copy_path(image_id, self.folder).unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(self.folder / "corrections" / image_id)
            except OSError as error:
                raise output_error(self.folder / "images" / image_id, error) from error
            self._images.pop(image_id)
            self._corrections.pop(image_id, None)

    def path_of(self, image: ImageReference | str) -> Path:
        """Where the file of an image is now; a changed one is told in `problems`.

        Raises:
            ProjectError: it is gone.
        """
        image = self.image(image if isinstance(image, str) else image.id)
        if image.copied:
            return image_files.copy_path(image.id, self.folder)
        path, same = image_files.find(image, self.folder)
        if not same:
            self._tell(
                f"'{path.name}' has changed since it was added to the project; check that its "
                "corrections still fit."
            )
        return path

    def unchanged(self, image: ImageReference | str) -> bool:
        """Whether the file of an image is the one that was added.

        Raises:
            ProjectError: it is gone.
        """
        image = self.image(image if isinstance(image, str) else image.id)
        return image.copied or image_files.find(image, self.folder)[1]

    def load(self, image: ImageReference | str) -> Image:
        """The pixels of an image with its geometry; the last one is remembered.

        Raises:
            ProjectError: the file is gone or has another shape now.
            ImageError: the file cannot be read.
        """
        reference = self.image(image if isinstance(image, str) else image.id)
        with self._guard:
            if self._loaded is None or self._loaded[0] != reference.id:
                self._loaded = None  # never two images in memory
                read = image_files.read_image(reference, self.path_of(reference))
                self._loaded = reference.id, read
            return self._loaded[1]

    def crop(self, image: ImageReference | str, bounds: Bounds) -> Image:
        """The pixels of a sample: axes YX or ZYX, after C if there is one.

        Args:
            image: which.
            bounds: of a `Sample`.

        Raises:
            ProjectError, ImageError: see `load`.
        """
        return image_files.crop(self.load(image), bounds, self.dim)

    def corrections(self, image: ImageReference | str) -> Corrections:
        """The corrections of an image; the same object each time."""
        reference = self.image(image if isinstance(image, str) else image.id)
        with self._guard:
            if reference.id not in self._corrections:
                self._corrections[reference.id] = Corrections(
                    self.folder / "corrections" / reference.id,
                    reference,
                    task=self.task,
                    dim=self.dim,
                    tell=self._tell,
                    note=None if self.read_only else self.note,
                )
            return self._corrections[reference.id]
