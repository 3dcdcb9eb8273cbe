"""Schemas: shape, words, deterministic rows, records."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.text_to_sql.domains import DOMAINS, INTEGER_RANGES, TEXT_VALUES
from nptool.text_to_sql.schema import (
    CHILDLESS_ROWS,
    LINKED_ROWS,
    ROOT_ROWS,
    Schema,
    Table,
    random_schema,
    schema_from_record,
)

seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(seeds)
def test_a_schema_has_linked_tables_with_columns_of_both_types(seed: int) -> None:
    schema = random_schema(Random(seed))
    assert 2 <= len(schema.tables) <= 3
    earlier: list[str] = []
    for table in schema.tables:
        assert 3 <= len(table.columns) <= 6
        assert table.columns[0].name == "id"
        assert table.texts
        assert table.integers
        assert len(table.parents) == (1 if earlier else 0)
        assert set(table.parents) <= set(earlier)
        earlier.append(table.name)


@settings(deadline=None)
@given(seeds, seeds)
def test_rows_are_deterministic_and_keep_references(seed: int, data_seed: int) -> None:
    schema = random_schema(Random(seed))
    rows = schema.rows(data_seed)
    assert rows == schema.rows(data_seed)
    for table in schema.tables:
        assert len(rows[table.name]) == (LINKED_ROWS if table.parents else ROOT_ROWS)
        for parent in table.parents:
            used = {row[table.position(f"{parent}_id")] for row in rows[table.name]}
            parents = {row[0] for row in rows[parent]}
            assert used < parents
            assert len(parents - used) >= CHILDLESS_ROWS


@settings(deadline=None)
@given(seeds, seeds)
def test_integers_have_no_ties(seed: int, data_seed: int) -> None:
    schema = random_schema(Random(seed))
    rows = schema.rows(data_seed)
    for table in schema.tables:
        for column in table.integers:
            values = [row[table.position(column)] for row in rows[table.name]]
            assert len(set(values)) == len(values)


def test_text_shows_one_line_per_table() -> None:
    lines = random_schema(Random(0)).text.splitlines()
    assert len(lines) in (2, 3)
    assert all(line.endswith(")") and "(id, " in line for line in lines)


def test_signature_ignores_order_of_tables_and_columns() -> None:
    schema = random_schema(Random(5))
    turned = Schema(tuple(Table(table.name, table.columns[::-1]) for table in schema.tables[::-1]))
    assert turned != schema
    assert turned.signature == schema.signature


@settings(deadline=None)
@given(seeds)
def test_record_is_read_back(seed: int) -> None:
    schema = random_schema(Random(seed))
    assert schema_from_record(schema.to_record()) == schema


def _column(name: str, references: str | None = None) -> dict[str, str | None]:
    return {"name": name, "type": "INTEGER", "references": references}


@pytest.mark.parametrize(
    "tables",
    [
        [{"name": "singer; DROP TABLE singer", "columns": [_column("id")]}],
        [{"name": "singer", "columns": [_column("id, x")]}],
        [{"name": "singer", "columns": [_column("id"), _column("label_id", "label")]}],
        [{"name": "singer", "columns": [_column("id"), _column("id")]}],
        [{"name": "singer", "columns": [_column("id")]}] * 2,
    ],
)
def test_names_outside_the_task_are_refused(tables: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match=r"unknown|repeated"):
        schema_from_record({"tables": tables})


def test_words_are_a_closed_unambiguous_pool() -> None:
    tables = [words for domain in DOMAINS for words in domain]
    columns = {column for words in tables for column in (*words.texts, *words.integers)}
    assert len(DOMAINS) >= 12
    assert len({words.name for words in tables}) == len(tables)
    assert columns == set(TEXT_VALUES) | set(INTEGER_RANGES)
    assert not columns & {words.name for words in tables}
    values = [value for pool in TEXT_VALUES.values() for value in pool]
    assert len(set(values)) == len(values)
    assert all(value.isalpha() and value.istitle() for value in values)
    assert not any(words.name.endswith(("s", "x", "ch", "sh", "y")) for words in tables)
    assert all(last - first + 1 >= LINKED_ROWS for first, last in INTEGER_RANGES.values())
