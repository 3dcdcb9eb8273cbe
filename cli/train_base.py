"""`nptool train base`: a small model from scratch, or a finished model trained further."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from nptool.cli.console import progress_bars
from nptool.cli.options import AsJson, RunOptions
from nptool.cli.signatures import Given, options
from nptool.cli.training_output import print_base_result, print_estimates
from nptool.processes import is_main_process
from nptool.settings import resolve
from nptool.training.base.config import BaseConfig


@options
def train_base(given: Annotated[Given, BaseConfig], run: RunOptions, as_json: AsJson = False) -> None:
    """Train on the plain next-token loss: a small Llama from scratch, or (-m) a finished model further.

    DATA are text and source files, directories of them, or JSONL, JSON and Parquet records. The result is
    runs/<name>/model, a Hugging Face checkpoint. Run the same command again to resume an interrupted run.
    """
    resolved = resolve(BaseConfig, run.config, given)
    if run.dry_run:
        from nptool.training.base.dry_run import dry_run as estimate

        print_estimates([estimate(resolved)], as_json)
        return

    from nptool.training.base.train import train_base as train

    with progress_bars() as progress:
        result = train(resolved, progress)
    if is_main_process():
        print_base_result(asdict(result), as_json)
