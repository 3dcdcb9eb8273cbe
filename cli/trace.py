"""`nptool trace`: how the blocks of one answer converge, and optionally the base model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nptool.cli.decoding_options import Raw, Temperature, decode_config, model_path, open_model, say
from nptool.cli.options import AsJson, ContextLength, FlashAttention, GpuLayers, MaxTokens, ModelGguf, Seed, Threads
from nptool.cli.prompt_options import PromptFile, PromptText, find_prompt
from nptool.files import atomic_file
from nptool.llama.gguf_check import check_gguf

if TYPE_CHECKING:
    from nptool.bench.trace import Trace
    from nptool.cli.prompt_options import AskedPrompt

JACOBI = Annotated[
    bool,
    typer.Option(
        "--jacobi", help="Jacobi iteration in blocks; always on, as no other method has states", show_default=False
    ),
]
LENGTH = Annotated[
    int | None,
    typer.Option("-n", "--block-length", metavar="N", help="tokens in a block [the model's]", show_default=False),
]
BASE = Annotated[
    Path | None,
    typer.Option("--base", metavar="GGUF", help="also show this model's trace of the prompt", show_default=False),
]
HTML = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a self-contained HTML page")]


def trace(
    model: ModelGguf = None,
    prompt: PromptText = None,
    prompt_file: PromptFile = None,
    raw: Raw = False,
    jacobi: JACOBI = True,
    n: LENGTH = None,
    base: BASE = None,
    html: HTML = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    gpu_layers: GpuLayers = 0,
    context_length: ContextLength = None,
    threads: Threads = None,
    flash_attention: FlashAttention = None,
    as_json: AsJson = False,
) -> None:
    """Show the Jacobi iterations of one answer: which tokens are right, wrong, fast-forwarded, stationary."""
    config = decode_config(
        jacobi=jacobi,
        block_mode=True,
        heads=False,
        n=None if n is None else str(n),
        fixed=True,
        exact=None,
        max_tokens=max_tokens,
        stop=None,
        temperature=temperature,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        repeat_penalty=1.0,
        seed=seed,
    )
    from nptool.bench.trace import trace_answer

    machine = (gpu_layers, context_length, threads, flash_attention)
    if base is not None:
        # Before the first answer is decoded. The two models are never in memory together.
        check_gguf(base)
    with open_model(model_path(model), *machine) as traced:
        asked = find_prompt(traced.path, prompt, prompt_file, raw, seed)
        if asked.remark:
            say(asked.remark)
        traces = [trace_answer(traced, traced.encode(asked.content, raw=asked.raw), config)]
    if base is not None:
        with open_model(base, *machine) as traced:
            traces.insert(0, trace_answer(traced, traced.encode(asked.content, raw=asked.raw), config))
    if html is not None:
        _write_page(html, asked, traces)
    if as_json:
        result = traces[-1].to_json()
        if base is not None:
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
