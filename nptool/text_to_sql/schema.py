"""Relational schemas of two or three linked tables, and their generated rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from random import Random
from typing import Any, Literal

from nptool.text_to_sql.domains import DOMAINS, INTEGER_RANGES, TEXT_VALUES, TableWords

Value = str | int
Row = tuple[Value, ...]
Rows = dict[str, list[Row]]

ROOT_ROWS = 12
LINKED_ROWS = 24
CHILDLESS_ROWS = 2
"""Rows of a parent table without children, so that IN and NOT IN differ."""
COLUMN_COUNTS = (3, 4, 4)
"""Numbers of columns of a random table, without keys; a number listed twice is drawn twice as often."""
_TABLE_NAMES = frozenset(words.name for domain in DOMAINS for words in domain)


@dataclass(frozen=True)
class Column:
    """A column; `references` names the table whose `id` it holds."""

    name: str
    type: Literal["TEXT", "INTEGER"]
    references: str | None = None

    @property
    def is_key(self) -> bool:
        return self.name == "id" or self.references is not None


_PLAIN_COLUMNS = (
    {"id": Column("id", "INTEGER")}
    | {name: Column(name, "TEXT") for name in TEXT_VALUES}
    | {name: Column(name, "INTEGER") for name in INTEGER_RANGES}
)
"""Every column that is not a reference, by name."""


@dataclass(frozen=True)
class Table:
    """A table; its first column is always `id`."""

    name: str
    columns: tuple[Column, ...]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.type == "TEXT")

    @cached_property
    def integers(self) -> tuple[str, ...]:
        """Names of the integer columns that are not keys."""
        return tuple(column.name for column in self.columns if column.type == "INTEGER" and not column.is_key)

    @cached_property
    def plain(self) -> tuple[str, ...]:
        """Names of the columns that are not keys."""
        return (*self.texts, *self.integers)

    @cached_property
    def parents(self) -> tuple[str, ...]:
        """Names of the tables this one refers to."""
        return tuple(column.references for column in self.columns if column.references is not None)

    def position(self, name: str) -> int:
        """Index of a column within a row."""
        return [column.name for column in self.columns].index(name)


@dataclass(frozen=True)
class Schema:
    """Tables, parents before their children."""

    tables: tuple[Table, ...]

    def table(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)

    @property
    def signature(self) -> str:
        """The text that decides the split; it does not depend on the order of tables and columns."""
        return ";".join(sorted(f"{t.name}({','.join(sorted(c.name for c in t.columns))})" for t in self.tables))

    @property
    def text(self) -> str:
        """The schema in a prompt: one line per table."""
        return "\n".join(f"{t.name}({', '.join(c.name for c in t.columns)})" for t in self.tables)

    def to_record(self) -> dict[str, Any]:
        """The schema as JSON values; `schema_from_record` is the inverse."""
        return {"tables": [{"name": t.name, "columns": [asdict(c) for c in t.columns]} for t in self.tables]}

    def create_statements(self) -> list[str]:
        return [f"CREATE TABLE {t.name} ({', '.join(f'{c.name} {c.type}' for c in t.columns)})" for t in self.tables]

    def rows(self, seed: int) -> Rows:
        """Rows of every table, a function of schema and seed."""
        rng = Random(seed)
        rows: Rows = {}
        for table in self.tables:
            count = LINKED_ROWS if table.parents else ROOT_ROWS
            values = [_column_values(rng, column, count, rows) for column in table.columns]
            rows[table.name] = list(zip(*values, strict=True))
        return rows


def _column_values(rng: Random, column: Column, count: int, rows: Rows) -> list[Value]:
    if column.references is not None:
        return list(rng.choices(range(1, len(rows[column.references]) - CHILDLESS_ROWS + 1), k=count))
    if column.name == "id":
        return list(range(1, count + 1))
    if column.type == "TEXT":
        return list(rng.choices(TEXT_VALUES[column.name], k=count))
    first, last = INTEGER_RANGES[column.name]
    return list(rng.sample(range(first, last + 1), count))


def schema_from_record(record: dict[str, Any]) -> Schema:
    """The inverse of `Schema.to_record`. Names are checked, because they go into SQL unescaped.

    Raises:
        KeyError, TypeError: the record has another shape.
        ValueError: an unknown or repeated table or column, or a reference to a table that is not an earlier one.
    """
    tables = tuple(Table(t["name"], tuple(Column(**c) for c in t["columns"])) for t in record["tables"])
    seen: set[str] = set()
    for table in tables:
        known = {f"{parent}_id": Column(f"{parent}_id", "INTEGER", parent) for parent in seen} | _PLAIN_COLUMNS
        if table.name not in _TABLE_NAMES - seen or any(known.get(column.name) != column for column in table.columns):
            raise ValueError(f"unknown or repeated table, or unknown column, in {table}")
        if len(set(table.columns)) < len(table.columns):
            raise ValueError(f"repeated column in {table}")
        seen.add(table.name)
    return Schema(tables)


def random_schema(rng: Random) -> Schema:
    """Draw a schema of one domain; each table but the first refers to an earlier one."""
    domain = rng.choice(DOMAINS)
    positions = sorted(rng.sample(range(len(domain)), rng.choice((2, 2, 3))))
    tables: list[Table] = []
    for words in (domain[position] for position in positions):
        parent = rng.choice(tables).name if tables else None
        tables.append(Table(words.name, _random_columns(rng, words, parent)))
    return Schema(tuple(tables))


def _random_columns(rng: Random, words: TableWords, parent: str | None) -> tuple[Column, ...]:
    """`id`, plain columns of both types in random order, and the reference last."""
    count = rng.choice(COLUMN_COUNTS)
    drawn: list[str] = []
    while not 0 < sum(name in TEXT_VALUES for name in drawn) < count:
        drawn = rng.sample(words.texts + words.integers, count)
    plain = (_PLAIN_COLUMNS[name] for name in drawn)
    reference = () if parent is None else (Column(f"{parent}_id", "INTEGER", parent),)
    return (_PLAIN_COLUMNS["id"], *plain, *reference)
