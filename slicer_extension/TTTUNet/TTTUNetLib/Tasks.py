"""What is under way in the engine, as the main thread sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slicer.i18n import tr as _

from TTTUNetLib.EngineClient import EngineClient

Result = dict[str, Any]


@dataclass(eq=False, kw_only=True)
class Task:
    """A job and what became of it. All callbacks run in the main thread.

    Attributes:
        onProgress: called with a fraction, a stage and the seconds to go (or None).
        onLog: called with a line of text.
        onFinished: called once with this task, whatever the outcome.
        state: `running`, `done`, `failed` or `cancelled`.
        error: one sentence; empty unless it failed.
        details: of a defect, for a report.
    """

    onProgress: Callable[[float, str, float | None], None] | None = None
    onLog: Callable[[str], None] | None = None
    onFinished: Callable[[Any], None] | None = None
    state: str = "running"
    error: str = ""
    details: str = ""
    _job: Any = field(default=None, repr=False)

    @property
    def finished(self) -> bool:
        return self.state != "running"

    def cancel(self) -> None:
        """End it at once; nothing is added to the scene."""
        self.finish("cancelled")
        if self._job is not None:
            self._job.cancel()

    def fail(self, error: str, details: str = "") -> None:
        """End it with an error."""
        self.details = details
        self.finish("failed", error)

    def advice(self, hint: str) -> str:
        """What to do after a failure; `hint` is what the engine says."""
        return hint

    def finish(self, state: str, error: str = "") -> None:
        """Tell the end, once."""
        if self.finished:
            return
        self.state, self.error = state, error
        if self.onFinished is not None:
            self.onFinished(self)

    def hear(
        self, client: EngineClient, event: Any, done: Callable[[dict[str, Any]], None]
    ) -> None:
        """Pass an event of the engine on; `done` gets the result."""
        messages = client.messages
        if self.finished:
            return
        if isinstance(event, messages.Progress) and self.onProgress is not None:
            self.onProgress(event.fraction, event.stage, event.eta)
        elif isinstance(event, messages.Log) and self.onLog is not None:
            self.onLog(f"{event.level}: {event.message}")
        elif isinstance(event, messages.Done):
            done(event.result)
        elif isinstance(event, messages.Failed):
            self.fail(f"{event.message} {self.advice(event.hint)}".strip(), event.details)
        elif isinstance(event, messages.Lost):
            hint = _("Nothing was changed; the next run starts a new worker.")
            output = "\n".join(client.engine.worker_output)
            self.fail(f"{event.message} {self.advice(hint)}", output)
        elif isinstance(event, messages.Cancelled):
            self.cancel()
