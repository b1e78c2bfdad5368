"""The Models dock with a real worker, real files and a real server on this computer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from napari_tttunet.model_card import card_html
from served import served

SHIPPED_NAMES = ("hippocampus-mr", "kidney-mr", "liver-ct", "nuclei", "polyp")
SHIPPED = Path(__file__).resolve().parents[2] / "resources" / "models" / "nuclei"
#: Longer than anything takes, on a busy machine too.
PATIENCE = 120_000
TESTS = str(Path(__file__).resolve().parents[1])
CHECKPOINT = """
import pathlib, sys
from golden import GoldenCase, released_network_config
from models.test_convert import NNUNetFolder, theirs
from tttunet.networks import build_network

facts = {
    "kind": "uttt_bot_2d", "input_channels": 1, "num_classes": 3,
    "features_per_stage": [4, 8, 64], "kernel_sizes": [[3, 3]] * 3,
    "strides": [[1, 1], [2, 2], [2, 2]], "n_conv_per_stage_given": 1,
    "n_conv_per_stage_decoder_given": 1, "patch_size": [32, 32], "deep_supervision": True,
}
case = GoldenCase("tiny", facts, {})
state = theirs(build_network(released_network_config(case)).state_dict())
case.tensors = {f"param.{name}": value for name, value in state.items()}
NNUNetFolder(pathlib.Path(sys.argv[1]), case).write()
"""


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A library of the user that is empty; the worker inherits it."""
    folder = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTTUNET_MODELS", str(folder))
        patch.setenv("TTTUNET_SETTINGS", str(tmp_path_factory.mktemp("settings") / "s.json"))
        from napari_tttunet.session import close_session

        close_session()  # a worker of other tests has another library
        yield folder
        close_session()


@pytest.fixture(autouse=True)
def _empty(library: Path) -> Iterator[None]:
    yield
    for path in library.iterdir():
        shutil.rmtree(path)


@pytest.fixture
def dock(viewer: Any, qtbot: Any) -> Any:
    from napari_tttunet.models_dock import ModelsDock

    made = ModelsDock(viewer)
    viewer.window.add_dock_widget(made, name="Models", area="right")
    qtbot.waitUntil(lambda: made.panel.list.topLevelItemCount() > 0, timeout=PATIENCE)
    tree = made.panel.list
    tree.setCurrentItem(tree.topLevelItem(SHIPPED_NAMES.index("nuclei")))
    return made


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a model that is called `mine`."""
    folder = tmp_path / "own"
    shutil.copytree(SHIPPED, folder)
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    card["name"], card["card"]["title"] = "mine", "My <b>cells</b> & yours"
    (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


def archive_of(folder: Path, path: Path, extra: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("model.json", "model.safetensors"):
            archive.write(folder / name, f"mine/{name}")
        if extra:
            archive.writestr(extra, "evil")
    return path


def click(qtbot: Any, found: Any) -> None:
    from qtpy.QtCore import Qt

    assert found.isEnabled()
    qtbot.mouseClick(found, Qt.MouseButton.LeftButton)


def names(dock: Any) -> list[str]:
    return [dock.panel.list.topLevelItem(i).text(0) for i in range(len(dock.panel.list.models))]


def wait(qtbot: Any, dock: Any) -> None:
    qtbot.waitUntil(lambda: not dock._run.busy and dock.panel.import_.isEnabled(), timeout=PATIENCE)


def import_(qtbot: Any, dock: Any, source: Path, name: str = "") -> None:
    dock.ask_to_import(str(source))
    form = dock.panel.importing
    assert form.isVisible()
    qtbot.keyClicks(form.name, name)
    click(qtbot, form.go)
    wait(qtbot, dock)


def test_shipped_models_are_shown_with_their_card(dock: Any):
    item = dock.panel.list.topLevelItem(SHIPPED_NAMES.index("nuclei"))
    assert [item.text(i) for i in range(4)] == ["nuclei", "1.1.0", "objects", "2D"]
    text = dock.panel.card.toPlainText()
    digest = json.loads((SHIPPED / "model.json").read_text())["weights"]["sha256"]
    for part in ("2018 Data Science Bowl", "CC0-1.0", "histology purple", "0.8969", "8.9 MB"):
        assert part in text, part
    assert digest in text.replace("\u200b", "")
    assert not dock.panel.remove.isEnabled()
    assert dock.panel.export.isEnabled()


def test_import_use_and_remove(viewer: Any, dock: Any, qtbot: Any, own: Path, library: Path):
    from napari_tttunet.session import session

    changes: list[int] = []
    session().models_changed.connect(lambda: changes.append(1))
    import_(qtbot, dock, own)
    qtbot.waitUntil(lambda: names(dock) == [*SHIPPED_NAMES, "mine"], timeout=PATIENCE)
    assert dock.panel.progress.text == "Added 'mine'."
    assert dock.panel.list.current["name"] == "mine"
    assert "My <b>cells</b> & yours" in dock.panel.card.toPlainText()
    assert not dock.panel.importing.isVisible()
    assert len(changes) == 1

    import_(qtbot, dock, own)
    assert "exists already" in dock.panel.message.text
    assert "--" not in dock.panel.message.text
    click(qtbot, dock.panel.importing.replace)
    if not dock.panel.importing.replace.isChecked():
        dock.panel.importing.replace.click()
    click(qtbot, dock.panel.importing.go)
    wait(qtbot, dock)
    assert dock.panel.message.text == ""

    click(qtbot, dock.panel.remove)
    assert dock.panel.confirm.isVisible()
    click(qtbot, dock.panel.keep)
    assert (library / "mine").is_dir()
    click(qtbot, dock.panel.remove)
    click(qtbot, dock.panel.delete)
    wait(qtbot, dock)
    qtbot.waitUntil(lambda: names(dock) == [*SHIPPED_NAMES], timeout=PATIENCE)
    assert not (library / "mine").exists()
    assert len(changes) == 3
    assert not dock.panel.confirm.isVisible()


def test_export_and_import_through_the_dialogs(
    dock: Any, qtbot: Any, library: Path, tmp_path: Path
):
    from qtpy.QtWidgets import QFileDialog

    dock.panel.export_archive.trigger()
    dialog = dock.findChild(QFileDialog, "fileDialog")
    dialog.selectFile(str(tmp_path / "handed-on"))
    dialog.accept()
    qtbot.waitUntil(lambda: "Written" in dock.panel.progress.text, timeout=PATIENCE)
    path = tmp_path / "handed-on.zip"
    assert path.is_file()
    import_(qtbot, dock, path)
    assert "is the name of a shipped model. Choose another name." in dock.panel.message.text
    import_(qtbot, dock, path, "again")
    qtbot.waitUntil(lambda: names(dock) == [*SHIPPED_NAMES, "again"], timeout=PATIENCE)
    weights = library / "again" / "model.safetensors"
    assert weights.read_bytes() == (SHIPPED / "model.safetensors").read_bytes()
    dock.export_to(str(tmp_path / "folder" / "again"))
    wait(qtbot, dock)
    assert (tmp_path / "folder" / "again" / "model.json").is_file()
    dock.export_to(str(tmp_path / "folder" / "again"))
    wait(qtbot, dock)
    assert "exists already" in dock.panel.message.text


@pytest.mark.parametrize("extra", ["../../evil.txt", "/evil.txt"])
def test_an_archive_that_leads_outside_is_refused(
    dock: Any, qtbot: Any, own: Path, library: Path, tmp_path: Path, extra: str
):
    import_(qtbot, dock, archive_of(own, tmp_path / "bad.zip", extra))
    assert "not safe to unpack" in dock.panel.message.text
    assert not list(library.iterdir())


def test_what_is_no_model_is_explained(dock: Any, qtbot: Any, tmp_path: Path, library: Path):
    (tmp_path / "a.zip").write_text("no zip")
    import_(qtbot, dock, tmp_path / "a.zip")
    assert "no zip archive" in dock.panel.message.text
    (tmp_path / "a.pth").write_bytes(b"no checkpoint")
    import_(qtbot, dock, tmp_path / "a.pth")
    assert "plans.json" in dock.panel.message.text
    assert dock.panel.importing.licence.isVisible()
    assert not list(library.iterdir())


def test_a_checkpoint_of_the_authors_is_converted(
    dock: Any, qtbot: Any, tmp_path: Path, library: Path
):
    # Torch must not come into a process that has windows.
    program = [sys.executable, "-c", CHECKPOINT, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, *sys.path])}
    written = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert written.returncode == 0, written.stderr
    (file,) = tmp_path.rglob("checkpoint_final.pth")
    dock.ask_to_import(str(file))
    form = dock.panel.importing
    qtbot.keyClicks(form.name, "theirs")
    qtbot.keyClicks(form.licence, "CC-BY-4.0")
    click(qtbot, form.go)
    wait(qtbot, dock)
    assert dock.panel.message.text == ""
    qtbot.waitUntil(lambda: names(dock) == [*SHIPPED_NAMES, "theirs"], timeout=PATIENCE)
    assert "CC-BY-4.0" in dock.panel.card.toPlainText()
    assert (library / "theirs" / "model.safetensors").is_file()


def test_download(dock: Any, qtbot: Any, own: Path, library: Path, tmp_path: Path):
    content = archive_of(own, tmp_path / "mine.zip").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    bad = archive_of(own, tmp_path / "bad.zip", "../evil.txt").read_bytes()
    form = dock.panel.downloading
    click(qtbot, dock.panel.download_fold.button)

    def try_(url: str, sha256: str = "") -> str:
        form.url.clear()
        qtbot.keyClicks(form.url, url)
        form.sha256.setText(sha256)
        click(qtbot, form.go)
        wait(qtbot, dock)
        return dock.panel.message.text

    with served({"mine.zip": content, "bad.zip": bad, "text.zip": b"text"}) as address:
        assert "is not encrypted" in try_("http://example.org/mine.zip")
        assert digest in try_(f"{address}/mine.zip", "0" * 64)
        assert "larger than 2.0 GB" in try_(f"{address}/claims/{2**31 + 1}/mine.zip")
        assert "not safe to unpack" in try_(f"{address}/bad.zip")
        assert "no zip archive" in try_(f"{address}/text.zip")
        assert "connection ended" in try_(f"{address}/breaks/mine.zip")
        assert "answered 404" in try_(f"{address}/other.zip")
        assert not list(library.iterdir())
        assert names(dock) == [*SHIPPED_NAMES]

        # A server that falls silent is left.
        form.url.setText(f"{address}/stalls/mine.zip")
        click(qtbot, form.go)
        qtbot.waitUntil(lambda: dock.panel.progress.text == "Connecting", timeout=PATIENCE)
        click(qtbot, dock.panel.cancel)
        wait(qtbot, dock)
        assert dock.panel.progress.text == "Stopped; nothing was changed."

        assert try_(f"{address}/mine.zip", digest) == ""
        qtbot.waitUntil(lambda: names(dock) == [*SHIPPED_NAMES, "mine"], timeout=PATIENCE)
        assert digest in dock.panel.progress.text
        assert "as you gave it" in dock.panel.progress.text
        assert (library / "mine" / "model.json").is_file()


def test_a_card_has_the_words_of_people(dock: Any):
    text = dock.panel.card.toPlainText()
    for words in ("images learned from", "On images held back", "all images: ", "F1 0.8762"):
        assert words in text, words
    for raw in ("train images", "val", "iou50", "pooled"):
        assert raw not in text.split(), raw
    shown = dock.panel.list
    rows = shown.topLevelItemCount()
    below = shown.viewport().height() - rows * shown.sizeHintForRow(0)
    assert 0 <= below < shown.sizeHintForRow(0), "neither cut off nor room for one more"


def test_nothing_of_a_card_is_taken_for_html():
    nasty = "<script>alert(1)</script><img src='http://x'>"
    card = {
        "title": nasty,
        "description": nasty,
        "licence": nasty,
        "authors": [nasty],
        "data": [{"title": nasty, "source": nasty, "licence": nasty}],
        "training": {nasty: nasty},
        "scores": {nasty: {nasty: {nasty: nasty}, "n": 1}, "dice": 0.51234567},
        "limitations": nasty,
        "parent": nasty,
    }
    model = {
        "name": nasty, "version": nasty, "origin": nasty, "path": nasty, "task": nasty, "dim": 2,
        "error": nasty, "card": card, "labels": [{"name": nasty}], "channels": nasty,
        "spacing": [0.5, 0.25], "unit": nasty, "weights": {"sha256": nasty, "bytes": 12_345_678},
    }  # fmt: skip
    html = card_html(model)
    assert "<script" not in html
    assert "<img" not in html
    assert "0.5123" in html
    assert "12.3 MB" in html
    assert "0.5 x 0.25" in html


def test_a_damaged_model_is_shown_with_its_reason(dock: Any, qtbot: Any, library: Path):
    from napari_tttunet.session import session

    (library / "broken").mkdir()
    (library / "broken" / "model.json").write_text("{")
    session().models_changed.emit()
    qtbot.waitUntil(lambda: names(dock) == [*SHIPPED_NAMES, "broken"], timeout=PATIENCE)
    dock.panel.list.setCurrentItem(dock.panel.list.topLevelItem(len(SHIPPED_NAMES)))
    assert "no valid JSON" in dock.panel.card.toPlainText()
    assert not dock.panel.export.isEnabled()
    assert dock.panel.remove.isEnabled()


def test_a_folder_opens_in_the_file_manager(dock: Any, qtbot: Any):
    from qtpy.QtCore import QObject, Slot
    from qtpy.QtGui import QDesktopServices

    class FileManager(QObject):
        seen: list[str]

        @Slot("QUrl")
        def show(self, url: Any) -> None:
            self.seen.append(url.toLocalFile())

    manager = FileManager()
    manager.seen = []
    QDesktopServices.setUrlHandler("file", manager, "show")
    try:
        click(qtbot, dock.panel.open)
        assert [Path(path).name for path in manager.seen] == ["nuclei"]
    finally:
        QDesktopServices.unsetUrlHandler("file")
