"""Progress as a callback, so that the library can report it and only the command line draws it.

A `Progress` is told the name of a step, how much is done and of how much; `silent` ignores it. It knows no algorithm.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about every advance of a long step."""

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None:
        """Args: `step` names what runs, `done` of `total` units are finished, `note` is a figure to show."""


def silent(step: str, done: float, total: float, note: str = "") -> None:
    """A `Progress` that shows nothing."""


def in_part(name: str, progress: Progress) -> Progress:
    """The progress of one part of a job whose parts have steps of the same names."""

    def report(step: str, done: float, total: float, note: str = "") -> None:
        progress(f"{name}: {step}", done, total, note)

    return report
