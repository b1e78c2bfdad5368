"""The environment that the worker runs in: made, adopted, checked and removed.

Slicer's own Python is never touched. The environment is a virtual one in a folder beside Slicer's
settings, or any interpreter that has napari-tttunet. Nothing is made before `install` is called,
which the window does when the user has agreed to `Plan.summary`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from TTTUNetLib.Volumes import RequestError

#: Protocol of the engine that this extension speaks (`tttunet.engine.messages.PROTOCOL`).
PROTOCOL = 1
#: Names an interpreter, before any setting.
PYTHON_VARIABLE = "TTTUNET_PYTHON"
#: What is asked of pip by default.
REQUIREMENT = "napari-tttunet"
#: How the folders of environments begin.
_FOLDER = "environment"
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
CUDA_TORCH = "https://download.pytorch.org/whl/cu126"
#: Without it pip would take a torch without CUDA on Windows.
_PLAIN_TORCH_HAS_CUDA = sys.platform.startswith("linux")
_CANDIDATES = ("python3.12", "python3.13", "python3.11", "python3.10", "python3", "python", "py")
_PROBE_TIMEOUT = 60.0
#: What an interpreter says of itself; torch is not imported, which takes seconds.
_PROBE = """
import importlib.metadata as metadata, importlib.util as util, json, sys
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
packages, records = {}, {}
for name in ("tttunet", "appose"):
    found = util.find_spec(name)
    if found is not None and found.origin:
        packages[name] = list(found.submodule_search_locations)[0]
for name in ("napari-tttunet", "appose"):
    if version(name):
        records[name] = str(metadata.distribution(name)._path)
protocol = 0
if len(packages) == 2:
    from tttunet.engine.messages import PROTOCOL as protocol
print(json.dumps({"version": version("napari-tttunet"), "protocol": protocol,
    "python_version": ".".join(map(str, sys.version_info[:3])),
    "torch": version("torch"), "packages": packages, "records": records}))
"""
_USABLE = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))"


@dataclass(frozen=True)
class Environment:
    """An interpreter with napari-tttunet.

    Attributes:
        python: the interpreter.
        packages: folders of `tttunet` and `appose`, which Slicer imports the client from.
        records: folders with what pip wrote about them, by distribution.
        version, torch, python_version: as text; `torch` ends in +cpu where it has no CUDA.
        protocol: that its worker speaks.
    """

    python: str
    packages: dict[str, str]
    records: dict[str, str]
    version: str
    torch: str
    python_version: str
    protocol: int = PROTOCOL

    def __str__(self) -> str:
        return (
            f"napari-tttunet {self.version}, torch {self.torch}, Python {self.python_version} "
            f"({self.python})"
        )


def probe(python: str | Path, variables: Mapping[str, str | None] | None = None) -> Environment:
    """Ask an interpreter what it has, and check that it fits this extension.

    Args:
        python: the interpreter.
        variables: of the process environment that it is to see otherwise.

    Raises:
        RequestError: it cannot be started, has no napari-tttunet or torch, or another protocol.
    """
    program = shutil.which(str(python))
    if program is None:
        raise RequestError(
            _("{0} does not exist.").format(python), _("Choose a Python interpreter.")
        )
    try:
        said = subprocess.run(
            [program, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT,
            env=_variables(variables),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RequestError(_("{0} cannot be started: {1}.").format(program, error)) from error
    try:
        found = json.loads(said.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        words = (said.stderr.strip().splitlines() or [_("it said nothing")])[-1]
        raise RequestError(
            _("{0} is no Python that can run the engine: {1}.").format(program, words),
            _("Choose Python 3.10 or later."),
        ) from None
    if len(found["packages"]) < 2:
        raise RequestError(
            _("{0} has no napari-tttunet.").format(program),
            _("Install it there ({0} -m pip install {1}), or choose another one.").format(
                program, REQUIREMENT
            ),
        )
    if found["protocol"] != PROTOCOL:
        newer = found["protocol"] > PROTOCOL
        raise RequestError(
            _(
                "napari-tttunet {0} of {1} speaks protocol {2}, and this extension speaks {3}."
            ).format(found["version"], program, found["protocol"], PROTOCOL),
            _("Update the extension in Slicer's Extensions Manager.")
            if newer
            else _("Install the environment again to update it."),
        )
    if not found["torch"]:
        raise RequestError(
            _("{0} has no torch.").format(program), _("Install the environment again.")
        )
    return Environment(program, **found)


@dataclass(frozen=True)
class Plan:
    """What `Installer.install` will do.

    Attributes:
        base: the interpreter that makes the environment.
        folder: where.
        compute: `cpu`, or `cuda`.
        wheels: folder of wheels to install from without network; None: from the network.
        requirement: what pip installs.
    """

    base: str
    folder: Path
    compute: str = "cpu"
    wheels: Path | None = None
    requirement: str = REQUIREMENT

    @property
    def summary(self) -> str:
        """What the user agrees to."""
        size = "1.5 GB" if self.compute == "cpu" else "6 GB"
        source = self.wheels or _("the internet (pypi.org, pytorch)")
        return _(
            "A Python environment of its own is made in '{0}' with {1}. PyTorch for {2} and {3} "
            "are installed into it from {4}; it takes about {5} on disk. Slicer's own Python is "
            "not changed. The environment can be removed again here."
        ).format(self.folder, self.base, self.compute.upper(), self.requirement, source, size)

    def commands(self) -> list[tuple[str, list[str]]]:
        """Stages and command lines, in order."""
        python = str(interpreter_in(self.folder))
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        torch: list[str] = []
        if self.wheels is not None:  # and from nowhere else, whatever pip's settings say
            pip += ["--isolated", "install", "--no-index", "--find-links", str(self.wheels)]
        else:
            pip += ["install"]
        if self.wheels is None and self.compute == "cpu":
            torch = ["--index-url", CPU_TORCH]
        elif self.wheels is None and not _PLAIN_TORCH_HAS_CUDA:
            torch = ["--index-url", CUDA_TORCH]
        return [
            (_("making the environment"), [self.base, "-m", "venv", str(self.folder)]),
            (_("installing PyTorch"), [*pip, *torch, "torch"]),
            (_("installing napari-tttunet"), [*pip, self.requirement]),
        ]


def interpreter_in(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    windows = os.name == "nt"
    return folder / ("Scripts/python.exe" if windows else "bin/python")


class Installer:
    """Knows which environment is used. Without a window; the long parts run in a thread.

    Args:
        root: folder of the environment and of the choice; None: beside Slicer's settings.
        variables: process environment for what is started, see `probe`.
    """

    def __init__(
        self, root: Path | None = None, variables: Mapping[str, str | None] | None = None
    ) -> None:
        self.root = root or default_root()
        self._variables = dict(variables or {})
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = threading.Event()

    @property
    def folders(self) -> list[Path]:
        """The environments that `install` made: one, and what could not be deleted."""
        return [path for path in sorted(self.root.glob(f"{_FOLDER}*")) if path.is_dir()]

    def _new_folder(self) -> Path:
        names = (f"{_FOLDER}-{number}" for number in itertools.count(1))
        return next(self.root / name for name in names if not (self.root / name).exists())

    @property
    def _choice(self) -> Path:
        return self.root / "environment.json"

    def chosen(self) -> str:
        """The interpreter that was installed, adopted or named by the variable; or empty."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            remembered = json.loads(self._choice.read_text(encoding="utf-8"))["python"]
            return os.environ.get(PYTHON_VARIABLE) or str(remembered)
        return os.environ.get(PYTHON_VARIABLE, "")

    def environment(self) -> Environment:
        """The environment to use, checked; takes about a second.

        Raises:
            RequestError: there is none, or see `probe`.
        """
        python = self.chosen()
        if not python:
            raise RequestError(
                _("The engine is not installed yet."),
                _("Open the section Engine and press Install."),
            )
        return probe(python, self._variables)

    def adopt(self, python: str | Path) -> Environment:
        """Use an interpreter that has napari-tttunet already.

        Raises:
            RequestError: see `probe`; the choice before stays.
        """
        environment = probe(python, self._variables)
        self.root.mkdir(parents=True, exist_ok=True)
        self._choice.write_text(json.dumps({"python": environment.python}), encoding="utf-8")
        return environment

    def plan(self, compute: str = "cpu", wheels: str | Path | None = None, base: str = "") -> Plan:
        """What an installation would do; nothing is done yet.

        Raises:
            RequestError: there is no Python to make it with, or no such folder of wheels.
        """
        if wheels and not any(Path(wheels).glob("*.whl")):
            raise RequestError(
                _("There are no wheels in '{0}'.").format(wheels), _("Choose another folder.")
            )
        found = base or self._base_python()
        source = _checkout()
        return Plan(
            found,
            self._new_folder(),
            compute,
            Path(wheels) if wheels else None,
            REQUIREMENT if wheels or source is None else str(source),
        )

    def _base_python(self) -> str:
        for name in _CANDIDATES:
            program = shutil.which(name, path=self._variables.get("PATH"))
            if program and "slicer" not in program.lower() and self._usable(program):
                return program
        raise RequestError(
            _("There is no Python 3.10 or later on this computer, except Slicer's own."),
            _("Install one from python.org, then press Install again."),
        )

    def _usable(self, program: str) -> bool:
        try:
            command = [program, "-c", _USABLE]
            done = subprocess.run(
                command,
                env=_variables(self._variables),
                capture_output=True,
                timeout=_PROBE_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def install(self, plan: Plan, tell: Callable[[str, float, str], None]) -> Environment:
        """Make the environment and use it; blocks for minutes, so call it in a thread.

        An attempt that fails leaves what was used before in place, and may be repeated. One that
        succeeds deletes it, as far as no program has its files open.

        Args:
            plan: from `plan`.
            tell: called with a stage, the share that is done, and a line of the log.

        Raises:
            RequestError: a step failed; the message has pip's last words.
        """
        self._cancelled.clear()
        self.root.mkdir(parents=True, exist_ok=True)
        if plan.folder.exists():  # the plan was carried out before, and its result may be in use
            plan = replace(plan, folder=self._new_folder())
        try:
            steps = plan.commands()
            for number, (stage, command) in enumerate(steps):
                tell(stage, number / len(steps), f"$ {' '.join(command)}")
                self._run(command, functools.partial(tell, stage, number / len(steps)))
            tell(_("checking"), 1.0, "")
            made = self.adopt(interpreter_in(plan.folder))
        except BaseException:
            shutil.rmtree(plan.folder, ignore_errors=True)
            raise
        for old in self.folders:
            if old != plan.folder:
                shutil.rmtree(old, ignore_errors=True)
        return made

    def _run(self, command: Sequence[str], tell: Callable[[str], None]) -> None:
        if self._cancelled.is_set():
            raise RequestError(_("The installation was cancelled."))
        last = ""
        try:
            with subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=_variables(self._variables),
            ) as process:
                self._process = process
                assert process.stdout is not None
                for line in process.stdout:
                    last = line.strip() or last
                    tell(line.rstrip())
        except OSError as error:
            raise RequestError(
                _("{0} cannot be started: {1}.").format(command[0], error)
            ) from error
        finally:
            self._process = None
        if self._cancelled.is_set():
            raise RequestError(_("The installation was cancelled."))
        if process.returncode:
            raise RequestError(
                _("The installation failed: {0}.").format(last or _("no reason was given")),
                _("The log says more; mend the cause and press Install again."),
            )

    def cancel(self) -> None:
        """Stop an installation; `install` raises."""
        self._cancelled.set()
        process = self._process
        if process is not None:
            process.terminate()

    def remove(self) -> None:
        """Delete what `install` made, and forget the choice.

        An adopted interpreter is only forgotten.

        Raises:
            RequestError: files are in use; close the engine before.
        """
        self._choice.unlink(missing_ok=True)
        try:
            for folder in self.folders:
                shutil.rmtree(folder)
        except OSError as error:
            raise RequestError(
                _("'{0}' cannot be deleted: {1}.").format(self.root, error.strerror or error),
                _("Restart Slicer and try again."),
            ) from error


def default_root() -> Path:
    """Beside Slicer's settings; without the application in the user's folder for data."""
    import slicer

    if hasattr(slicer, "app"):
        return Path(slicer.app.slicerUserSettingsFilePath).parent / "TTTUNet"
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "TTTUNet"


def _checkout() -> Path | None:
    """The source tree that this extension lies in, if it does."""
    root = Path(__file__).resolve().parents[3]
    project = root / "pyproject.toml"
    inside = project.is_file() and f'name = "{REQUIREMENT}"' in project.read_text(encoding="utf-8")
    return root if inside else None


def _variables(changed: Mapping[str, str | None] | None) -> dict[str, str]:
    """The process environment for another Python."""
    own: dict[str, Any] = dict.fromkeys(("PYTHONHOME", "PYTHONPATH", "PIP_REQUIRE_VIRTUALENV"))
    own["PYTHONSAFEPATH"] = "1"  # no module of the folder that Slicer was started in
    merged = {**os.environ, **own, **dict(changed or {})}
    return {name: value for name, value in merged.items() if value is not None}
