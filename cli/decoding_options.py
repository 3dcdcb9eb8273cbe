"""What `generate` and `chat` share: options, loading the model, and the line of figures after an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nptool.cli.options import ModelOptions
from nptool.decoding.loop.options import LengthOptions, SamplingOptions
from nptool.errors import DataError, GgufError, UsageError
from nptool.llama.loading import LoadOptions
from nptool.options import option

if TYPE_CHECKING:
    from nptool.data.record import Record
    from nptool.decoding.answer import Answer, DecodeConfig
    from nptool.decoding.loop.sampling import Sampling
    from nptool.decoding.loop.tally import Tally
    from nptool.decoding.text_model import TextModel

AUTO = "auto"


def _length(text: str) -> int | None:
    try:
        return None if text == AUTO else int(text)
    except ValueError as error:
        raise UsageError(f"-n must be a whole number or auto, got {text!r}") from error


@dataclass(frozen=True, kw_only=True)
class TextOptions(LengthOptions):
    raw: bool = option(False, "use the text as it is, without the chat template", "--raw")


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(TextOptions):
    jacobi: bool = option(False, "decode n tokens in parallel by Jacobi iteration", "--jacobi")
    n: int | None = option(
        None,
        "most tokens in a step, or most heads; auto is no limit",
        "-n",
        "--block-length",
        metavar="N|auto",
        shown=AUTO,
        parse=_length,
    )
    block_mode: bool = option(
        False, "iterate block by block, as in the CLLM paper, instead of a sliding window", "--block-mode"
    )
    heads: bool = option(False, "draft with the model's extra heads; with --jacobi, the better of the two", "--heads")
    fixed: bool = option(False, "n rows in every step", "--fixed", shown="the fastest width, down to AR")
    exact: bool | None = option(
        None,
        "pad batches so that the text is exactly AR's",
        "--exact/--free-width",
        shown="yes with --jacobi or --heads",
    )
    stop: tuple[str, ...] = option((), "end the answer before TEXT; may be repeated")

    @property
    def chosen(self) -> bool:
        """Whether a method is named, instead of what the model was trained for."""
        return self.jacobi or self.block_mode or self.heads or bool(self.exact)

    def config(self, sampling: SamplingOptions) -> DecodeConfig:
        """The library's configuration.

        Raises:
            UsageError, ContextError: an option is invalid.
        """
        from nptool.decoding.answer import DecodeConfig
        from nptool.decoding.text_model import method_names

        if not self.chosen and (self.n is not None or self.fixed):
            raise UsageError(
                f"{'-n' if self.n is not None else '--fixed'} is for parallel decoding; add --jacobi or --heads (the "
                "length of the answer is --max-tokens)"
            )
        method, *others = method_names(
            jacobi=self.jacobi, block_mode=self.block_mode, heads=self.heads, adapt=not self.fixed
        )
        return DecodeConfig(
            method=method,
            n=self.n,
            exact=self.exact,
            max_tokens=self.max_tokens,
            stop=self.stop,
            sampling=picking(sampling),
            adapt=not self.fixed,
            others=tuple(others),
        )


def picking(options: SamplingOptions) -> Sampling:
    """The library's sampling from the command line's options."""
    from nptool.decoding.loop.sampling import Sampling

    return Sampling(**vars(options))


def model_path(given: ModelOptions) -> Path:
    """The GGUF that `-m` or `-hf` names, or the newest run's.

    Raises:
        UsageError: both are given.
        DataError: there is no run, or see `nptool.hub.fetch_gguf`.
        GgufError: the newest run has not been converted.
    """
    from nptool.runs import latest_run

    if given.model is not None and given.hf is not None:
        raise UsageError("-m and -hf are two models; give one of them")
    if given.hf is not None:
        from nptool.hub import fetch_gguf

        return fetch_gguf(given.hf)
    if given.model is not None:
        return given.model
    run = latest_run()
    if not run.gguf.is_file():
        raise GgufError(f"{run.path} has no {run.gguf.name} yet; make it with `nptool convert`, or name one with -m")
    return run.gguf


def open_model(path: Path, options: LoadOptions) -> TextModel:
    """Load a GGUF with the given machine settings."""
    from nptool.decoding.text_model import TextModel

    return TextModel(path, options)


def automatic(config: DecodeConfig, model: TextModel) -> DecodeConfig:
    """The configuration with the methods that the model was trained for, whichever is fastest, down to AR."""
    method, *others = model.trained_methods()
    return replace(config, method=method, others=tuple(others), adapt=True)


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
