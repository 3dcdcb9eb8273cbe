"""CSV and TSV files as objects: the first row names the fields."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nptool.errors import DataError

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
DELIMITERS = ",;\t|"


def read_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, fields) for every row after the first. Empty fields are missing.

    Raises:
        DataError: it has no header, a row of another length, or is not readable.
        UnicodeDecodeError: the file is not UTF-8.
    """
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
        stream.seek(0)
        rows = csv.reader(stream, delimiter=_delimiter(path, header), strict=True)
        try:
            names = next(rows, [])
            if len(names) < 2 and not any(names):
                raise DataError(f"{path} is empty; expected a first row with the names of the fields")
            for number, row in enumerate(rows, start=1):
                if row and len(row) != len(names):
                    raise DataError(
                        f"{path}:{number}: a row of {len(row)} fields, and the first row names {len(names)}; "
                        "quote fields that have the delimiter in them"
                    )
                if row:
                    yield number, {name: value for name, value in zip(names, row, strict=True) if value}
        except csv.Error as error:
            raise DataError(f"{path}:{rows.line_num}: not a readable table: {error}") from error


def _delimiter(path: Path, header: str) -> str:
    """Tabs in a TSV file; in a CSV file the known one that is most frequent in the first row."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(DELIMITERS, key=header.count)
