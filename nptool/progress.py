"""Progress as a callback: the library reports it, the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called at every advance of a long step."""

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None:
        """Report that `done` of `total` units of `step` are finished; `note` is a figure to show."""


def silent(step: str, done: float, total: float, note: str = "") -> None:
    """A `Progress` that shows nothing."""


def in_part(name: str, progress: Progress) -> Progress:
    """A `Progress` for one part of a job; it puts the part's name before each step's."""

    def report(step: str, done: float, total: float, note: str = "") -> None:
        progress(f"{name}: {step}", done, total, note)

    return report
