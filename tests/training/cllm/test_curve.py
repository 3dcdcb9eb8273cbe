"""Held-out tokens per forward during a training: what is measured, what is kept, and that nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

from nptool.checkpoints import load_config, load_model, load_tokenizer
from nptool.collection.jacobi import Prompt, initial_guess
from nptool.collection.store import CollectionMetadata, read_collected
from nptool.data.records import read_records
from nptool.data.rendering import render
from nptool.errors import DataError, UsageError
from nptool.progress import silent
from nptool.runs import Run
from nptool.training.cllm import measuring
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.curve import Curve, CurvePoint, read_curve
from nptool.training.cllm.measuring import CurveMeter, heldout_file, heldout_prompts
from nptool.training.cllm.train import train_cllm

adapters = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}", "response": "b"}) + "\n" for i in range(5)))
    return path


@pytest.fixture
def config(collected: Path, questions: Path) -> CllmConfig:
    return CllmConfig(
        data=(collected,), curve_data=questions, lr=1e-2, steps=7, batch_tokens=250, save_every=2, curve=3, name="one"
    )


def curve_of(name: str) -> Curve:
    curve = read_curve(Run(Path("runs") / name).curve)
    assert curve is not None
    return curve


def plain_tpf(model: PreTrainedModel, prompts: list[list[int]], metadata: CollectionMetadata) -> float:
    """Jacobi iteration without cache and without a batch: one forward pass over everything for each iteration."""
    tokens = passes = 0
    for key, prompt in enumerate(prompts):
        response: list[int] = []
        ended = False
        while not ended and len(response) < metadata.max_new_tokens:
            block = len(response) // metadata.n
            guess = initial_guess(Prompt(key, prompt), block, metadata.n, 0).tolist()
            accepted = 0
            while accepted < metadata.n and not ended:
                with torch.no_grad():
                    logits = model(torch.tensor([prompt + response + guess])).logits[0]
                first = len(prompt) + len(response) - 1
                picks = logits[first : first + metadata.n].argmax(-1).tolist()
                passes += 1
                accepted = 1
                while accepted < metadata.n and picks[accepted - 1] == guess[accepted - 1]:
                    accepted += 1
                guess = picks
                ended = any(token in metadata.end_token_ids for token in guess[:accepted])
            response += guess
        ends = [i for i, token in enumerate(response) if token in metadata.end_token_ids]
        tokens += len(response[: ends[0] + 1] if ends else response[: metadata.max_new_tokens])
    return tokens / passes


def test_every_so_many_steps_the_decoder_is_run_on_the_held_out_prompts(
    config: CllmConfig, collected: Path, checkpoint: Path, questions: Path
) -> None:
    result = train_cllm(config)
    curve = curve_of("one")
    assert [point.step for point in curve.points] == [0, 3, 6, 7]
    assert (curve.block_size, curve.prompts) == (4, 5)
    tokenizer, metadata = load_tokenizer(checkpoint), read_collected(collected).metadata
    prompts = [render(record, tokenizer).prompt_ids for record in read_records(questions)]
    for point, model in ((curve.points[0], checkpoint), (curve.points[-1], result.model)):
        assert point.tokens_per_forward == pytest.approx(plain_tpf(load_model(model), prompts, metadata), rel=1e-12)
    seconds = [point.seconds for point in curve.points]
    assert seconds == sorted(seconds)


def test_the_weights_are_those_of_a_training_without_a_curve(config: CllmConfig) -> None:
    measured, plain = train_cllm(config), train_cllm(replace(config, curve=None, name="two"))
    assert not Run(Path("runs/two")).curve.exists()
    weights = dict(load_model(plain.model).named_parameters())
    for name, weight in load_model(measured.model).named_parameters():
        assert torch.equal(weight, weights[name]), name
    assert (measured.consistency_last, measured.tokens) == (plain.consistency_last, plain.tokens)


def test_an_interrupted_training_keeps_its_curve(config: CllmConfig) -> None:
    def interrupt(step: str, done: float, total: float, note: str = "") -> None:
        # Step 3 is measured, but comes after the last checkpoint, so it is trained and measured again.
        if step == "consistency training" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cllm(config, interrupt)
    assert [point.step for point in curve_of("one").points] == [0, 3]
    train_cllm(config)
    train_cllm(replace(config, name="two"))

    def without_time(name: str) -> list[tuple[int, float]]:
        return [(point.step, point.tokens_per_forward) for point in curve_of(name).points]

    assert without_time("one") == without_time("two")


def test_a_curve_may_be_asked_for_when_a_run_goes_on(config: CllmConfig) -> None:
    def interrupt(step: str, done: float, total: float, note: str = "") -> None:
        if step == "consistency training" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cllm(replace(config, curve=None), interrupt)
    train_cllm(config)
    assert [point.step for point in curve_of("one").points] == [4, 6, 7]


def test_a_curve_is_of_the_same_prompts_throughout(config: CllmConfig, questions: Path) -> None:
    def interrupt(step: str, done: float, total: float, note: str = "") -> None:
        if step == "consistency training" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cllm(config, interrupt)
    others = questions.with_name("others.jsonl")
    others.write_text("".join(questions.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(UsageError) as caught:
        train_cllm(replace(config, curve_data=others))
    assert str(caught.value) == (
        "runs/one/curve.json was measured on other prompts; go on with the same --curve-data, or remove that file to "
        "begin a new curve"
    )
    questions.rename("moved.jsonl")
    train_cllm(replace(config, curve_data=Path("moved.jsonl")))
    assert [point.step for point in curve_of("one").points] == [0, 3, 6, 7]


def test_zero_measures_twenty_times(config: CllmConfig) -> None:
    train_cllm(replace(config, curve=0, steps=45))
    assert [point.step for point in curve_of("one").points] == [*range(0, 45, 2), 45]


@adapters
@pytest.mark.parametrize("options", [{"lora_rank": 2}, {"precision": "bfloat16"}, {"gradient_checkpointing": True}])
def test_every_kind_of_training_is_measured(config: CllmConfig, options: dict[str, Any]) -> None:
    train_cllm(replace(config, **options))
    assert [point.step for point in curve_of("one").points] == [0, 3, 6, 7]


@adapters
def test_adapters_take_part_in_what_is_measured(
    config: CllmConfig, collected: Path, checkpoint: Path, questions: Path
) -> None:
    result = train_cllm(replace(config, lora_rank=2, lr=0.1))
    tokenizer, metadata = load_tokenizer(checkpoint), read_collected(collected).metadata
    prompts = [render(record, tokenizer).prompt_ids for record in read_records(questions)]
    merged = plain_tpf(load_model(result.model), prompts, metadata)
    assert curve_of("one").points[-1].tokens_per_forward == pytest.approx(merged, rel=1e-12)


class Clock:
    """A training of one second a step, measured in 100 seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(measuring, "monotonic", lambda: self.now)
        monkeypatch.setattr(measuring, "tokens_per_forward", self.measure)

    def measure(self, *_: object) -> float:
        self.now += 100
        return 1.5

    def train(self, meter: CurveMeter, begin: int, end: int, save: int) -> None:
        args, control = TrainingArguments(output_dir="unused", report_to=[]), TrainerControl()
        state = TrainerState(global_step=begin, max_steps=6)
        meter.on_train_begin(args, state, control, model=None)
        for step in range(begin + 1, end + 1):
            self.now += 1
            state.global_step = step
            meter.on_step_end(args, state, control, model=None)
            if step % save == 0:
                meter.on_save(args, state, control, model=None)


def test_measuring_is_not_part_of_the_training_time(
    monkeypatch: pytest.MonkeyPatch, collected: Path, tmp_path: Path
) -> None:
    clock, metadata, path = Clock(monkeypatch), read_collected(collected).metadata, tmp_path / "curve.json"
    meter = CurveMeter([Prompt(0, [1])], metadata, 2, path, silent)
    clock.train(meter, 0, 5, save=3)
    assert meter.spent == 300
    # The second call goes on from step 3; what came after it is trained again, and counted once.
    clock.train(CurveMeter([Prompt(0, [1])], metadata, 2, path, silent), 3, 6, save=3)
    curve = read_curve(path)
    assert curve is not None
    assert (curve.block_size, curve.prompts) == (4, 1)
    assert curve.points == tuple(CurvePoint(step, float(step), 1.5) for step in (0, 2, 4, 6))


def test_at_most_32_prompts_are_measured_evenly_spread(config: CllmConfig, collected: Path, checkpoint: Path) -> None:
    path = Path("many.jsonl")
    path.write_text("".join(json.dumps({"prompt": f"{i:03}", "response": "b"}) + "\n" for i in range(70)))
    tokenizer = load_tokenizer(checkpoint)
    prompts = heldout_prompts(path, config, read_collected(collected).metadata, load_config(checkpoint), tokenizer)
    every_third = [tokenizer.decode(prompt.ids, skip_special_tokens=True) for prompt in prompts]
    assert [text.strip() for text in every_third] == [f"{i:03}" for i in range(0, 70, 3)]


def test_without_held_out_prompts_there_is_no_curve(config: CllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as error:
        train_cllm(replace(config, curve_data=None))
    assert str(error.value) == "--curve needs held-out prompts, and runs/one has none; name some with --curve-data"
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        train_cllm(replace(config, curve_data=Path("gone.jsonl")))
    run = Run(Path("runs/one"))
    run.heldout.write_text('{"prompt": "a", "response": "b"}\n')
    assert heldout_file(replace(config, curve_data=None), run) == run.heldout
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--curve measures in one process; leave it out with several"):
        heldout_file(config, Run(Path("runs/one")))


def make(*tokens_per_forward: float) -> Curve:
    return Curve(16, 8, tuple(CurvePoint(10 * i, 8.0 * i, value) for i, value in enumerate(tokens_per_forward)))


@pytest.mark.parametrize(
    ("values", "gain"),
    # Of 32 seconds the last 8 are the last step; of 40 the last 10 are one step and a quarter.
    [((1, 2, 3, 3.5, 3.75), 0.25), ((1, 2, 3, 3, 4, 5), 1 + 0.25), ((1, 2, 3, 4), None), ((), None)],
)
def test_the_gain_of_the_last_quarter(values: tuple[float, ...], gain: float | None) -> None:
    assert make(*values).last_gain == gain


def test_measurements_at_one_time_do_not_divide_by_zero() -> None:
    points = tuple(CurvePoint(step, 0.0, 2.0) for step in range(6))
    assert Curve(4, 1, points).last_gain == 0.0
