"""Heads in a finished GGUF: llama.cpp's decoding against training's simulated chain, and the figures in the file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from nptool.checkpoints import load_model, load_tokenizer
from nptool.cli.app import run
from nptool.collection.store import Trajectory
from nptool.convert.conversion import Conversion, convert
from nptool.decoding.expectations import first_gains
from nptool.decoding.proposers.methods import HEADS, METHODS
from nptool.errors import CheckpointError
from nptool.heads import SHARED
from nptool.heads_sample import (
    ACCEPTANCE_KEY,
    SAMPLE_FILE,
    TOKENS_PER_FORWARD_KEY,
    HeadsFigures,
    HeadsSample,
    figures_in,
    read_sample,
    write_sample,
)
from nptool.llama.gguf_check import read_header
from nptool.pipeline.heads_score import score_heads
from nptool.training.heads.batching import heads_batch, response_sequences
from nptool.training.heads.checkpoint import save_heads
from nptool.training.heads.losses import IGNORE
from nptool.training.heads.model import MultiHead, add_heads
from nptool.training.heads.sample import take_sample
from nptool.training.sequences import Sequences

COUNT, STEPS = 4, 25
TEXTS = ("the cat sat on the mat", "select all", "one two three", "12 + 30 = 42", "a dog ran", "x y z")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads on a random model with a sample of its own greedy answers."""
    # Without it the heads depend on the tests before, and may meet a near tie that llama.cpp decides otherwise.
    torch.manual_seed(0)
    plain, path = make_checkpoint(), tmp_path_factory.mktemp("heads") / "model"
    tokenizer, model = load_tokenizer(plain), load_model(plain)
    rows = []
    for length, text in enumerate(TEXTS, start=9):
        ids = tokenizer(text)["input_ids"]
        rows.append(Trajectory(np.array(ids, np.int32), _greedy(model, ids, length), None, ()))
    multi = add_heads(model, COUNT, SHARED, 2)
    _train_a_little(multi, response_sequences(rows))
    save_heads(multi, tokenizer, path, sample=take_sample(multi, response_sequences(rows), 512))
    return path


def _train_a_little(model: MultiHead, sequences: Sequences) -> None:
    """So that some drafts are right and some are not."""
    model.freeze_trunk()
    batch = heads_batch(sequences, range(len(TEXTS)), 0, COUNT)
    optimizer = torch.optim.Adam(model.extra.parameters(), 3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = model(**batch, counts_K=(batch["labels_NK"] != IGNORE).sum(0))
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def _greedy(model: Any, prompt: list[int], length: int) -> Any:
    ids = [*prompt]
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return np.array(ids[len(prompt) :], np.int32)


def converted(checkpoint: Path, path: Path, **options: Any) -> Conversion:
    return convert(checkpoint, path / "model.gguf", type_name="f32", score=score_heads, **options)


def changed(checkpoint: Path, path: Path, **changes: Any) -> tuple[Path, HeadsSample]:
    """A copy of the checkpoint whose sample has other values."""
    shutil.copytree(checkpoint, copy := path / "copy")
    sample = read_sample(checkpoint, COUNT)
    assert sample is not None
    write_sample(copy, sample := replace(sample, **changes))
    return copy, sample


PERFECT = HeadsFigures(float(COUNT), (1.0,) * (COUNT - 1))


def test_the_file_is_scored_as_training_scores_itself(checkpoint: Path, tmp_path: Path) -> None:
    done = converted(checkpoint, tmp_path, heads_type_name="f32")
    assert done.heads is not None
    score = done.heads.score
    assert score is not None
    assert 0.05 < score.trained.acceptance[0] < 0.95
    assert score.found == score.trained
    assert (score.prompts, score.warning) == (len(TEXTS), None)
    metadata = read_header(done.path).metadata
    found = figures_in(metadata)
    assert found is not None
    assert found.tokens_per_forward == pytest.approx(score.found.tokens_per_forward)
    assert found.acceptance == pytest.approx(score.found.acceptance)


def test_the_figures_change_nothing_else_in_the_file(checkpoint: Path, tmp_path: Path) -> None:
    scored = gguf.GGUFReader(converted(checkpoint, tmp_path).path)
    plain = gguf.GGUFReader(convert(checkpoint, tmp_path / "plain.gguf", type_name="f32").path)
    keys = {ACCEPTANCE_KEY, TOKENS_PER_FORWARD_KEY}
    assert scored.fields.keys() - plain.fields.keys() == keys
    assert [scored.fields[key].contents() for key in plain.fields if "GGUF." not in key] == [
        field.contents() for key, field in plain.fields.items() if "GGUF." not in key
    ]
    for one, other in zip(scored.tensors, plain.tensors, strict=True):
        assert (one.name, one.data.tobytes()) == (other.name, other.data.tobytes())


def test_quantized_files_have_figures_too(checkpoint: Path, tmp_path: Path) -> None:
    done = convert(checkpoint, tmp_path / "q.gguf", type_name="q5_0", score=score_heads)
    assert done.heads is not None
    assert done.heads.score is not None
    found = figures_in(read_header(done.path).metadata)
    assert found is not None
    assert found.tokens_per_forward == pytest.approx(done.heads.score.found.tokens_per_forward)


def test_without_verification_nothing_is_scored(checkpoint: Path, tmp_path: Path) -> None:
    done = converted(checkpoint, tmp_path, verified=False)
    assert done.heads is not None
    assert done.heads.score is None
    assert figures_in(read_header(done.path).metadata) is None
    assert ACCEPTANCE_KEY not in read_header(done.path).metadata


def warning_of(path: Path, directory: Path) -> str:
    warning = score_heads(path, directory).warning
    assert warning is not None
    return warning


def test_a_large_gap_names_its_cause(checkpoint: Path, tmp_path: Path) -> None:
    directory, sample = changed(checkpoint, tmp_path, figures=PERFECT)
    path = converted(checkpoint, tmp_path, heads_type_name="f32").path
    found = score_heads(path, directory).found.tokens_per_forward
    assert warning_of(path, directory) == (
        f"the heads give {found:.2f} tokens per forward in this file, on the same prompts 4.00 in training: the cause "
        "is not known"
    )
    small = convert(directory, tmp_path / "small.gguf", heads_type_name="q4_0").path
    assert warning_of(small, directory).endswith("; convert with --heads-type f16")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    for file in directory.glob("chat_template.jinja"):
        file.unlink()
    settings["chat_template"] = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "its chat template renders a question otherwise" in warning_of(path, directory)
    letters = load_tokenizer(checkpoint).convert_tokens_to_ids([*TEXTS[0].replace(" ", "\u0120")])
    write_sample(directory, replace(sample, prompts=(tuple(letters), *sample.prompts[1:])))
    assert "its tokenizer splits 1 of 6 prompts otherwise" in warning_of(path, directory)


def test_the_figures_are_what_decoding_expects(checkpoint: Path, tmp_path: Path) -> None:
    metadata = read_header(converted(checkpoint, tmp_path, heads_type_name="f32").path).metadata
    figures = figures_in(metadata)
    assert figures is not None
    accuracy = {"nptool.heads.accuracy": [0.9, 0.9, 0.9], "nptool.heads.accuracy_ranks": 1}
    gains = first_gains(metadata | accuracy, METHODS[HEADS])
    assert COUNT**gains.exponent == pytest.approx(figures.tokens_per_forward)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"figures": {"tokens_per_forward": 9.0, "acceptance": [0.5, 0.4, 0.3]}}, "does not fit 4 heads"),
        ({"figures": {"tokens_per_forward": 2.0, "acceptance": [0.5, 0.4]}}, "does not fit 4 heads"),
        ({"prompts": []}, "does not fit 4 heads"),
        ({"prompts": [["a"]]}, "is damaged"),
        ({"figures": None}, "is damaged"),
    ],
)
def test_a_damaged_sample_is_one_clear_error(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    directory, _ = changed(checkpoint, tmp_path)
    saved = json.loads((directory / SAMPLE_FILE).read_text())
    (directory / SAMPLE_FILE).write_text(json.dumps(saved | change))
    with pytest.raises(CheckpointError, match=text):
        converted(directory, tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def test_the_commands_show_the_figures(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    directory, _ = changed(checkpoint, tmp_path, figures=PERFECT)
    assert run(["convert", str(directory), "-o", "a.gguf", "--type", "f32", "--heads-type", "f32"], debug=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].startswith("on 6 held-out prompts: ")
    assert lines[5] == "in training, on the same: 4.00 tokens per forward; drafts accepted: 100%, 100%, 100%"
    assert lines[6].startswith("warning: the heads give ")
    assert run(["inspect", "a.gguf"], debug=False) == 0
    figures = lines[4].removeprefix("on 6 held-out prompts: ")
    (shown,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("heads, at conversion: ")]
    # The file has them in float32, which may round to another last digit.
    numbers = [[*map(float, re.findall(r"[0-9.]+", text))] for text in (shown, figures)]
    assert numbers[0][0] == pytest.approx(numbers[1][0], abs=0.0101)
    assert numbers[0][1:] == pytest.approx(numbers[1][1:], abs=1.01)
    assert run(["quantize", "a.gguf", "b.gguf", "q8_0"], debug=False) == 0
    assert "note: what its heads' drafts are worth was measured on a.gguf, not on this file" in capsys.readouterr().out
    assert figures_in(read_header(tmp_path / "b.gguf").metadata) == figures_in(
        read_header(tmp_path / "a.gguf").metadata
    )
