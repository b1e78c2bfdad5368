"""Projects: images, what the user corrected and vouches for, models by version, history.

Runs in a Python that has numpy and nothing else, such as 3D Slicer's; only reading image files
needs more.
"""

from tttunet.projects.annotate import (
    pieces,
    training_labels,
    unvouch_object,
    vouch_edits,
    vouch_object,
)
from tttunet.projects.autosave import Autosaver
from tttunet.projects.corrections import Corrections, Summary
from tttunet.projects.findings import Finding, check, contradictions, describe
from tttunet.projects.project import Project
from tttunet.projects.regions import Region
from tttunet.projects.sampling import Sample, samples
from tttunet.projects.schema import SAME_GRID, Bounds, ImageReference, ProjectError
from tttunet.projects.versions import Version

__all__ = [
    "SAME_GRID",
    "Autosaver",
    "Bounds",
    "Corrections",
    "Finding",
    "ImageReference",
    "Project",
    "ProjectError",
    "Region",
    "Sample",
    "Summary",
    "Version",
    "check",
    "contradictions",
    "describe",
    "pieces",
    "samples",
    "training_labels",
    "unvouch_object",
    "vouch_edits",
    "vouch_object",
]
