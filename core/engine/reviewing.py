"""Where labels are doubtful: what the worker does to find places that are worth correcting."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tttunet.engine import exchange
from tttunet.engine.messages import Review, ReviewImage
from tttunet.engine.models import LoadedModels
from tttunet.engine.segmenting import KeptMaps, segment_in_memory, still_kept
from tttunet.engine.worker import Reporter
from tttunet.errors import Cancelled, ImageError
from tttunet.inference.review import rank_places, review_image
from tttunet.measuring.places import Place
from tttunet.projects import Bounds, Project

#: A place, and its centre and bounds with the axes of whoever asked.
_Found = tuple[Place, tuple[float, ...], Bounds]


def run_review(request: Review, reporter: Reporter, kept: KeptMaps | None) -> dict[str, Any]:
    """The places of labels that are most doubtful, with the client's axes.

    Raises:
        ImageError: the maps are gone or are of another image, or the labels have another shape.
    """
    kept = still_kept(kept, request.maps_id)
    labels = exchange.open_array(request.labels)
    if labels.shape != kept.grid.shape:
        raise ImageError(
            f"The labels have the shape {labels.shape}, the image {kept.grid.shape}.",
            "Segment the image again.",
        )
    on_image, grid = kept.grid.arranged(labels), kept.grid
    found: list[_Found] = []
    for number, (index, maps) in enumerate(kept.planes):
        reporter.progress("looking for doubtful places", number, len(kept.planes))
        if reporter.is_cancelled():
            raise Cancelled("The labels were not reviewed.")
        if maps is None:
            continue
        here = tuple(slice(i, i + 1) for i in index)
        for place in rank_places(maps, np.asarray(on_image[index]), kept.config.task):
            box = (*here, *(slice(*along) for along in place.bounds))
            found.append((place, grid.point((*index, *place.centre)), grid.bounds(box)))
    found.sort(key=lambda one: -one[0].doubt)
    return _told(found, request.count)


def run_review_image(
    request: ReviewImage, reporter: Reporter, models: LoadedModels
) -> dict[str, Any]:
    """Segment an image of a project; the places that are most doubtful, with its label axes.

    Raises:
        TTTUNetError: there is no such project, image or model, the image cannot be read or does
            not suit the model, or there is not enough memory.
    """
    reporter.stage("loading the model")
    folders, model = models.get(request.model)
    reporter.stage("reading the image")
    with Project.open(request.project, read_only=True) as project:
        image = project.load(request.image)
    places = review_image(
        image,
        model,
        run=functools.partial(segment_in_memory, reporter=reporter, models=models, folders=folders),
        device=request.device,
        overlap=0.25,
        mirror=False,
        cancel=reporter.is_cancelled,
        progress=lambda done, total: reporter.progress("looking for doubtful places", done, total),
    )
    found: list[_Found] = [
        (place, (*index, *place.centre), (*((i, i + 1) for i in index), *place.bounds))
        for index, place in places
    ]
    return _told(found, request.count)


def _told(found: Sequence[_Found], count: int) -> dict[str, Any]:
    """The first places as the client gets them."""
    return {
        "total": len(found),
        "places": [
            {
                "kind": place.kind,
                "label": place.label,
                "doubt": place.doubt,
                "centre": list(centre),
                "bounds": [list(along) for along in bounds],
            }
            for place, centre, bounds in found[:count]
        ],
    }
