"""An in-memory SQLite database of one schema that runs untrusted queries safely.

One SELECT statement, read-only, only the functions the task uses, a bounded number of steps, rows and
bytes. Knows no examples.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from nptool.text_to_sql.schema import Rows, Schema, Value

STEP_LIMIT = 200_000
"""Steps of SQLite's virtual machine after which a query is aborted; gold queries need about a thousand."""
STEPS_BETWEEN_CHECKS = 1_000
ROW_LIMIT = 5_000
LENGTH_LIMIT = 10_000
"""Bytes of the longest statement and of the longest value."""
ALLOWED_FUNCTIONS = frozenset({"avg", "count", "like", "max", "min", "sum"})

ResultRow = tuple[Value | float | bytes | None, ...]


class QueryRefused(Exception):
    """A query that is not a single SELECT, fails, or does too much; the message says which."""


def open_database(schema: Schema, rows: Rows) -> sqlite3.Connection:
    """A filled database, locked so that `run_query` can only read it. The caller closes it."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("BEGIN")
    for statement in schema.create_statements():
        connection.execute(statement)
    for table in schema.tables:
        marks = ", ".join("?" * len(table.columns))
        connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", rows[table.name])
    connection.execute("COMMIT")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LENGTH_LIMIT)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LENGTH_LIMIT)
    connection.set_authorizer(_authorize)
    return connection


def run_query(connection: sqlite3.Connection, sql: str) -> list[ResultRow]:
    """All rows of a query.

    Raises:
        QueryRefused: for anything but one SELECT that ends within the limits.
    """
    if not sql.lstrip().upper().startswith("SELECT"):
        raise QueryRefused("not a SELECT statement")
    checks_left = STEP_LIMIT // STEPS_BETWEEN_CHECKS

    def abort_when_spent() -> int:
        nonlocal checks_left
        checks_left -= 1
        return int(checks_left < 0)

    connection.set_progress_handler(abort_when_spent, STEPS_BETWEEN_CHECKS)
    try:
        rows: list[ResultRow] = connection.execute(sql).fetchmany(ROW_LIMIT + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # ValueError: a null character or a lone surrogate
        raise QueryRefused(str(error)) from error
    if len(rows) > ROW_LIMIT:
        raise QueryRefused(f"more than {ROW_LIMIT} rows")
    return rows


def is_ordered(sql: str) -> bool:
    """Whether the order of a gold query's rows means something; only its outermost SELECT ever has ORDER BY."""
    return " ORDER BY " in sql


def _authorize(action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None) -> int:
    if action == sqlite3.SQLITE_SELECT:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ:
        return sqlite3.SQLITE_DENY if (first or "").startswith("sqlite_") else sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in ALLOWED_FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def same_result(gold: Sequence[ResultRow], predicted: Sequence[ResultRow], *, ordered: bool) -> bool:
    """Equal rows, in order or as multisets."""
    if len(gold) != len(predicted):
        return False
    if ordered:
        return list(gold) == list(predicted)
    return sorted(map(_sort_key, gold)) == sorted(map(_sort_key, predicted))


def _sort_key(row: ResultRow) -> list[tuple[str, str]]:
    # Rows may mix types, which Python does not order; whole floats count as integers, as in SQL.
    return [_value_key(value) for value in row]


def _value_key(value: Value | float | bytes | None) -> tuple[str, str]:
    if isinstance(value, int | float):
        return "number", repr(float(value))
    return type(value).__name__, repr(value)
