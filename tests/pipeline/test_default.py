"""The embedded default in small: its steps in order, each once, and what lies where afterwards."""

from functools import partial
from pathlib import Path

import pytest

from nptool.collection import config as collection_config
from nptool.collection.config import CollectConfig
from nptool.errors import UsageError
from nptool.files import read_json
from nptool.pipeline import default
from nptool.pipeline.default import DefaultConfig, train_default
from nptool.runs import latest_run

SMALL = DefaultConfig(
    train_examples=40,
    collect_prompts=6,
    heldout_examples=4,
    first_steps=3,
    second_steps=2,
    block_size=4,
    max_new_tokens=8,
    base={
        "vocab_size": 300,
        "hidden_size": 16,
        "layers": 1,
        "attention_heads": 2,
        "batch_tokens": 1024,
        "context": 512,
    },
    cllm={"schedule": "uniform", "context": "clean", "draws": 1, "ar_target": "reference", "batch_tokens": 512},
)
STEPS = [
    "training the base model",
    "scoring the base model",
    "collecting trajectories",
    "consistency training",
    "collecting trajectories",
    "consistency training",
    "scoring the CLLM",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # A model of three steps ends no answer, which would drop them all.
    monkeypatch.setattr(collection_config, "CollectConfig", partial(CollectConfig, keep_degenerate=True))
    return tmp_path


class Steps:
    """A progress that notes which of `STEPS` begin, and stops the first time that one does."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.begun: list[str] = []
        self._stop_at = stop_at

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None:
        name = step.rpartition(": ")[2]
        if name in STEPS and done == 0:
            if len(self.begun) == self._stop_at:
                raise KeyboardInterrupt
            self.begun.append(name)


def test_two_rounds_and_what_they_leave(here: Path) -> None:
    steps = Steps()
    result = train_default(steps, SMALL)
    assert steps.begun == STEPS
    assert latest_run().model == Path(result.model) == Path("runs/text-to-sql/model")
    # The second round starts from the first one's model, on its trajectories of the same prompts.
    first, second = (read_json(Path("runs") / name / "results.json") for name in ("text-to-sql-round-1", "text-to-sql"))
    assert (first["steps"], second["steps"]) == (3, 2)
    assert first["trajectories"] == second["trajectories"]
    assert read_json(Path("runs/text-to-sql/config.json"))["config"]["model"] == "runs/text-to-sql-round-1/model"
    # The held-out questions travel with the run, their schemas too: bench executes the answers.
    heldout = Path("runs/text-to-sql/heldout.jsonl").read_text()
    assert heldout == Path("runs/text-to-sql-base/heldout.jsonl").read_text()
    assert '"schema"' in heldout
    assert result.before.examples == result.after.examples == 4


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
    assert default.FIRST_NAME == "text-to-sql-round-1"
