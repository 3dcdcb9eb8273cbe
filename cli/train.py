"""`nptool train`: the embedded text-to-SQL default, and the commands `base`, `cllm` and `heads`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from nptool.cli.console import chain_figures, progress_bars
from nptool.cli.options import AsJson
from nptool.cli.train_base import train_base
from nptool.cli.train_cllm import train_cllm
from nptool.cli.train_heads import train_heads

if TYPE_CHECKING:
    from nptool.pipeline.default import DefaultResult

NEXT = """
Next:

    nptool convert               # a GGUF of it
    nptool generate --compare    # one of the held-out questions, beside autoregressive decoding
    nptool chat                  # like runs/text-to-sql/heldout.jsonl: it knows no words but these
"""

train_app = typer.Typer(
    name="train",
    no_args_is_help=False,
    rich_markup_mode=None,
)
train_app.command("base")(train_base)
train_app.command("cllm")(train_cllm)
train_app.command("heads")(train_heads)


@train_app.callback(invoke_without_command=True)
def train(context: typer.Context, as_json: AsJson = False) -> None:
    """Train a model; without a command, the embedded text-to-SQL default end to end."""
    if context.invoked_subcommand is not None:
        return
    from nptool.pipeline.default import train_default

    typer.echo(
        "text-to-SQL from scratch: examples, base model, trajectories, CLLM, heads, scores. 12 minutes on 2 cores "
        "with AVX512-BF16, longer on others; run the same command again to resume.",
        err=True,
    )
    with progress_bars() as progress:
        result = train_default(progress)
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        _print_result(result)


def _print_result(result: DefaultResult) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.before.examples} held-out questions", title_justify="left")
    for column, justify in (("", "left"), ("base model", "right"), ("CLLM", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]  # rich's literal type
    before, after = result.before, result.after
    rows = (
        ("execution accuracy", f"{before.execution_accuracy:.1%}", f"{after.execution_accuracy:.1%}"),
        ("tokens per forward (TPF)", f"{before.tokens_per_forward:.2f}", f"{after.tokens_per_forward:.2f}"),
        ("steps to the fixed point", f"{before.steps_to_fixed_point:.2f}", f"{after.steps_to_fixed_point:.2f}"),
        ("fast-forwarded per block", f"{before.fast_forwarded_per_block:.2f}", f"{after.fast_forwarded_per_block:.2f}"),
        ("stationary per block", f"{before.stationary_per_block:.2f}", f"{after.stationary_per_block:.2f}"),
    )
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    if after.heads is not None:
        count = len(after.heads.acceptance) + 1
        console.print(f"{count} heads on the same answers: {chain_figures(after.heads)}", highlight=False)
    console.print(f"{result.model} ({result.seconds / 60:.1f} minutes)", highlight=False)
    typer.echo(NEXT)
