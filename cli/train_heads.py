"""`nptool train heads`: extra heads for a finished model, which predict the tokens after the next one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from nptool.cli.console import progress_bars
from nptool.cli.options import AsJson, RunOptions
from nptool.cli.signatures import Given, options
from nptool.cli.training_output import print_estimates, print_heads_result
from nptool.processes import is_main_process
from nptool.settings import resolve
from nptool.training.heads.config import HeadsConfig, heads_defaults


@options
def train_heads(given: Annotated[Given, HeadsConfig], run: RunOptions, as_json: AsJson = False) -> None:
    """Add extra heads to a finished model: head k predicts the k-th token ahead, all of them in one pass.

    DATA is a file of `nptool collect`, or prompts that the model (-m) answers first. The model itself is unchanged, bit
    for bit, unless --joint is given. The result is runs/<name>/model: an ordinary Hugging Face checkpoint with the
    heads next to it. Run the same command again to resume an interrupted run.
    """
    resolved = resolve(HeadsConfig, run.config, given, heads_defaults)
    if run.dry_run:
        from nptool.training.heads.dry_run import dry_run as estimate

        print_estimates([estimate(resolved)], as_json)
        return

    from nptool.training.heads.train import train_heads as train

    with progress_bars() as progress:
        result = train(resolved, progress)
    if is_main_process():
        print_heads_result(asdict(result), as_json)
