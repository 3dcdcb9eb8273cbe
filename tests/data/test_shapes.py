"""Records of public data sets, as their cards show them, and records that cannot be used."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest

from nptool.data.record import Message
from nptool.data.records import read_records
from nptool.data.shapes import to_record
from nptool.data.tolerance import Tolerance
from nptool.errors import DataError, UnusableRecord

SYSTEM, USER, ASSISTANT = Message("system", "be brief"), Message("user", "q"), Message("assistant", "a")
EARLIER = (Message("user", "q1"), Message("assistant", "a1"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # OpenOrca
        ({"id": "7", "system_prompt": "be brief", "question": "q", "response": "a"}, (SYSTEM, USER, ASSISTANT)),
        ({"id": "7", "system_prompt": "", "question": "q", "response": "a"}, ("q", "a")),
        # Dolly
        ({"instruction": "q", "context": "", "response": "a", "category": "qa"}, ("q", "a")),
        ({"instruction": "q", "context": "about", "response": "a"}, ("q\n\nabout", "a")),
        ({"prompt": "q", "output": "a"}, ("q", "a")),
        ({"problem": "q", "solution": "a", "level": "3"}, ("q", "a")),
        # preference data
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ("q", "a")),
        # Alpaca with turns before, as LLaMA-Factory writes it
        (
            {"instruction": "q", "input": "", "output": "a", "system": "be brief", "history": [["q1", "a1"]]},
            (SYSTEM, *EARLIER, USER, ASSISTANT),
        ),
        ({"prompt": "q", "completion": "a", "history": []}, ("q", "a")),
        # ShareGPT with a system message beside it
        (
            {"system": "be brief", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            (SYSTEM, USER, ASSISTANT),
        ),
        (
            {
                "system": "other",
                "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}],
            },
            (SYSTEM, USER),
        ),
        (
            {"conversation": [{"role": "User", "content": "q"}, {"role": "ASSISTANT", "content": "a"}]},
            (USER, ASSISTANT),
        ),
        ({"messages": [{"role": "Human", "content": "q"}, {"role": "AI", "content": "a"}]}, (USER, ASSISTANT)),
        ({"messages": [{"from": "user", "value": "q"}, {"from": "bing", "value": "a"}]}, (USER, ASSISTANT)),
        ({"question": "q", "answer": math.nan, "response": "a"}, ("q", "a")),
        ({"question": "q", "answer": math.nan}, ("q", None)),
    ],
)
def test_what_is_the_prompt_and_what_the_answer(fields: dict[str, Any], expected: Any) -> None:
    record = to_record(fields, "f:1")
    assert (record.messages or (record.prompt, record.response)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [1]}]},
            "f:1: messages[1] has no text; only text messages can be used, got null",
        ),
        ({"messages": [{"role": "narrator", "content": "q"}]}, "f:1: messages[0] has the role 'narrator'"),
        ({"messages": [{"role": "user", "content": [{"text": None}]}]}, "f:1: messages[0] has no text"),
        ({"prompt": "q\ud800", "completion": "a"}, "f:1: 'prompt' has \\ud800, which is half of a character; it"),
        (
            {"messages": [{"role": "user", "content": "\udfff"}]},
            "f:1: messages[0] has \\udfff, which is half",
        ),
        ({"prompt": "q", "history": ["q1"]}, "f:1: 'history' must be pairs of texts, got \"q1\""),
        ({"prompt": True}, "f:1: 'prompt' must be text, got true"),
        ({"prompt": None, "completion": "a"}, "f:1: fields not recognized: completion; known are messages"),
    ],
)
def test_records_that_cannot_be_used(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableRecord, match=re.escape(message)):
        to_record(fields, "f:1")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"question": "q", "answers": {"text": ["a"]}}', "--prompt-field question --response-field answers"),
        ('{"text": "t", "output": "a"}', "--prompt-field NAME --response-field output"),
        ('{"prompt": "q", "target": "a"}', "--prompt-field prompt --response-field target"),
        ('{"prompt": "q", "completion": "a", "answer": "b"}', None),
        ('{"messages": [{"role": "user", "content": "q"}], "answer": "b"}', None),
    ],
)
def test_an_answer_that_is_not_used_is_said_once(
    tmp_path: Path, line: str, named: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{line}\n{line}\n")
    with caplog.at_level(logging.WARNING):
        list(read_records(path))
    field = None if named is None else named.split()[-1]
    expected = [f"{path}:1: the field '{field}' looks like an answer and is not used; {named} takes it"]
    assert [record.getMessage() for record in caplog.records] == (expected if named else [])


GOOD, BAD = '{"prompt": "q", "completion": "a"}\n', '{"prompt": ["q"]}\n'


def test_few_unusable_records_are_skipped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(GOOD * 99 + BAD + GOOD * 100)
    tolerance = Tolerance(0.01)
    with caplog.at_level(logging.WARNING):
        records = list(read_records(path, tolerance=tolerance))
        tolerance.finish()
    assert len(records) == 199
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(
        f"skipped 1 of 200 records that cannot be used; the first: {path}:100: prompt[0] must be an object"
    )


def test_many_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(GOOD + BAD + GOOD * 100 + BAD)
    tolerance = Tolerance(0.01)
    assert len(list(read_records(path, tolerance=tolerance))) == 101
    counts = "(2 of 103 records cannot be used; --max-bad-share 0.01 allows 1)"
    with pytest.raises(DataError, match=rf"data.jsonl:2: prompt\[0\] must be .*{re.escape(counts)}"):
        tolerance.finish()


def test_without_a_tolerance_the_first_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(GOOD * 200 + BAD)
    with pytest.raises(UnusableRecord, match=r"data.jsonl:201: "):
        list(read_records(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'question,answer\nq 1,a 1\n"q,\n2",\n'),
        ("b.csv", '\ufeffquestion;answer\r\nq 1;a 1\r\n"q,\n2";\r\n'),
        ("c.tsv", 'question\tanswer\nq 1\ta 1\n"q,\n2"\t\n'),
        ("d.json", '{\n  "question": "q 1",\n  "answer": "a 1"\n}\n{\n  "question": "q,\\n2"\n}\n'),
        ("e.json", '{"data": [{"question": "q 1", "answer": "a 1"}, {"question": "q,\\n2", "answer": NaN}]}'),
        ("f.json", '{\n "version": 1,\n "rows": [\n{"question": "q 1", "answer": "a 1"},\n{"question": "q,\\n2"}]}\n'),
    ],
)
def test_tables_and_pretty_json(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    found = [(record.prompt, record.response) for record in read_records(path)]
    assert found == [("q 1", "a 1"), ("q,\n2", None)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "question,answer\nq,a,b\n", "a.csv:1: a row of 3 fields, and the first row names 2"),
        ("b.csv", "", "b.csv is empty; expected a first row with the names of the fields"),
        ("c.csv", 'question,answer\n"q', "c.csv:2: not a readable table"),
        ("d.csv", "x,y\n1,2\n", "d.csv:1: fields not recognized: x, y; known are"),
        ("e.jsonl", '{"prompt": "a"}\n{"prompt": ' + "9" * 5000 + "}\n", "e.jsonl:2: a value that cannot be read"),
        ("f.jsonl", '{"prompt": "a"}\n' + "[" * 200_000 + "\n", "f.jsonl:2: values nested too deeply"),
        ("g.json", "[" * 200_000, "g.json:1: values nested too deeply"),
    ],
)
def test_bad_tables_and_values(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        list(read_records(path))
