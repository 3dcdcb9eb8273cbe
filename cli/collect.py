"""`nptool collect`: a model's own responses with their Jacobi trajectories, for consistency training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nptool.cli.console import progress_bars
from nptool.cli.options import AsJson, ConfigFile, DryRun, ModelCheckpoint
from nptool.cli.training_options import DataFiles, MoreData, PromptField, ResponseField, data_paths, given_fields
from nptool.collection.config import CollectConfig, run_defaults
from nptool.settings import read_mapping, resolve

if TYPE_CHECKING:
    from nptool.collection.collect import CollectResult

DEFAULTS = CollectConfig


def collect(
    data: DataFiles = None,
    more: MoreData = None,
    model: ModelCheckpoint = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="PARQUET", help=f"[{DEFAULTS.output}, or the run's]", show_default=False
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", "--block-length", help=f"block length in tokens [{DEFAULTS.n}]", show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help=f"longest response in tokens [{DEFAULTS.max_new_tokens}]", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=f"sequences in flight [{DEFAULTS.batch_size}]", show_default=False)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="seed of everything random; prompt i (from 0) is sampled as by `generate --seed SEED+i` [0]",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temp", "--temperature", help="of sampled responses; 0 is greedy [0]", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="only the first so many records", show_default=False)] = None,
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="copy right tokens into states at random [no]", show_default=False),
    ] = None,
    keep_degenerate: Annotated[
        bool | None,
        typer.Option(
            "--keep-degenerate/--drop-degenerate",
            help="responses that loop or do not end [dropped]",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="use the model's chat template, if any [yes]", show_default=False),
    ] = None,
    prompt_field: PromptField = None,
    response_field: ResponseField = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="leave out longer prompts", show_default=False)] = None,
    text_prompt_tokens: Annotated[
        int | None,
        typer.Option(help=f"prompts cut from plain text [{DEFAULTS.text_prompt_tokens}]", show_default=False),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="prompts to leave out [the run's held-out ones]", show_default=False),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="where the model runs [auto]", show_default=False)
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        typer.Option(help="auto is bfloat16 on a GPU, float32 on a CPU [auto]", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="begin anew where the output exists", show_default=False)
    ] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let a model answer prompts, and keep the states its answers pass through in Jacobi decoding.

    DATA are JSONL, JSON or Parquet records (messages, prompt/completion, question/answer, text, ShareGPT, Alpaca), text
    and source files, or the prompts of an earlier collection. The same command goes on with an interrupted collection.
    """
    flags: dict[str, Any] = given_fields(locals(), CollectConfig)
    flags["data"] = data_paths(data, more)
    flags["exclude"] = tuple(exclude) if exclude else None
    given = {name: value for name, value in flags.items() if value is not None}
    in_file = read_mapping(CollectConfig, config) if config is not None else {}
    resolved = resolve(CollectConfig, config, run_defaults({**in_file, **given}) | given)
    if dry_run:
        from nptool.collection.dry_run import dry_run as estimate

        _print_estimate(estimate(resolved), as_json)
        return

    from nptool.collection.collect import collect as run

    with progress_bars() as progress:
        result = run(resolved, progress)
    _print_result(result, as_json)


def _print_estimate(estimate: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        typer.echo(json.dumps(estimate))
        return
    memory = estimate["memory"]
    _print_table(estimate["config"].items(), "configuration")
    rows = {
        "device": estimate["device"],
        "parameters": f"{estimate['parameters']:,}",
        "prompts": f"{estimate['prompts']:,} of {estimate['prompt_tokens']:,} tokens",
        "left out": _reasons(estimate["left_out"]),
        "responses": f"at most {estimate['most_new_tokens']:,} tokens",
        "memory": ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in memory.items()),
    }
    _print_table(rows.items(), "estimate")


def _print_result(result: CollectResult, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    stats = result.stats
    derived = {
        "tokens_per_forward": stats.tokens_per_forward,
        "steps_to_fixed_point": stats.steps_to_fixed_point,
        "mean_response_tokens": stats.mean_response_tokens,
    }
    if as_json:
        typer.echo(json.dumps({**asdict(result), **derived, "path": str(result.path)}))
        return
    dropped = sum(result.dropped.values())
    rows = {
        "file": result.path,
        "kept": f"{result.rows:,} of {result.prompts:,} responses",
        "dropped": f"{dropped:,}" + (f" ({_reasons(result.dropped)})" if dropped else ""),
        "left out": _reasons(result.left_out),
        "mean response": f"{stats.mean_response_tokens:.1f} tokens",
        "Jacobi TPF": f"{stats.tokens_per_forward:.2f} tokens per forward pass",
        "steps to the fixed point": f"{stats.steps_to_fixed_point:.2f} per block",
        "fast-forwarded": f"{stats.fast_forwarded:,} tokens",
        "stationary": f"{stats.stationary:,} tokens",
        "time": f"{result.seconds:.1f} s"
        + (f", {result.done_before:,} prompts were done before" if result.done_before else ""),
    }
    _print_table(rows.items(), "collected")


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items()) or "-"


def _print_table(rows: Iterable[tuple[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        table.add_row(name, "-" if shown is None else str(shown))
    Console().print(table, markup=False, highlight=False)
