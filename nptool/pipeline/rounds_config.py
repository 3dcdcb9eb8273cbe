"""Configuration of `nptool train cllm --rounds`. Does not load torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from itertools import count, takewhile

from nptool.errors import UsageError
from nptool.options import AT_LEAST_1, POSITIVE, Range, flag, option
from nptool.runs import LATEST, ROOT, Run, latest_run
from nptool.training.cllm.config import CllmConfig

_ROUND = re.compile(r"-round-\d+$")
GROWTH = 2
"""Factor of the block length from round to round: 16, then 32 in Jacobi Forcing."""


@dataclass(frozen=True, kw_only=True)
class RoundsConfig(CllmConfig):
    """Rounds of collection and training. The inherited fields hold for the first round and are shared by the others."""

    rounds: int = option(
        1, "number of rounds; each trains the previous round's model on its answers", within=AT_LEAST_1
    )
    round_n: int | None = option(None, "block length of the second round", shown="twice the first's", within=Range(2))
    """In tokens; doubled in every later round."""
    round_window: int | None = option(None, "window of the later rounds", shown="the first's", within=AT_LEAST_1)
    """Jacobi Forcing: 16, then 8."""
    round_steps: int | None = option(None, "steps of each later round", shown="the first's", within=POSITIVE)
    round_lr: float | None = option(
        None, "peak learning rate of the later rounds", shown="the first's", within=POSITIVE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("round_n", "round_window", "round_steps", "round_lr"):
            if self.rounds == 1 and getattr(self, name) is not None:
                raise UsageError(f"{flag(self, name)} is about a second round; give --rounds 2 too")
        # Checks the later rounds' combination of settings.
        _ = self.later

    @property
    def first(self) -> CllmConfig:
        """The first round, which is the training without rounds."""
        return CllmConfig(**{field.name: getattr(self, field.name) for field in fields(CllmConfig)})

    @property
    def later(self) -> CllmConfig:
        """The settings that all later rounds share."""
        return replace(
            self.first,
            window=self.round_window or self.window,
            steps=self.round_steps or self.steps,
            epochs=self.epochs if self.round_steps is None else None,
            lr=self.round_lr or self.lr,
        )

    def round(self, number: int, first_n: int) -> CllmConfig:
        """A later round, which trains the previous round's model on trajectories collected from it.

        Args:
            number: of the round, from 2.
            first_n: block length of the first round.
        """
        name, before = (_name(self.first.run_name, each) for each in (number, number - 1))
        return replace(
            self.later,
            data=(Run(ROOT / name).collected,),
            model=str(Run(ROOT / before).model),
            n=(self.round_n or GROWTH * first_n) * GROWTH ** (number - 2),
            name=name,
        )


def finished_rounds(name: str | None, rounds: int) -> list[Run]:
    """The runs of a finished training, in the order of its rounds; empty if fewer than `rounds` are finished.

    Args:
        name: the run of any of its rounds; None is the newest run.
    """
    if name is None and not (ROOT / LATEST).is_file():
        return []
    first = _ROUND.sub("", name or latest_run().path.name)
    numbered = (Run(ROOT / _name(first, number)) for number in count(1))
    runs = list(takewhile(lambda run: run.results.is_file(), numbered))
    return runs if len(runs) >= rounds else []


def _name(first: str, number: int) -> str:
    """Name of a round's run; the first has the name that it would have without rounds."""
    return first if number == 1 else f"{first}-round-{number}"
