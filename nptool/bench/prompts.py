"""The prompts of a comparison: records of a data file, and what is needed to score their answers.

Knows no model and no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nptool.data.json_stream import read_json_objects
from nptool.data.records import JSON_SUFFIXES, Message, Record, read_records
from nptool.data.rendering import split_turns
from nptool.errors import DataError
from nptool.runs import run_of
from nptool.text_to_sql import TASK, Example


@dataclass(frozen=True)
class Prompt:
    """One prompt and where it stands."""

    source: str
    """`file:line`, for messages and reports."""
    turns: tuple[Message, ...]
    raw: bool = False
    """Whether it is a plain text, to be continued without the chat template."""
    example: Example | None = None
    """The text-to-SQL example by which the answer can be executed."""


def find_prompts(model: Path) -> Path:
    """The file that was held out when `model` was trained.

    Raises:
        DataError: the model lies in no run, or its run held nothing out.
    """
    run = run_of(model)
    if run is None or not run.heldout.is_file():
        raise DataError(f"{model} has no held-out prompts beside it; name a file with --prompts FILE")
    return run.heldout


def read_prompts(path: Path, count: int) -> list[Prompt]:
    """The first `count` prompts of a data file, or as many as it has.

    Raises:
        DataError: the file is missing, empty or malformed.
    """
    examples = {}
    records = list(islice(read_records(path), count))
    if path.is_file() and path.suffix.lower() in JSON_SUFFIXES:
        # A record keeps only the fields that every data set has; the task's own are read again.
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
    """A conversation up to its last answer, or the first half of a plain text."""
    if record.text is not None:
        half = record.text[: max(1, len(record.text) // 2)]
        return Prompt(record.source, (Message("user", half),), raw=True)
    turns, _ = split_turns(record)
    return Prompt(record.source, turns, example=example)
