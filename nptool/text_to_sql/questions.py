"""Questions in English with their canonical SQL query, which is a function of schema and question.

Keywords are upper case, columns are written `table.column`, each item of the outer SELECT has a name after AS, and a
join reads `FROM child JOIN parent ON child.parent_id = parent.id`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from nptool.text_to_sql.group_questions import ask_group, ask_join_group
from nptool.text_to_sql.link_questions import ask_in, ask_join, ask_join_aggregate
from nptool.text_to_sql.phrases import Phrase
from nptool.text_to_sql.scenes import Scene
from nptool.text_to_sql.schema import Rows, Schema
from nptool.text_to_sql.table_questions import ask_aggregate, ask_distinct, ask_filter, ask_limit, ask_order, ask_scalar

KINDS: dict[str, tuple[Callable[[Scene], Phrase], int]] = {
    "filter": (ask_filter, 3),
    "order": (ask_order, 3),
    "limit": (ask_limit, 3),
    "aggregate": (ask_aggregate, 3),
    "distinct": (ask_distinct, 2),
    "join": (ask_join, 6),
    "join_aggregate": (ask_join_aggregate, 4),
    "group": (ask_group, 5),
    "join_group": (ask_join_group, 5),
    "nested_in": (ask_in, 5),
    "nested_scalar": (ask_scalar, 4),
}
"""The kinds of questions: the function that writes one, and the weight in a random draw."""


@dataclass(frozen=True)
class Question:
    """A question, its canonical SQL and the name of its kind."""

    text: str
    sql: str
    kind: str


def random_kind(rng: Random) -> str:
    return rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]


def random_question(rng: Random, schema: Schema, rows: Rows, kind: str) -> Question:
    """Draw a question of a kind; its values come from the rows."""
    phrase = KINDS[kind][0](Scene(rng, schema, rows))
    return Question(phrase.words, phrase.sql, kind)
