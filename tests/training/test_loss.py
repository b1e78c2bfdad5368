import pytest
import torch
import torch.nn.functional as F

from tttunet.training.loss import deep_supervision_loss, segmentation_loss, soft_dice_loss
from tttunet.training.prepare import IGNORE


@pytest.fixture
def batch():
    torch.manual_seed(0)
    classes = torch.randint(0, 3, (2, 8, 8))
    return torch.randn(2, 3, 8, 8), classes


def confident(classes: torch.Tensor) -> torch.Tensor:
    return F.one_hot(classes, 3).movedim(-1, 1) * 50.0


def test_perfect_prediction_costs_nothing(batch):
    _, classes = batch
    loss = segmentation_loss(confident(classes), {"classes": classes})
    assert loss < 1e-4


def test_dice_against_its_formula(batch):
    logits, classes = batch
    probability, onehot = logits.softmax(1), F.one_hot(classes, 3).movedim(-1, 1)
    overlap = (probability * onehot).sum((0, 2, 3))
    total = (probability + onehot).sum((0, 2, 3))
    dice = 2 * overlap / total
    assert torch.isclose(soft_dice_loss(logits, classes), 1 - dice[1:].mean(), atol=1e-5)


def test_ignored_pixels_have_no_influence_and_no_gradient(batch):
    logits, classes = batch
    distance = torch.rand(2, 1, 8, 8)
    classes[:, :, :4] = IGNORE
    outputs = torch.cat((logits, torch.rand(2, 1, 8, 8)), 1).requires_grad_()
    loss = segmentation_loss(outputs, {"classes": classes, "distance": distance})
    loss.backward()
    assert (outputs.grad[..., :4] == 0).all()
    assert (outputs.grad[..., 4:] != 0).any()
    changed = outputs.detach().clone()
    changed[..., :4] += 100
    assert torch.isclose(
        loss, segmentation_loss(changed, {"classes": classes, "distance": distance})
    )


def test_everything_ignored_is_zero_loss_not_nan(batch):
    logits, classes = batch
    loss = segmentation_loss(logits, {"classes": torch.full_like(classes, IGNORE)})
    assert torch.isfinite(loss)


def test_wrong_distances_cost(batch):
    _, classes = batch
    distance = torch.rand(2, 1, 8, 8)
    exact = torch.cat((confident(classes), distance), 1)
    wrong = torch.cat((confident(classes), distance + 0.5), 1)
    targets = {"classes": classes, "distance": distance}
    assert segmentation_loss(wrong, targets) > segmentation_loss(exact, targets) + 0.5


def test_deep_supervision_weights(batch):
    logits, classes = batch
    targets = {"classes": classes}
    half = F.avg_pool2d(logits, 2)
    lowest = torch.full((2, 3, 2, 2), float("nan"))  # weight 0: must not even be looked at
    expected = (
        segmentation_loss(logits, targets)
        + 0.5 * segmentation_loss(half, {"classes": classes[:, ::2, ::2]})
    ) / 1.5
    assert torch.isclose(deep_supervision_loss([logits, half, lowest], targets), expected)
    assert torch.isclose(
        deep_supervision_loss([logits], targets), segmentation_loss(logits, targets)
    )
