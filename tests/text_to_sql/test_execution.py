"""Execution accuracy: gold queries match, wrong ones do not, and harmful ones are refused."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.errors import DataError
from nptool.text_to_sql import Example, execution_accuracy, execution_match, generate_examples
from nptool.text_to_sql.database import LENGTH_LIMIT


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return generate_examples("heldout", 600, seed=1)


def _changed(examples: list[Example], old: str, new: str) -> float:
    """Execution accuracy of gold queries in which a part is replaced, among those that have this part."""
    having = [example for example in examples if old in example.response]
    assert len(having) >= 15
    return execution_accuracy(having, [example.response.replace(old, new) for example in having])


def test_gold_is_always_right(examples: list[Example]) -> None:
    assert execution_accuracy(examples, [example.response for example in examples]) == 1.0


def test_a_trailing_semicolon_does_no_harm(examples: list[Example]) -> None:
    assert execution_accuracy(examples[:50], [f" {example.response};\n" for example in examples[:50]]) == 1.0


@pytest.mark.parametrize(
    ("old", "new", "most"),
    [
        (" DESC", " ASC", 0.1),
        (" WHERE ", " WHERE NOT ", 0.1),
        (" > ", " < ", 0.1),
        (" NOT IN ", " IN ", 0.1),
        ("AVG(", "MAX(", 0.3),
        ("SELECT DISTINCT ", "SELECT ", 0.8),
        (" LIMIT 3", " LIMIT 2", 0.4),
        ("COUNT(*)", "1", 0.3),
    ],
)
def test_a_changed_query_is_mostly_wrong(examples: list[Example], old: str, new: str, most: float) -> None:
    assert _changed(examples, old, new) <= most


def test_order_matters_exactly_where_the_gold_query_orders(examples: list[Example]) -> None:
    seen = set()
    for example in examples:
        ordered = "ORDER BY" in example.response
        if " LIMIT " in example.response:
            continue
        flipped = (
            example.response.replace(" ASC", " *").replace(" DESC", " ASC").replace(" *", " DESC")
            if ordered
            else f"SELECT * FROM ({example.response}) ORDER BY 1 DESC, 2 DESC"
            if example.response.partition(" FROM ")[0].count(",") == 1
            else example.response
        )
        several = not execution_match(example, f"SELECT * FROM ({example.response}) LIMIT 1")
        assert execution_match(example, flipped) == (not ordered or not several)
        seen.add(ordered)
    assert seen == {True, False}


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "SELECT",
        "the quick brown fox",
        "SELECT nothing FROM nowhere",
        "SELECT 1",
        "SELECT 'a' FROM sqlite_master",
        "SELECT * FROM sqlite_master",
        "SELECT load_extension('x')",
        "SELECT randomblob(1000000000)",
        "SELECT 1 \x00",
        "SELECT '\ud800'",
        "SELECT x'ff'",
        "SELECT CAST(x'ff' AS TEXT)",
        "PRAGMA table_info(singer)",
        "ATTACH DATABASE '/tmp/x' AS x",
        "VACUUM",
        "BEGIN",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "SELECT * FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)",
        "SELECT " + "1+" * LENGTH_LIMIT + "1",
    ],
)
def test_garbage_is_wrong(examples: list[Example], sql: str) -> None:
    assert not execution_match(examples[0], sql)


@pytest.mark.parametrize(
    "template",
    [
        "DROP TABLE {table}",
        "DELETE FROM {table}",
        "INSERT INTO {table} (id) VALUES (99)",
        "UPDATE {table} SET id = 0",
        "{gold}; DROP TABLE {table}",
        "{gold}; {gold}",
        "CREATE TABLE other AS {gold}",
        "EXPLAIN {gold}",
        "SELECT count(*) FROM " + ", ".join(f"{{table}} a{i}" for i in range(12)),
        "SELECT a0.id FROM " + ", ".join(f"{{table}} a{i}" for i in range(12)),
    ],
)
def test_anything_but_one_bounded_select_is_wrong(examples: list[Example], template: str) -> None:
    for example in examples[:5]:
        sql = template.format(gold=example.response, table=example.schema.tables[0].name)
        assert not execution_match(example, sql)
        assert execution_match(example, example.response)


@settings(deadline=None)
@given(text=st.text())
def test_no_text_is_an_error(examples: list[Example], text: str) -> None:
    assert not execution_match(examples[0], text)
    assert not execution_match(examples[0], f"SELECT {text}")


def test_numbers_of_different_types_and_mixed_rows_compare(examples: list[Example]) -> None:
    example = next(e for e in examples if "COUNT(*) AS count FROM" in e.response and "GROUP BY" not in e.response)
    assert execution_match(example, example.response.replace("COUNT(*)", "COUNT(*) * 1.0"))
    assert not execution_match(example, f"SELECT NULL UNION ALL SELECT 'a' UNION ALL {example.response}")


def test_accuracy_is_a_share(examples: list[Example]) -> None:
    predictions = [example.response for example in examples[:8]]
    predictions[0] = predictions[1] = "SELECT"
    assert execution_accuracy(examples[:8], predictions) == 0.75


def test_counts_must_agree(examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="2 for 3"):
        execution_accuracy(examples[:3], ["a", "b"])
    with pytest.raises(ValueError, match="0 for 0"):
        execution_accuracy([], [])


def test_a_gold_query_that_does_not_run_is_a_data_error(examples: list[Example]) -> None:
    with pytest.raises(DataError, match="gold"):
        execution_match(replace(examples[0], response="SELECT x"), "SELECT 1")
