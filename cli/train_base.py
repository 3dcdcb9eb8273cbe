"""`nptool train base`: a small model from scratch, or a finished model trained further."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nptool.cli import training_options as training
from nptool.cli.console import progress_bars
from nptool.cli.options import AsJson, ConfigFile, DryRun
from nptool.cli.training_output import print_base_result, print_estimates
from nptool.processes import is_main_process
from nptool.settings import resolve
from nptool.training.base.config import BaseConfig
from nptool.training.config import LossTokens

DEFAULTS = BaseConfig


def train_base(
    data: training.Data = None,
    more: training.MoreData = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", metavar="DIR|ID", help="finished model to train further")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR|ID|bytes", help="use this tokenizer [one trained on the data]")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help=f"size of the new vocabulary [{DEFAULTS.vocab_size}]")] = None,
    digits: Annotated[
        bool | None, typer.Option("--digits/--no-digits", help="one token for each digit in a new tokenizer [no]")
    ] = None,
    hidden_size: Annotated[int | None, typer.Option(help=f"hidden size [{DEFAULTS.hidden_size}]")] = None,
    layers: Annotated[int | None, typer.Option(help=f"number of layers [{DEFAULTS.layers}]")] = None,
    attention_heads: Annotated[int | None, typer.Option(help=f"attention heads [{DEFAULTS.attention_heads}]")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="key and value heads [as many as attention heads]")] = None,
    intermediate_size: Annotated[
        int | None, typer.Option(help="size of the feed-forward layers [8/3 of the hidden size]")
    ] = None,
    tied: Annotated[
        bool | None, typer.Option("--tied/--untied", help="one matrix for embedding and unembedding [tied]")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="number of heads; each extra one takes a layer [the model's, or 1]")
    ] = None,
    context: Annotated[int | None, typer.Option(help=f"longest sequence in tokens [{DEFAULTS.context}]")] = None,
    loss: Annotated[
        LossTokens | None, typer.Option(help="tokens of a prompt/response record to train on [all]")
    ] = None,
    prompt_share: Annotated[
        float | None,
        typer.Option(help=f"share of the prompt tokens to train on with --loss all [{DEFAULTS.prompt_share:g}]"),
    ] = None,
    heldout: Annotated[
        float | None, typer.Option(help=f"share of the data kept for testing [{DEFAULTS.heldout:g}]")
    ] = None,
    heldout_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="records to test on, instead of a share")
    ] = None,
    prompt_field: training.PromptField = None,
    response_field: training.ResponseField = None,
    steps: training.Steps = None,
    epochs: training.Epochs = None,
    lr: training.LearningRate = None,
    batch_tokens: training.BatchTokens = None,
    accumulation: training.Accumulation = None,
    gradient_checkpointing: training.Checkpointing = None,
    precision: training.Precision = None,
    seed: training.Seed = None,
    save_every: training.SaveEvery = None,
    name: training.RunName = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train on the plain next-token loss: a small Llama from scratch, or (-m) a finished model further.

    DATA are text and source files, directories of them, or JSONL, JSON and Parquet records. The result is
    runs/<name>/model, a Hugging Face checkpoint. Run the same command again to resume an interrupted run.
    """
    resolved = resolve(BaseConfig, config, training.given_fields(locals(), BaseConfig))
    if dry_run:
        from nptool.training.base.dry_run import dry_run as estimate

        print_estimates([estimate(resolved)], as_json)
        return

    from nptool.training.base.train import train_base as train

    with progress_bars() as progress:
        result = train(resolved, progress)
    if is_main_process():
        print_base_result(asdict(result), as_json)
