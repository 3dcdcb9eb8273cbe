"""Read the records of data files: conversations, prompt/response pairs, plain text.

JSONL, JSON arrays, Parquet, text and source files are read as a stream. An object's shape is recognized by its fields.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nptool.data.json_stream import read_json_objects
from nptool.errors import DataError, UsageError

logger = logging.getLogger(__name__)

JSON_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
# Suffixes of text files in a directory; a file given by name may have any suffix.
_TEXT_NAMES = """
.c .cc .cfg .cpp .cs .css .cu .ex .go .h .hpp .hs .html .ini .java .jl .js .jsx .kt .lua .md .ml .php .pl .py .pyi
.r .rb .rs .rst .scala .sh .sql .swift .tex .toml .ts .tsx .txt .xml .yaml .yml
"""
TEXT_SUFFIXES = frozenset(_TEXT_NAMES.split())
# (prompt field, its possible answers), most specific first.
PAIR_FIELDS = (("prompt", ("completion", "response")), ("question", ("answer",)))
CONVERSATION_FIELDS = ("messages", "conversations")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
KNOWN_SHAPES = (
    "messages, conversations, prompt/completion, prompt/response, question/answer, instruction/input/output, text"
)
PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is "system", "user", "assistant" or the file's own."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One example: a conversation, a prompt with or without response, or a text. The other fields are None."""

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    response: str | None = None
    text: str | None = None
    source: str = ""
    """`file:line`, `file:row` from 1 in Parquet, or the file for a text."""


def read_records(
    paths: str | Path | Sequence[str | Path], *, prompt_field: str | None = None, response_field: str | None = None
) -> Iterator[Record]:
    """Read every record of `paths` in order, as a stream.

    Args:
        paths: files, or directories, whose data, text and source files are read in the order of their names.
        prompt_field, response_field: names of fields, for objects of other shapes than `KNOWN_SHAPES`.

    Raises:
        DataError: a file is missing or malformed, or there is no record at all.
        UsageError: `response_field` without `prompt_field`.
    """
    if response_field and not prompt_field:
        raise UsageError("--response-field needs --prompt-field, which names the field of the prompt")
    roots = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    found = False
    for root in roots:
        for record in _read_path(root, prompt_field, response_field):
            found = True
            yield record
    if not found:
        names = ", ".join(str(root) for root in roots) or "no file given"
        raise DataError(f"the data set is empty: no record in {names}")


def _read_path(path: Path, prompt_field: str | None, response_field: str | None) -> Iterator[Record]:
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a JSONL, JSON, Parquet or text file")
    if not path.is_dir():
        yield from _read_file(path, prompt_field, response_field)
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        suffix = file.suffix.lower()
        if hidden or suffix not in JSON_SUFFIXES | PARQUET_SUFFIXES | TEXT_SUFFIXES or not file.is_file():
            continue
        if suffix in TEXT_SUFFIXES and not _is_text(file):
            logger.warning("skipped %s: it is not UTF-8 text", file)
            continue
        yield from _read_file(file, prompt_field, response_field)


def _read_file(path: Path, prompt_field: str | None, response_field: str | None) -> Iterator[Record]:
    suffix = path.suffix.lower()
    try:
        if suffix in JSON_SUFFIXES:
            objects = read_json_objects(path)
        elif suffix in PARQUET_SUFFIXES:
            objects = _read_parquet(path)
        else:
            yield from _read_text(path)
            return
        for line, fields in objects:
            yield to_record(fields, f"{path}:{line}", prompt_field=prompt_field, response_field=response_field)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _read_text(path: Path) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8-sig")
    if "\0" in text:
        raise DataError(f"{path} is a binary file; expected JSONL, JSON, Parquet or text")
    if text.strip():
        yield Record(text=text, source=str(path))


def _is_text(path: Path) -> bool:
    try:
        return "\0" not in path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return False


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=PARQUET_ROWS)
            yield from enumerate((fields for batch in batches for fields in batch.to_pylist()), start=1)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def to_record(
    fields: object, source: str, *, prompt_field: str | None = None, response_field: str | None = None
) -> Record:
    """Turn one JSON object of a known shape into a record.

    Args:
        source: `Record.source`, also for messages.

    Raises:
        DataError: not an object, an unknown shape, or a field of the wrong type.
    """
    if not isinstance(fields, Mapping):
        raise DataError(f"{source}: expected a JSON object, got {_shown(fields)}")
    given = {name: value for name, value in fields.items() if value is not None}
    if prompt_field:
        return _pair(given, prompt_field, response_field, source)
    for name in CONVERSATION_FIELDS:
        if name in given:
            return Record(messages=_messages(given[name], name, source), source=source)
    for name, answers in PAIR_FIELDS:
        if name in given:
            answer = next((field for field in answers if field in given), None)
            return _pair(given, name, answer, source)
    if "instruction" in given:
        prompt = _text(given, "instruction", source)
        more = _text(given, "input", source) if "input" in given else ""
        response = _text(given, "output", source) if "output" in given else None
        return Record(prompt=f"{prompt}\n\n{more}" if more else prompt, response=response, source=source)
    if "text" in given:
        return Record(text=_text(given, "text", source), source=source)
    raise DataError(
        f"{source}: fields not recognized: {_names(fields)}; "
        f"known are {KNOWN_SHAPES}; name others with --prompt-field and --response-field"
    )


def _pair(fields: Mapping[str, Any], prompt: str, response: str | None, source: str) -> Record:
    """A prompt and its response, each a string or a list of messages (TRL's conversational format)."""
    for field in (prompt, response):
        if field and field not in fields:
            raise DataError(f"{source}: no field {field!r}; the fields are {_names(fields)}")
    if not isinstance(fields[prompt], list):
        answer = _text(fields, response, source) if response else None
        return Record(prompt=_text(fields, prompt, source), response=answer, source=source)
    messages = _messages(fields[prompt], prompt, source)
    if response is None:
        return Record(messages=messages, source=source)
    if isinstance(fields[response], list):
        return Record(messages=messages + _messages(fields[response], response, source), source=source)
    turn = Message("assistant", _text(fields, response, source))
    return Record(messages=(*messages, turn), source=source)


def _messages(value: object, field: str, source: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{source}: {field!r} must be a list of messages, got {_shown(value)}")
    return tuple(_message(item, f"{source}: {field}[{index}]") for index, item in enumerate(value))


def _message(item: object, where: str) -> Message:
    """A turn as {role, content} or, in ShareGPT's format, {from, value}."""
    if not isinstance(item, Mapping):
        raise DataError(f"{where} must be an object with role and content, got {_shown(item)}")
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    if not isinstance(role, str):
        raise DataError(f"{where} has no role; expected role/content or from/value, its fields are {_names(item)}")
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    if not isinstance(content, str):
        raise DataError(f"{where} has no text; only text messages can be used, got {_shown(content)}")
    return Message(ROLES.get(role, role), content)


def _text(fields: Mapping[str, Any], name: str, source: str) -> str:
    value = fields[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{source}: {name!r} must be text, got {_shown(value)}")
    return value


def _names(fields: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, fields)) or "none"


def _shown(value: object) -> str:
    """A value for an error message, as shortened JSON."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
