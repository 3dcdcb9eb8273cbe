"""The split of the data: stable, without copies on both sides, and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nptool.data.record import Message, Record
from nptool.data.records import read_records
from nptool.errors import DataError
from nptool.training.base.config import BaseConfig
from nptool.training.base.corpus import load_corpus
from nptool.training.units import (
    FEW_TEXTS,
    PIECE_CHARS,
    PROMPT_CHARS,
    RESPONSE_CHARS,
    Unit,
    cut_texts,
    split_units,
    write_heldout,
)

TINY = Callable[..., BaseConfig]


def pairs(count: int) -> list[Unit]:
    return [Unit(Record(prompt=f"question {number}", response=f"answer {number}")) for number in range(count)]


def test_the_share_is_about_what_was_asked() -> None:
    train, heldout = split_units(pairs(2000), 0.1)
    assert len(train) + len(heldout) == 2000
    assert 160 < len(heldout) < 240


def test_a_record_stays_on_its_side_when_data_is_added() -> None:
    _, few = split_units(pairs(500), 0.1)
    _, many = split_units(pairs(1000), 0.1)
    assert set(few) == {unit for unit in many if unit in set(pairs(500))}


def test_one_question_is_never_on_both_sides() -> None:
    units = pairs(200) + [Unit(Record(prompt=f"question {number}", response="another")) for number in range(200)]
    train, heldout = split_units(units, 0.2)
    assert not {unit.record.prompt for unit in train} & {unit.record.prompt for unit in heldout}


def test_few_records_still_have_one_held_out() -> None:
    for count in range(2, 12):
        train, heldout = split_units(pairs(count), 1e-9)
        assert (len(train), len(heldout)) == (count - 1, 1)


def test_nothing_is_held_out_when_nothing_was_asked() -> None:
    assert split_units(pairs(9), 0.0) == (pairs(9), [])


def test_few_texts_are_cut_at_line_ends_and_nothing_is_lost() -> None:
    text = "".join(f"line {number} of a text\n" for number in range(1000))
    units = cut_texts([Record(text=text, source="a.txt"), Record(text="short")])
    assert "".join(unit.record.text or "" for unit in units[:-1]) == text
    assert all(len(unit.record.text or "") <= PIECE_CHARS for unit in units)
    assert all((unit.record.text or "").endswith("\n") for unit in units[:-1])
    assert [unit.opens for unit in units[:-1]] == [True] + [False] * (len(units) - 2)
    assert [unit.closes for unit in units[:-1]] == [False] * (len(units) - 2) + [True]
    assert units[-1] == Unit(Record(text="short"))


def test_a_text_without_lines_is_cut_too() -> None:
    units = cut_texts([Record(text="x" * (2 * PIECE_CHARS + 1))])
    assert [len(unit.record.text or "") for unit in units] == [PIECE_CHARS, PIECE_CHARS, 1]


def test_many_texts_stay_whole() -> None:
    texts = [Record(text=f"{number} " * PIECE_CHARS) for number in range(FEW_TEXTS)]
    assert cut_texts(texts) == [Unit(text) for text in texts]


def test_held_out_records_can_be_read_again(tmp_path: Path) -> None:
    talk = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    text = "".join(f"line {number}\n" for number in range(300))
    units = [Unit(Record(prompt="é", response="ü")), Unit(Record(messages=talk)), Unit(Record(text=text))]
    path = tmp_path / "heldout.jsonl"
    write_heldout(units, path)
    pair, conversation, *pieces = read_records(path)
    assert (pair.prompt, pair.response) == ("é", "ü")
    assert conversation.messages == talk
    assert len(pieces) == 2
    assert text.startswith("".join((piece.prompt or "") + (piece.response or "") for piece in pieces))
    assert all(len(piece.prompt or "") <= PROMPT_CHARS for piece in pieces)
    assert all(len((piece.prompt or "") + (piece.response or "")) <= PROMPT_CHARS + RESPONSE_CHARS for piece in pieces)


def test_a_prompt_ends_before_the_white_space(tmp_path: Path) -> None:
    path = tmp_path / "heldout.jsonl"
    write_heldout([Unit(Record(text="a line\n\n" * 60))], path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line["prompt"] == line["prompt"].rstrip() for line in lines)
    assert all(line["response"].startswith("\n") for line in lines)


def test_a_directory_of_sources(tiny: TINY, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    for number in range(50):
        (folder / "deep" / f"module_{number}.py").write_text(f"value = {number}\n" * 10)
    (folder / "image.png").write_bytes(b"\x89PNG\0\0")
    corpus = load_corpus(tiny(data=(folder,)))
    assert len(corpus.train) + len(corpus.heldout) == 50
    assert not corpus.has_conversations


def test_held_out_data_of_its_own(tiny: TINY, records_file: Path) -> None:
    other = records_file.with_name("other.jsonl")
    other.write_text('{"prompt": "p", "response": "r"}\n')
    corpus = load_corpus(tiny(heldout_data=other))
    assert len(corpus.train) == 60
    assert [unit.record.prompt for unit in corpus.heldout] == ["p"]
    assert corpus.has_conversations


def test_too_little_to_split(tiny: TINY) -> None:
    Path("one.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    with pytest.raises(DataError) as error:
        load_corpus(tiny(data=(Path("one.jsonl"),)))
    assert str(error.value) == (
        "one.jsonl holds 1 record, too few to hold out 10% of them; give more data, or --heldout 0"
    )
    assert len(load_corpus(tiny(data=(Path("one.jsonl"),), heldout=0.0)).train) == 1


def test_the_digest_tells_data_apart(tiny: TINY, records_file: Path) -> None:
    before = load_corpus(tiny()).train_digest
    assert load_corpus(tiny()).train_digest == before
    records_file.write_text(records_file.read_text().replace("cat", "dog"))
    assert load_corpus(tiny()).train_digest != before
