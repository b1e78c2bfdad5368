"""Images of projects: what the worker does for a face that must not wait for files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttunet.engine import exchange
from tttunet.engine.messages import ReadImage
from tttunet.engine.worker import Reporter
from tttunet.projects import SAME_GRID, ImageReference, Project, ProjectError

if TYPE_CHECKING:
    from tttunet.imaging import Image


def run_read_image(request: ReadImage, reporter: Reporter) -> dict[str, Any]:
    """Write the voxels and the labels of a project's image to the files that are named.

    Returns:
        `problems`: what the project has to say, such as a file that has changed. `path`: where the
        file is; empty for a copy in the project.

    Raises:
        TTTUNetError: there is no such project or image, or its file is gone, cannot be read, or
            lies elsewhere than when it was corrected.
    """
    reporter.stage("reading the image")
    with Project.open(request.project, read_only=True) as project:
        reference = project.image(request.image)
        image = project.load(reference)
        if not project.unchanged(reference):
            _check_place(reference, project.path_of(reference))
        exchange.write_array(Path(request.output), image.array, reporter.is_cancelled)
        labels, _ = project.corrections(reference).read(reference.bounds)
        exchange.write_array(Path(request.labels), labels, reporter.is_cancelled)
        path = "" if reference.copied else str(project.path_of(reference))
        return {"problems": [*project.problems], "path": path}


def _check_place(reference: ImageReference, path: Path) -> None:
    """A file that has changed must lie where the corrections do."""
    from tttunet.imaging import load_image

    found, known = _place(load_image(path, reference.file_axes or None)), _place(reference)
    tolerance = SAME_GRID * min(reference.spacing)
    if found.shape != known.shape or not np.allclose(found, known, atol=tolerance):
        raise ProjectError(
            f"'{reference.name}' lies elsewhere than when it was corrected.",
            "Put the old file back, or add the new one as another image.",
        )


def _place(image: Image | ImageReference) -> np.ndarray:
    """Spacing, origin and direction, in a row."""
    parts = (image.spacing, image.origin, image.direction)
    return np.concatenate([np.ravel(np.asarray(part, float)) for part in parts])
