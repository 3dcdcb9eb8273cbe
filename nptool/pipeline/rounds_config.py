"""Configuration of a consistency training in rounds: `nptool train cllm --rounds`. Loads no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from itertools import count, takewhile

from nptool.errors import UsageError
from nptool.runs import LATEST, ROOT, Run, latest_run
from nptool.settings import check_range
from nptool.training.cllm.config import CllmConfig

_ROUND = re.compile(r"-round-\d+$")
GROWTH = 2
"""A round's blocks against those of the round before: n = 16, then 32 in Jacobi Forcing."""


@dataclass(frozen=True, kw_only=True)
class RoundsConfig(CllmConfig):
    """Rounds of collection and training; what all rounds share is the first one's configuration."""

    rounds: int = 1
    """Each round but the first trains the model of the one before, on trajectories collected from it."""
    round_n: int | None = None
    """Block length of the second round in tokens; None is twice the first's. It doubles with every further round."""
    round_window: int | None = None
    """Blocks in the schedule's window from the second round on; None is the first's. Jacobi Forcing: 16, then 8."""
    round_steps: int | None = None
    """Optimizer steps of each round from the second on; None is as long as the first."""
    round_lr: float | None = None
    """Highest learning rate from the second round on; None is the first's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("rounds", "round_window"), low=1)
        check_range(self, ("round_n",), low=2)
        check_range(self, ("round_steps", "round_lr"), low=0, open_low=True)
        for name in ("round_n", "round_window", "round_steps", "round_lr"):
            if self.rounds == 1 and getattr(self, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is about a second round; give --rounds 2 too")
        # A combination that cannot be is found before the first round, not after it.
        _ = self.later

    @property
    def first(self) -> CllmConfig:
        """The first round: exactly the training without rounds."""
        return CllmConfig(**{field.name: getattr(self, field.name) for field in fields(CllmConfig)})

    @property
    def later(self) -> CllmConfig:
        """What a later round shares with the first."""
        epochs = self.epochs if self.round_steps is None else None
        return replace(
            self.first,
            window=self.round_window or self.window,
            steps=self.round_steps or self.steps,
            epochs=epochs,
            lr=self.round_lr or self.lr,
        )

    def round(self, number: int, first_n: int) -> CllmConfig:
        """A later round: its model is that of the round before, its data are what is collected from it.

        Args:
            number: of the round, from 2.
            first_n: the first round's block length.
        """
        second_n = self.round_n or GROWTH * first_n
        name = self.round_name(number)
        return replace(
            self.later,
            data=(Run(ROOT / name).collected,),
            model=str(Run(ROOT / self.round_name(number - 1)).model),
            n=second_n * GROWTH ** (number - 2),
            name=name,
        )

    def round_name(self, number: int) -> str:
        """Name of a round's run directory: the first has the name it would have alone."""
        return _name(self.first.run_name, number)


def finished_rounds(name: str | None, rounds: int) -> list[Run]:
    """The runs of a training that is done, in the order of its rounds; none where something is left to do.

    Args:
        name: of its first round's run, or of any of them; None is the newest run.
        rounds: so many have to be done.
    """
    if name is None and not (ROOT / LATEST).is_file():
        return []
    first = _ROUND.sub("", name or latest_run().path.name)
    numbered = (Run(ROOT / _name(first, number)) for number in count(1))
    runs = list(takewhile(lambda run: run.results.is_file(), numbered))
    return runs if len(runs) >= rounds else []


def _name(first: str, number: int) -> str:
    return first if number == 1 else f"{first}-round-{number}"
