"""Questions: one canonical SQL each, every kind and construct, all tables and columns named."""

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.text_to_sql.domains import TEXT_VALUES
from nptool.text_to_sql.phrases import VERBS
from nptool.text_to_sql.questions import KINDS, Question, random_kind, random_question
from nptool.text_to_sql.schema import Column, Rows, Schema, Table, random_schema

CONSTRUCTS = {
    "filter": ("AND", "OR", "LIKE", "BETWEEN", "!=", " > ", " < ", ">=", "<="),
    "order": ("ORDER BY", "ASC", "DESC"),
    "limit": ("LIMIT", "ASC", "DESC"),
    "aggregate": ("COUNT(*)", "AVG(", "MAX(", "MIN(", "SUM("),
    "distinct": ("SELECT DISTINCT",),
    "join": ("JOIN", "WHERE", "ORDER BY", "LIMIT"),
    "join_aggregate": ("JOIN", "COUNT(*)", "AVG(", "SELECT DISTINCT"),
    "group": ("GROUP BY", "HAVING COUNT(*)", "HAVING AVG(", "WHERE", "ORDER BY", "LIMIT"),
    "join_group": ("JOIN", "GROUP BY", "HAVING COUNT(*)", "HAVING AVG(", "WHERE", "ORDER BY", "LIMIT"),
    "nested_in": (" IN (SELECT", " NOT IN (SELECT", " AND "),
    "nested_scalar": ("> (SELECT AVG(", "< (SELECT AVG(", "= (SELECT MAX(", "= (SELECT MIN("),
}

_ALL_VALUES = sorted(value for pool in TEXT_VALUES.values() for value in pool)
VALUES = re.compile(rf"\b({'|'.join(_ALL_VALUES)}|[A-Z](?=[%.?, ]|$))")
ANY_VERB = re.compile("|".join(VERBS), re.IGNORECASE)


def _question(seed: int, kind: str | None = None) -> tuple[Question, Schema, Rows]:
    rng = Random(seed)
    schema = random_schema(rng)
    rows = schema.rows(seed)
    return random_question(rng, schema, rows, kind or random_kind(rng)), schema, rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_shows_all_its_constructs(kind: str) -> None:
    queries = [_question(seed, kind)[0].sql for seed in range(400)]
    for construct in CONSTRUCTS[kind]:
        assert any(construct in sql for sql in queries), construct


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_phrased_in_many_ways(kind: str) -> None:
    questions = [_question(seed, kind)[0].text for seed in range(400)]
    assert len({text.partition(" the ")[0] for text in questions}) > 10
    assert len(set(questions)) > 390


def test_every_kind_is_drawn() -> None:
    assert {_question(seed)[0].kind for seed in range(300)} == set(KINDS)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(KINDS)))
def test_values_and_columns_of_the_query_stand_in_the_question(seed: int, kind: str) -> None:
    question, schema, _ = _question(seed, kind)
    assert question.kind == kind
    assert question.text[0].isupper()
    assert question.text.endswith(("?", "."))
    for literal in re.findall(r"'(\w+)%?'|\b(\d+)\b", question.sql):
        assert re.search(rf"\b{''.join(literal)}\b", question.text)
    plain = {column for table in schema.tables for column in table.plain}
    for table, column in re.findall(r"(\w+)\.(\w+)", question.sql):
        assert column in plain or column.endswith("id")
        assert re.search(rf"\b{table}s?\b", question.text)
        if column in plain:
            assert re.search(rf"\b{column}\b", question.text)


SMALL = Schema(
    (
        Table("label", (Column("id", "INTEGER"), Column("city", "TEXT"), Column("year", "INTEGER"))),
        Table(
            "singer",
            (
                Column("id", "INTEGER"),
                Column("name", "TEXT"),
                Column("year", "INTEGER"),
                Column("label_id", "INTEGER", "label"),
            ),
        ),
    )
)


def _template(text: str) -> str:
    """The text with every value and verb replaced, so that equal forms are equal."""
    return re.sub(r"\b\d+\b", "0", ANY_VERB.sub("show", VALUES.sub("V", text)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_about_a_schema_has_one_query(kind: str) -> None:
    rng = Random(0)
    queries: dict[str, str] = {}
    repeated = 0
    for _ in range(3_000):
        question = random_question(rng, SMALL, SMALL.rows(rng.randrange(100)), kind)
        form = _template(question.text)
        repeated += form in queries
        assert queries.setdefault(form, _template(question.sql)) == _template(question.sql)
    assert repeated > 20
