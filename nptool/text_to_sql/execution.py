"""Execution accuracy: whether predicted queries give the results of the gold queries on the examples' rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from sqlite3 import Connection

from nptool.errors import DataError
from nptool.text_to_sql.database import QueryRefused, is_ordered, open_database, run_query, same_result
from nptool.text_to_sql.examples import Example


def execution_match(example: Example, predicted_sql: str) -> bool:
    """Whether both queries give the same rows: in order if the gold query has ORDER BY, as multisets otherwise.

    A prediction that `run_query` refuses is wrong.

    Raises:
        DataError: the gold query itself does not run.
    """
    schema = example.schema
    with closing(open_database(schema, schema.rows(example.data_seed))) as connection:
        return queries_match(connection, example.response, predicted_sql)


def queries_match(connection: Connection, gold_sql: str, predicted_sql: str) -> bool:
    """`execution_match` on an open database."""
    try:
        gold = run_query(connection, gold_sql)
    except QueryRefused as error:
        raise DataError(f"expected a gold query that runs, got {gold_sql!r}: {error}") from error
    try:
        predicted = run_query(connection, predicted_sql)
    except QueryRefused:
        return False
    return same_result(gold, predicted, ordered=is_ordered(gold_sql))


def execution_accuracy(examples: Sequence[Example], predictions: Sequence[str]) -> float:
    """Share of the predictions that match, 0 to 1."""
    if len(examples) != len(predictions) or not examples:
        counts = f"{len(predictions)} for {len(examples)}"
        raise ValueError(f"expected one prediction for each of at least one example, got {counts}")
    matches = sum(execution_match(example, sql) for example, sql in zip(examples, predictions, strict=True))
    return matches / len(examples)
