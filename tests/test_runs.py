"""Where a run begins and ends among other directories."""

from pathlib import Path

import pytest

from nptool.errors import UsageError
from nptool.files import write_json
from nptool.runs import Run, run_of


def test_a_directory_with_a_models_config_is_no_run(tmp_path: Path) -> None:
    """Trainers put checkpoints into the directory of the final model."""
    checkpoint = tmp_path / "output" / "checkpoint-500"
    checkpoint.mkdir(parents=True)
    config = tmp_path / "output" / "config.json"
    write_json(config, {"model_type": "llama"})
    assert run_of(checkpoint) is None
    for foreign in ("null", "3", "// a comment"):
        config.write_text(foreign)
        assert run_of(checkpoint) is None
    write_json(config, {"kind": "base", "config": {}})
    run = run_of(checkpoint)
    assert run is not None
    assert run.path == tmp_path / "output"


def test_a_run_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError) as caught:
        Run.create("one", tmp_path / "runs")
    assert str(caught.value) == f"cannot write {tmp_path}/runs/one: Not a directory; choose another place"
