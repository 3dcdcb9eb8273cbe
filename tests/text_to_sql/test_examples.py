"""Examples: determinism, disjoint splits, sensible gold queries, lengths, records."""

import json
import re
import statistics
import subprocess
import sys
from contextlib import closing

import pytest

from nptool.errors import DataError
from nptool.text_to_sql import TASK, Example, Split, generate_examples
from nptool.text_to_sql.database import open_database, run_query
from nptool.text_to_sql.examples import split_of

SPLITS: tuple[Split, Split] = ("train", "heldout")


@pytest.fixture(scope="module")
def examples() -> dict[str, list[Example]]:
    return {split: generate_examples(split, 1_500, seed=0) for split in SPLITS}


def _question(example: Example) -> str:
    return example.prompt.splitlines()[-1]


def _tokens(text: str) -> int:
    """Approximate number of tokens of a byte-level BPE trained on this task."""
    return len(re.findall(r"[A-Za-z]+|\d+|\n|[^\sA-Za-z\d]+", text))


def test_same_arguments_same_examples(examples: dict[str, list[Example]]) -> None:
    assert generate_examples("train", 50, seed=0) == examples["train"][:50]
    assert generate_examples("heldout", 50, seed=0) == examples["heldout"][:50]
    assert generate_examples("train", 50, seed=1) != examples["train"][:50]


def test_examples_do_not_depend_on_the_hash_seed(examples: dict[str, list[Example]]) -> None:
    code = "from nptool.text_to_sql import generate_examples as g; print(g('heldout', 3, 0)[2].prompt)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", code]
        run = subprocess.run(
            command, env=environment | {"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert run.stdout.rstrip("\n") == examples["heldout"][2].prompt


def test_splits_share_no_schema_and_no_question(examples: dict[str, list[Example]]) -> None:
    for part in (lambda e: e.schema.signature, _question, lambda e: e.schema.text, lambda e: e.prompt):
        train, heldout = ({part(example) for example in examples[split]} for split in SPLITS)
        assert train.isdisjoint(heldout)
    for split in SPLITS:
        assert all(split_of(example.schema.signature) == split for example in examples[split])
        assert all(split_of(_question(example)) == split for example in examples[split])


def test_both_splits_use_the_same_words(examples: dict[str, list[Example]]) -> None:
    known = {word for example in examples["train"] for word in re.findall(r"[A-Za-z]+", example.prompt)}
    for example in examples["heldout"]:
        assert set(re.findall(r"\b[a-z]+\b", example.prompt)) <= known


def test_no_prompt_comes_twice(examples: dict[str, list[Example]]) -> None:
    for split in SPLITS:
        assert len({example.prompt for example in examples[split]}) == len(examples[split])


def test_a_prompt_is_the_schema_and_one_question(examples: dict[str, list[Example]]) -> None:
    for example in examples["train"]:
        assert example.prompt == f"{example.schema.text}\n{_question(example)}"


def test_every_gold_query_gives_something(examples: dict[str, list[Example]]) -> None:
    for split in SPLITS:
        for example in examples[split]:
            with closing(open_database(example.schema, example.schema.rows(example.data_seed))) as connection:
                assert any(any(row) for row in run_query(connection, example.response))


def test_lengths_suit_a_small_model(examples: dict[str, list[Example]]) -> None:
    for split in SPLITS:
        answers = [_tokens(example.response) for example in examples[split]]
        prompts = [_tokens(example.prompt) for example in examples[split]]
        assert min(answers) >= 20
        assert max(answers) <= 120
        assert 30 <= statistics.mean(answers) <= 45
        assert 50 <= statistics.mean(prompts) <= 80
        assert max(prompts) <= 130


def test_a_record_survives_json(examples: dict[str, list[Example]]) -> None:
    for example in examples["heldout"][:200]:
        record = json.loads(json.dumps(example.to_record()))
        assert set(record) == {"prompt", "response", "task", "schema", "data_seed"}
        assert record["task"] == TASK
        read = Example.from_record(record)
        assert read == example
        assert read.schema.rows(read.data_seed) == example.schema.rows(example.data_seed)


@pytest.mark.parametrize(
    "change",
    [{"task": "gsm8k"}, {"schema": None}, {"schema": {"tables": [{"name": "x", "columns": []}]}}, {"data_seed": "x"}],
)
def test_a_malformed_record_is_a_data_error(examples: dict[str, list[Example]], change: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Example.from_record(examples["train"][0].to_record() | change)


@pytest.mark.parametrize("field", ["prompt", "response", "schema", "data_seed", "task"])
def test_an_incomplete_record_is_a_data_error(examples: dict[str, list[Example]], field: str) -> None:
    record = examples["train"][0].to_record()
    del record[field]
    with pytest.raises(DataError):
        Example.from_record(record)
