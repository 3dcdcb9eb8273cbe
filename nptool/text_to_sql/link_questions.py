"""Questions about a child table and its parent: joins, aggregates over a join, IN and NOT IN."""

from __future__ import annotations

from nptool.text_to_sql.phrases import COUNTED, VERBS, Phrase, aggregates, end, listed, order, request
from nptool.text_to_sql.scenes import Scene, joined, names
from nptool.text_to_sql.schema import Table


def ask_join(scene: Scene) -> Phrase:
    """Columns of both tables, filtered or ordered or both."""
    child, parent = scene.link()
    rng = scene.rng
    first, second = rng.sample((child, parent), 2)
    first_columns, second_columns = scene.columns(first, 1, 2), scene.columns(second, 1, 2)
    items = f"the {_owned(scene, first, first_columns)} and the {_owned(scene, second, second_columns)}"
    sql = f"SELECT {names(first, first_columns)}, {names(second, second_columns)} {joined(child, parent)}"
    tail = rng.choice((_join_filter, _join_filter, _join_order, _join_filter_order))(scene, child, parent)
    verb = rng.choice(VERBS)
    forms = (f"{verb} ", f"{verb} ", "What are ", f"For each {child.name} and its {parent.name}, {verb.lower()} ")
    return Phrase(end(f"{rng.choice(forms)}{items}{tail.words}"), f"{sql}{tail.sql}")


def _owned(scene: Scene, table: Table, columns: list[str]) -> str:
    """Words for columns of a named table: "singer name and age", "name and age of the singer"."""
    words = listed(columns)
    return scene.rng.choice((f"{table.name} {words}", f"{words} of the {table.name}"))


def _join_filter(scene: Scene, child: Table, parent: Table) -> Phrase:
    lead = scene.rng.choice((" for ", ", only for "))
    if scene.rng.random() < 0.3:  # one condition each, so that no "or" stands beside this "and"
        first, second = scene.rng.sample((child, parent), 2)
        one, two = scene.where(first, 1, 1), scene.where(second, 1, 1)
        words = f"{lead}{first.name}s {one.words} and {second.name}s {two.words}"
        return Phrase(words, f" WHERE {one.sql} AND {two.sql}")
    table = scene.rng.choice((child, parent))
    where = scene.where(table, 1, 2)
    return Phrase(f"{lead}{table.name}s {where.words}", f" WHERE {where.sql}")


def _join_order(scene: Scene, child: Table, _parent: Table) -> Phrase:
    # Only the child's integers are unique in a join, so only their order has no ties.
    key = scene.rng.choice(child.integers)
    sort = order(scene.rng, f"{child.name}.{key}", f"{child.name} {key}")
    if scene.rng.random() < 0.5:
        return Phrase(f", {sort.words}", f" ORDER BY {sort.sql}")
    count = scene.rng.randint(2, 5)
    return Phrase(f", {sort.words}, first {count} only", f" ORDER BY {sort.sql} LIMIT {count}")


def _join_filter_order(scene: Scene, child: Table, parent: Table) -> Phrase:
    where, sort = _join_filter(scene, child, parent), _join_order(scene, child, parent)
    return Phrase(where.words + sort.words, where.sql + sort.sql)


def ask_join_aggregate(scene: Scene) -> Phrase:
    """Aggregates or distinct values of the children whose parent satisfies one or two conditions."""
    child, parent = scene.link()
    rng = scene.rng
    where = scene.where(parent, 1, 2)
    noun = f"{child.name}s {rng.choice(('of', 'belonging to'))} {parent.name}s {where.words}"
    tail = f"{joined(child, parent)} WHERE {where.sql}"
    draw = rng.random()
    if draw < 0.15:
        text = rng.choice((f"How many {noun} are there", f"Count the {noun}", f"Count all {noun}"))
        return Phrase(end(text), f"SELECT {COUNTED} {tail}")
    if draw < 0.3:
        column = rng.choice(child.texts)
        text = request(rng, [f"{rng.choice(('distinct', 'different'))} {column}"], noun)
        return Phrase(end(text), f"SELECT DISTINCT {names(child, [column])} {tail}")
    parts = aggregates(rng, child, rng.choice((1, 2, 2)))
    text = request(rng, [part.words for part in parts], noun)
    return Phrase(end(text), f"SELECT {', '.join(part.sql for part in parts)} {tail}")


def ask_in(scene: Scene) -> Phrase:
    """Parents that have, or do not have, a child that satisfies some conditions."""
    child, parent = scene.link()
    rng = scene.rng
    columns, where = scene.columns(parent, 2, 3), scene.where(child, 1, 2)
    operator, links = rng.choice(
        (("IN", ("that have some", "that have at least one")), ("NOT IN", ("that have no", "that do not have any")))
    )
    noun, outer = f"{parent.name}s", ""
    if rng.random() < 0.3:  # one condition, so that no "or" stands beside this "and"
        first = scene.where(parent, 1, 1)
        noun, outer = f"{noun} {first.words} and", f"{first.sql} AND "
    text = request(rng, columns, f"{noun} {rng.choice(links)} {child.name} {where.words}")
    inner = f"SELECT {child.name}.{parent.name}_id FROM {child.name} WHERE {where.sql}"
    sql = f"SELECT {names(parent, columns)} FROM {parent.name} WHERE {outer}{parent.name}.id {operator} ({inner})"
    return Phrase(end(text), sql)
