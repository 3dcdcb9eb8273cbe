"""Commands' parameters for Typer, made from the options of dataclasses (`nptool.options`)."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Optional, Union, get_args, get_origin, get_type_hints

import typer

from nptool.options import Option, flags_of, options_of

Given = dict[str, Any]
"""The fields that were given. `Annotated[Given, Config]` is a parameter with the options of `Config`."""
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "FILE", list[Path]: "FILE", list[str]: "TEXT"}
_REST = "rest"


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Put the options of dataclasses in the place of a command's parameters of these types.

    A parameter of type `Annotated[Given, Config]` gets the fields that were given, one of type `Config` an instance.
    """
    hints = get_type_hints(command, include_extras=True)
    configs = {name: config for name, hint in hints.items() if (config := _config_of(hint)) is not None}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if parameter.name in configs:
            parameters += _parameters(configs[parameter.name])
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))

    @wraps(command)
    def run(**arguments: Any) -> None:
        for name, config in configs.items():
            given = _take(config, arguments)
            arguments[name] = config(**given) if hints[name] is config else given
        command(**arguments)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what inspect.signature looks for
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _config_of(hint: Any) -> type[Any] | None:
    if is_dataclass(hint):
        return hint if isinstance(hint, type) else None
    return get_args(hint)[1] if get_origin(hint) is Annotated and get_args(hint)[0] == Given else None


def _parameters(config: type[Any]) -> list[Parameter]:
    hints = get_type_hints(config)
    parameters = []
    for name, option in options_of(config).items():
        kind = str if option.parse is not None else _typed(hints[name])
        flags = flags_of(name, option)
        if kind is bool and not option.flags:
            flags = (_switch(flags[0]),)
        metavar = option.metavar or METAVARS.get(kind)
        shown = _shown(config, name, option, flags[0])
        text = f"{option.help} [{shown}]" if shown else option.help
        parameters.append(_parameter(name, kind, typer.Option(*flags, metavar=metavar, help=text)))
        if option.rest:
            parameters.append(_parameter(_REST, kind, typer.Argument(metavar=metavar, hidden=True)))
    return parameters


def _parameter(name: str, kind: Any, described: Any) -> Parameter:
    """None is not given."""
    annotation = Annotated[Optional[kind], described]  # noqa: UP045  # kind is a value
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _typed(hint: Any) -> Any:
    """The type of an option's value: of `X | None` X, of tuples lists."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    return list[get_args(hint)[0]] if get_origin(hint) is tuple else hint  # type: ignore[misc]  # a type made here


def _switch(name: str) -> str:
    return f"{name}/--no-{name.removeprefix('--')}"


def _shown(config: type[Any], name: str, option: Option, switch: str) -> str:
    """The default of an option in its help; empty if there is none."""
    if option.shown is not None:
        return option.shown.format(config=config)
    (default,) = (field.default for field in fields(config) if field.name == name)
    if default is None or default is MISSING:
        return ""
    if isinstance(default, bool):
        yes, _, no = switch.partition("/")
        words = ("yes", "no") if switch == _switch(yes) else (yes.strip("-"), no.strip("-"))
        return words[0 if default else 1] if no else ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _take(config: type[Any], arguments: Given) -> Given:
    """Remove the options of a dataclass from a command's arguments; the fields that were given."""
    given: Given = {}
    for name, option in options_of(config).items():
        value = arguments.pop(name)
        if option.rest:
            value = [*(value or ()), *(arguments.pop(_REST) or ())]
        if isinstance(value, list):
            value = tuple(value) or None
        if option.parse is not None and value is not None:
            value = option.parse(value)
        if value is not None:
            given[name] = value
    return given
