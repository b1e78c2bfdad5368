import numpy as np
import pytest
import torch

from tiny import make_case, make_config
from tttunet.evaluation import instance_scores, semantic_scores
from tttunet.inference.segment import predict_labels
from tttunet.models.model import Model
from tttunet.training.heldout_scores import Tally, interval, summary, tally
from tttunet.training.prepare import IGNORE, PreparedCase


def model(task: str) -> Model:
    torch.manual_seed(0)
    created = Model.create(make_config(2, task))
    created.network.eval()
    return created


def truth_from(model: Model, case: PreparedCase, change) -> PreparedCase:
    """A case whose labels are what the model finds, changed."""
    image, _, locations = case.open()
    found = predict_labels(model, np.asarray(image, np.float32)).astype(np.int32)
    return PreparedCase(case.name, image, change(found), locations)


def half_unknown(labels: np.ndarray) -> np.ndarray:
    labels = np.roll(labels, 2, axis=0)
    labels[:, :40] = IGNORE
    return labels


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_what_is_found_scores_one(task):
    ours = model(task)
    case = truth_from(ours, make_case(0, (96, 96), task), lambda labels: labels)
    assert (case.label > 0).any()
    found = tally(ours, [case])
    assert np.allclose(found.scores(), 1)
    assert (found.merit, found.headline()) == (1, 1)
    assert interval(found) == (1, 1)


def test_the_same_scores_as_the_evaluation():
    ours = model("instance")
    cases = [truth_from(ours, make_case(i, (150, 100)), half_unknown) for i in range(3)]
    scores = tally(ours, cases).scores()
    tp = fp = fn = 0
    for case in cases:
        found = predict_labels(ours, np.asarray(case.image, np.float32))
        valid = case.label != IGNORE
        one = instance_scores(found, np.where(valid, case.label, 0), (0.5,), valid)[0]
        tp, fp, fn = tp + one.tp, fp + one.fp, fn + one.fn
    assert fp + fn > 0
    assert scores[0] == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_the_same_dice_as_the_evaluation():
    ours = model("semantic")
    case = truth_from(ours, make_case(0, (150, 100), "semantic"), half_unknown)
    found = predict_labels(ours, np.asarray(case.image, np.float32))
    truth = np.where(case.label == IGNORE, 99, case.label)
    (expected,) = semantic_scores(found, truth, ignore=99)
    result = tally(ours, [case])
    assert result.scores().tolist() == [pytest.approx(expected.dice)]
    assert (summary(result)["metric"], "pixels" in summary(result)) == ("Dice", True)


def made_up(hits: list[int], wrong: list[int]) -> Tally:
    parts = np.array([[[2.0 * h, 2.0 * h + w]] for h, w in zip(hits, wrong, strict=True)])
    return Tally(("f1_iou50",), parts, sum(hits))


def test_the_interval_tells_little_from_much():
    few, many = made_up([3, 0], [0, 3]), made_up([3, 0] * 50, [0, 3] * 50)
    widths = [np.ptp(interval(one)) for one in (few, many)]
    assert widths[0] > 0.9
    assert widths[1] < 0.4
    assert interval(many)[0] < many.headline() < interval(many)[1]
    assert interval(made_up([3], [1])) == (0, 1)


def test_the_difference_is_of_the_same_blocks():
    before, after = made_up([1, 4, 2, 9], [3, 1, 5, 2]), made_up([2, 5, 3, 10], [1, 1, 3, 1])
    low, high = interval(after, before)
    assert 0 < low < after.headline() - before.headline() < high
    assert interval(before, before) == (0, 0)
    with pytest.raises(ValueError, match="different cases"):
        interval(after, made_up([1], [1]))


def test_nothing_to_score():
    empty = tally(model("instance"), [])
    assert np.isnan(empty.merit)
    assert empty.objects == 0
