"""The newcomers' questions: every gold query is telling, wrong queries do not match."""

import re
from collections.abc import Callable
from contextlib import closing

import pytest

from nptool.errors import DataError
from nptool.text_to_sql.database import run_query
from nptool.text_to_sql.newcomer import (
    NO_QUESTIONS,
    NewcomerQuestion,
    newcomer_accuracy,
    newcomer_questions,
    parse_questions,
)

QUESTIONS = newcomer_questions()
each_question = pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.prompt.splitlines()[-1])

TEXT = """# a comment
== a cook
pots(id, liters)

CREATE TABLE pots (id INTEGER, liters REAL);
INSERT INTO pots VALUES
  (1, 2.5), (2, 4);

? count | how many pots
= SELECT COUNT(*) FROM pots
> list | show all pots
= SELECT * FROM pots
"""


def find(part: str) -> NewcomerQuestion:
    (found,) = (question for question in QUESTIONS if part in question.prompt)
    return found


def test_the_set_has_sixty_questions_on_twenty_schemas() -> None:
    assert len(QUESTIONS) == len({question.prompt for question in QUESTIONS}) == 60
    assert len({question.asker for question in QUESTIONS}) == len({question.statements for question in QUESTIONS}) == 20
    assert sum("\n" not in question.prompt for question in QUESTIONS) == 6
    assert len(set(NO_QUESTIONS)) == 8


@each_question
def test_the_prompt_begins_with_the_schema_of_the_tables(question: NewcomerQuestion) -> None:
    created = [statement for statement in question.statements if statement.lstrip().startswith("CREATE")]
    typed = re.findall(r"\w+\(.*?\)", question.prompt)
    declared = [re.sub(r" (INTEGER|REAL|TEXT)\b", "", s.replace("CREATE TABLE ", "").strip()) for s in created]
    assert [schema.replace(" (", "(") for schema in declared] == typed
    assert question.prompt.startswith(typed[0])


@each_question
def test_every_gold_query_finds_something(question: NewcomerQuestion) -> None:
    with closing(question.open_database()) as connection:
        rows = run_query(connection, question.gold)
    assert rows
    assert all(all(row) for row in rows)


@each_question
def test_every_gold_query_matches_itself_only(question: NewcomerQuestion) -> None:
    assert question.match(f"{question.gold};")
    others = {other.gold for other in QUESTIONS if other.statements == question.statements} - {question.gold}
    assert len(others) == 2
    assert not any(question.match(gold) for gold in others)


CHANGES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("no condition", lambda sql: re.sub(r" WHERE .*?(?= GROUP| ORDER|$)", "", sql)),
    ("the opposite condition", lambda sql: sql.replace(" WHERE ", " WHERE NOT ")),
    ("one condition of two", lambda sql: re.sub(r"(?<!BETWEEN ....) AND .*", "", sql)),
    ("the other condition of two", lambda sql: re.sub(r"WHERE [\w.]+ (=|>=) \S+ AND", "WHERE", sql)),
    ("strict for not strict", lambda sql: sql.replace(" >= ", " > ")),
    ("not strict for strict", lambda sql: sql.replace(" > ", " >= ").replace(" < ", " <= ")),
    ("equality for LIKE", lambda sql: sql.replace(" LIKE ", " = ").replace("%", "")),
    ("contains for starts with", lambda sql: sql.replace("LIKE 'w", "LIKE '%w")),
    (
        "the wrong end",
        lambda sql: sql.replace(" DESC", " ASC") if " DESC" in sql else sql.replace(" LIMIT", " DESC LIMIT"),
    ),
    ("no order", lambda sql: re.sub(r" ORDER BY \S+( DESC)?", "", sql)),
    ("no limit", lambda sql: sql.partition(" LIMIT ")[0]),
    ("no groups", lambda sql: re.sub(r" GROUP BY \S+", "", sql)),
    ("no DISTINCT", lambda sql: sql.replace("DISTINCT ", "")),
    ("SUM for COUNT", lambda sql: sql.replace("COUNT(*)", "SUM(1 + 1)")),
    ("COUNT for another aggregate", lambda sql: re.sub(r"(SUM|AVG|MAX)\(\w+\)", "COUNT(*)", sql)),
    ("MAX for AVG and MIN for MAX", lambda sql: sql.replace("MAX(", "MIN(").replace("AVG(", "MAX(")),
    ("AVG for SUM", lambda sql: sql.replace("SUM(", "AVG(")),
    ("no join condition", lambda sql: re.sub(r" ON \S+ = \S+", "", sql)),
    ("another column more", lambda sql: sql.replace(" FROM", ", 1 FROM", 1)),
    ("every column", lambda sql: re.sub(r"SELECT (?!\*).*? FROM", "SELECT * FROM", sql)),
    ("columns swapped", lambda sql: re.sub(r"SELECT (\S+), (\S+) FROM", r"SELECT \2, \1 FROM", sql)),
)
"""Ways to be wrong: a name, and a function that leaves queries alone to which it does not apply."""


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_a_wrong_query_gives_another_result(name: str, change: Callable[[str], str]) -> None:
    changed = [(question, change(question.gold)) for question in QUESTIONS if change(question.gold) != question.gold]
    assert changed
    assert [sql for question, sql in changed if question.match(sql)] == []


@pytest.mark.parametrize(
    ("part", "answer"),
    [
        ("show all plants", "SELECT name, sun, height_cm, water_per_week FROM plants"),
        ("how many hives", "SELECT COUNT(id) AS hives FROM hives AS h"),
        ("cheapest product", "SELECT name FROM products WHERE price = (SELECT MIN(price) FROM products)"),
        ("different birds", "SELECT bird AS b FROM sightings GROUP BY bird ORDER BY bird DESC"),
        ("distance between 8", "SELECT run_date FROM runs WHERE distance_km >= 8 AND distance_km <= 12"),
        (
            "goals for each player",
            "SELECT p.name, COUNT(g.id) FROM goals g, players p WHERE g.player_id = p.id GROUP BY p.id",
        ),
        (
            "vehicle of brand Fiat",
            "SELECT name FROM owners WHERE owner_id IN (SELECT owner_id FROM vehicles WHERE brand = 'Fiat')",
        ),
    ],
)
def test_another_right_query_matches(part: str, answer: str) -> None:
    assert find(part).match(answer)


@pytest.mark.parametrize("answer", ["", "hello", "SELECT", "SELECT 1", "DROP TABLE hives", "SELECT COUNT(*) FROM hive"])
def test_what_is_no_answer_is_wrong(answer: str) -> None:
    assert not find("how many hives").match(answer)


def test_accuracy_is_a_share() -> None:
    answers = [question.gold for question in QUESTIONS]
    assert newcomer_accuracy(answers) == 1.0
    assert newcomer_accuracy(["", "SELECT", *answers[2:]]) == pytest.approx(58 / 60)
    with pytest.raises(ValueError, match="60 questions, got 1"):
        newcomer_accuracy(["SELECT"])


def test_a_question_stands_on_its_own_line_or_on_the_schemas() -> None:
    below, beside = parse_questions(TEXT)
    assert below.prompt == "pots(id, liters)\nhow many pots"
    assert beside.prompt == "pots(id, liters) show all pots"
    assert beside.match("SELECT id, liters FROM pots")
    assert (below.asker, below.kind, beside.kind) == ("a cook", "count", "list")


@pytest.mark.parametrize("part", ["pots(id, liters)\n", "= SELECT * FROM pots\n", " | ", "= ", "> "])
def test_an_incomplete_file_is_refused(part: str) -> None:
    with pytest.raises(DataError, match="expected"):
        list(parse_questions("".join(TEXT.rsplit(part, 1))))
