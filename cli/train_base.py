"""`nptool train base`: a small model from scratch, or a finished model trained further."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from nptool.cli.console import progress_bars
from nptool.cli.options import AsJson, ConfigFile, DryRun
from nptool.cli.training_options import (
    Accumulation,
    BatchTokens,
    Checkpointing,
    DataFiles,
    Epochs,
    LearningRate,
    MoreData,
    PrecisionChoice,
    PromptField,
    ResponseField,
    RunName,
    SaveEvery,
    Steps,
    TrainingSeed,
    data_paths,
    given_fields,
)
from nptool.cli.training_output import print_base_result, print_estimate
from nptool.processes import is_main_process
from nptool.settings import resolve
from nptool.training.base.config import BaseConfig


def train_base(
    data: DataFiles = None,
    more: MoreData = None,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", metavar="DIR|ID", help="finished model to train further", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="DIR|ID|bytes", help="take this tokenizer [trained on the data]", show_default=False),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help=f"tokens of a tokenizer trained here [{BaseConfig.vocab_size}]", show_default=False),
    ] = None,
    digits: Annotated[
        bool | None,
        typer.Option("--digits/--no-digits", help="a tokenizer trained here keeps digits single", show_default=False),
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option(help=f"width of the layers [{BaseConfig.hidden_size}]", show_default=False)
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help=f"number of layers [{BaseConfig.layers}]", show_default=False)
    ] = None,
    attention_heads: Annotated[
        int | None, typer.Option(help=f"attention heads [{BaseConfig.attention_heads}]", show_default=False)
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option(help="key and value heads [as many as attention heads]", show_default=False)
    ] = None,
    intermediate_size: Annotated[
        int | None, typer.Option(help="width of the feed-forward layers [8/3 of the hidden size]", show_default=False)
    ] = None,
    tied: Annotated[
        bool | None,
        typer.Option("--tied/--untied", help="one matrix for embedding and unembedding [tied]", show_default=False),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(help="heads of a multi-head model, taken from its layers [-m's, or 1]", show_default=False),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help=f"longest sequence in tokens [{BaseConfig.context}]", show_default=False)
    ] = None,
    loss: Annotated[
        Literal["all", "response"] | None,
        typer.Option(help="tokens of a prompt/response record that are trained [all]", show_default=False),
    ] = None,
    prompt_share: Annotated[
        float | None,
        typer.Option(help=f"share of a prompt's tokens trained by --loss all [{BaseConfig.prompt_share:g}]"),
    ] = None,
    heldout: Annotated[
        float | None,
        typer.Option(help=f"share of the data kept for testing [{BaseConfig.heldout}]", show_default=False),
    ] = None,
    heldout_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="records to test on instead of a share", show_default=False)
    ] = None,
    prompt_field: PromptField = None,
    response_field: ResponseField = None,
    steps: Steps = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    batch_tokens: BatchTokens = None,
    accumulation: Accumulation = None,
    gradient_checkpointing: Checkpointing = None,
    precision: PrecisionChoice = None,
    seed: TrainingSeed = None,
    save_every: SaveEvery = None,
    name: RunName = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train on the plain next-token loss: a small Llama from scratch, or (-m) a finished model further.

    DATA are text and source files, directories of them, or JSONL, JSON and Parquet records. The result is
    runs/<name>/model, a Hugging Face checkpoint. The same command goes on with an interrupted run.
    """
    flags = given_fields(locals(), BaseConfig)
    resolved = resolve(BaseConfig, config, {**flags, "data": data_paths(data, more)})
    if dry_run:
        from nptool.training.base.dry_run import dry_run as estimate

        print_estimate(estimate(resolved), as_json)
        return

    from nptool.training.base.train import train_base as train

    with progress_bars() as progress:
        result = train(resolved, progress)
    if is_main_process():
        print_base_result(asdict(result), as_json)
