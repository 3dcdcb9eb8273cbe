"""`nptool chat`: a conversation in the terminal or from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from nptool.cli.decoding_options import (
    AnswerOptions,
    automatic,
    describe,
    figures,
    model_path,
    open_model,
    say,
    utf8_input,
    widths_used,
)
from nptool.cli.options import ModelOptions
from nptool.cli.signatures import options
from nptool.decoding.loop.options import SamplingOptions
from nptool.errors import ContextError
from nptool.llama.loading import LoadOptions
from nptool.options import option

if TYPE_CHECKING:
    from nptool.decoding.session import Session

PROMPT_SIGN = "> "
CONTINUATION_SIGN = ". "
CONTINUES = "\\"
"""In a terminal, a line that ends in it continues on the next (llama.cpp's convention)."""
COMMANDS = {
    "/help": "this list",
    "/reset": "start a new conversation",
    "/stats": "figures of all answers so far",
    "/exit": "leave (Ctrl-D too)",
}


@dataclass(frozen=True, kw_only=True)
class ChatOptions(AnswerOptions):
    max_tokens: int = 512
    system: str | None = option(None, "system message that begins the conversation", "-sys")


@options
def chat(*, model: ModelOptions, answer: ChatOptions, sampling: SamplingOptions, load: LoadOptions) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves.

    A model that was trained for parallel decoding answers by the fastest of what it was trained for, with the text of
    autoregressive decoding; --jacobi, --heads and --exact choose.

    A line that ends in a backslash continues on the next. In a pipe, an empty line or a /command ends
    a message; `nptool generate` reads a whole pipe as one prompt.
    """
    from nptool.decoding.session import Session

    config = answer.config(sampling)
    with open_model(model_path(model), load) as text_model:
        if not answer.chosen:
            config = automatic(config, text_model)
        session = Session(text_model, config, system=answer.system, raw=answer.raw)
        if sys.stdin.isatty():
            way = describe(config, text_model.block_length(config))
            say(f"{text_model.path}: {text_model.model.description}; {way}. /help lists the commands.")
        for message in _messages():
            if not _turn(session, message.strip()):
                return


def _turn(session: Session, message: str) -> bool:
    """Handle a message or a command; False ends the chat."""
    if _is_command(message):
        return _command(session, message)
    if message:
        _answer(session, message)
    return True


def _command(session: Session, line: str) -> bool:
    if line == "/exit":
        return False
    if line == "/reset":
        session.reset()
        say("the conversation is forgotten")
    elif line == "/stats":
        say(f"turns: {session.turns}; {figures(session.total)}; {session.total.prefilled_tokens} tokens prefilled")
    else:
        if line != "/help":
            say(f"unknown command {line.split()[0]}")
        for name, meaning in COMMANDS.items():
            say(f"{name:8}{meaning}")
    return True


def _answer(session: Session, line: str) -> None:
    """Stream the answer. Ctrl-C stops it and keeps the partial answer.

    Raises:
        ContextError: the conversation does not fit the context, and input is not a terminal.
    """
    tokens = session.ask(line)
    try:
        for token in tokens:
            typer.echo(token.text, nl=False)
            sys.stdout.flush()
        typer.echo()
    except KeyboardInterrupt:
        tokens.close()
        typer.echo()
        say("[stopped]")
    except ContextError as error:
        if not sys.stdin.isatty():
            raise
        say(f"nptool: {error}; or /reset")
        return
    if session.answer is not None:
        say(f"[{figures(session.answer.tally)}]")
        if note := widths_used(session.answer):
            say(f"[{note}]")


def _is_command(message: str) -> bool:
    """Whether it is a command. In a pipe only known commands are: text may begin with a slash."""
    return message in COMMANDS or (message.startswith("/") and sys.stdin.isatty())


def _messages() -> Iterator[str]:
    """The user's messages until Ctrl-D or the end of the pipe. Ctrl-C exits."""
    try:
        if sys.stdin.isatty():
            # No line editing if the output is redirected.
            yield from _typed(_editor() if sys.stdout.isatty() else _plain)
        else:
            with utf8_input():
                yield from _piped()
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("the chat was left") from interrupt


def _typed(read: Callable[[str], str]) -> Iterator[str]:
    """Messages from a terminal: a line each, continued after a backslash."""
    try:
        while True:
            message = read(PROMPT_SIGN)
            while message.endswith(CONTINUES):
                message = message.removesuffix(CONTINUES) + "\n" + read(CONTINUATION_SIGN)
            yield message
    except EOFError:
        return


def _editor() -> Callable[[str], str]:
    """Line editing with the history of this session."""
    from prompt_toolkit import PromptSession

    prompt: PromptSession[str] = PromptSession()
    return prompt.prompt


def _plain(_: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _piped() -> Iterator[str]:
    """Messages from a pipe: all lines up to an empty one or a command."""
    lines: list[str] = []
    for line in sys.stdin:
        if line.strip() and line.strip() not in COMMANDS:
            lines.append(line)
            continue
        yield "".join(lines)
        lines.clear()
        yield line
    yield "".join(lines)
