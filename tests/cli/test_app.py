"""Help, errors and exit codes: what every command has in common."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tttunet
from tttunet.cli.messages import explain

from .conftest import Run

COMMANDS = [
    ["segment"],
    ["train"],
    ["evaluate"],
    ["convert"],
    ["demo"],
    ["models"],
    ["models", "list"],
    ["models", "show"],
    ["models", "add"],
    ["models", "remove"],
    ["bench"],
    ["bench", "cost"],
]
HEAVY = {"torch", "monai", "scipy", "skimage", "matplotlib", "SimpleITK", "lightning_fabric"}


def test_help_imports_nothing_heavy(tmp_path: Path):
    program = (
        "import sys\nfrom tttunet.cli import main\n"
        "assert main(['segment', '--help']) == 0\n"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Examples" in done.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(run: Run, command: list[str]):
    ran = run(*command, "--help")
    assert ran.code == 0
    if len(command) == 2 or command[0] not in ("models", "bench"):
        assert f"tttunet {' '.join(command)}" in ran.out.split("Example", 1)[1]


def test_version(run: Run):
    assert run("--version").out.strip() == f"tttunet {tttunet.__version__}"


@pytest.mark.parametrize("words", [["no-such-command"], ["segment"], ["evaluate", "a", "b"]])
def test_wrong_usage_is_exit_code_2(run: Run, words: list[str]):
    ran = run(*words)
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_error_is_one_line_on_stderr(run: Run, tmp_path: Path):
    missing = tmp_path / ("a very long name " * 6) / "cells.tif"
    ran = run("segment", missing, "--output", tmp_path / "out")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        f"Error: '{missing}' does not exist. Check the name and the folder."
    ]
    assert not (tmp_path / "out").exists()


def test_brackets_in_names_are_no_markup(run: Run, tmp_path: Path):
    ran = run("evaluate", tmp_path / "[bold]a[/bold]", tmp_path, "--task", "instance")
    assert (
        ran.err
        == f"Error: '{tmp_path}/[bold]a[/bold]' does not exist. Check the name and the folder.\n"
    )


@pytest.mark.parametrize("place", [0, 1, 4])
def test_debug_shows_the_traceback_from_any_place(run: Run, tmp_path: Path, place: int):
    words = ["segment", str(tmp_path / "missing.tif"), "--output", str(tmp_path)]
    words.insert(place, "--debug")
    with pytest.raises(tttunet.errors.ImageError):
        run(*words)


def test_debug_after_two_dashes_is_a_name(run: Run):
    ran = run("segment", "--output", "out", "--", "--debug")
    assert "'--debug' does not exist" in ran.err


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad\nsecond line"), "Unexpected ValueError: bad. Run again with --debug"),
        (KeyError(), "Unexpected KeyError. Run"),
        (MemoryError(), "not enough memory"),
        (OSError(28, "No space left on device"), "disk is full"),
    ],
)
def test_unexpected_errors_in_one_sentence(error: Exception, text: str):
    assert text in explain(error)
    assert "\n" not in explain(error)


def test_module_and_command_are_the_same(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tttunet", "evaluate", "a", "b", "--task", "instance"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        1,
        "Error: 'a' does not exist. Check the name and the folder.\n",
    )
