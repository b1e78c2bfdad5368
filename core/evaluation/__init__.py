"""Scores of segmentations: objects (instance) and classes (semantic), per case and in summary.

Read `matching.py`, then `instance.py` and `semantic.py`; `report.py` applies them to files.
"""

from tttunet.evaluation.instance import (
    IOU_THRESHOLDS,
    InstanceScores,
    instance_scores,
    mean_ap,
    mean_over_images,
    pool,
)
from tttunet.evaluation.matching import Matching, Overlap, match, overlap_table
from tttunet.evaluation.report import Report, evaluate
from tttunet.evaluation.semantic import ClassScores, semantic_scores
from tttunet.evaluation.surface import surface_dice

__all__ = [
    "IOU_THRESHOLDS",
    "ClassScores",
    "InstanceScores",
    "Matching",
    "Overlap",
    "Report",
    "evaluate",
    "instance_scores",
    "match",
    "mean_ap",
    "mean_over_images",
    "overlap_table",
    "pool",
    "semantic_scores",
    "surface_dice",
]
