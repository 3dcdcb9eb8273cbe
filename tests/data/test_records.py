"""Every shape of record from every kind of file, and the messages for files that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nptool.data import json_stream
from nptool.data.record import Message, Record
from nptool.data.records import read_records
from nptool.data.shapes import to_record
from nptool.errors import DataError, UsageError

USER, ASSISTANT = Message("user", "hello"), Message("assistant", "hi")
SHAPES: list[tuple[dict[str, Any], Record]] = [
    ({"prompt": "p", "completion": "c"}, Record(prompt="p", response="c")),
    ({"prompt": "p", "response": "r"}, Record(prompt="p", response="r")),
    ({"prompt": "p"}, Record(prompt="p")),
    ({"question": "q", "answer": 42, "id": 7}, Record(prompt="q", response="42")),
    ({"question": "q", "answer": None}, Record(prompt="q")),
    ({"instruction": "i", "input": "", "output": "o"}, Record(prompt="i", response="o")),
    ({"instruction": "i", "input": "x", "output": "o"}, Record(prompt="i\n\nx", response="o")),
    ({"text": "some text"}, Record(text="some text")),
    (
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}], "text": "t"},
        Record(messages=(USER, ASSISTANT)),
    ),
    (
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
        Record(messages=(USER, ASSISTANT)),
    ),
    (
        {"messages": None, "conversations": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
        Record(messages=(USER,)),
    ),
    (
        {"prompt": [{"role": "user", "content": "hello"}], "completion": [{"role": "assistant", "content": "hi"}]},
        Record(messages=(USER, ASSISTANT)),
    ),
    ({"prompt": [{"role": "user", "content": "hello"}], "completion": "hi"}, Record(messages=(USER, ASSISTANT))),
]


def read(path: Path, **options: Any) -> list[Record]:
    return list(read_records([path], **options))


def without_source(record: Record) -> Record:
    return Record(record.messages, record.prompt, record.response, record.text)


@pytest.mark.parametrize(("fields", "expected"), SHAPES)
def test_shapes_are_recognized(fields: dict[str, Any], expected: Record) -> None:
    assert without_source(to_record(fields, "f:1")) == expected


def test_every_file_format_gives_the_same_records(tmp_path: Path) -> None:
    pairs = [{"question": f"q {number} é", "answer": "a\n" * number} for number in range(5)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, pairs)), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(pairs, indent=1), encoding="utf-8")
    (tmp_path / "c.json").write_text("\ufeff" + "\n".join(map(json.dumps, pairs)) + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "d.parquet")
    expected = [Record(prompt=pair["question"], response=pair["answer"]) for pair in pairs]
    for name in ("a.jsonl", "b.json", "c.json", "d.parquet"):
        assert [without_source(record) for record in read(tmp_path / name)] == expected
    assert [record.source.rpartition(":")[2] for record in read(tmp_path / "a.jsonl")] == ["1", "3", "5", "7", "9"]
    assert [record.source.rpartition(":")[2] for record in read(tmp_path / "b.json")] == ["2", "6", "10", "14", "18"]
    assert read(tmp_path / "d.parquet")[2].source == f"{tmp_path / 'd.parquet'}:3"


def test_text_and_source_files_are_one_record_each(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "pkg" / "b.py").write_text("def f():\n    return 1\n")
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "latin.py").write_bytes("# é".encode("latin-1"))
    (tmp_path / "pkg" / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".git" / "c.py").write_text("hidden")
    (tmp_path / "a.txt").write_text("some text")
    records = read(tmp_path)
    assert [(record.text, Path(record.source).name) for record in records] == [
        ("some text", "a.txt"),
        ("def f():\n    return 1\n", "b.py"),
    ]


def test_named_fields(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"nl": "question", "sql": "SELECT 1", "text": "t"}\n')
    assert without_source(read(path, prompt_field="nl", response_field="sql")[0]) == Record(
        prompt="question", response="SELECT 1"
    )
    assert without_source(read(path, prompt_field="nl")[0]) == Record(prompt="question")
    with pytest.raises(DataError, match=r"data.jsonl:1: no field 'query'; the fields are nl, sql, text"):
        read(path, prompt_field="nl", response_field="query")
    with pytest.raises(UsageError, match="--response-field needs --prompt-field"):
        read(path, response_field="sql")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', r"data.jsonl:2: malformed JSON \(Expecting value at column 12\)"),
        ('{"prompt": "a"}\n[1]\n', r"data.jsonl:2: expected a JSON object, got \[1\]"),
        ('[{"prompt": "a"},\n{"prompt": "b"}\n{"prompt": "c"}]', r"data.jsonl:3: malformed JSON: expected ','"),
        ('[{"prompt": "a"},\n\n{"prompt" "b"}]', r"data.jsonl:3: malformed JSON: expected an object"),
        ('[{"prompt": "a"},\n{"prompt": "b"}', "data.jsonl:2: malformed JSON: expected ',', found 'the end of"),
        ('[{"prompt": "a"}]\n{}', "data.jsonl:2: malformed JSON: expected nothing after the array"),
        ('{"question_text": "a", "gold": "b"}', "data.jsonl:1: fields not recognized: question_text, gold; known are"),
        ('{"prompt": {"a": 1}}', r"data.jsonl:1: 'prompt' must be text, got \{\"a\": 1\}"),
        ('{"messages": "hi"}', "data.jsonl:1: 'messages' must be a list of messages, got \"hi\""),
        ('{"messages": [{"text": "hi"}]}', r"messages\[0\] has no role; .* its fields are text"),
        ('{"messages": [{"role": "assistant", "content": null}]}', r"messages\[0\] has no text"),
        ("", "the data set is empty: no record in .*data.jsonl"),
        ("\n \n", "the data set is empty"),
        ("[]", "the data set is empty"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_records_before_a_bad_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\nnonsense\n')
    records = read_records(path)
    assert next(records).prompt == "a"
    with pytest.raises(DataError, match=r"data.jsonl:2"):
        next(records)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.jsonl does not exist; expected a JSONL, JSON, CSV, Parquet"):
        read(tmp_path / "nowhere.jsonl")
    (tmp_path / "binary.dat").write_bytes(b"abc\0def")
    with pytest.raises(DataError, match=r"binary.dat is a binary file"):
        read(tmp_path / "binary.dat")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.jsonl is not UTF-8 text \(byte 12\)"):
        read(tmp_path / "latin.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"a.parquet is not a readable Parquet file"):
        read(tmp_path / "a.parquet")


def elements(path: Path) -> Iterator[Any]:
    return (value for _, value in json_stream.read_json_objects(path))


@given(
    values=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=6,
    ),
    indent=st.sampled_from([None, 0, 2]),
    size=st.integers(1, 20),
)
def test_arrays_are_read_whatever_the_buffer(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, size: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(values, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "BUFFER_CHARS", size)
        assert list(elements(path)) == values
