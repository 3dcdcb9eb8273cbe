"""`nptool trace`: JSON, rows in the terminal, the page, mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nptool.cli.app import run


def command(path: Path, *words: str) -> int:
    return run(["trace", "-m", str(path), "-t", "1", "-p", "<b>hi</b>", "--max-tokens", "12", *words], debug=False)


def test_json_has_states_and_counts(tiny_gguf: Callable[..., Path], capsys: Any) -> None:
    path, base = tiny_gguf("f16"), tiny_gguf("f16", seed=1)
    assert command(path, "--jacobi", "-n", "5", "--json", "--base", str(base)) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["base"]["model"]) == (str(path), str(base))
    for trace in (result, result["base"]):
        assert (trace["n"], trace["tokens"], trace["blocks"]) == (5, 12, 3)
        states = trace["states"]
        assert [len(block[0]) for block in states] == [5, 5, 2]
        assert trace["iterations"] == sum(len(block) - 1 for block in states)
        cells = [cell for block in states for state in block for cell in state]
        assert trace["fast_forwarded"] == sum(cell["mark"] == "fast_forwarded" for cell in cells)
        assert trace["fast_forwarded_per_iteration"] == trace["fast_forwarded"] / trace["iterations"]
        assert states[0][0][-1] == {"id": None, "text": None, "mark": "wrong"}
        assert {cell["mark"] for block in states for cell in block[-1]} <= {"right", "fast_forwarded"}
    assert result["text"] != result["base"]["text"]


def test_rows_of_at_most_the_width_of_the_terminal(tiny_gguf: Callable[..., Path], capsys: Any) -> None:
    path = tiny_gguf("f16")
    assert command(path, "-n", "5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}, n = 5"
    assert [line for line in lines if line.startswith("block")] == ["block 1", "block 2", "block 3"]
    guesses = [line.split()[1] for line in lines if line.startswith("guess")]
    assert [len(signs) for signs in guesses] == [5, 5, 2]
    assert "".join(guesses).strip(".+") == ""
    assert max(len(line) for line in lines[1:]) <= 80
    assert ". wrong   + right   > fast-forwarded   = stationary" in lines
    assert lines[-1].startswith("model      12")


def test_the_page_is_whole_and_escaped(tiny_gguf: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    path, file = tiny_gguf("f16"), tmp_path / "trace.html"
    assert command(path, "-n", "5", "--html", str(file), "--base", str(path)) == 0
    assert capsys.readouterr().err == f"wrote {file}\n"
    page = file.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n")
    assert "<pre>&lt;b&gt;hi&lt;/b&gt;</pre>" in page
    assert "<b>hi" not in page
    assert not any(word in page for word in ("http", "src=", "<script", "<link"))
    assert page.count("<h3>block 1</h3>") == page.count("<section class='card'>") == 2
    assert page.count("<div class='map'>") == 6


def test_what_cannot_be_traced(tiny_gguf: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    path = tiny_gguf("f16")
    for words, message in (
        (["--base", "none.gguf"], "none.gguf does not exist; expected a GGUF file"),
        (["-n", "0"], "-n must be at least 1, got 0"),
        (["--html", str(tmp_path)], f"cannot write {tmp_path}: Is a directory; choose another place"),
    ):
        assert command(path, *words) == 2
        shown = capsys.readouterr()
        assert (shown.out, shown.err) == ("", f"nptool: error: {message}\n")
