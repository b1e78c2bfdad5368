"""How long a fine-tuning will take, told before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_tttunet.dock_work import weakly
from napari_tttunet.session import session
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import roughly
from tttunet.engine import messages
from tttunet.projects.versions import split_name

#: A pixel takes so much longer in a training than in a segmentation: 7.7 and 4.0 microseconds with
#: the shipped model on two cores (benchmarks/results/training_step.json, segment_speed.json).
TRAINING_FACTOR = 2.0
#: What fewer steps took says little: most of it is the beginning and the end.
_FEWEST_STEPS = 20
_RATES = "finetune.seconds_per_pixel"
_LEARNT = "As fast as the last fine-tuning on this computer that began with this model."
_GUESSED = (
    "Guessed from the time that this model took to segment; "
    "the first fine-tuning with it shows how long it really takes."
)
_ENDS_SOONER = " It ends sooner when the held-out score rises no more."


class TimeEstimate(QObject):
    """Asks the engine how many steps there will be, and knows how long one takes.

    A step's time is that of the last fine-tuning from the same model, by pixel, which the settings
    remember; before there was one, it follows from the model's last segmentation.

    Args:
        settings: of the dock.

    Attributes:
        told: how long, and how that is known; both empty if it is not.
        noted: what is learnt about classes that nobody marked; empty: there are none.
    """

    told = Signal(str, str)
    noted = Signal(str)

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._asked: Any = None
        self._job: Any = None
        self._rate_key = ""
        self._pixels = 0

    def ask(self, folder: str, model: str, options: Mapping[str, Any], state: str) -> None:
        """Find the time anew, if anything is new; `told` follows.

        Args:
            folder: of the project.
            model: its name or folder; empty: a new one.
            options: arguments of `tttunet.finetune`.
            state: a text that changes with the corrections.
        """
        asked = folder, model, dict(options), state
        if asked == self._asked:
            return
        self._asked, self._pixels = asked, 0
        self.stop()
        self._rate_key = split_name(model.replace("\\", "/").rpartition("/")[2])[0]
        request = messages.PlanFinetune(messages.model_reference(model), folder, dict(options))
        self._job = session().engine.request(request, weakly(self._hear))

    def stop(self) -> None:
        """Do not wait for an answer any more."""
        job, self._job = self._job, None
        # One that runs is left to end: it takes little time, and cancelling could end the worker.
        if job is not None and job.state == "waiting":
            job.cancel()

    def forget(self) -> None:
        """Ask again the next time, whatever it is."""
        self.stop()
        self._asked = None

    def learn(self, steps: int, seconds: float) -> None:
        """Remember what the fine-tuning took that was asked about last."""
        if steps < _FEWEST_STEPS or not self._pixels:
            return
        rates: dict[str, float] = dict(self._rates)
        rates[self._rate_key] = seconds / (steps * self._pixels)
        self._settings.set(_RATES, rates)
        self._settings.save_soon()

    @property
    def _rates(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {}
        return self._settings.get(_RATES, nothing)

    def _hear(self, job: Any, event: Any) -> None:
        if job is not self._job:
            return
        if isinstance(event, messages.Done):
            self._pixels = int(event.result["pixels"])
            self.told.emit(*self._in_words(event.result))
            self.noted.emit(" ".join(event.result["notes"]))
        elif isinstance(event, messages.TERMINAL):
            self.told.emit("", "")  # why it cannot be trained is told when that is wanted
            self.noted.emit("")

    def _in_words(self, plan: Mapping[str, Any]) -> tuple[str, str]:
        learnt = self._rates.get(self._rate_key)
        rate = learnt
        if not isinstance(rate, float) and plan["rate"] is not None:
            rate = TRAINING_FACTOR * plan["rate"]
        limits = [] if plan["minutes"] is None else [60 * plan["minutes"]]
        if plan["steps"] is not None and rate is not None:
            limits.append(plan["steps"] * plan["pixels"] * rate)
        steps = "" if plan["steps"] is None else f"{plan['steps']} steps"
        if not limits:
            return f"{steps} at most; how long one takes is not known yet.", _GUESSED
        time = roughly(min(limits))
        text = f"{time[0].upper()}{time[1:]} at most"
        return f"{text} ({steps})." if steps else f"{text}.", self._how(learnt, plan)

    def _how(self, learnt: Any, plan: Mapping[str, Any]) -> str:
        if plan["steps"] is None:
            return f"The limit that you set.{_ENDS_SOONER}"
        how = _LEARNT if isinstance(learnt, float) else _GUESSED
        return how + (_ENDS_SOONER if plan["held_out"] else "")
