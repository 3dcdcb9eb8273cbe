"""What `trace` writes down, against a naive Jacobi iteration; and the command as a user meets it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nptool
from nptool.cli.app import run
from nptool.convergence import Mark
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.loop.loop import decode
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence as Text
from nptool.decoding.loop.tally import Tally
from nptool.decoding.proposers.jacobi import JacobiBlock
from nptool.decoding.trace import NO_GUESS, Recorder, trace_answer

PROMPT = [1, 2, 3]
FILL = 6
VOCABULARY = 8


def mixed(tokens: Sequence[int]) -> list[float]:
    """The next token depends on the last two, or, at every third place, on the place alone."""
    wanted = len(tokens) % 5 if len(tokens) % 3 == 0 else (2 * tokens[-1] + tokens[-2]) % 7
    return [float(token == wanted) for token in range(VOCABULARY)]


def naive_blocks(n: int, length: int) -> list[list[list[int]]]:
    """Plain lists: the states of every block of a text of `length` tokens, each iterated until it is known to be right:

    until the state before was right but for its last token.
    """

    def pick(tokens: list[int]) -> int:
        return mixed(tokens).index(1.0)

    text, blocks = list(PROMPT), []
    while len(text) < len(PROMPT) + length:
        size = min(n, len(PROMPT) + length - len(text))
        right: list[int] = []
        for _ in range(size):
            right.append(pick(text + right))
        states = [[FILL] * (size - 1) + [NO_GUESS]]
        while len(states) == 1 or states[-2][:-1] != right[:-1]:
            states.append([pick(text + states[-1][:place]) for place in range(size)])
        blocks.append(states)
        text += right
    return blocks


@pytest.mark.parametrize(("n", "length"), [(1, 4), (4, 8), (5, 23), (16, 40)])
def test_states_are_those_of_a_naive_implementation(scripted: Any, n: int, length: int) -> None:
    engine = scripted(mixed)
    text = Text(engine)
    text.open(PROMPT)
    text.prefill()
    recorder = Recorder(JacobiBlock(n, np.array([FILL], dtype=np.int32), seed=0))
    limit = len(PROMPT) + length
    for _ in decode(engine, text, recorder, Sampling(), Tally(n), limit=limit, end_tokens=(), width=n):
        pass
    assert [block.states_SN.tolist() for block in recorder.blocks(length)] == naive_blocks(n, length)


def test_nothing_behind_the_answer_is_shown(scripted: Any) -> None:
    recorder = Recorder(JacobiBlock(4, np.array([FILL], dtype=np.int32), seed=0))
    recorder.propose(99)
    recorder.observe(np.array([1, 2, 3, 4]), accepted=0)
    recorder.propose(99)
    recorder.observe(np.array([2, 7, 5]), accepted=1)
    (block,) = recorder.blocks(3)
    assert block.states_SN.tolist() == [[FILL] * 3, [1, 2, 3], [1, 2, 7]]
    assert block.marks_SN.tolist() == [
        [Mark.WRONG] * 3,
        [Mark.RIGHT, Mark.FAST_FORWARDED, Mark.WRONG],
        [Mark.RIGHT] * 3,
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_answer_is_that_of_every_other_method(tiny_gguf: Callable[..., Path], temperature: float) -> None:
    sampling = Sampling(temperature, seed=5)
    config = DecodeConfig("jacobi-block", n=6, max_tokens=32, sampling=sampling)
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        ids = model.encode("hello")
        plain = model.answer(ids, DecodeConfig("ar", n=6, exact=True, max_tokens=32, sampling=sampling))
        for _ in plain:
            pass
        trace = trace_answer(model, ids, config)
        again = model.answer(ids, config)
        for _ in again:
            pass
    assert [token for block in trace.blocks for token in block.states_SN[-1].tolist()] == plain.tokens
    assert [block.states_SN.shape[1] for block in trace.blocks] == [6, 6, 6, 6, 6, 2]
    assert trace.text == plain.text
    assert trace.iterations == again.tally.passes
    assert (trace.tokens, trace.prompt_tokens) == (32, len(ids))
    assert trace.summary()["tokens_per_forward"] == again.tally.tokens_per_forward


@pytest.fixture(autouse=True)
def _no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())


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
