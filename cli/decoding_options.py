"""What `generate` and `chat` share: options, loading the model, and the line of figures after an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nptool.errors import DataError, GgufError, UsageError

if TYPE_CHECKING:
    from nptool.data.records import Record
    from nptool.decoding.answer import Answer, DecodeConfig
    from nptool.decoding.loop.tally import Tally
    from nptool.decoding.text_model import TextModel

BlockLengthOrModels = Annotated[
    str | None,
    typer.Option(
        "-n",
        "--block-length",
        metavar="N|auto",
        help="most tokens in a step, or most heads; auto is no limit [auto]",
        show_default=False,
    ),
]
Fixed = Annotated[bool, typer.Option("--fixed", help="n rows in every step [the fastest width, down to AR]")]
AUTO = "auto"
BlockMode = Annotated[
    bool, typer.Option("--block-mode", help="iterate block by block, as in the CLLM paper, instead of a sliding window")
]
Exact = Annotated[
    bool | None,
    typer.Option(
        "--exact/--free-width",
        help="pad batches so that the text is exactly AR's [yes with --jacobi or --heads]",
        show_default=False,
    ),
]
Temperature = Annotated[float, typer.Option("--temp", metavar="T", help="temperature; 0 is greedy")]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", help="only the K most likely tokens; 0 is all")]
TopP = Annotated[float, typer.Option("--top-p", metavar="P", help="only the most likely tokens of total probability P")]
MinP = Annotated[
    float, typer.Option("--min-p", metavar="P", help="only tokens at least P times as likely as the most likely one")
]
RepeatPenalty = Annotated[
    float, typer.Option("--repeat-penalty", metavar="X", help="penalty on the last 64 tokens; 1 is none")
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="end the answer before TEXT; may be repeated", show_default=False),
]
Raw = Annotated[bool, typer.Option("--raw", help="use the text as it is, without the chat template")]


def model_path(given: Path | None) -> Path:
    """The GGUF that `-m` names, or the newest run's.

    Raises:
        DataError: there is no run.
        GgufError: the newest run has not been converted.
    """
    from nptool.runs import latest_run

    if given is not None:
        return given
    run = latest_run()
    if not run.gguf.is_file():
        raise GgufError(f"{run.path} has no {run.gguf.name} yet; make it with `nptool convert`, or name one with -m")
    return run.gguf


def open_model(
    path: Path, gpu_layers: int, context_length: int | None, threads: int | None, flash_attention: bool | None
) -> TextModel:
    """Load a GGUF with the given machine settings."""
    from nptool.decoding.text_model import load

    return load(
        path,
        gpu_layers=gpu_layers,
        context_length=context_length,
        threads=threads,
        flash_attention=flash_attention,
    )


def decode_config(
    *,
    jacobi: bool,
    block_mode: bool,
    heads: bool,
    n: str | None,
    fixed: bool,
    exact: bool | None,
    max_tokens: int,
    stop: list[str] | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    seed: int,
) -> DecodeConfig:
    """The library's configuration from the command line's options.

    Raises:
        UsageError, ContextError: an option is invalid.
    """
    from nptool.decoding.answer import DecodeConfig
    from nptool.decoding.loop.sampling import Sampling
    from nptool.decoding.text_model import method_names

    adapt, length = not fixed, _length(n)
    parallel = jacobi or block_mode or heads
    if not parallel and not exact and (length is not None or fixed):
        raise UsageError(
            f"{'-n' if length is not None else '--fixed'} is for parallel decoding; add --jacobi or --heads (the "
            "length of the answer is --max-tokens)"
        )
    method, *others = method_names(jacobi=jacobi, block_mode=block_mode, heads=heads, adapt=adapt)
    sampling = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed=seed)
    return DecodeConfig(method, length, exact, max_tokens, tuple(stop or ()), sampling, adapt, tuple(others))


def automatic(config: DecodeConfig, model: TextModel) -> DecodeConfig:
    """The configuration with the methods that the model was trained for, whichever is fastest, down to AR."""
    method, *others = model.trained_methods()
    return replace(config, method=method, others=tuple(others), adapt=True)


def _length(text: str | None) -> int | None:
    if text is None or text == AUTO:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"-n must be a whole number or auto, got {text!r}") from error


def held_out(path: Path, seed: int) -> tuple[Record, str]:
    """A prompt that was held out in training, and its source.

    Raises:
        DataError: the model is not in a run, or its run has no held-out split.
    """
    from nptool.data.records import read_records
    from nptool.runs import run_of

    run = run_of(path)
    if run is None or not run.heldout.is_file():
        raise DataError(f"{path} has no held-out prompts beside it; give a prompt with -p TEXT, -f FILE or a pipe")
    records = list(read_records(run.heldout))
    record = records[seed % len(records)]
    return record, record.source


def figures(tally: Tally) -> str:
    """One line of figures, shown after an answer."""
    return (
        f"{tally.tokens_per_second:.1f} tokens/s, {tally.tokens_per_forward:.2f} tokens per forward, "
        f"{tally.passes} forward passes for {tally.tokens} tokens"
    )


def widths_used(answer: Answer) -> str:
    """One line about the widths of an answer's steps; empty if they were fixed."""
    from nptool.decoding.adaptive.widths import AdaptiveWidth

    if not isinstance(answer.widths, AdaptiveWidth):
        return ""
    if set(answer.tally.widths) == {1}:
        return "plain AR, which promised most for this text; --fixed gives every step n rows"
    used = ", ".join(f"{rows}: {passes}" for rows, passes in sorted(answer.tally.widths.items()))
    members = ", ".join(map(str, answer.widths.members))
    text = f"AR's text at any width of {members}" if members else "free widths"
    return f"{answer.method}, passes by width {used}; {text}"


def describe(config: DecodeConfig, n: int) -> str:
    """The methods and their width, in a few words."""
    method = config.methods[0]
    if method.parallel and config.adapt:
        return f"{' or '.join((method.name, *config.others))}, n up to {n}"
    if method.parallel:
        return f"{method.name}, n = {n}"
    return f"{method.name}, width {n if config.exact else 1}"


@contextmanager
def utf8_input() -> Iterator[None]:
    """Raise a DataError if standard input, read inside the block, is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text (byte {error.start}); convert it first") from error


def say(message: str) -> None:
    """Print a message on stderr."""
    typer.echo(message, err=True)
