"""`nptool collect`: a model's own responses with their Jacobi trajectories, for consistency training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nptool.cli import training_options as training
from nptool.cli.console import print_table, progress_bars
from nptool.cli.options import AsJson, ConfigFile, DryRun
from nptool.collection.config import CollectConfig, run_defaults
from nptool.settings import resolve

if TYPE_CHECKING:
    from nptool.collection.collect import CollectResult

DEFAULTS = CollectConfig


def collect(
    data: training.Data = None,
    more: training.MoreData = None,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", metavar="DIR|ID", help="Hugging Face directory or Hub id [newest run]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PARQUET", help=f"[{DEFAULTS.output}, or the run's]")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--block-length", help=f"block length in tokens [{DEFAULTS.n}]")
    ] = None,
    max_new_tokens: training.MaxNewTokens = None,
    batch_size: Annotated[int | None, typer.Option(help=f"sequences in a batch [{DEFAULTS.batch_size}]")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="seed of everything random; the i-th prompt kept, from 0, is sampled as by `generate --seed SEED+i` "
            "without filters (--top-k 0 --top-p 1 --min-p 0) [0]"
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temp", "--temperature", help="sampling temperature; 0 is greedy [0]")
    ] = None,
    limit: training.Limit = None,
    augment: training.Augment = None,
    keep_degenerate: Annotated[
        bool | None,
        typer.Option(
            "--keep-degenerate/--drop-degenerate", help="responses that repeat themselves or do not end [drop]"
        ),
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="use the model's chat template, if it has one [yes]")
    ] = None,
    prompt_field: training.PromptField = None,
    response_field: training.ResponseField = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="skip longer prompts")] = None,
    text_prompt_tokens: Annotated[
        int | None, typer.Option(help=f"length of prompts cut from plain text [{DEFAULTS.text_prompt_tokens}]")
    ] = None,
    exclude: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="skip the prompts of this file [the run's held-out ones]")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="device the model runs on [auto]")
    ] = None,
    precision: training.Precision = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="start over if the output exists")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Collect a model's responses to prompts, with the states that Jacobi decoding passes through.

    DATA are JSONL, JSON or Parquet records (messages, prompt/completion, question/answer, text, ShareGPT, Alpaca), text
    and source files, or the prompts of an earlier collection. Run the same command again to resume an interrupted
    collection.
    """
    given = training.given_fields(locals(), CollectConfig)
    if exclude:
        given["exclude"] = tuple(exclude)
    defaults = run_defaults(training.with_file(given, CollectConfig, config))
    resolved = resolve(CollectConfig, config, defaults | given)
    if dry_run:
        from nptool.collection.dry_run import dry_run as estimate

        _print_estimate(estimate(resolved), as_json)
        return

    from nptool.collection.collect import collect as run

    with progress_bars() as progress:
        result = run(resolved, progress)
    _print_result(result, as_json)


def _print_estimate(estimate: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(estimate))
        return
    memory = estimate["memory"]
    print_table("configuration", estimate["config"])
    rows = {
        "device": estimate["device"],
        "parameters": f"{estimate['parameters']:,}",
        "prompts": f"{estimate['prompts']:,}, {estimate['prompt_tokens']:,} tokens",
        "left out": _reasons(estimate["left_out"]),
        "responses": f"at most {estimate['most_new_tokens']:,} tokens",
        "memory": ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in memory.items()),
    }
    print_table("estimate", rows)


def _print_result(result: CollectResult, as_json: bool) -> None:
    stats = result.stats
    if as_json:
        derived = {
            "tokens_per_forward": stats.tokens_per_forward,
            "steps_to_fixed_point": stats.steps_to_fixed_point,
            "mean_response_tokens": stats.mean_response_tokens,
        }
        print(json.dumps({**asdict(result), **derived, "path": str(result.path)}))
        return
    dropped = sum(result.dropped.values())
    earlier = f" ({result.done_before:,} prompts were already done)" if result.done_before else ""
    rows = {
        "file": result.path,
        "kept": f"{result.rows:,} of {result.prompts:,} responses",
        "dropped": f"{dropped:,} ({_reasons(result.dropped)})" if dropped else "0",
        "left out": _reasons(result.left_out),
        "mean response": f"{stats.mean_response_tokens:.1f} tokens",
        "Jacobi TPF": f"{stats.tokens_per_forward:.2f} tokens per forward pass",
        "steps to the fixed point": f"{stats.steps_to_fixed_point:.2f} per block",
        "fast-forwarded": f"{stats.fast_forwarded:,} tokens",
        "stationary": f"{stats.stationary:,} tokens",
        "time": f"{result.seconds:.1f} s{earlier}",
    }
    print_table("collected", rows)


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items()) or "-"
