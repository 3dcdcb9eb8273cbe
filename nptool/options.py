"""Options, each declared once: a field of a dataclass whose metadata hold its range and what the command line says.

Knows no library for command lines; `nptool.cli.signatures` makes the parameters of a command from these fields.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

T = TypeVar("T")
_OPTION, _RANGE = "option", "range"


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval; an open end is not part of it."""

    low: float
    high: float = inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        lower = f"{'above' if self.open_low else 'at least'} {self.low:.10g}"
        return lower + ("" if self.high == inf else f" and {'below' if self.open_high else 'at most'} {self.high:.10g}")


POSITIVE, NOT_NEGATIVE, AT_LEAST_1 = Range(0, open_low=True), Range(0), Range(1)
SHARE, BELOW_1 = Range(0, 1), Range(0, 1, open_high=True)


@dataclasses.dataclass(frozen=True)
class Option:
    """What the command line says about a field."""

    help: str
    flags: tuple[str, ...] = ()
    """The usual one first; a bool's may be `--yes/--no`. A missing long one is made from the field's name."""
    metavar: str | None = None
    """None is that of the field's type."""
    shown: str | None = None
    """The default in the help, formatted with the class as `config`; None is the field's own."""
    parse: Callable[[str], Any] | None = None
    """Value of the text that is typed; None leaves it to the field's type."""
    rest: bool = False
    """Words after the value belong to it: `--data A B`."""

    @property
    def rank(self) -> int:
        """Place in the help: the data, then what has a short flag, then the others."""
        short = any(not flag.startswith("--") for flag in self.flags)
        return 0 if self.rest else 1 if short else 2


CONFIG_FILE_ONLY: dict[str, None] = {_OPTION: None}
"""Metadata of a field that has no option although its base class gives it one."""


def described(help: str, *flags: str, within: Range | None = None, **more: Any) -> dict[str, Any]:
    """Metadata of a field that is an option; `more` are fields of `Option`."""
    return {_OPTION: Option(help, flags, **more)} | ({} if within is None else {_RANGE: within})


def option(default: T, help: str, *flags: str, **more: Any) -> T:
    """A field with a default that is an option; `more` as in `described`."""
    return dataclasses.field(default=default, metadata=described(help, *flags, **more))


def limited(default: T, within: Range) -> T:
    """A field with a range that is no option."""
    return dataclasses.field(default=default, metadata={_RANGE: within})


def _metadata(config: type[Any], key: str) -> dict[str, Any]:
    """By field, from the class upwards. A subclass that only changes a field's default keeps what it has."""
    found: dict[str, Any] = {}
    for owner in filter(dataclasses.is_dataclass, config.__mro__):
        for name in inspect.get_annotations(owner):
            metadata = owner.__dataclass_fields__[name].metadata
            if key in metadata:
                found.setdefault(name, metadata[key])
    return {name: value for name, value in found.items() if value is not None}


def ranges_of(config: type[Any]) -> dict[str, Range]:
    """The ranges of a dataclass by field."""
    return _metadata(config, _RANGE)


def options_of(config: type[Any]) -> dict[str, Option]:
    """The options of a dataclass by field, in the order of the help."""
    return dict(sorted(_metadata(config, _OPTION).items(), key=lambda item: item[1].rank))


def flags_of(name: str, option: Option | None) -> tuple[str, ...]:
    """All flags of a field; without an option, what they would be."""
    given = option.flags if option is not None else ()
    return given if any(flag.startswith("--") for flag in given) else (*given, "--" + name.replace("_", "-"))


def flag(config: Any, name: str) -> str:
    """The usual flag of a field: `min_noise` -> `--min-noise`, `n` -> `-n`."""
    options = options_of(config if isinstance(config, type) else type(config))
    return flags_of(name, options.get(name))[0].partition("/")[0]
