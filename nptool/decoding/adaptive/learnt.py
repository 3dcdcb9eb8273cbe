"""What an experience hands from one process to the next, and its JSON form. Knows no file and no policy's rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Self

from nptool.decoding.adaptive.policy import Evidence, Prior

# No exponent, number of steps or time of a sane file is larger.
_MOST = 1e6
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Learnt:
    """What decoding one model by one method has shown."""

    prior: Prior
    recent: Mapping[int, Evidence]
    """What the last steps have shown, by width."""
    long: Mapping[int, Evidence]
    """The same of the last few texts."""
    ratios: Mapping[int, float]
    """Width to what its steps took, as a multiple of what was calibrated."""
    plain_ratios: Mapping[int, float]
    """Width above 1 to what width 1's ratio was when a step of it was made last, where it was known."""
    plain_stepped: bool
    """Whether a step of width 1 was made, not only timed."""
    newest_ratio: float
    """The same of the width that was used last."""
    drafting: float | None
    """Seconds of a draft; None where none was made."""
    saved: float
    """Seconds that trials may lose; below 0 they have lost too much."""
    calibration: str
    """Fingerprint of the calibration that the ratios are multiples of."""

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """
        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is none.
        """
        found = cls(
            prior=Prior(float(value["prior"]["exponent"]), float(value["prior"]["steps"])),
            recent=_evidence(value["recent"]),
            long=_evidence(value["long"]),
            ratios={int(width): float(ratio) for width, ratio in value["ratios"].items()},
            plain_ratios={int(width): float(ratio) for width, ratio in value["plain_ratios"].items()},
            plain_stepped=value["plain_stepped"],
            newest_ratio=float(value["newest_ratio"]),
            drafting=None if value["drafting"] is None else float(value["drafting"]),
            saved=float(value["saved"]),
            calibration=str(value["calibration"]),
        )
        found._check()
        return found

    def _check(self) -> None:
        _require(0 <= amount <= _MOST for amount in (self.prior.exponent, self.prior.steps, self.drafting or 0.0))
        for width, shown in (*self.recent.items(), *self.long.items()):
            # Every step brought from one token to all of them, but for rounding.
            least, most = shown.steps * (1 - _ROUNDING), width * shown.steps * (1 + _ROUNDING)
            _require([width > 1, 0 <= shown.steps <= _MOST, least <= shown.tokens <= most])
        _require(width > 0 and 1 / _MOST <= ratio <= _MOST for width, ratio in self.ratios.items())
        _require(
            width > 1 and {1, width} <= self.ratios.keys() and 1 / _MOST <= ratio <= _MOST
            for width, ratio in self.plain_ratios.items()
        )
        _require([isinstance(self.plain_stepped, bool), 1 / _MOST <= self.newest_ratio <= _MOST, isfinite(self.saved)])


def _evidence(value: Mapping[str, Any]) -> dict[int, Evidence]:
    return {int(width): Evidence(float(shown["steps"]), float(shown["tokens"])) for width, shown in value.items()}


def _require(conditions: Iterable[bool]) -> None:
    if not all(conditions):
        raise ValueError("what was learnt is out of range")
