"""The parts that the docks are made of."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("napari")

from qtpy.QtWidgets import QLabel, QPushButton, QVBoxLayout, QWidget

from napari_tttunet.settings import Settings
from napari_tttunet.widgets import (
    FoldingSection,
    MessageLabel,
    ProgressLine,
    Scrolling,
    plain_hint,
    roughly,
)
from tttunet.errors import ImageError


def test_a_message_below_the_edge_is_scrolled_into_view(qtbot: Any) -> None:
    content, dock, message = QWidget(), QWidget(), MessageLabel()
    layout = QVBoxLayout(content)
    for number in range(60):
        layout.addWidget(QLabel(f"line {number}"))
    layout.addWidget(message)
    Scrolling(content, dock)
    qtbot.addWidget(dock)
    dock.resize(320, 300)
    dock.show()
    message.tell_error(ImageError("It is empty.", "Choose another, or use --overwrite."))
    assert message.text == "It is empty. Choose another name, or allow to replace it."
    qtbot.waitUntil(lambda: not message.visibleRegion().isEmpty(), timeout=30_000)
    message.clear()
    assert (message.text, message.isHidden()) == ("", True)


def test_messages_that_are_added_keep_those_before_and_the_worst_colour(qtbot: Any) -> None:
    message = MessageLabel()
    qtbot.addWidget(message)
    message.add("info", "Nothing was found.", "Try another model.")
    assert (message.kind, message.text) == ("info", "Nothing was found. Try another model.")
    message.add("warning", "Memory ran out.")
    message.add("warning", "Memory ran out.")
    message.add("info", "It goes on.")
    expected = "Nothing was found. Try another model. Memory ran out. It goes on."
    assert (message.kind, message.text) == ("warning", expected)
    message.tell("error", "It is over.", details="a traceback")
    message.add("warning", "Memory ran out.")
    assert (message.kind, message.text) == ("error", "It is over. Memory ran out.")
    assert message.details.toPlainText() == "a traceback"
    message.clear()
    message.add("info", "Anew.")
    assert (message.kind, message.text) == ("info", "Anew.")
    assert message.details.toPlainText() == ""


def test_progress_is_seen_only_while_there_is_something_to_tell(qtbot: Any) -> None:
    cancel = QPushButton("Cancel")
    line = ProgressLine("run", cancel)
    qtbot.addWidget(line)
    assert line.isHidden()
    line.report("finding objects", 0.25, 61)
    assert line.text == "Finding objects: 25%, 1 min 1 s left"
    assert line.bar.value() == line.bar.maximum() / 4
    assert cancel.isVisibleTo(line)
    line.report("reading")
    assert line.bar.maximum() == 0, "nobody knows how long"
    line.finish("3 done")
    assert line.text == "3 done"
    assert not cancel.isVisibleTo(line)
    assert not line.isHidden()
    line.finish()
    assert line.isHidden()


def test_a_fold_is_remembered(qtbot: Any, tmp_path: Any) -> None:
    settings = Settings(tmp_path / "settings.json")

    def fold() -> FoldingSection:
        made = FoldingSection("More", QLabel("text"), "more", settings, "dock.more")
        qtbot.addWidget(made)
        return made

    first = fold()
    assert first.content.isHidden()
    first.button.click()
    assert not first.content.isHidden()
    assert not fold().content.isHidden()
    settings.save()


def test_roughly_how_long_is_one_word() -> None:
    assert roughly(0.2) == "less\u00a0than\u00a01\u00a0s"
    assert roughly(4.3) == "about 4\u00a0s"
    assert roughly(200) == "about 3\u00a0min\u00a020\u00a0s"


def test_hints_name_no_options() -> None:
    assert "--" not in plain_hint("Give another --output, or choose one (--name).")
