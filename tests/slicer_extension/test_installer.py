"""The Installer with real interpreters, a real pip and a folder of wheels: no network."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")

from TTTUNetLib import Installer as installer_module
from TTTUNetLib.Installer import Installer, interpreter_in, probe
from TTTUNetLib.Volumes import RequestError


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A wheel of a few text files, as pip wants it."""
    stem = f"{name.replace('-', '_')}-{version}"
    record = f"{stem}.dist-info"
    content = {
        **files,
        f"{record}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{record}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{record}/RECORD,,"]
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        lines.append(f"{path},sha256={digest.decode()},{len(text.encode())}")
    content[f"{record}/RECORD"] = "\n".join(lines) + "\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_inside, text in content.items():
            archive.writestr(name_inside, text)
    return path


def engine_files(protocol: int) -> dict[str, str]:
    return {
        "tttunet/__init__.py": "",
        "tttunet/engine/__init__.py": "",
        "tttunet/engine/messages.py": f"PROTOCOL = {protocol}\n",
        "appose/__init__.py": "",
    }


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """An engine and a torch in name only: what is installed is not run here."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "torch", "2.13.0+cpu", {"torch/__init__.py": ""})
    wheel(folder, "napari-tttunet", "0.1.0", engine_files(1))
    return folder


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    monkeypatch.delenv("TTTUNET_PYTHON", raising=False)
    return Installer(tmp_path / "root")


def quiet(stage: str, fraction: float, line: str) -> None:
    pass


@pytest.mark.slow
def test_environment_is_made_from_a_folder_of_wheels_and_removed(
    installer: Installer, wheels: Path
):
    with pytest.raises(RequestError, match="not installed yet"):
        installer.environment()
    plan = installer.plan("cpu", wheels)
    assert str(plan.folder) in plan.summary
    assert "Slicer's own Python is not changed" in plan.summary
    assert not installer.root.exists(), "nothing is made before the user agrees"

    (engine,) = wheels.glob("napari*")
    away = engine.rename(engine.with_suffix(".away"))
    with pytest.raises(RequestError, match="No matching distribution found for napari-tttunet"):
        installer.install(plan, quiet)
    assert installer.chosen() == "", "what failed is not used"
    assert not plan.folder.exists(), "and not kept"
    away.rename(engine)

    heard: list[tuple[str, float, str]] = []
    made = installer.install(plan, lambda *said: heard.append(said))
    assert made.version == "0.1.0"
    assert made.torch == "2.13.0+cpu"
    assert Path(made.python) == interpreter_in(plan.folder)
    assert Path(made.packages["tttunet"]).is_relative_to(plan.folder)
    assert Installer(installer.root).environment() == made, "it is remembered"
    assert list(dict.fromkeys(stage for stage, _, _ in heard)) == [
        "making the environment", "installing PyTorch", "installing napari-tttunet", "checking",
    ]  # fmt: skip
    fractions = [fraction for _, fraction, _ in heard]
    assert fractions == sorted(fractions)
    assert any("Successfully installed torch" in line for _, _, line in heard)

    messages = Path(made.packages["tttunet"], "engine", "messages.py")
    for protocol, fix in ((2, "Update the extension"), (0, "Install the environment again")):
        messages.write_text(f"PROTOCOL = {protocol}  # {fix}")
        with pytest.raises(RequestError, match=f"protocol {protocol}, .*speaks 1.*{fix}"):
            installer.environment()

    installer.remove()
    assert not plan.folder.exists()
    assert installer.chosen() == ""


@pytest.mark.slow
def test_engine_in_use_survives_a_new_installation_that_ends_early(
    installer: Installer, wheels: Path
):
    plan = installer.plan("cpu", wheels)
    made = installer.install(plan, quiet)

    def cancel(stage: str, fraction: float, line: str) -> None:
        if stage == "installing PyTorch":
            installer.cancel()

    with pytest.raises(RequestError, match="cancelled"):
        installer.install(installer.plan("cpu", wheels), cancel)
    assert installer.environment() == made
    (engine,) = wheels.glob("napari*")
    engine.unlink()
    with pytest.raises(RequestError, match="No matching distribution found"):
        installer.install(plan, quiet)
    assert installer.environment() == made
    assert installer.folders == [plan.folder]

    wheel(wheels, "napari-tttunet", "0.2.0", engine_files(1))
    newer = installer.install(installer.plan("cpu", wheels), quiet)
    assert newer.version == "0.2.0"
    assert installer.environment() == newer
    assert [interpreter_in(folder) for folder in installer.folders] == [Path(newer.python)]


def test_cancelled_installation_ends_at_once(installer: Installer, wheels: Path):
    stages: list[str] = []

    def cancel(stage: str, fraction: float, line: str) -> None:
        stages.append(stage)
        threading.Timer(0.5, installer.cancel).start()

    with pytest.raises(RequestError, match="cancelled"):
        installer.install(installer.plan("cpu", wheels), cancel)
    assert set(stages) == {"making the environment"}
    assert installer.folders == []
    assert installer.chosen() == ""


def test_existing_interpreter_is_adopted_after_a_look(
    installer: Installer, tmp_path: Path, worker: str
):
    found = installer.adopt(worker)
    assert found.protocol == installer_module.PROTOCOL
    assert installer.chosen() == worker

    with pytest.raises(RequestError, match="has no napari-tttunet"):
        installer.adopt(sys.executable)
    with pytest.raises(RequestError, match="does not exist"):
        installer.adopt(tmp_path / "nothing")
    with pytest.raises(RequestError, match="no Python that can run the engine"):
        installer.adopt("/bin/true")
    assert installer.chosen() == worker, "what was chosen before stays"
    installer.remove()
    assert Path(worker).exists(), "an adopted interpreter is only forgotten"


def test_variable_comes_before_the_choice(
    installer: Installer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installer.root.mkdir()
    (installer.root / "environment.json").write_text(json.dumps({"python": "/remembered"}))
    assert installer.chosen() == "/remembered"
    monkeypatch.setenv("TTTUNET_PYTHON", "/named")
    assert installer.chosen() == "/named"
    (installer.root / "environment.json").write_text("{")
    assert installer.chosen() == "/named"


def test_choice_of_torch_decides_the_command(installer: Installer, tmp_path: Path):
    def torch(compute: str) -> list[str]:
        return dict(installer.plan(compute).commands())["installing PyTorch"]

    assert installer_module.CPU_TORCH in torch("cpu")
    assert installer_module.CPU_TORCH not in torch("cuda")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="no wheels"):
        installer.plan("cpu", tmp_path / "empty")
    with pytest.raises(RequestError, match=r"no Python 3\.10"):
        Installer(tmp_path / "root", {"PATH": str(tmp_path)}).plan()


def test_launchers_variables_do_not_reach_the_other_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: str
):
    """Slicer's launcher sets PYTHONHOME, with which no other Python starts."""
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    assert probe(worker).protocol == installer_module.PROTOCOL
