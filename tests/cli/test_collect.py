"""`nptool collect`: table, JSON, exit codes, defaults of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nptool.cli.app import run
from nptool.collection.store import read_collected


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = (json.dumps({"question": f"What is {number}?", "answer": f"It is {number}."}) for number in range(20))
    path.write_text("\n".join(lines))
    return path


def test_table_json_and_exit_codes(
    checkpoint: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["collect", "-m", str(checkpoint), "--data", str(questions), "--limit", "9", "--max-new-tokens", "24"]
    assert run([*words, "--keep-degenerate", "-n", "8", "-o", "a.parquet"], debug=False) == 0
    shown = capsys.readouterr().out
    assert "9 of 9 responses" in shown
    assert "steps to the fixed point" in shown
    assert read_collected("a.parquet").metadata.n == 8

    (tmp_path / "c.yaml").write_text("n: 4\nkeep-degenerate: true\nlimit: 3\n")
    assert run([*words, "--config", "c.yaml", "--json"], debug=False) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["path"], result["dropped"]) == (9, "collected.parquet", {})
    assert result["tokens_per_forward"] == pytest.approx(result["stats"]["tokens"] / result["stats"]["passes"])
    assert read_collected("collected.parquet").metadata.n == 4

    assert run([*words, "--dry-run", "--json", "-o", "b.parquet"], debug=False) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 9
    assert not Path("b.parquet").exists()
    assert run([*words, "-n", "1"], debug=False) == 2
    assert capsys.readouterr().err == "nptool: error: -n is 1; a block has at least 2 tokens\n"


def test_newest_run_is_the_default(
    checkpoint: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["collect"], debug=False) == 2
    assert "no run in runs/ yet" in capsys.readouterr().err
    place = tmp_path / "runs" / "first"
    place.mkdir(parents=True)
    (tmp_path / "runs" / "latest").write_text("first\n")
    (place / "model").symlink_to(checkpoint)
    (place / "config.json").write_text("{}")
    assert run(["collect"], debug=False) == 2
    assert "runs/first does not say what it was trained on; name the prompts with --data" in capsys.readouterr().err
    (place / "config.json").write_text(json.dumps({"config": {"data": [str(questions)]}}))
    assert run(["collect", "--limit", "5", "--max-new-tokens", "12", "--keep-degenerate"], debug=False) == 0
    assert read_collected(place / "collected.parquet").row_count == 5
