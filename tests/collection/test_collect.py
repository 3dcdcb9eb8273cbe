"""A whole collection: what is in the file, what happens when it is interrupted, repeated, changed, or impossible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from nptool.checkpoints import load_model, load_tokenizer, save_model
from nptool.collection import collect as collect_module
from nptool.collection.collect import collect
from nptool.collection.config import CollectConfig, run_defaults
from nptool.collection.dry_run import dry_run
from nptool.collection.journal import Journal, parts_folder
from nptool.collection.store import Trajectory, read_collected
from nptool.collection.trajectories import UNFINISHED
from nptool.data.records import read_records
from nptool.data.rendering import render
from nptool.decoding.loop.sampling import Sampling
from nptool.errors import CheckpointError, ContextError, DataError, UsageError


@pytest.fixture
def config(checkpoint: Path, questions: Path, tmp_path: Path) -> CollectConfig:
    """Blocks of 6, at most 24 new tokens, everything kept."""
    return CollectConfig(
        model=str(checkpoint),
        data=(questions,),
        output=tmp_path / "out" / "collected.parquet",
        n=6,
        max_new_tokens=24,
        keep_degenerate=True,
    )


def rows_of(config: CollectConfig) -> list[list[Any]]:
    return [to_lists(row) for row in read_collected(config.output).rows()]


def to_lists(row: Trajectory) -> list[Any]:
    reference = None if row.reference_ids is None else row.reference_ids.tolist()
    return [row.prompt_ids.tolist(), row.response_ids.tolist(), reference, [block.tolist() for block in row.states]]


class InterruptAfter:
    """A progress that is interrupted, as by Ctrl-C, after so many prompts."""

    def __init__(self, prompts: int) -> None:
        self.left = prompts

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_rows_are_prompts_and_greedy_responses(config: CollectConfig) -> None:
    result = collect(config)
    assert (result.prompts, result.rows, result.dropped, result.done_before) == (150, 150, {}, 0)
    tokenizer, model = load_tokenizer(config.model), load_model(config.model)
    expected = [render(record, tokenizer) for record in read_records(config.data)]
    rows = rows_of(config)
    assert [row[0] for row in rows] == [rendered.prompt_ids for rendered in expected]
    assert [row[2] for row in rows] == [rendered.response_ids for rendered in expected]
    for prompt, response, _, states in rows[::50]:
        output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=0)
        assert response == output[0, len(prompt) :].tolist()
        assert [token for block in states for token in block[-1]][: len(response)] == response
    metadata = read_collected(config.output).metadata
    assert (metadata.n, metadata.seed, metadata.end_token_ids, metadata.vocab_size) == (6, 0, (1,), 260)
    assert metadata.template == tokenizer.chat_template
    assert result.stats.responses == 150
    assert result.stats.tokens == sum(len(row[1]) for row in rows)
    assert not parts_folder(config.output).exists()


def test_sampled_rows_depend_on_the_seed_alone(config: CollectConfig, tmp_path: Path) -> None:
    sampled = replace(config, temperature=1.0, limit=20)
    other_batch = replace(sampled, batch_size=3, output=tmp_path / "b.parquet")
    other_seed = replace(sampled, seed=1, output=tmp_path / "c.parquet")
    for each in (sampled, other_batch, other_seed):
        collect(each)
    assert rows_of(sampled) == rows_of(other_batch) != rows_of(other_seed)


def test_sampled_rows_are_what_decoding_gives(config: CollectConfig) -> None:
    """Response i with seed + i, token by token, without cache or batch."""
    config = replace(config, temperature=0.8, seed=5, limit=20)
    collect(config)
    model = load_model(config.model)
    for number, (prompt, response, *_) in enumerate(rows_of(config)):
        sampling = Sampling(0.8, top_k=0, top_p=1.0, min_p=0.0, seed=5 + number)
        ids = list(prompt)
        while len(ids) < len(prompt) + 24 and ids[-1] != 1:
            with torch.inference_mode():
                row = model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
            ids.append(sampling.pick(row, len(ids)))
        assert response == ids[len(prompt) :]


def test_a_complete_collection_of_an_older_version_stays(
    config: CollectConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is added to it, unless there are more prompts."""
    sampled = replace(config, temperature=0.8, limit=20)
    with monkeypatch.context() as patch:
        patch.setattr(collect_module, "SAMPLED_VERSION", 1)
        collect(sampled)
    assert collect(sampled).done_before == 20
    assert read_collected(config.output).metadata.version == 1
    with pytest.raises(UsageError, match=r"was collected with another version of nptool, whose sampling noise"):
        collect(replace(sampled, limit=30))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_sampled_parts_of_an_older_version_are_refused(config: CollectConfig, temperature: float) -> None:
    """They have other noise. Greedy parts have none, so they are continued."""
    config = replace(config, temperature=temperature)
    with pytest.raises(KeyboardInterrupt):
        collect(config, InterruptAfter(100))
    path = parts_folder(config.output) / "settings.json"
    stored = json.loads(path.read_text())
    assert stored["version"] == (2 if temperature else 1)
    path.write_text(json.dumps(stored | {"version": 1}))
    if temperature:
        with pytest.raises(UsageError, match=r"was collected with another version of nptool, whose sampling noise"):
            collect(config)
    else:
        assert collect(config).done_before == 100


def test_interrupted_collection_goes_on(config: CollectConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = replace(config, output=tmp_path / "whole.parquet")
    collect(whole)
    with pytest.raises(KeyboardInterrupt) as caught:
        collect(config, InterruptAfter(100))
    assert str(caught.value) == "interrupted with 100 of 150 prompts done; the same command continues from there"
    assert not config.output.exists()
    # Interrupted while a part was written: rows without their counts are ignored.
    (parts_folder(config.output) / "part-000000149.parquet").write_bytes(b"PAR1")
    evaluated: list[int] = []
    original = collect_module.jacobi_trajectories

    def counting(*arguments: Any) -> Any:
        for run in original(*arguments):
            evaluated.append(run.prompt.key)
            yield run

    monkeypatch.setattr(collect_module, "jacobi_trajectories", counting)
    result = collect(config)
    assert (result.done_before, len(evaluated), len(set(evaluated))) == (100, 50, 50)
    assert rows_of(config) == rows_of(whole)
    assert replace(result.stats) == collect(whole).stats
    assert not parts_folder(config.output).exists()


@pytest.mark.parametrize("ending", [".parquet", ".json"])
def test_a_damaged_part_is_collected_again(
    config: CollectConfig, tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = replace(config, output=tmp_path / "whole.parquet")
    collect(whole)
    with pytest.raises(KeyboardInterrupt):
        collect(config, InterruptAfter(100))
    parts = sorted(parts_folder(config.output).glob(f"part-*{ending}"))
    parts[0].write_bytes(parts[0].read_bytes()[:50])
    result = collect(config)
    assert 0 < result.done_before < 100
    (record,) = caplog.records
    assert record.getMessage().startswith(f"a part of {config.output} is collected again: {parts[0]} is not ")
    assert rows_of(config) == rows_of(whole)
    assert not parts_folder(config.output).exists()


def test_a_part_with_a_damaged_page_is_named(config: CollectConfig, tmp_path: Path) -> None:
    whole = replace(config, output=tmp_path / "whole.parquet")
    collect(whole)
    with pytest.raises(KeyboardInterrupt):
        collect(config, InterruptAfter(100))
    part = min(parts_folder(config.output).glob("part-*.parquet"))
    content = part.read_bytes()
    part.write_bytes(content[:4] + bytes(200) + content[204:])
    with pytest.raises(DataError) as caught:
        collect(config)
    assert str(caught.value).startswith(f"{part} is damaged (")
    assert str(caught.value).endswith("); remove it, and the same command collects its prompts again")
    part.unlink()
    collect(config)
    assert rows_of(config) == rows_of(whole)


def test_a_part_that_another_one_covers_is_left_out(
    config: CollectConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A part could not be read for a while, and was collected again together with the next one."""
    small = replace(config, limit=12)
    whole = replace(small, output=tmp_path / "whole.parquet")
    collect(whole)

    def interrupted(journal: Journal) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "merge", interrupted)
        with monkeypatch.context() as one_by_one:
            one_by_one.setattr(collect_module, "KEEP_SECONDS", -1.0)
            with pytest.raises(KeyboardInterrupt):
                collect(small)
        first, second = (parts_folder(small.output) / f"part-00000000{number}.parquet" for number in range(2))
        readable = second.read_bytes()
        first.write_bytes(b"")
        second.write_bytes(b"")
        with pytest.raises(KeyboardInterrupt):
            collect(small)
    assert json.loads(first.with_suffix(".json").read_text())["prompts"] == 2
    assert len(caplog.records) == 2
    second.write_bytes(readable)
    collect(small)
    assert rows_of(small) == rows_of(whole)
    assert len(caplog.records) == 2


def test_parts_that_an_interrupted_merge_left_are_ignored(
    config: CollectConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        collect(config, InterruptAfter(100))
    copytree(parts_folder(config.output), tmp_path / "parts")
    collect(config)
    rows = rows_of(config)
    copytree(tmp_path / "parts", parts_folder(config.output))
    for path in parts_folder(config.output).glob("*.parquet"):
        path.unlink()
    assert collect(config).done_before == 150
    assert rows_of(config) == rows
    assert not caplog.records


def test_responses_that_take_long_are_kept_one_by_one(
    config: CollectConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = replace(config, limit=12)
    collect(replace(small, output=tmp_path / "whole.parquet"))
    kept: list[range] = []
    original = Journal.add

    def add(self: Journal, stretch: range, *arguments: Any) -> None:
        kept.append(stretch)
        original(self, stretch, *arguments)

    monkeypatch.setattr(Journal, "add", add)
    monkeypatch.setattr(collect_module, "KEEP_SECONDS", -1.0)
    result = collect(small)
    assert sorted(key for stretch in kept for key in stretch) == list(range(12))
    assert len(kept) == 12
    assert rows_of(small) == rows_of(replace(small, output=tmp_path / "whole.parquet"))
    assert result.stats.responses == 12


def test_finished_collection_is_not_repeated_but_extended(config: CollectConfig, tmp_path: Path) -> None:
    small = replace(config, limit=70)
    first = collect(small)
    assert first.prompts == 70
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_module, "jacobi_trajectories", lambda *_: pytest.fail("nothing is left to do"))
        again = collect(small)
    assert (again.prompts, again.rows, again.stats, again.done_before) == (70, 70, first.stats, 70)
    extended = collect(config)
    assert (extended.prompts, extended.done_before) == (150, 70)
    whole = replace(config, output=tmp_path / "whole.parquet")
    assert collect(whole).stats == extended.stats
    assert rows_of(whole) == rows_of(config)
    with pytest.raises(UsageError, match="holds the responses to 150 prompts, now there are 70"):
        collect(small)


OTHER_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"n": 8}, "was collected with -n 6, now it is 8; choose another -o, or start over with --overwrite"),
    ({"temperature": 0.5}, "was collected with --temperature 0.0, now it is 0.5"),
    ({"seed": 2}, "was collected with --seed 0, now it is 2"),
    ({"max_new_tokens": 30}, "was collected with --max-new-tokens 24, now it is 30"),
    ({"augment": True}, "was collected with --augment False, now it is True"),
    ({"chat": False}, "was collected with another chat template"),
]


def test_other_settings_are_refused_by_name(config: CollectConfig) -> None:
    config = replace(config, limit=80)
    with pytest.raises(KeyboardInterrupt):
        collect(config, InterruptAfter(75))
    for change, message in OTHER_SETTINGS:
        with pytest.raises(UsageError, match=message):
            collect(replace(config, **change))
    collect(config)
    for change, message in OTHER_SETTINGS:
        with pytest.raises(UsageError, match=message):
            collect(replace(config, **change))
    assert collect(replace(config, n=8, overwrite=True)).done_before == 0
    assert read_collected(config.output).metadata.n == 8


def test_an_interrupted_overwrite_says_how_to_go_on(config: CollectConfig) -> None:
    config = replace(config, limit=80)
    collect(config)
    again = replace(config, n=8, overwrite=True)
    with pytest.raises(KeyboardInterrupt, match="the same command without --overwrite continues from there"):
        collect(again, InterruptAfter(75))
    assert collect(replace(again, overwrite=False)).done_before > 0
    assert read_collected(config.output).metadata.n == 8
    assert collect(again).done_before == 0


def test_another_model_is_refused(config: CollectConfig, tmp_path: Path) -> None:
    config = replace(config, limit=5)
    collect(config)
    model, tokenizer = load_model(config.model), load_tokenizer(config.model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 1e-4
    save_model(model, tokenizer, tmp_path / "trained")
    for other in ({"model": str(tmp_path / "trained")}, {"precision": "bfloat16"}):
        with pytest.raises(UsageError, match=r"was collected with another model \(its weights or --precision differ\)"):
            collect(replace(config, **other))


def test_other_data_and_other_files_are_refused(config: CollectConfig, questions: Path) -> None:
    config = replace(config, limit=10)
    collect(config)
    questions.write_text("\n".join(reversed(questions.read_text().splitlines())))
    with pytest.raises(UsageError, match="was collected from other prompts than --data now has"):
        collect(config)
    config.output.write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="exists and was not written by `nptool collect`; choose another -o"):
            collect(replace(config, overwrite=overwrite))
    assert config.output.read_bytes() == b"mine"


def test_degenerate_responses_are_dropped_and_counted(config: CollectConfig) -> None:
    result = collect(replace(config, keep_degenerate=False))
    rows = rows_of(config)
    assert result.rows == len(rows) == 150 - sum(result.dropped.values())
    assert 0 < result.rows < 150
    assert result.dropped[UNFINISHED] > 0
    assert all(row[1][-1] == 1 for row in rows)
    assert result.stats.responses == result.rows


def test_nothing_kept_is_an_error(config: CollectConfig) -> None:
    config = replace(config, keep_degenerate=False, max_new_tokens=1, limit=5)
    with pytest.raises(DataError, match="no response could be kept of 5: 5 no end within the limit; raise --max-new-"):
        collect(config)
    assert not config.output.exists()
    # The next attempt may have another limit.
    assert collect(replace(config, max_new_tokens=24, keep_degenerate=True)).rows == 5


def test_plain_text_is_cut_into_prompts(config: CollectConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(chr(97 + index % 26) for index in range(100)))
    (tmp_path / "b.txt").write_text("short")
    text = replace(
        config,
        data=(tmp_path / "a.txt", tmp_path / "b.txt"),
        keep_degenerate=False,
        text_prompt_tokens=10,
        max_new_tokens=20,
        output=tmp_path / "text.parquet",
    )
    result = collect(text)
    tokenizer = load_tokenizer(config.model)
    rows = rows_of(text)
    assert [tokenizer.decode(row[0]) for row in rows][:2] == ["abcdefghij", "efghijklmn"]
    assert tokenizer.decode(rows[0][2]) == "klmnopqrstuvwxyzabcd"
    assert result.left_out == {"empty, or text shorter than --text-prompt-tokens": 1}


def test_prompts_of_an_earlier_collection(config: CollectConfig, tmp_path: Path) -> None:
    first = replace(config, limit=12)
    collect(first)
    second = replace(config, data=(first.output,), n=4, output=tmp_path / "second.parquet")
    assert collect(second).rows == 12
    assert [row[:3] for row in rows_of(second)] == [row[:3] for row in rows_of(first)]


def test_held_out_prompts_of_the_run_stay_out(config: CollectConfig, tmp_path: Path, checkpoint: Path) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"config": {"data": [str(config.data[0])], "prompt_field": None}}))
    copytree(checkpoint, run / "model")
    (run / "heldout.jsonl").write_text('{"prompt": "What is 3?", "response": "x"}\n{"prompt": "What is 5?"}\n')
    dry = dry_run(replace(config, model=str(run / "model")))
    assert (dry["prompts"], dry["left_out"]) == (148, {"held out for testing": 2})
    assert dry_run(replace(config, model=str(run / "model"), exclude=()))["prompts"] == 150
    assert run_defaults({"model": str(run / "model")}) == {"data": config.data, "output": run / "collected.parquet"}


def test_dry_run(config: CollectConfig) -> None:
    estimate = dry_run(config)
    model = load_model(config.model)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    assert estimate["parameters"] == parameters
    assert estimate["memory"]["weights"] == 4 * parameters
    assert estimate["most_new_tokens"] == 150 * 24
    assert estimate["config"]["n"] == 6
    assert not config.output.parent.exists()


def test_a_prompt_longer_than_the_context(config: CollectConfig, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    lines = [{"prompt": "short"}, {"prompt": "x" * 95}, {"prompt": "x" * 120}]
    data.write_text("\n".join(map(json.dumps, lines)))
    config = replace(config, data=(data,))
    with pytest.raises(ContextError, match=r"long.jsonl:3: the prompt has 123 tokens, .* context of 128; .* 122$"):
        collect(config)
    result = collect(replace(config, max_prompt_tokens=122))
    assert (result.rows, result.left_out) == (2, {"prompt too long": 1})
    # The second prompt has 98 tokens, so 30 fit the context: the limit of 24 holds here, whole blocks below.
    assert all(len(row[1]) <= 24 for row in rows_of(config))
    near = replace(config, max_prompt_tokens=122, max_new_tokens=64, output=tmp_path / "near.parquet")
    collect(near)
    assert len(rows_of(near)[1][1]) == 30


def test_bad_input_is_one_line(config: CollectConfig, tmp_path: Path) -> None:
    def message(error: type[Exception], **change: Any) -> str:
        with pytest.raises(error) as caught:
            collect(replace(config, **change))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "nowhere.jsonl does not exist" in message(DataError, data=(tmp_path / "nowhere.jsonl",))
    empty, broken = tmp_path / "empty.jsonl", tmp_path / "broken.jsonl"
    empty.write_text("")
    broken.write_text('{"prompt": "a"}\n{"prompt"')
    assert "the data set is empty" in message(DataError, data=(empty,))
    assert "broken.jsonl:2: malformed JSON" in message(DataError, data=(broken,))
    assert "does not exist" in message(CheckpointError, model=str(tmp_path / "no" / "such" / "model"))
    assert "--data is missing" in message(UsageError, data=())
    assert "-n is 0; a block has at least 2 tokens" in message(UsageError, n=0)
    assert "--seed is -1" in message(UsageError, seed=-1)
    assert "no CUDA GPU" in message(UsageError, device="cuda")


def test_pickles_and_missing_shards_are_refused(config: CollectConfig, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("pickle", "shard", "vocabulary"):
        copytree(checkpoint, tmp_path / name)
    weights = tmp_path / "pickle" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin, a pickle"):
        collect(replace(config, model=str(tmp_path / "pickle")))
    (tmp_path / "shard" / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "shard" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks the shard model-00002-of-00002.safetensors"):
        collect(replace(config, model=str(tmp_path / "shard")))
    path = tmp_path / "vocabulary" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 200}))
    with pytest.raises(CheckpointError, match="the tokenizer has 260 tokens, the model's embedding 200"):
        collect(replace(config, model=str(tmp_path / "vocabulary")))
