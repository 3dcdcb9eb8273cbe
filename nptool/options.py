"""Options, each declared once: a field of a dataclass whose metadata hold what the command line says about it.

Knows no library for command lines; `nptool.cli.signatures` makes the parameters of a command from these fields.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_KEY = "option"


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


CONFIG_FILE_ONLY: dict[str, None] = {_KEY: None}
"""Metadata of a field that has no option although its base class gives it one."""


def described(help: str, *flags: str, **more: Any) -> dict[str, Option]:
    """Metadata of a field that is an option; `more` are fields of `Option`."""
    return {_KEY: Option(help, flags, **more)}


def option(default: T, help: str, *flags: str, **more: Any) -> T:
    """A field with a default that is an option."""
    return dataclasses.field(default=default, metadata=described(help, *flags, **more))


def options_of(config: type[Any]) -> dict[str, Option]:
    """The options of a dataclass by field, in the order of the help: by rank, and from the class upwards.

    A subclass that only changes a field's default keeps its option.
    """
    found: dict[str, Option | None] = {}
    for owner in filter(dataclasses.is_dataclass, config.__mro__):
        for name in inspect.get_annotations(owner):
            metadata = owner.__dataclass_fields__[name].metadata
            if _KEY in metadata:
                found.setdefault(name, metadata[_KEY])
    options = {name: each for name, each in found.items() if each is not None}
    return dict(sorted(options.items(), key=lambda item: item[1].rank))


def flags_of(name: str, option: Option | None) -> tuple[str, ...]:
    """All flags of a field; without an option, what they would be."""
    given = option.flags if option is not None else ()
    return given if any(flag.startswith("--") for flag in given) else (*given, "--" + name.replace("_", "-"))


def flag(config: Any, name: str) -> str:
    """The usual flag of a field: `min_noise` -> `--min-noise`, `n` -> `-n`."""
    options = options_of(config if isinstance(config, type) else type(config))
    return flags_of(name, options.get(name))[0].partition("/")[0]
