"""Configuration dataclasses: built from YAML and flags, checks, JSON.

A configuration file is a flat mapping of field names, with `-` or `_`, to values. A flag on the command line overrides
the file, the file overrides the field's default. Combinations are checked in each class's `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar

from nptool.errors import UsageError
from nptool.options import described, flag, options_of, ranges_of

Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 if the GPU supports it, else float32. bfloat16 also works on a CPU (autocast)."""
PRECISION = described("auto is bfloat16 on a GPU, float32 on a CPU")

T = TypeVar("T")

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def resolve(
    cls: type[T],
    yaml_path: str | Path | None,
    flags: dict[str, Any],
    defaults: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> T:
    """Build `cls` from its defaults, then `defaults`, then `yaml_path`, then `flags`.

    Args:
        cls: a configuration dataclass.
        flags: field name to value; None means that the flag was not given.
        defaults: values that depend on those of file and flags.

    Raises:
        UsageError: the file is missing, is not a flat mapping, has an unknown key or a value of the wrong type; a
            required field is missing; or the dataclass rejects the values.
    """
    values = read_mapping(cls, yaml_path) if yaml_path is not None else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    if defaults is not None:
        values = defaults(values) | values
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]  # T is a dataclass
    if unknown := values.keys() - fields.keys():
        raise TypeError(f"{cls.__name__} has no field {sorted(unknown)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UsageError(
                f"{flag(cls, name)} is missing; give it on the line or as `{name}` in the configuration file"
            )
    return cls(**values)


def read_mapping(cls: type[Any], path: str | Path) -> dict[str, Any]:
    """Read a configuration file; check its keys and the types of its values against the fields of `cls`.

    Raises:
        UsageError: see `resolve`.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    long = {flag: name for name, option in options_of(cls).items() for flag in option.flags if flag[:2] == "--"}
    values: dict[str, Any] = {}
    for key, value in _read_yaml(Path(path)).items():
        name = str(key).replace("-", "_")
        name = name if name in names else long.get("--" + name.replace("_", "-"), name)
        if name not in names:
            close = get_close_matches(name, names, n=1)
            known = f"the nearest is `{close[0]}`" if close else f"known are {', '.join(names)}"
            raise UsageError(f"{path}: unknown key `{key}`; {known}")
        values[name] = _convert(value, hints[name], f"{path}: `{key}`")
    return values


def _read_yaml(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file; expected YAML") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}; expected a flat mapping of option names to values")
    return content


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Convert a YAML value to the type of its field."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, choices, where)
    if origin is typing.Literal:
        if value not in choices:
            raise UsageError(f"{where} is {value!r}; expected one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(item, choices[0], where) for item in items)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    *others, last = (choice for choice in choices if choice is not type(None))
    for choice in others:
        with suppress(UsageError):
            return _convert(value, choice, where)
    return _convert(value, last, where)


def _convert_scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4, without a point, as text.
        with suppress(ValueError):
            return float(value)
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UsageError(f"{where} is {value!r}; expected {_KINDS.get(kind, kind.__name__)}")


def check_fields(config: Any) -> None:
    """Check that every field that is not None is in its range, and one of the values of its type if that is a Literal.

    Raises:
        UsageError: one is not.
    """
    for name, limits in ranges_of(type(config)).items():
        value = getattr(config, name)
        if value is not None and value not in limits:
            raise UsageError(f"{flag(config, name)} is {value}; it must be {limits}")
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            check_choice(config, name, typing.get_args(hint))


def check_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Check that a field has one of the values `choices`.

    Raises:
        UsageError: it has another.
    """
    value = getattr(config, name)
    if value not in choices:
        raise UsageError(f"{flag(config, name)} is {value!r}; expected one of {', '.join(choices)}")


def to_json(config: Any) -> dict[str, Any]:
    """The configuration as JSON values: paths as text, tuples as lists."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return values


def digest(values: dict[str, Any]) -> str:
    """Eight hexadecimal digits that identify a configuration."""
    return blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=4).hexdigest()
