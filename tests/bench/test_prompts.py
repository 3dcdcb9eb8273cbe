"""Prompts of a comparison."""

import json
from pathlib import Path

import pytest

from nptool.bench.prompts import find_prompts, read_prompts
from nptool.data.record import Message
from nptool.errors import DataError
from nptool.text_to_sql import generate_examples


def test_a_conversation_is_asked_up_to_its_last_answer(tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"))]
    lines = [{"messages": turns}, {"prompt": "c", "response": "d"}, {"question": "e", "answer": "f"}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    prompts = read_prompts(file, 2)
    assert [prompt.turns for prompt in prompts] == [(Message("user", "a"),), (Message("user", "c"),)]
    assert [prompt.source for prompt in prompts] == [f"{file}:1", f"{file}:2"]
    assert not any(prompt.raw or prompt.example for prompt in prompts)


def test_a_text_is_continued_from_its_first_half_without_template(tmp_path: Path) -> None:
    file = tmp_path / "poem.txt"
    file.write_text("0123456789")
    (prompt,) = read_prompts(file, 5)
    assert prompt.raw
    assert prompt.turns == (Message("user", "01234"),)


def test_text_to_sql_prompts_carry_their_example(tmp_path: Path) -> None:
    examples = generate_examples("heldout", 2, seed=0)
    file = tmp_path / "heldout.jsonl"
    file.write_text("\n\n".join(json.dumps(example.to_record()) for example in examples))
    prompts = read_prompts(file, 20)
    assert [prompt.example for prompt in prompts] == examples
    assert [prompt.turns[0].content for prompt in prompts] == [example.prompt for example in examples]


def test_a_damaged_example_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "heldout.jsonl"
    file.write_text(json.dumps({"task": "text-to-sql", "prompt": "a", "response": "b"}))
    with pytest.raises(DataError, match=r"heldout\.jsonl:1: malformed text-to-sql record"):
        read_prompts(file, 1)


def test_the_runs_held_out_split_is_found(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    with pytest.raises(DataError, match=r"model\.gguf has no held-out prompts beside it; name a file with --prompts"):
        find_prompts(model)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="no held-out prompts"):
        find_prompts(model)
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "a"}')
    assert find_prompts(model) == (tmp_path / "heldout.jsonl").resolve()
