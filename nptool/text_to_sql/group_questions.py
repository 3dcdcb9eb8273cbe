"""Questions with GROUP BY: of one table, or of children grouped by a column of their parent."""

from __future__ import annotations

from nptool.text_to_sql.phrases import VERBS, Phrase, aggregates, column_as_result, end, listed, order
from nptool.text_to_sql.scenes import Scene, joined
from nptool.text_to_sql.schema import Table

FEWEST_WORDS = {"DESC": "most", "ASC": "fewest"}


def ask_group(scene: Scene) -> Phrase:
    """Groups of one table by a text column."""
    table = scene.any_table()
    key = scene.rng.choice(table.texts)
    return _ask(scene, table, Phrase(key, f"{table.name}.{key}"), f"FROM {table.name}")


def ask_join_group(scene: Scene) -> Phrase:
    """Groups of children by a text column of their parent."""
    child, parent = scene.link()
    column = scene.rng.choice(parent.texts)
    key = Phrase(scene.reference(parent, column), f"{parent.name}.{column}")
    return _ask(scene, child, key, joined(child, parent))


def _ask(scene: Scene, table: Table, key: Phrase, source: str) -> Phrase:
    """Aggregates of `table` for each value of `key`, with one or two of WHERE, HAVING and ORDER BY."""
    rng = scene.rng
    restrict = rng.choice((None, _having, _having, _sorted, _top))
    has_where = restrict is None or rng.random() < 0.5
    parts = aggregates(rng, table, rng.randint(1, 2) if has_where else 2)
    words = f"the {listed([part.words for part in parts])} of {table.name}s"
    sql = f"SELECT {column_as_result(*key.sql.split('.'))}, {', '.join(part.sql for part in parts)} {source}"
    if has_where:
        where = scene.where(table, 1, 2, excluded=(key.sql.rpartition(".")[2],))
        words, sql = f"{words} {where.words}", f"{sql} WHERE {where.sql}"
    verb, each = rng.choice(VERBS), f"each {key.words}"
    text = rng.choice(
        (f"For {each}, {verb.lower()} {words}", f"{verb} {words} for {each}", f"{verb} {words} per {key.words}")
    )
    tail = restrict(scene, table, key) if restrict else Phrase("", "")
    return Phrase(end(text + tail.words), f"{sql} GROUP BY {key.sql}{tail.sql}")


def _having(scene: Scene, table: Table, _key: Phrase) -> Phrase:
    rng = scene.rng
    lead = rng.choice((", only for groups with", ", keeping groups with"))
    if rng.random() < 0.6:
        operator, words = rng.choice(((">", "more than"), (">=", "at least"), ("<", "fewer than")))
        bound = rng.randint(2, 3) if operator != ">" else rng.randint(1, 2)
        return Phrase(f"{lead} {words} {bound} {table.name}s", f" HAVING COUNT(*) {operator} {bound}")
    column = rng.choice(table.integers)
    values = [row[table.position(column)] for row in scene.rows[table.name]]
    bound = sum(value for value in values if isinstance(value, int)) // len(values) + rng.randint(-5, 5)
    operator, words = rng.choice(((">", "above"), ("<", "below")))
    sql = f" HAVING AVG({table.name}.{column}) {operator} {bound}"
    return Phrase(f"{lead} average {column} {words} {bound}", sql)


def _sorted(scene: Scene, _table: Table, key: Phrase) -> Phrase:
    sort = order(scene.rng, key.sql, key.words)
    return Phrase(f", {sort.words}", f" ORDER BY {sort.sql}")


def _top(scene: Scene, table: Table, key: Phrase) -> Phrase:
    count = scene.rng.randint(1, 4)
    direction = scene.rng.choice(tuple(FEWEST_WORDS))
    words = f", only for the {count} with the {FEWEST_WORDS[direction]} {table.name}s, ties by {key.words}"
    return Phrase(words, f" ORDER BY COUNT(*) {direction}, {key.sql} ASC LIMIT {count}")
