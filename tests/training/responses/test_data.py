"""What is accepted as data, and what is said about the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nptool.checkpoints import load_config, load_tokenizer
from nptool.collection.store import Trajectory, read_collected, write_collected
from nptool.errors import CheckpointError, DataError, NptoolError, UsageError
from nptool.runs import Run
from nptool.training.base.tokenizer import train_tokenizer
from nptool.training.cllm.config import CllmConfig
from nptool.training.responses.data import (
    Source,
    check_match,
    data_digest,
    find_source,
    keep_heldout,
    load_trajectories,
    position_limit,
)

Make = Callable[..., Trajectory]


def message(error: type[NptoolError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}", "response": "b"}) + "\n" for i in range(60)))
    return path


def test_the_model_is_the_one_of_the_trajectories_unless_named(collected: Path, checkpoint: Path) -> None:
    assert find_source(CllmConfig(data=(collected,))) == Source(str(checkpoint), collected)
    assert find_source(CllmConfig(data=(collected,), model="other")).model == "other"


def test_prompts_need_a_model(prompts: Path) -> None:
    assert find_source(CllmConfig(data=(prompts,), model="m")) == Source("m", None)
    text = message(UsageError, lambda: find_source(CllmConfig(data=(prompts,))))
    assert text == "-m is missing; name the model to train, which first answers the prompts in --data"


def test_damaged_trajectories_are_not_taken_for_prompts_that_need_a_model(collected: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(collected.read_bytes()[:-10])
    text = message(DataError, lambda: find_source(CllmConfig(data=(cut,))))
    assert text.startswith(f"{cut} is not a readable Parquet file: ")


def test_prompts_are_not_collected_by_several_processes(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = message(UsageError, lambda: find_source(CllmConfig(data=(prompts,), model="m")))
    assert text == "--data holds prompts; with several processes, run `nptool collect` first"


def test_data_that_cannot_be_meant(collected: Path, prompts: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.parquet"
    text = message(DataError, lambda: find_source(CllmConfig(data=(gone,))))
    assert text == f"{gone} does not exist; expected a file of `nptool collect`, or prompts"
    text = message(UsageError, lambda: find_source(CllmConfig(data=(prompts, collected))))
    assert text == f"--data holds {collected}, a file of `nptool collect`, and others; give that one alone"
    text = message(UsageError, lambda: find_source(CllmConfig(data=(collected,), n=16)))
    assert text == f"-n is 16, but {collected} was collected with 4; leave -n out"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"data": ()}, "--data is missing; name a file of `nptool collect`, or files of prompts"),
        ({"n": 1}, "-n is 1; a block has at least 2 tokens"),
        ({"lora_rank": 0}, "--lora-rank is 0; it must be at least 1"),
        ({"heldout": 1.0}, "--heldout is 1.0; it must be at least 0 and below 1"),
        ({"steps": 3, "epochs": 1.0}, "--steps and --epochs exclude each other; give one of them"),
        ({"window": 0}, "--window is 0; it must be at least 1"),
        ({"name": "a/b"}, "--name is 'a/b'; it must be the name of a directory in runs/, without slashes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], text: str) -> None:
    assert message(UsageError, lambda: CllmConfig(**{"data": (Path("x"),), **options})) == text


def test_the_learning_rate_follows_what_is_trained() -> None:
    config = CllmConfig(data=(Path("x"),))
    assert config.learning_rate == 2e-5
    assert replace(config, lora_rank=4).learning_rate == 2e-4
    assert replace(config, lora_rank=4, lr=1e-3).learning_rate == 1e-3


def test_a_vocabulary_of_another_size_is_refused(collected: Path, checkpoint: Path) -> None:
    metadata = replace(read_collected(collected).metadata, vocab_size=300)
    described, tokenizer = load_config(checkpoint), load_tokenizer(checkpoint)
    text = message(CheckpointError, lambda: check_match(metadata, collected, described, tokenizer, "other"))
    assert text == (
        f"{collected} was collected from {checkpoint}, whose vocabulary has 300 tokens; other has 262; "
        "collect again with `nptool collect -m other`"
    )


def test_a_tokenizer_with_other_tokens_is_refused(collected: Path, checkpoint: Path) -> None:
    metadata, described = read_collected(collected).metadata, load_config(checkpoint)
    other = train_tokenizer(["other other words words"], 264)
    text = message(CheckpointError, lambda: check_match(metadata, collected, described, other, "other"))
    assert text == (
        f"{collected} was collected from {checkpoint}, whose tokenizer has other tokens than other's; "
        "collect again with `nptool collect -m other`"
    )


def write(collected: Path, path: Path, rows: list[Trajectory]) -> Path:
    write_collected(path, read_collected(collected).metadata, rows)
    return path


def test_long_trajectories_are_left_out_and_counted(collected: Path, make_trajectory: Make, tmp_path: Path) -> None:
    rows = [make_trajectory(0, 5, 9), make_trajectory(1, 5, 30), make_trajectory(2, 6, 9)]
    path = write(collected, tmp_path / "rows.parquet", rows)
    kept = load_trajectories(read_collected(path), 14, references=False)
    assert [row.prompt_ids.tolist() for row in kept.rows] == [rows[0].prompt_ids.tolist()]
    assert kept.left_out == 2
    # References are two tokens longer than responses.
    text = message(DataError, lambda: load_trajectories(read_collected(path), 14, references=True))
    assert text == f"nothing to train on in {path}: all 3 rows are longer than 14 tokens"


def test_an_empty_file_is_said_to_be_empty(collected: Path, tmp_path: Path) -> None:
    path = write(collected, tmp_path / "empty.parquet", [])
    text = message(DataError, lambda: load_trajectories(read_collected(path), None, references=False))
    assert text == f"nothing to train on in {path}: no rows"


def test_damaged_rows_are_named(collected: Path, make_trajectory: Make, tmp_path: Path) -> None:
    good = make_trajectory(0)
    for index, (bad, complaint) in enumerate(
        (
            (replace(good, response_ids=good.response_ids[::-1].copy()), "the fixed points do not spell the response"),
            (replace(good, states=good.states[:-1]), "the fixed points do not spell the response"),
            (replace(good, prompt_ids=good.prompt_ids[:0]), "an empty prompt or response"),
            (replace(good, prompt_ids=np.array([300], np.int32)), "token 300 in a vocabulary of 262"),
        )
    ):
        path = write(collected, tmp_path / f"{index}.parquet", [good, bad])
        text = message(DataError, lambda path=path: load_trajectories(read_collected(path), None, references=False))
        assert text == f"{path}, row 2: {complaint}; collect again"


def test_a_missing_reference_is_named(collected: Path, make_trajectory: Make, tmp_path: Path) -> None:
    path = write(collected, tmp_path / "rows.parquet", [replace(make_trajectory(0), reference_ids=None)])
    assert len(load_trajectories(read_collected(path), None, references=False).rows) == 1
    text = message(DataError, lambda: load_trajectories(read_collected(path), None, references=True))
    assert text == f"{path}, row 1: no reference answer for --ar-target reference; use --ar-target response"


def test_a_sliding_window_limits_the_length(checkpoint: Path) -> None:
    described = load_config(checkpoint)
    config = CllmConfig(data=(Path("x"),))
    assert position_limit(described, config) == 512
    described.sliding_window = 64
    assert position_limit(described, config) == 64
    assert position_limit(described, replace(config, max_length=20)) == 20


def test_held_out_prompts_come_from_the_model_s_run(collected: Path, checkpoint: Path, tmp_path: Path) -> None:
    base, run = Run(checkpoint.parent), Run(tmp_path / "run")
    run.path.mkdir()
    base.config.write_text("{}")
    base.heldout.write_text('{"prompt": "kept", "response": "x"}\n')
    try:
        keep_heldout(CllmConfig(data=(collected,)), Source(str(checkpoint), collected), run)
    finally:
        base.config.unlink()
        base.heldout.unlink()
    assert run.heldout.read_text() == '{"prompt": "kept", "response": "x"}\n'


def test_prompts_without_a_run_are_split_by_their_hash(prompts: Path, tmp_path: Path) -> None:
    config, run = CllmConfig(data=(prompts,), model="m", heldout=0.2), Run(tmp_path / "run")
    run.path.mkdir()
    keep_heldout(config, Source("m", None), run)
    kept = run.heldout.read_text().splitlines()
    assert 4 <= len(kept) <= 20
    # More data moves no prompt from one side to the other.
    prompts.write_text(prompts.read_text() + '{"prompt": "one more", "response": "x"}\n')
    run.heldout.unlink()
    keep_heldout(config, Source("m", None), run)
    assert run.heldout.read_text().splitlines()[: len(kept)] == kept


def test_too_little_data_for_a_held_out_share(tmp_path: Path) -> None:
    path, run = tmp_path / "one.jsonl", Run(tmp_path / "run")
    path.write_text('{"prompt": "a", "response": "b"}\n')
    run.path.mkdir()
    config = CllmConfig(data=(path,), model="m")
    text = message(DataError, lambda: keep_heldout(config, Source("m", None), run))
    assert text == f"{path} holds 1 record, too few to hold out 5% of them; give more data, or --heldout 0"
    assert not run.heldout.exists()


def test_trajectories_alone_hold_nothing_out(collected: Path, checkpoint: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    keep_heldout(CllmConfig(data=(collected,)), Source(str(checkpoint), collected), run)
    assert not run.heldout.exists()


def test_the_digest_is_of_the_contents(prompts: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(prompts.read_bytes())
    assert data_digest((prompts,)) == data_digest((copy,))
    copy.write_text("other\n")
    assert data_digest((prompts,)) != data_digest((copy,))
    assert data_digest((prompts, copy)) != data_digest((copy, prompts))
