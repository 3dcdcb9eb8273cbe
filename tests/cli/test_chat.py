"""`nptool chat`: turns, commands, terminals and pipes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nptool
from nptool.cli.app import run
from nptool.convert.conversion import convert
from nptool.llama.context import Context

FIGURES = r"\[[\d.]+ tokens/s, [\d.]+ tokens per forward, \d+ forward passes for \d+ tokens\]\n"
# prompt_toolkit writes it before it reads a line.
BRACKETED_PASTE_ON = b"\x1b[?2004h"


def lines(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def chat(path: Path, *words: str) -> int:
    return run(["chat", "-m", str(path), "-t", "1", *words], debug=False)


def test_each_line_of_a_pipe_is_a_turn(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tiny_gguf("f16")
    with nptool.load(path, threads=1) as model:
        first = model.generate("hello", max_tokens=8)
        texts = [first.text]
        turns = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": texts[0]},
            {"role": "user", "content": "and now"},
        ]
        texts.append(model.generate(turns, max_tokens=8).text)
    lines(monkeypatch, "hello\n\n\n  and now  \n")
    assert chat(path, "--max-tokens", "8") == 0
    shown = capsys.readouterr()
    assert shown.out == "".join(text + "\n" for text in texts)
    assert re.fullmatch(FIGURES * 2, shown.err)


@pytest.mark.parametrize(
    ("note", "heads", "methods"),
    [
        (None, False, ("ar",)),
        ("cllm", False, ("jacobi",)),
        (None, True, ("heads",)),
        ("cllm", True, ("jacobi", "heads")),
    ],
)
def test_without_options_a_model_answers_by_what_it_was_trained_for(
    note: str | None,
    heads: bool,
    methods: tuple[str, ...],
    make_checkpoint: Callable[..., Path],
    add_heads: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    directory = make_checkpoint()
    if note is not None:
        (directory / "nptool.json").write_text(json.dumps({"method": note, "block_size": 8}))
    if heads:
        add_heads(directory, 3, rank=2)
    path = convert(directory, tmp_path / "model.gguf", verified=False).path
    with nptool.load(path, threads=1) as model:
        assert model.trained_methods() == methods
        # A class without the width 1 has a text of its own.
        texts = {
            model.generate("hello", method="ar", exact=True, n=width, max_tokens=12).text
            for width in model.calibration.widths
        }
    lines(monkeypatch, "hello\n")
    assert chat(path, "--max-tokens", "12") == 0
    shown = capsys.readouterr()
    assert shown.out.removesuffix("\n") in texts
    widths = re.findall(r"\[(?:\S+, passes by width .*; AR's text at any width of .*|plain AR, .*)\]\n", shown.err)
    assert len(widths) == (methods != ("ar",))
    lines(monkeypatch, "hello\n")
    assert chat(path, "--max-tokens", "12", "--exact") == 0
    assert re.fullmatch(FIGURES, capsys.readouterr().err)


def test_commands(tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lines(monkeypatch, "a\n/stats\n/reset\na\n/help\n/exit\nnever asked\n")
    assert chat(tiny_gguf("f16"), "--max-tokens", "4", "--jacobi", "--fixed") == 0
    shown = capsys.readouterr()
    answers = shown.out.split("\n")
    assert answers[0] == answers[1]
    assert len(answers) == 3
    assert "turns: 1; " in shown.err
    assert "for 4 tokens; 3 tokens prefilled\n" in shown.err
    assert "the conversation is forgotten\n" in shown.err
    assert shown.err.count("/reset  start a new conversation\n") == 1


def test_a_message_of_several_lines_from_a_pipe(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path, message = tiny_gguf("f16"), "player(id, city)\n/name is no command\nWhich city?"
    with nptool.load(path, threads=1) as model:
        text = model.generate(message, max_tokens=8).text
    lines(monkeypatch, message + "\n/stats\n")
    assert chat(path, "--max-tokens", "8") == 0
    shown = capsys.readouterr()
    assert shown.out == text + "\n"
    assert "turns: 1; " in shown.err


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    evaluate, calls = Context.evaluate, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        result = evaluate(*arguments, **options)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Context, "evaluate", interrupted)
    lines(monkeypatch, "a\n/stats\nb\n")
    assert chat(tiny_gguf("f16"), "--max-tokens", "20") == 0
    shown = capsys.readouterr()
    # Warm-up and prefill are one call each; seven steps were complete when the interrupt came.
    assert re.search(r"^\[stopped\]\n\[.* 7 forward passes for 7 tokens\]\nturns: 1; ", shown.err)
    assert "20 forward passes for 20 tokens" in shown.err


def test_ctrl_c_between_answers_leaves(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Interrupting(io.StringIO):
        def __next__(self) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupting())
    assert chat(tiny_gguf("f16")) == 130
    assert capsys.readouterr().err == "nptool: the chat was left\n"


def test_a_conversation_that_does_not_fit(
    tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lines(monkeypatch, "far too long " * 30 + "\n")
    assert chat(tiny_gguf("f16"), "-c", "64") == 2
    assert re.search(r"error: the prompt has \d+ tokens and the context holds 64", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("keys", "code", "words"),
    [
        (b"hello\r\x04", 0, [b"tokens per forward", b"/help lists the commands"]),
        (b"two\\\rlines\r/stats\r/what\r\x04", 0, [b"turns: 1; ", b"unknown command /what", b"/reset  start"]),
        (b"\x03", 130, [b"the chat was left"]),
    ],
)
def test_in_a_terminal(tiny_gguf: Callable[..., Path], keys: bytes, code: int, words: list[bytes]) -> None:
    leader, follower = pty.openpty()
    line = [sys.executable, "-m", "nptool", "chat", "-m", str(tiny_gguf("f16")), "-t", "1", "--max-tokens", "5"]
    environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
    with subprocess.Popen(line, stdin=follower, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        while BRACKETED_PASTE_ON not in shown:
            shown += os.read(leader, 4096)
        os.write(leader, keys)
        try:
            while chunk := os.read(leader, 4096):
                shown += chunk
        except OSError:
            pass  # On Linux, reading after the other side has closed fails.
        assert process.wait(60) == code
    os.close(leader)
    for word in words:
        assert word in shown
