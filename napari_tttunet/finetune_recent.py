"""The projects that were open last."""

from __future__ import annotations

from typing import Any

from napari_tttunet.settings import Settings

#: How many projects are remembered.
RECENT = 8
_NAME = "finetune.recent"


def recent_projects(settings: Settings) -> list[str]:
    """Folders of projects, the last one first."""
    remembered: list[Any] = []
    return [str(path) for path in settings.get(_NAME, remembered)]


def remember_project(settings: Settings, folder: str) -> None:
    """A project was opened."""
    others = (path for path in recent_projects(settings) if path != folder)
    settings.set(_NAME, [folder, *others][:RECENT])
    settings.save_soon()
