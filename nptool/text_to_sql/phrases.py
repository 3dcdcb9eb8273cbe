"""The parts of questions: requests, filters, orders, aggregates.

A phrase and its SQL are made together, so that each wording has one meaning.
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
"""Filters of integers; an operator listed twice is drawn twice as often."""
ROUND = 5
"""Bounds are multiples of this, as in people's questions; fewer numbers are also easier to learn."""
LARGEST_STEP = 10
"""Largest distance of a bound, before rounding, from the value that must satisfy it."""


@dataclass(frozen=True)
class Phrase:
    """Words of a question and the SQL they stand for."""

    words: str
    sql: str


def listed(words: Sequence[str]) -> str:
    """A list in English: "a", "a and b", "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def end(sentence: str) -> str:
    """The sentence with its punctuation mark."""
    return sentence + ("?" if sentence.startswith(("What", "How")) else ".")


def request(rng: Random, items: Sequence[str], noun: str) -> str:
    """Words that ask for items of a plural noun with its filter, without a punctuation mark."""
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
    """Up to `count` conditions on different columns that some row satisfies: words after a noun, SQL after WHERE."""
    columns = [column for column in table.plain if column not in excluded]
    connective = rng.choice(("and", "and", "and", "or"))
    row = rng.choice(rows)
    whose, with_, sql = [], [], []
    for column in rng.sample(columns, min(count, len(columns))):
        after_whose, after_with, condition = _condition(rng, table, row, column)
        whose.append(f"{column} {after_whose}")
        with_.append(f"{column} {after_with}")
        sql.append(condition)
        row = row if connective == "and" else rng.choice(rows)
    lead, words = ("whose", whose) if rng.random() < 0.5 else ("with", with_)
    return Phrase(f"{lead} " + f" {connective} ".join(words), f" {connective.upper()} ".join(sql))


def _condition(rng: Random, table: Table, row: Row, column: str) -> tuple[str, str, str]:
    """A condition that a row satisfies: words for "whose COLUMN ...", words for "with COLUMN ...", SQL."""
    value = row[table.position(column)]
    name = f"{table.name}.{column}"
    if isinstance(value, str):
        return _text_condition(rng, name, value)
    operator = rng.choice(OPERATORS)
    # Bounds are rounded away from the value and differ from it, so that the row satisfies every operator.
    low = max(0, (value - rng.randint(1, LARGEST_STEP)) // ROUND * ROUND)
    high = -(-(value + rng.randint(1, LARGEST_STEP)) // ROUND) * ROUND
    if operator == "BETWEEN":
        words = f"between {low} and {high}"
        return f"is {words}", words, f"{name} BETWEEN {low} AND {high}"
    bound = low if operator in (">", ">=") else high
    words = f"{rng.choice(COMPARISONS[operator])} {bound}"
    return f"is {words}", words, f"{name} {operator} {bound}"


def _text_condition(rng: Random, name: str, value: str) -> tuple[str, str, str]:
    draw = rng.random()
    if draw < 0.8:
        return f"is {value}", value, f"{name} = '{value}'"
    if draw < 0.9:
        return f"is not {value}", f"other than {value}", f"{name} != '{value}'"
    initial = value[0]
    return f"starts with {initial}", f"starting with {initial}", f"{name} LIKE '{initial}%'"


def order(rng: Random, expression: str, words: str) -> Phrase:
    """An order by an expression that has no ties: words after a comma, SQL after ORDER BY."""
    direction, adjective = rng.choice((("ASC", "ascending"), ("DESC", "descending")))
    wordings = (
        f"sorted by {words} in {adjective} order",
        f"ordered by {adjective} {words}",
        f"in {adjective} order of {words}",
    )
    return Phrase(rng.choice(wordings), f"{expression} {direction}")


def aggregates(rng: Random, table: Table, count: int) -> list[Phrase]:
    """`count` different aggregates, of integer columns or COUNT; words after "the"."""
    return [_aggregate(rng, table, function) for function in rng.sample((*AGGREGATES, "COUNT"), count)]


def _aggregate(rng: Random, table: Table, function: str) -> Phrase:
    if function == "COUNT":
        return Phrase("number", COUNTED)
    column = rng.choice(table.integers)
    sql = f"{function}({table.name}.{column}) AS {function.lower()}_{column}"
    return Phrase(f"{rng.choice(AGGREGATES[function])} {column}", sql)


def column_as_result(table: str, column: str) -> str:
    """A column in the SELECT list, with its result named `table_column`."""
    return f"{table}.{column} AS {table}_{column}"
