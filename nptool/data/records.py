"""Read the records of data files: conversations, prompt/response pairs, plain text.

JSONL, JSON, CSV, TSV, Parquet, text and source files are read as a stream. `nptool.data.shapes` recognizes an object's
shape by its fields.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nptool.data.json_stream import read_json_objects
from nptool.data.record import Record
from nptool.data.shapes import layout_of, present, to_record
from nptool.data.tables import TABLE_SUFFIXES, read_table
from nptool.data.tolerance import Tolerance
from nptool.errors import DataError, UnusableRecord, UsageError

logger = logging.getLogger(__name__)

JSON_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
# Suffixes of text files in a directory; a file given by name may have any suffix.
_TEXT_NAMES = """
.c .cc .cfg .cpp .cs .css .cu .ex .go .h .hpp .hs .html .ini .java .jl .js .jsx .kt .lua .md .ml .php .pl .py .pyi
.r .rb .rs .rst .scala .sh .sql .swift .tex .toml .ts .tsx .txt .xml .yaml .yml
"""
TEXT_SUFFIXES = frozenset(_TEXT_NAMES.split())
PARQUET_ROWS = 1024


def read_records(
    paths: str | Path | Sequence[str | Path],
    *,
    prompt_field: str | None = None,
    response_field: str | None = None,
    tolerance: Tolerance | None = None,
) -> Iterator[Record]:
    """Read every record of `paths` in order, as a stream.

    Args:
        paths: files, or directories, whose data, text and source files are read in the order of their names.
        prompt_field, response_field: names of fields, for objects of other shapes than those known.
        tolerance: skips and counts unusable records; `finish` it after the last one. None tolerates none.

    Raises:
        DataError: a file is missing or malformed, or there is no record at all.
        UnusableRecord: without `tolerance`.
        UsageError: `response_field` without `prompt_field`.
    """
    if response_field and not prompt_field:
        raise UsageError("--response-field needs --prompt-field, which names the field of the prompt")
    roots = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    names = {"prompt_field": prompt_field, "response_field": response_field}
    found = False
    warned: set[str] = set()
    for root in roots:
        for fields, source in _read_path(root):
            found = True
            if tolerance is not None:
                tolerance.seen += 1
            try:
                record = fields if isinstance(fields, Record) else to_record(fields, source, **names)
            except UnusableRecord as error:
                if tolerance is None:
                    raise
                tolerance.skip(error)
                continue
            _warn_of_unused(fields, source, names, warned)
            yield record
    if not found:
        given = ", ".join(str(root) for root in roots) or "no file given"
        raise DataError(f"the data set is empty: no record in {given}")


def _warn_of_unused(fields: object, source: str, names: dict[str, str | None], warned: set[str]) -> None:
    """Say once of each field that looks like an answer and is not used."""
    if isinstance(fields, Record):
        return
    layout = layout_of(frozenset(present(fields, source)), **names)
    assert layout is not None, "it made a record"
    for name in set(layout.unused) - warned:
        warned.add(name)
        remedy = f"--prompt-field {layout.prompt or 'NAME'} --response-field {name}"
        logger.warning("%s: the field %r looks like an answer and is not used; %s takes it", source, name, remedy)


def _read_path(path: Path) -> Iterator[tuple[object, str]]:
    """Objects with their sources, and texts as finished records."""
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a JSONL, JSON, CSV, Parquet or text file")
    if not path.is_dir():
        yield from _read_file(path)
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        suffix = file.suffix.lower()
        known = JSON_SUFFIXES | PARQUET_SUFFIXES | TEXT_SUFFIXES | TABLE_SUFFIXES
        if hidden or suffix not in known or not file.is_file():
            continue
        if suffix in TEXT_SUFFIXES and not _is_text(file):
            logger.warning("skipped %s: it is not UTF-8 text", file)
            continue
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[tuple[object, str]]:
    suffix = path.suffix.lower()
    readers = ((JSON_SUFFIXES, read_json_objects), (TABLE_SUFFIXES, read_table), (PARQUET_SUFFIXES, _read_parquet))
    try:
        for suffixes, read in readers:
            if suffix in suffixes:
                for line, fields in read(path):
                    yield fields, f"{path}:{line}"
                return
        for record in _read_text(path):
            yield record, record.source
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
