"""Questions about one table: filters, orders, limits, aggregates, distinct values, scalar subqueries."""

from __future__ import annotations

from nptool.text_to_sql.phrases import VERBS, Phrase, aggregates, end, listed, order, request
from nptool.text_to_sql.scenes import Scene, names

SCALARS = (
    (">", "AVG", "above the average"),
    ("<", "AVG", "below the average"),
    ("=", "MAX", "equal to the highest"),
    ("=", "MIN", "equal to the lowest"),
)
"""Comparisons with an aggregate: operator, function, words."""


def ask_filter(scene: Scene) -> Phrase:
    """Rows that satisfy two or three conditions."""
    table = scene.any_table()
    columns, count = scene.columns(table, 2, 3), scene.rng.choice((2, 2, 2, 3))
    where = scene.where(table, count, count)
    text = request(scene.rng, columns, f"{table.name}s {where.words}")
    return Phrase(end(text), f"SELECT {names(table, columns)} FROM {table.name} WHERE {where.sql}")


def ask_order(scene: Scene) -> Phrase:
    """Rows in the order of an integer column, which has no ties."""
    table = scene.any_table()
    columns, where = scene.columns(table, 2, 3), scene.where(table, 1, 2)
    key = scene.rng.choice(table.integers)
    sort = order(scene.rng, f"{table.name}.{key}", key)
    text = request(scene.rng, columns, f"{table.name}s {where.words}")
    sql = f"SELECT {names(table, columns)} FROM {table.name} WHERE {where.sql} ORDER BY {sort.sql}"
    return Phrase(end(f"{text}, {sort.words}"), sql)


def ask_limit(scene: Scene) -> Phrase:
    """The first few rows in the order of an integer column, which has no ties."""
    table = scene.any_table()
    columns, key = scene.columns(table, 2, 3), scene.rng.choice(table.integers)
    where = scene.where(table, 1, 2, excluded=(key,))
    count = scene.rng.randint(2, 5)
    direction, word = scene.rng.choice((("DESC", "highest"), ("ASC", "lowest")))
    noun, verb = f"{table.name}s {where.words}", scene.rng.choice(VERBS)
    items = f"the {listed(columns)} of the {count} with the {word} {key}"
    forms = (f"Among {noun}, {verb.lower()} {items}", f"{verb} {items} among {noun}", f"What are {items} among {noun}")
    sql = f"SELECT {names(table, columns)} FROM {table.name} WHERE {where.sql}"
    return Phrase(end(scene.rng.choice(forms)), f"{sql} ORDER BY {table.name}.{key} {direction} LIMIT {count}")


def ask_aggregate(scene: Scene) -> Phrase:
    """Two or three aggregates of the rows that satisfy one or two conditions."""
    table = scene.any_table()
    parts = aggregates(scene.rng, table, scene.rng.randint(2, 3))
    where = scene.where(table, 1, 2)
    text = request(scene.rng, [part.words for part in parts], f"{table.name}s {where.words}")
    sql = f"SELECT {', '.join(part.sql for part in parts)} FROM {table.name} WHERE {where.sql}"
    return Phrase(end(text), sql)


def ask_distinct(scene: Scene) -> Phrase:
    """Distinct pairs of values of text columns, or distinct values of one in order."""
    table = scene.any_table()
    columns = scene.rng.sample(table.texts, scene.rng.randint(1, min(2, len(table.texts))))
    where = scene.where(table, 2, 2)
    word = scene.rng.choice(("distinct", "different"))
    text = request(scene.rng, [f"{word} {columns[0]}", *columns[1:]], f"{table.name}s {where.words}")
    sql = f"SELECT DISTINCT {names(table, columns)} FROM {table.name} WHERE {where.sql}"
    if len(columns) > 1:
        return Phrase(end(text), sql)
    sort = order(scene.rng, f"{table.name}.{columns[0]}", columns[0])
    return Phrase(end(f"{text}, {sort.words}"), f"{sql} ORDER BY {sort.sql}")


def ask_scalar(scene: Scene) -> Phrase:
    """Rows whose integer compares with an aggregate of the same column over all or some rows."""
    table = scene.any_table()
    columns, key = scene.columns(table, 2, 3), scene.rng.choice(table.integers)
    operator, function, words = scene.rng.choice(SCALARS)
    inner = f"SELECT {function}({table.name}.{key}) FROM {table.name}"
    group = f"all {table.name}s"
    if scene.rng.random() < 0.7:
        where = scene.where(table, 1, 2, excluded=(key,))
        inner, group = f"{inner} WHERE {where.sql}", f"{table.name}s {where.words}"
    text = request(scene.rng, columns, f"{table.name}s whose {key} is {words} {key} of {group}")
    sql = f"SELECT {names(table, columns)} FROM {table.name} WHERE {table.name}.{key} {operator} ({inner})"
    return Phrase(end(text), sql)
