"""An in-memory SQLite database that runs untrusted queries safely.

A query is one SELECT, read-only, with the task's functions only, and bounded in steps, rows and bytes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from nptool.text_to_sql.schema import Row, Rows, Schema, Value

STEP_LIMIT = 200_000
"""Most steps of SQLite's virtual machine; gold queries need about a thousand."""
STEPS_BETWEEN_CHECKS = 1_000
ROW_LIMIT = 5_000
LENGTH_LIMIT = 10_000
"""Most bytes of a statement and of a value."""
ALLOWED_FUNCTIONS = frozenset({"avg", "count", "like", "max", "min", "sum"})

ResultRow = tuple[Value | float | bytes | None, ...]


class QueryRefused(Exception):
    """A query that is not a single SELECT, fails, or exceeds a limit; the message says which."""


def open_database(schema: Schema, rows: Rows) -> sqlite3.Connection:
    """A database with the rows, read-only from then on. The caller closes it."""
    marks = {table.name: ", ".join("?" * len(table.columns)) for table in schema.tables}
    inserts = {f"INSERT INTO {name} VALUES ({marks[name]})": rows[name] for name in marks}
    return database_of(schema.create_statements(), inserts)


def database_of(statements: Iterable[str], inserts: Mapping[str, Iterable[Row]] | None = None) -> sqlite3.Connection:
    """A database made by trusted statements, read-only from then on. The caller closes it.

    Args:
        inserts: parametrized statements that run afterwards, with the rows of each.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("BEGIN")
    for statement in statements:
        connection.execute(statement)
    for statement, rows in (inserts or {}).items():
        connection.executemany(statement, rows)
    connection.execute("COMMIT")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LENGTH_LIMIT)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LENGTH_LIMIT)
    connection.set_authorizer(_authorize)
    return connection


def run_query(connection: sqlite3.Connection, sql: str) -> list[ResultRow]:
    """All rows of a query.

    Raises:
        QueryRefused: the query is not one SELECT that ends within the limits.
    """
    if not sql.lstrip().upper().startswith("SELECT"):
        raise QueryRefused("not a SELECT statement")
    checks = iter(range(STEP_LIMIT // STEPS_BETWEEN_CHECKS))
    connection.set_progress_handler(lambda: next(checks, None) is None, STEPS_BETWEEN_CHECKS)
    try:
        rows: list[ResultRow] = connection.execute(sql).fetchmany(ROW_LIMIT + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # ValueError: a null character or a lone surrogate
        raise QueryRefused(str(error)) from error
    if len(rows) > ROW_LIMIT:
        raise QueryRefused(f"more than {ROW_LIMIT} rows")
    return rows


def is_ordered(sql: str) -> bool:
    """Whether a gold query orders its rows; only its outermost SELECT can have ORDER BY."""
    return " ORDER BY " in sql


def _authorize(action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None) -> int:
    allowed = (
        action == sqlite3.SQLITE_SELECT
        or (action == sqlite3.SQLITE_READ and not (first or "").startswith("sqlite_"))
        or (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in ALLOWED_FUNCTIONS)
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def same_result(gold: Sequence[ResultRow], predicted: Sequence[ResultRow], *, ordered: bool) -> bool:
    """Whether the rows are equal, in order or as multisets."""
    if len(gold) != len(predicted):
        return False
    if ordered:
        return list(gold) == list(predicted)
    return sorted(map(_sort_key, gold)) == sorted(map(_sort_key, predicted))


def _sort_key(row: ResultRow) -> list[tuple[str, str]]:
    # Rows may mix types, which Python does not order; 1.0 equals 1, as in SQL.
    return [
        ("number", repr(float(value))) if isinstance(value, int | float) else (type(value).__name__, repr(value))
        for value in row
    ]
