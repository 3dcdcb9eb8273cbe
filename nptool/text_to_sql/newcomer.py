"""Sixty questions as people type them about tables of their own, scored by execution in SQLite.

They test a text-to-SQL model on words and phrasings that no generator of training data has made. The set is
`newcomer_questions.txt`, whose first lines describe its format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from sqlite3 import Connection

from nptool.errors import DataError
from nptool.text_to_sql.database import database_of
from nptool.text_to_sql.execution import queries_match

FILE = "newcomer_questions.txt"

NO_QUESTIONS = (
    "hello",
    "asdf",
    "thanks!",
    "what is the weather?",
    "hives(id, location, queen_year, honey_kg)\nwho are you and what can you do?",
    "film(id, title, director, year, rating) lol ok",
    "plants(name, sun, height_cm)\n???",
    "Write me a short poem about the sea.",
)
"""Inputs that ask nothing about a schema. No answer is right, but each ends within `NO_QUESTION_TOKENS`."""
NO_QUESTION_TOKENS = 64


@dataclass(frozen=True)
class NewcomerQuestion:
    """A question about tables of one's own, with the query that answers it."""

    asker: str
    kind: str
    prompt: str
    """The schema and the question, as one line or with the question on a line of its own."""
    gold: str
    statements: tuple[str, ...]
    """Make the tables and their rows."""

    def open_database(self) -> Connection:
        """The tables with their rows, read-only. The caller closes it."""
        return database_of(self.statements)

    def match(self, answer: str) -> bool:
        """Whether an answer gives the gold query's rows: its columns in its order, under any names.

        Rows are compared in order if the gold query has ORDER BY, as multisets otherwise. An answer that is not one
        SELECT, fails, or exceeds a limit of `database` is wrong.
        """
        with closing(self.open_database()) as connection:
            return queries_match(connection, self.gold, answer)


def newcomer_accuracy(answers: Sequence[str]) -> float:
    """Share of the answers that match, 0 to 1; there is one answer for each of `newcomer_questions`."""
    questions = newcomer_questions()
    if len(answers) != len(questions):
        raise ValueError(f"expected one answer for each of {len(questions)} questions, got {len(answers)}")
    return sum(question.match(answer) for question, answer in zip(questions, answers, strict=True)) / len(questions)


@cache
def newcomer_questions() -> tuple[NewcomerQuestion, ...]:
    """The set, in the order of its file."""
    text = files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    return tuple(parse_questions(text))


def parse_questions(text: str) -> Iterator[NewcomerQuestion]:
    """The questions of a text in the format of `newcomer_questions.txt`.

    Raises:
        DataError: a schema or a question is incomplete.
    """
    _, *sections = f"\n{text}".split("\n== ")
    for section in sections:
        head, _, body = section.partition("\n\n")
        asker, *schema = head.splitlines()
        made, asked = _parted(body)
        if not schema or not made or not asked or len(asked) % 2:
            raise DataError(f"{FILE}: expected schema, tables and pairs of question and answer for {asker!r}")
        statements = tuple(statement for statement in "\n".join(made).split(";\n") if statement.strip())
        for question, gold in zip(asked[::2], asked[1::2], strict=True):
            kind, bar, words = question[2:].partition(" | ")
            if question[:2] not in ("? ", "> ") or not bar or gold[:2] != "= ":
                raise DataError(f"{FILE}: expected '? kind | question' and '= query', got {question!r} and {gold!r}")
            separator = " " if question[0] == ">" else "\n"
            yield NewcomerQuestion(asker, kind, separator.join((*schema, words)), gold[2:], statements)


def _parted(body: str) -> tuple[list[str], list[str]]:
    """The lines of the SQL that makes the tables, and those of questions and answers; blank ones are left out."""
    made: list[str] = []
    asked: list[str] = []
    for line in body.splitlines():
        if line.strip():
            (asked if line[0] in "?>=" else made).append(line)
    return made, asked
