"""Small parts of which questions are composed: requests, filters, orders, aggregates.

A phrase and its SQL are made together, so that each wording has one meaning. Pure functions of a random
generator, tables and rows; knows nothing of the kinds of questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from nptool.text_to_sql.schema import Row, Table

VERBS = ("Show", "List", "Give", "Find", "Return", "Tell me")
AGGREGATES: dict[str, tuple[str, ...]] = {
    "AVG": ("average", "mean"),
    "MAX": ("highest", "maximum"),
    "MIN": ("lowest", "minimum"),
    "SUM": ("total", "summed"),
}
COUNTED = "COUNT(*) AS count"
"""The number of rows in the SELECT list."""
COMPARISONS: dict[str, tuple[str, ...]] = {
    ">": ("above", "over", "greater than"),
    "<": ("below", "under", "less than"),
    ">=": ("at least",),
    "<=": ("at most",),
}
OPERATORS = (">", ">", "<", "<", ">=", "<=", "BETWEEN")
"""Filters of integers; what stands twice is drawn twice as often."""
ROUND = 5
"""Bounds are multiples of this, as people ask; few numbers are also easier to learn to copy."""
LARGEST_STEP = 10
"""How far a bound lies at most, before it is rounded, from the value of the row that must satisfy it."""


@dataclass(frozen=True)
class Phrase:
    """Words of a question and the SQL they stand for."""

    words: str
    sql: str


@dataclass(frozen=True)
class Condition:
    """A filter on one column: its SQL, and the words that follow the column's name after "whose" and after "with"."""

    column: str
    sql: str
    after_whose: str
    after_with: str


def listed(words: Sequence[str]) -> str:
    """A list in English: "a", "a and b", "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def end(sentence: str) -> str:
    """The sentence with its end mark."""
    return sentence + ("?" if sentence.startswith(("What", "How")) else ".")


def request(rng: Random, items: Sequence[str], noun: str) -> str:
    """Asks for items of a plural noun (with its filter); no end mark."""
    words = listed(items)
    verb = rng.choice(VERBS)
    return rng.choice(
        (
            f"{verb} the {words} of {noun}",
            f"{verb} the {words} of all {noun}",
            f"What are the {words} of {noun}",
            f"For {noun}, {verb.lower()} the {words}",
            f"For all {noun}, {verb.lower()} the {words}",
        )
    )


def filtered(rng: Random, table: Table, rows: Sequence[Row], count: int, excluded: Sequence[str] = ()) -> Phrase:
    """Up to `count` conditions on different columns, satisfied by some row: words after a noun, SQL after WHERE."""
    columns = [column for column in table.plain if column not in excluded]
    connective = rng.choice(("and", "and", "and", "or"))
    row = rng.choice(rows)
    parts: list[Condition] = []
    for column in rng.sample(columns, min(count, len(columns))):
        parts.append(_condition(rng, table, row, column))
        row = row if connective == "and" else rng.choice(rows)
    sql = f" {connective.upper()} ".join(part.sql for part in parts)
    if rng.random() < 0.5:
        return Phrase("whose " + f" {connective} ".join(f"{part.column} {part.after_whose}" for part in parts), sql)
    return Phrase("with " + f" {connective} ".join(f"{part.column} {part.after_with}" for part in parts), sql)


def _condition(rng: Random, table: Table, row: Row, column: str) -> Condition:
    value = row[table.position(column)]
    name = f"{table.name}.{column}"
    if isinstance(value, str):
        return _text_condition(rng, name, column, value)
    operator = rng.choice(OPERATORS)
    # Rounded away from the value, and at least 1 away from it: the row satisfies every operator.
    low = max(0, (value - rng.randint(1, LARGEST_STEP)) // ROUND * ROUND)
    high = -(-(value + rng.randint(1, LARGEST_STEP)) // ROUND) * ROUND
    if operator == "BETWEEN":
        words = f"between {low} and {high}"
        return Condition(column, f"{name} BETWEEN {low} AND {high}", f"is {words}", words)
    bound = low if operator in (">", ">=") else high
    words = f"{rng.choice(COMPARISONS[operator])} {bound}"
    return Condition(column, f"{name} {operator} {bound}", f"is {words}", words)


def _text_condition(rng: Random, name: str, column: str, value: str) -> Condition:
    draw = rng.random()
    if draw < 0.8:
        return Condition(column, f"{name} = '{value}'", f"is {value}", value)
    if draw < 0.9:
        return Condition(column, f"{name} != '{value}'", f"is not {value}", f"other than {value}")
    initial = value[0]
    return Condition(column, f"{name} LIKE '{initial}%'", f"starts with {initial}", f"starting with {initial}")


def order(rng: Random, expression: str, words: str) -> Phrase:
    """An order by an expression without ties: words after a comma, SQL after ORDER BY."""
    direction, adjective = rng.choice((("ASC", "ascending"), ("DESC", "descending")))
    templates = (
        "sorted by {words} in {adjective} order",
        "ordered by {adjective} {words}",
        "in {adjective} order of {words}",
    )
    return Phrase(rng.choice(templates).format(words=words, adjective=adjective), f"{expression} {direction}")


def aggregates(rng: Random, table: Table, count: int) -> list[Phrase]:
    """Different aggregates of the integers of a table, COUNT among them now and then; words after "the"."""
    functions = rng.sample((*AGGREGATES, "COUNT"), count)
    return [_aggregate(rng, table, function) for function in functions]


def _aggregate(rng: Random, table: Table, function: str) -> Phrase:
    if function == "COUNT":
        return Phrase("number", COUNTED)
    column = rng.choice(table.integers)
    sql = f"{function}({table.name}.{column}) AS {function.lower()}_{column}"
    return Phrase(f"{rng.choice(AGGREGATES[function])} {column}", sql)


def column_as_result(table: str, column: str) -> str:
    """A column in the SELECT list, its result named `table_column`."""
    return f"{table}.{column} AS {table}_{column}"
