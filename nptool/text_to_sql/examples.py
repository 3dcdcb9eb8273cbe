"""Examples of the text-to-SQL task, and its two splits.

The splits share no schema and no question: a stable hash assigns every schema and every question text to one split, and
an example needs both in the same split.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from nptool.errors import DataError
from nptool.text_to_sql.database import ResultRow, is_ordered, open_database, run_query
from nptool.text_to_sql.questions import Question, random_kind, random_question
from nptool.text_to_sql.schema import Rows, Schema, random_schema, schema_from_record

Split = Literal["train", "heldout"]

TASK = "text-to-sql"
HELDOUT_SHARE = 5
"""One in this many schemas and question texts is held out."""
QUESTION_TRIES = 40
"""Questions drawn for a schema before another schema is drawn."""


@dataclass(frozen=True)
class Example:
    """A question about a schema with its gold query, which is executed on `schema.rows(data_seed)`."""

    prompt: str
    response: str
    schema: Schema
    data_seed: int

    def to_record(self) -> dict[str, Any]:
        """The example as JSON values; `from_record` is the inverse."""
        return {
            "prompt": self.prompt,
            "response": self.response,
            "task": TASK,
            "schema": self.schema.to_record(),
            "data_seed": self.data_seed,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Example:
        """The inverse of `to_record`.

        Raises:
            DataError: the record is of another task, lacks a field, or has a schema of other words.
        """
        if record.get("task") != TASK:
            raise DataError(f"expected a record with task {TASK!r}, got {record.get('task')!r}")
        try:
            schema = schema_from_record(record["schema"])
            return cls(str(record["prompt"]), str(record["response"]), schema, int(record["data_seed"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"malformed {TASK} record: {error!r}; generate the file again") from error


def split_of(text: str) -> Split:
    """The split of a schema's signature or a question's text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") % HELDOUT_SHARE == 0 else "train"


def generate_examples(split: Split, count: int, seed: int) -> list[Example]:
    """`count` examples with different prompts, the same for the same arguments.

    A longer list starts with the shorter one of the same split and seed.
    """
    rng = Random(f"{TASK} {split} {seed}")
    seen: set[str] = set()
    examples: list[Example] = []
    while len(examples) < count:
        example = _draw(rng, split)
        if example.prompt not in seen:
            seen.add(example.prompt)
            examples.append(example)
    return examples


def _draw(rng: Random, split: Split) -> Example:
    while True:
        schema = random_schema(rng)
        if split_of(schema.signature) != split:
            continue
        data_seed = rng.getrandbits(32)
        question = _draw_question(rng, split, schema, schema.rows(data_seed))
        if question is not None:
            return Example(f"{schema.text}\n{question.text}", question.sql, schema, data_seed)


def _draw_question(rng: Random, split: Split, schema: Schema, rows: Rows) -> Question | None:
    kind = random_kind(rng)  # drawn once, so that kinds with fewer usable questions do not become rarer
    with closing(open_database(schema, rows)) as connection:
        for _ in range(QUESTION_TRIES):
            question = random_question(rng, schema, rows, kind)
            if split_of(question.text) == split and _is_telling(question.sql, run_query(connection, question.sql)):
                return question
    return None


def _is_telling(sql: str, result: list[ResultRow]) -> bool:
    """Whether a wrong query is likely to give another result.

    False if nothing is found (no row, an average over nothing, a count of zero), or there is nothing to order or to
    limit.
    """
    if not any(any(row) for row in result):
        return False
    _, _, limit = sql.partition(" LIMIT ")
    return len(result) == int(limit) if limit else len(set(result)) > 1 or not is_ordered(sql)
