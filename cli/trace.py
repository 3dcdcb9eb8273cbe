"""`nptool trace`: how the blocks of one answer converge, and optionally the base model's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nptool.cli.decoding_options import TextOptions, model_path, open_model, picking, say
from nptool.cli.options import AsJson, ModelOptions
from nptool.cli.prompt_options import PromptOptions, find_prompt
from nptool.cli.signatures import options
from nptool.decoding.loop.options import SamplingOptions
from nptool.files import atomic_file
from nptool.llama.gguf_check import check_gguf
from nptool.llama.loading import LoadOptions
from nptool.options import option

if TYPE_CHECKING:
    from nptool.bench.trace import Trace
    from nptool.cli.prompt_options import AskedPrompt


@dataclass(frozen=True, kw_only=True)
class TraceOptions(TextOptions):
    jacobi: bool = option(True, "Jacobi iteration in blocks; always on", "--jacobi")
    """No other method has states."""
    n: int | None = option(None, "tokens in a block", "-n", "--block-length", shown="the model's")
    base: Path | None = option(None, "also show this model's trace of the prompt", metavar="GGUF")
    html: Path | None = option(None, "write a self-contained HTML page")


@options
def trace(
    *,
    model: ModelOptions,
    prompt: PromptOptions,
    shown: TraceOptions,
    sampling: SamplingOptions,
    load: LoadOptions,
    as_json: AsJson = False,
) -> None:
    """Show the Jacobi iterations of one answer: which tokens are right, wrong, fast-forwarded, stationary."""
    from nptool.bench.trace import trace_answer
    from nptool.decoding.answer import DecodeConfig
    from nptool.decoding.proposers.methods import JACOBI_BLOCK

    config = DecodeConfig(JACOBI_BLOCK, shown.n, max_tokens=shown.max_tokens, sampling=picking(sampling))
    if shown.base is not None:
        # Before the first answer is decoded. The two models are never in memory together.
        check_gguf(shown.base)
    with open_model(model_path(model), load) as traced:
        asked = find_prompt(traced.path, prompt, shown.raw, sampling.seed)
        if asked.remark:
            say(asked.remark)
        traces = [trace_answer(traced, traced.encode(asked.content, raw=asked.raw), config)]
    if shown.base is not None:
        with open_model(shown.base, load) as traced:
            traces.insert(0, trace_answer(traced, traced.encode(asked.content, raw=asked.raw), config))
    if shown.html is not None:
        _write_page(shown.html, asked, traces)
    if as_json:
        result = traces[-1].to_json()
        if shown.base is not None:
            result["base"] = traces[0].to_json()
        typer.echo(json.dumps(result, ensure_ascii=False, indent=2))
        return
    from nptool.cli.trace_output import print_traces

    print_traces(traces)


def _write_page(file: Path, asked: AskedPrompt, traces: list[Trace]) -> None:
    from nptool.cli.trace_page import page

    with atomic_file(file, "w") as stream:
        stream.write(page(asked.text, traces))
    say(f"wrote {file}")
