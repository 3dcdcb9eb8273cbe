"""The prompts of a comparison, and the examples with which their answers are scored."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nptool.data.json_stream import read_json_objects
from nptool.data.record import Message, Record
from nptool.data.records import JSON_SUFFIXES, read_records
from nptool.data.rendering import split_turns
from nptool.errors import DataError
from nptool.runs import run_of
from nptool.text_to_sql import TASK, Example


@dataclass(frozen=True)
class Prompt:
    source: str
    """`file:line`, for messages and reports."""
    turns: tuple[Message, ...]
    raw: bool = False
    """Plain text, continued without the chat template."""
    example: Example | None = None
    """The text-to-SQL example that scores the answer."""


def find_prompts(model: Path) -> Path:
    """The held-out data of the run that contains `model`.

    Raises:
        DataError: the model is not in a run, or its run has no held-out data.
    """
    run = run_of(model)
    if run is None or not run.heldout.is_file():
        raise DataError(f"{model} has no held-out prompts beside it; name a file with --prompts FILE")
    return run.heldout


def read_prompts(path: Path, count: int) -> list[Prompt]:
    """The first `count` prompts of a data file, or all if it has fewer.

    Raises:
        DataError: the file is missing, empty or malformed.
    """
    examples = {}
    records = list(islice(read_records(path), count))
    if path.is_file() and path.suffix.lower() in JSON_SUFFIXES:
        # Records drop the task's own fields, so the file is read again.
        for line, fields in islice(read_json_objects(path), count):
            examples[f"{path}:{line}"] = _example(fields, f"{path}:{line}")
    return [_prompt(record, examples.get(record.source)) for record in records]


def _example(fields: Any, source: str) -> Example | None:
    if not isinstance(fields, dict) or fields.get("task") != TASK:
        return None
    try:
        return Example.from_record(fields)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _prompt(record: Record, example: Example | None) -> Prompt:
    """A conversation before its last answer, or the first half of a plain text."""
    if record.text is not None:
        half = record.text[: max(1, len(record.text) // 2)]
        return Prompt(record.source, (Message("user", half),), raw=True)
    turns, _ = split_turns(record)
    return Prompt(record.source, turns, example=example)
