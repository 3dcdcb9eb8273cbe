"""Held-out tokens per forward against training time (see `nptool.training.cllm.measuring`). Loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from nptool.files import read_json, write_json

LAST_SHARE = 0.25
"""Share of the training time for `Curve.last_gain`."""


@dataclass(frozen=True)
class CurvePoint:
    step: int
    """Optimizer steps done."""
    seconds: float
    """Training time so far, over all calls, without measuring."""
    tokens_per_forward: float
    """Of greedy Jacobi decoding in blocks of the trained length."""


@dataclass(frozen=True)
class Curve:
    block_size: int
    """n, in tokens."""
    prompts: int
    """Number of held-out prompts."""
    points: tuple[CurvePoint, ...] = ()
    prompts_digest: str = ""
    """Identifies the prompts."""

    def at(self, seconds: float) -> float:
        """Tokens per forward at a time, interpolated linearly between the measurements around it."""
        before = max((one for one in self.points if one.seconds <= seconds), key=lambda one: one.seconds)
        after = min((one for one in self.points if one.seconds >= seconds), key=lambda one: one.seconds)
        if after.seconds == before.seconds:
            return after.tokens_per_forward
        share = (seconds - before.seconds) / (after.seconds - before.seconds)
        return before.tokens_per_forward + share * (after.tokens_per_forward - before.tokens_per_forward)

    @property
    def last_gain(self) -> float | None:
        """Tokens per forward gained in the last quarter of the time; None with too few measurements."""
        if len(self.points) <= 1 / LAST_SHARE:
            return None
        first, last = self.points[0], self.points[-1]
        border = last.seconds - LAST_SHARE * (last.seconds - first.seconds)
        return last.tokens_per_forward - self.at(border)


def read_curve(path: Path) -> Curve | None:
    """The curve in a run's file, if there is one."""
    if not path.is_file():
        return None
    values = read_json(path)
    points = tuple(CurvePoint(**point) for point in values["points"])
    return Curve(values["block_size"], values["prompts"], points, values.get("prompts_digest", ""))


def write_curve(path: Path, curve: Curve, checkpoints: dict[int, float]) -> None:
    """Write a curve, with the training time at each checkpoint, by step."""
    write_json(path, {**asdict(curve), "checkpoints": checkpoints})


def read_checkpoints(path: Path) -> dict[int, float]:
    """Training time at each checkpoint, by step; empty without a file."""
    saved = read_json(path)["checkpoints"] if path.is_file() else {}
    return {int(step): seconds for step, seconds in saved.items()}
