from __future__ import annotations

from tttunet.engine.outcome import scores_text


def test_scores_in_words() -> None:
    after = {"metric": "F1 at IoU 0.5", "score": 0.861, "objects": 9, "difference": 0.15}
    result = {
        "improved": True,
        "before": {"score": 0.712},
        "after": {**after, "difference_interval": [0.04, 0.21]},
        "forgetting": {"before": {"score": 0.9}, "after": {"score": 0.89}, "difference": -0.01},
        "notes": [],
    }
    text = scores_text(result)
    assert "0.71 \N{RIGHTWARDS ARROW} 0.86 (9 objects)." in text
    assert "Difference +0.15, 95 % interval +0.04 to +0.21." in text
    assert "On earlier data: 0.90 \N{RIGHTWARDS ARROW} 0.89 (-0.01)." in text
    for interval, told in (
        ([-0.1, 0.3], "not certain"),
        ([-1.0, 1.0], "Too few labels"),
        ([0.0, 0.0], "no difference"),
    ):
        assert told in scores_text({**result, "after": {**after, "difference_interval": interval}})
    voxels = {"metric": "Dice", "score": 0.9, "pixels": 1200}
    assert scores_text({"improved": True, "after": voxels}, dim=3).endswith("0.90 (1,200 voxels).")
    assert "Nothing better was found" in scores_text({**result, "improved": False})
