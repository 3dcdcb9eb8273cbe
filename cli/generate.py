"""`nptool generate`: one answer, streamed, with its speed; `--compare` also decodes autoregressively."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import typer

from nptool.cli.answer_picture import Arrival, Lane, draw, watch
from nptool.cli.decoding_options import (
    AnswerOptions,
    automatic,
    describe,
    figures,
    model_path,
    open_model,
    say,
    widths_used,
)
from nptool.cli.options import AsJson, ModelOptions
from nptool.cli.prompt_options import PromptOptions, find_prompt
from nptool.cli.signatures import options
from nptool.decoding.loop.options import SamplingOptions
from nptool.errors import UsageError
from nptool.files import atomic_file
from nptool.llama.loading import LoadOptions
from nptool.options import option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nptool.decoding.answer import Answer, DecodeConfig
    from nptool.decoding.text_model import TextModel

# Answers that take less than COMPARE_SECONDS are timed COMPARE_ROUNDS times, the two methods in turns.
COMPARE_ROUNDS = 5
COMPARE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(AnswerOptions):
    compare: bool = option(False, "also decode autoregressively and compare", "--compare")
    plot_file: Path | None = option(None, "with --compare: draw which pass made which token", metavar="SVG")


@options
def generate(
    *,
    model: ModelOptions,
    prompt: PromptOptions,
    answer: GenerateOptions,
    sampling: SamplingOptions,
    load: LoadOptions,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt.

    A model that was trained for parallel decoding answers by the fastest of what it was trained for, with the text of
    autoregressive decoding; --jacobi, --heads and --exact choose.
    """
    if answer.plot_file is not None and not answer.compare:
        raise UsageError("--plot-file draws what --compare measures; give --compare too")
    iterates = answer.compare and not answer.heads and (answer.n is not None or answer.fixed)
    config = replace(answer, jacobi=answer.jacobi or iterates).config(sampling)
    with open_model(model_path(model), load) as text_model:
        asked = find_prompt(text_model.path, prompt, answer.raw, sampling.seed)
        if asked.remark:
            say(asked.remark)
        ids = text_model.encode(asked.content, raw=asked.raw)
        if not answer.chosen and not config.methods[0].parallel:
            config = automatic(config, text_model)
        if answer.compare and not config.methods[0].parallel:
            config = replace(config, method="jacobi")
        if answer.compare:
            lanes = _compare(text_model, ids, config, as_json)
            if answer.plot_file is not None:
                with atomic_file(answer.plot_file, "w") as stream:
                    stream.write(draw(asked.text, lanes))
        else:
            _answer(text_model, ids, config, as_json)


def _answer(model: TextModel, ids: NDArray[np.int32], config: DecodeConfig, as_json: bool) -> None:
    answer = model.answer(ids, config)
    try:
        for token in answer:
            if not as_json:
                typer.echo(token.text, nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        typer.echo(err=as_json)
        raise KeyboardInterrupt(f"interrupted after {answer.tally.tokens} tokens") from interrupt
    if as_json:
        typer.echo(json.dumps(_result(model, answer), ensure_ascii=False, indent=2))
        return
    typer.echo()
    say(f"[{figures(answer.tally)}]")
    if note := widths_used(answer):
        say(f"[{note}]")


def _result(model: TextModel, answer: Answer) -> dict[str, Any]:
    return {
        "model": str(model.path),
        "method": answer.method,
        "n": answer.n,
        "text": answer.text,
        "finish": answer.finish,
        "width_class": list(answer.widths.members),
        **answer.tally.summary(),
    }


def _compare(model: TextModel, ids: NDArray[np.int32], config: DecodeConfig, as_json: bool) -> tuple[Lane, Lane]:
    """Decode with AR and with `config`, in turns; their lanes of the picture are of the run that is shown.

    AR has width 1, so the texts may differ at a near tie.
    """
    baseline = replace(config, method="ar", others=(), exact=False)
    rounds = [(_run(model, ids, config), _run(model, ids, baseline))]
    spent = sum(run.answer.tally.decode_seconds for run in rounds[0])
    if spent < COMPARE_SECONDS:
        rounds += [(_run(model, ids, config), _run(model, ids, baseline)) for _ in range(COMPARE_ROUNDS - 1)]
    parallel, single = (run.answer for run in rounds[0])
    ratio = median(one.rate / other.rate for one, other in rounds)
    equal = parallel.tokens == single.tokens
    padded = None
    if not equal and parallel.widths.members:
        at_equal_width = replace(config, method="ar", others=(), exact=True, n=parallel.widths.members[0])
        padded = _run(model, ids, at_equal_width).answer
    # The chosen widths may differ between runs: figures, note and picture are of the same run.
    shown, plain = (_middle(runs) for runs in zip(*rounds, strict=True))
    lanes = _lane(plain), _lane(shown)
    if as_json:
        result = {
            "speedup": ratio,
            "identical_width_1": equal,
            "identical_equal_width": True if equal else padded and padded.tokens == parallel.tokens,
            "answers": [_result(model, parallel), _result(model, single)],
        }
        typer.echo(json.dumps(result, ensure_ascii=False, indent=2))
        return lanes
    typer.echo(parallel.text)
    n = model.block_length(config)
    for settings, run in ((baseline, plain), (config, shown)):
        say(f"{describe(settings, n):>18}: {figures(run.answer.tally)}")
    if note := widths_used(shown.answer):
        say(note)
    say(f"{ratio:.2f} times as fast (median of {len(rounds)}); {_verdict(parallel, single, padded)}")
    if max(shown.answer.tally.widths) > 1:
        say(_why(shown.answer, plain.answer))
    return lanes


@dataclass(frozen=True)
class _Run:
    answer: Answer
    arrivals: list[Arrival]

    @property
    def rate(self) -> float:
        return self.answer.tally.tokens_per_second


def _run(model: TextModel, ids: NDArray[np.int32], config: DecodeConfig) -> _Run:
    answer = model.answer(ids, config)
    return _Run(answer, watch(answer))


def _lane(run: _Run) -> Lane:
    return Lane(f"{run.answer.method}, {run.answer.tally.tokens_per_forward:.2f} tokens per forward pass", run.arrivals)


def _why(parallel: Answer, plain: Answer) -> str:
    """One sentence that explains the ratio by the cost of a step."""
    step, one = (answer.tally.decode_seconds / answer.tally.passes for answer in (parallel, plain))
    tokens = parallel.tally.tokens_per_forward
    return (
        f"a step takes {step / one:.2f} times as long as one of AR here and gives {tokens:.2f} tokens; where it takes "
        f"no longer, as larger models' steps on a GPU or on many cores nearly do, that is {tokens:.2f} times as fast"
    )


def _middle(runs: Sequence[_Run]) -> _Run:
    return sorted(runs, key=lambda run: run.rate)[len(runs) // 2]


def _verdict(parallel: Answer, single: Answer, padded: Answer | None) -> str:
    """Whether the texts agree, and if not, whether they do at equal width."""
    from nptool.bench.aggregation import first_difference

    place = first_difference(parallel.tokens, single.tokens)
    if place is None:
        return "the texts are equal"
    if padded is not None and padded.tokens == parallel.tokens:
        return f"the texts differ from token {place + 1} on, at a near tie; at equal width they are equal"
    return f"the texts differ from token {place + 1} on"
