"""Options as fields of dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nptool.errors import UsageError
from nptool.options import (
    BELOW_1,
    CONFIG_FILE_ONLY,
    POSITIVE,
    Range,
    described,
    flag,
    limited,
    option,
    options_of,
    ranges_of,
)
from nptool.settings import check_fields


@dataclass(frozen=True, kw_only=True)
class General:
    data: tuple[str, ...] = field(metadata=described("data", rest=True))
    speed: float = option(0.5, "how fast", within=BELOW_1)
    size: int = option(3, "how large", "-s", "--how-large")
    hidden: int = limited(1, POSITIVE)
    deep: bool = option(False, "deep or flat", "--deep/--flat")


@dataclass(frozen=True, kw_only=True)
class Special(General):
    speed: float = 0.75
    size: int = field(default=4, metadata=CONFIG_FILE_ONLY)
    min_noise: float | None = option(None, "noise", within=Range(0, 1, open_low=True))


def test_the_help_begins_with_data_and_short_flags_and_then_goes_from_the_class_upwards() -> None:
    assert list(options_of(General)) == ["data", "size", "speed", "deep"]
    assert list(options_of(Special)) == ["data", "min_noise", "speed", "deep"]


def test_a_subclass_that_changes_a_default_keeps_help_and_range() -> None:
    assert Special(data=()).speed == 0.75
    assert options_of(Special)["speed"] is options_of(General)["speed"]
    assert ranges_of(Special) == {"speed": BELOW_1, "hidden": POSITIVE, "min_noise": Range(0, 1, open_low=True)}


def test_flags_are_those_declared_or_made_from_the_name() -> None:
    assert [flag(General, name) for name in ("size", "deep", "hidden")] == ["-s", "--deep", "--hidden"]
    assert flag(Special(data=()), "min_noise") == "--min-noise"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 1.0}, "--speed is 1.0; it must be at least 0 and below 1"),
        ({"hidden": 0}, "--hidden is 0; it must be above 0"),
        ({"min_noise": 0.0}, "--min-noise is 0.0; it must be above 0 and at most 1"),
        ({"speed": float("nan")}, "--speed is nan; it must be at least 0 and below 1"),
    ],
)
def test_values_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_fields(Special(data=(), **values))  # type: ignore[arg-type]
    assert str(error.value) == message
