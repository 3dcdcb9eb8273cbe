"""The embedded default with small settings: its steps in order, each once, and the files it leaves."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nptool.collection.store import read_collected
from nptool.errors import UsageError
from nptool.files import read_json
from nptool.heads import SHARED, read_heads_info
from nptool.heads_sample import read_sample
from nptool.method_note import Measured, read_note
from nptool.pipeline.default import DefaultConfig, train_default
from nptool.runs import latest_run

SMALL = DefaultConfig(
    train_examples=40,
    collect_prompts=6,
    heldout_examples=4,
    cllm_steps=3,
    block_size=4,
    max_new_tokens=8,
    base={
        "vocab_size": 300,
        "hidden_size": 16,
        "layers": 2,
        "attention_heads": 2,
        "batch_tokens": 1024,
        "context": 512,
    },
    # A model of three steps ends no answer, which would drop them all.
    collect={"keep_degenerate": True},
    cllm={"schedule": "uniform", "context": "clean", "draws": 1, "ar_target": "reference", "batch_tokens": 512},
    heads={"heads": 3, "rank": 2, "steps": 2, "batch_tokens": 512, "heldout": 0.3},
)
STEPS = [
    "training the base model",
    "scoring the base model",
    "collecting trajectories",
    "consistency training",
    "collecting trajectories",
    "training the heads",
    "scoring the CLLM",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Steps:
    """A progress that records which of `STEPS` begin, and stops the first time that a given one does."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.begun: list[str] = []
        self._stop_at = stop_at

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None:
        if step in STEPS and done == 0:
            if len(self.begun) == self._stop_at:
                raise KeyboardInterrupt
            self.begun.append(step)


def test_the_steps_and_what_they_leave(here: Path) -> None:
    steps = Steps()
    result = train_default(steps, SMALL)
    assert steps.begun == STEPS
    assert latest_run().model == Path(result.model) == Path("runs/text-to-sql/model")
    assert read_json(Path("runs/text-to-sql-cllm/results.json"))["steps"] == 3
    assert read_json(Path("runs/text-to-sql-cllm/config.json"))["config"]["model"] == "runs/text-to-sql-base/model"
    note = read_note(Path(result.model))
    assert note is not None
    assert note.measured == Measured(result.after.tokens_per_forward, 4)
    # The held-out questions travel with the run, their schemas too: bench executes the answers.
    heldout = Path("runs/text-to-sql/heldout.jsonl").read_text()
    assert heldout == Path("runs/text-to-sql-base/heldout.jsonl").read_text()
    assert '"schema"' in heldout
    assert result.before.examples == result.after.examples == 4


def test_the_heads_are_on_the_cllm_and_its_own_answers(here: Path) -> None:
    result = train_default(config=SMALL)
    model, plain = Path(result.model), Path("runs/text-to-sql-cllm/model")
    info = read_heads_info(model)
    assert info is not None
    assert (info.count, info.kind, info.rank) == (3, SHARED, 2)
    weights = [load_file(folder / "model.safetensors") for folder in (model, plain)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert read_collected(Path("runs/text-to-sql-cllm/collected.parquet")).metadata.model == str(plain)
    assert read_json(Path("runs/text-to-sql/config.json"))["config"]["data"] == [
        "runs/text-to-sql-cllm/collected.parquet"
    ]
    heads = result.after.heads
    assert heads is not None
    assert heads.tokens_per_forward == pytest.approx(1 + sum(heads.acceptance))
    assert len(heads.acceptance) == 2
    assert result.before.heads is None
    sample = read_sample(model, 3)
    assert sample is not None
    assert len(sample.prompts) == len(sample.responses) > 0


@pytest.mark.parametrize("stop_at", range(1, len(STEPS)))
def test_an_interrupted_call_goes_on(here: Path, stop_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_default(Steps(stop_at), SMALL)
    rest = Steps()
    train_default(rest, SMALL)
    assert rest.begun == STEPS[stop_at:]
    again = Steps()
    train_default(again, SMALL)
    assert again.begun == []


def test_settings_of_another_version_are_refused(here: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_default(Steps(0), SMALL)
    with pytest.raises(UsageError, match="runs/text-to-sql-base holds the default of another version of nptool"):
        train_default(config=DefaultConfig())
