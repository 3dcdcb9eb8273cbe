"""The source of a question, and the draws that all kinds share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from nptool.text_to_sql.phrases import Phrase, column_as_result, filtered
from nptool.text_to_sql.schema import Rows, Schema, Table


@dataclass(frozen=True)
class Scene:
    """A random generator, a schema and its rows."""

    rng: Random
    schema: Schema
    rows: Rows

    def any_table(self) -> Table:
        return self.rng.choice(self.schema.tables)

    def link(self) -> tuple[Table, Table]:
        """A random child table and its parent."""
        child = self.rng.choice([table for table in self.schema.tables if table.parents])
        return child, self.schema.table(child.parents[0])

    def columns(self, table: Table, least: int, most: int) -> list[str]:
        """`least` to `most` plain columns of a table, in random order."""
        return self.rng.sample(table.plain, self.rng.randint(least, min(most, len(table.plain))))

    def where(self, table: Table, least: int, most: int, excluded: Sequence[str] = ()) -> Phrase:
        """`least` to `most` conditions on a table, fewer if it has fewer columns."""
        return filtered(self.rng, table, self.rows[table.name], self.rng.randint(least, most), excluded)

    def reference(self, table: Table, column: str) -> str:
        """Words for a column of a named table."""
        return self.rng.choice((f"{table.name} {column}", f"{column} of the {table.name}"))


def names(table: Table, columns: Sequence[str]) -> str:
    """A SELECT list. Results are named after their table too, because two tables may have the same column."""
    return ", ".join(column_as_result(table.name, column) for column in columns)


def joined(child: Table, parent: Table) -> str:
    """The canonical join."""
    return f"FROM {child.name} JOIN {parent.name} ON {child.name}.{parent.name}_id = {parent.name}.id"
