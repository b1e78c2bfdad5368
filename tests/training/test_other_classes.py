"""Labels that lack classes of the model, and labels that have others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from discs import run, sample
from tiny import make_config
from tttunet.errors import DatasetError
from tttunet.inference.segment import predict_labels
from tttunet.models.config import Label
from tttunet.models.model import Model, load_model
from tttunet.training.finetune import finetune
from tttunet.training.loss import deep_supervision_loss, segmentation_loss, without_classes
from tttunet.training.notes import of_classes
from tttunet.training.prepare import FOREGROUND, IGNORE
from tttunet.training.samples import Material

CLASSES = {1: "disc", 4: "ground"}


@pytest.fixture
def parent(tmp_path) -> Path:
    """A model of two classes that takes everything for the second."""
    config = make_config(task="semantic")
    network = config.network.model_copy(update={"output_channels": 3})
    labels = tuple(Label(value=value, name=name) for value, name in CLASSES.items())
    torch.manual_seed(0)
    model = Model.create(config.model_copy(update={"network": network, "labels": labels}))
    with torch.no_grad():
        for name, value in model.network.named_parameters():
            if "heads." in name and name.endswith("bias"):
                value.copy_(torch.tensor([0.0, 0.0, 6.0]))
    return model.save(tmp_path / "parent")


def discs(seed: int):
    one = sample(seed)
    return replace(one, labels=(one.labels > 0).astype(np.int32))


def test_classes_that_the_labels_lack_are_not_unlearnt(parent, tmp_path):
    data, heard = [discs(0)], list[object]()
    result = run(
        *(parent, data, tmp_path / "run"),
        steps=25,
        task="semantic",
        classes={1: "disc"},
        say=heard.append,
        listener=heard.append,
    )
    assert result.improved
    assert {label.value for label in result.model.config.labels} == {1, 4}
    (note,) = [note for note in result.notes if "'ground'" in note]
    assert "neither trained nor scored" in note
    first = next(i for i, event in enumerate(heard) if not isinstance(event, str))
    assert heard.index(note) < first, "it is told before the training"
    # Everything around the discs is labelled as background; the model still calls it ground.
    found = predict_labels(load_model(result.folder), data[0].image)
    truth = data[0].labels
    assert (found[truth == 0] == 4).mean() > 0.6
    assert (found[truth == 1] == 1).mean() > 0.5
    # It does not lower the score, and no later training shall take it for background.
    assert (result.before.get("dice_4"), result.after.get("dice_4")) == (None, None)
    assert result.after["score"] == result.after["dice_1"] > 0.5
    assert not (result.folder / "replay").exists()


def test_classes_that_the_labels_have_but_do_not_mark_are_named(parent):
    known = Material([discs(0)], "semantic", 2, CLASSES, "discs", [])
    (note,) = of_classes(load_model(parent).config, known)
    assert note.startswith("Nothing is marked as 'ground': where background is checked")
    everything = replace(known, classes={1: "disc"})
    assert "has no class for" not in " ".join(of_classes(None, everything))
    assert of_classes(None, everything) == []
    some = replace(discs(0), labels=np.full_like(discs(0).labels, FOREGROUND))
    assert of_classes(None, replace(known, samples=[some])) == [], "it may be of any class"


def test_shares_that_are_none_are_refused(parent, tmp_path):
    for wrong, word in (({"share": 1.0}, "held out"), ({"blend": 0.0}, "share of 0 in the model")):
        with pytest.raises(DatasetError, match=word):
            finetune(parent, [discs(0)], tmp_path / "run", **wrong)


def test_hidden_classes_count_as_background():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 6, 8, requires_grad=True)
    classes = torch.randint(0, 4, (2, 6, 8))
    classes[0, 0] = IGNORE
    (merged,), targets = without_classes([logits], {"classes": classes}, [2])
    probability = logits.softmax(1)
    expected = torch.stack(
        [probability[:, 0] + probability[:, 2], *probability[:, [1, 3]].unbind(1)], 1
    )
    assert torch.allclose(merged.softmax(1), expected, atol=1e-6)
    assert (
        targets["classes"].tolist()
        == torch.where(classes == 2, 0, torch.where(classes == 3, 2, classes)).tolist()
    )
    loss = deep_supervision_loss([merged], targets)
    assert torch.allclose(loss, segmentation_loss(merged, targets))
    loss.backward()
    # Background and the hidden class gain or lose together, by their shares.
    ratio = logits.grad[:, 2] / logits.grad[:, 0]
    known = targets["classes"] >= 0
    assert torch.allclose(ratio[known], (probability[:, 2] / probability[:, 0])[known], rtol=1e-3)


def test_an_added_class_is_told_and_the_known_ones_compared(parent, tmp_path):
    one = discs(0)
    one.labels[:12][one.labels[:12] == 0] = 7
    classes = {1: "disc", 7: "edge"}
    result = run(parent, [one], tmp_path / "run", steps=10, task="semantic", classes=classes)
    assert result.before is None
    assert any("last layer begins anew" in note for note in result.notes)
    known = result.after["known"]
    assert known["before"]["dice_1"] < 0.2  # nearly everything was ground
    assert known["after"]["dice_1"] == result.after["dice_1"]
    assert set(known["after"]) - {"dice_1"} == set(known["before"]) - {"dice_1"}
    assert "dice_7" not in known["after"]
    (note,) = [note for note in result.notes if "knew already" in note]
    assert f"to {known['after']['score']:.2f}" in note
    assert "'disc'" in note
    assert "'edge'" not in note
