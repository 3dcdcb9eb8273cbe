"""`nptool chat`: a conversation in the terminal, or one turn for each line of a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from nptool.cli.decoding_options import (
    BlockLengthOrModels,
    BlockMode,
    Exact,
    MinP,
    Raw,
    RepeatPenalty,
    Stop,
    Temperature,
    TopK,
    TopP,
    decode_config,
    describe,
    figures,
    model_path,
    open_model,
    say,
)
from nptool.cli.options import ContextLength, GpuLayers, Heads, Jacobi, MaxTokens, ModelGguf, Seed, Threads
from nptool.errors import ContextError

if TYPE_CHECKING:
    from nptool.decoding.session import Session

SYSTEM = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="system message that begins the conversation", show_default=False),
]
PROMPT_SIGN = "> "
COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation",
    "/stats": "figures of the conversation so far",
    "/exit": "leave (Ctrl-D too)",
}


def chat(
    model: ModelGguf = None,
    system: SYSTEM = None,
    raw: Raw = False,
    jacobi: Jacobi = False,
    n: BlockLengthOrModels = None,
    block_mode: BlockMode = False,
    heads: Heads = False,
    exact: Exact = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    min_p: MinP = 0.05,
    repeat_penalty: RepeatPenalty = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    gpu_layers: GpuLayers = 0,
    context_length: ContextLength = None,
    threads: Threads = None,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves."""
    from nptool.decoding.session import Session

    config = decode_config(
        jacobi=jacobi,
        block_mode=block_mode,
        heads=heads,
        n=n,
        exact=exact,
        max_tokens=max_tokens,
        stop=stop,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
    )
    with open_model(model_path(model), gpu_layers, context_length, threads) as text_model:
        session = Session(text_model, config, system=system, raw=raw)
        if sys.stdin.isatty():
            way = describe(config, text_model.block_length(config))
            say(f"{text_model.path}: {text_model.model.description}; {way}. /help lists the commands.")
        for line in _lines():
            if not _turn(session, line.strip()):
                return


def _turn(session: Session, line: str) -> bool:
    """One line of the user's; False when it is the last."""
    if line.startswith("/"):
        return _command(session, line)
    if line:
        _answer(session, line)
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
    """Stream the answer. Ctrl-C ends it and keeps what was said; a conversation that is too long is a remark."""
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


def _lines() -> Iterator[str]:
    """What the user says, line by line, until Ctrl-D or the end of the pipe. Ctrl-C leaves the program."""
    read = _terminal() if sys.stdin.isatty() and sys.stdout.isatty() else _piped()
    while True:
        try:
            line = read()
        except EOFError:
            return
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("the chat was left") from interrupt
        yield line


def _terminal() -> Callable[[], str]:
    """Line editing with a history of this session."""
    from prompt_toolkit import PromptSession

    prompt: PromptSession[str] = PromptSession()
    return lambda: prompt.prompt(PROMPT_SIGN)


def _piped() -> Callable[[], str]:
    """Plain lines. A terminal may be behind them when only the output is redirected."""

    def read() -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    return read
