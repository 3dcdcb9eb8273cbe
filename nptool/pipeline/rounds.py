"""`nptool train cllm --rounds`: train, collect from the trained model in longer blocks, train it further, ...

This is the progressive distillation of Jacobi Forcing (arXiv 2512.14681). Every round is a run of its own (`runs/NAME`,
`runs/NAME-round-2`, ...): a finished round is not repeated, and its model can be converted and compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nptool.collection.collect import collect, context_of
from nptool.collection.config import CollectConfig
from nptool.collection.store import read_collected
from nptool.errors import UsageError
from nptool.files import read_json, write_json
from nptool.pipeline.rounds_config import RoundsConfig
from nptool.processes import process_count
from nptool.progress import Progress, in_part, silent
from nptool.runs import ROOT, Run
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.dry_run import dry_run
from nptool.training.cllm.train import CllmResult, train_cllm
from nptool.training.responses.config import BLOCK_SIZE
from nptool.training.responses.data import find_source

ROUND_FILE = "round.json"
"""In the run of a later round: the values of `OWN` that it was started with."""
OWN = ("n", "window", "steps", "lr")
"""Settings in which a later round may differ from the first."""
KEPT = ("max_new_tokens", "seed", "temperature", "keep_degenerate", "max_prompt_tokens")
"""Settings that a later round's collection takes from the first round's."""


def train_rounds(config: RoundsConfig, progress: Progress = silent) -> list[CllmResult]:
    """Train all rounds, or continue an interrupted call; returns the result of each round.

    Raises:
        NptoolError: see `collect` and `train_cllm`.
        UsageError: several processes, or a round's directory was started with other settings.
        KeyboardInterrupt: Ctrl-C; finished rounds and the checkpoints of this one are kept.
    """
    if config.rounds == 1:
        return [train_cllm(config.first, progress)]
    if process_count() > 1:
        raise UsageError("--rounds collects between trainings, in one process; train each round by itself instead")
    check_rounds(config)
    # `runs/latest` changes at the end only: the command may take its data from there, and can be repeated until then.
    results = [train_cllm(config.first, in_part("round 1", progress), publish=False)]
    for number in range(2, config.rounds + 1):
        later = config.round(number, results[0].block_size)
        run = _open_round(later)
        if not run.collected.is_file():
            collect(_collection(config.first, later), in_part(f"round {number}", progress))
        results.append(train_cllm(later, in_part(f"round {number}", progress), run, publish=False))
    Run(Path(results[-1].run)).publish()
    return results


def dry_run_rounds(config: RoundsConfig) -> list[dict[str, Any]]:
    """The `dry_run` of each round.

    A later round's trajectories do not exist yet; its tokens, steps and memory are assumed to be those of the first.
    """
    check_rounds(config)
    estimates = [dry_run(config.first)]
    for number in range(2, config.rounds + 1):
        later = config.round(number, estimates[0]["config"]["n"])
        changed: dict[str, Any] = {"data": [str(path) for path in later.data]}
        changed |= {name: getattr(later, name) for name in ("model", "n", "window", "steps", "epochs", "name")}
        changed["lr"] = later.learning_rate
        estimate = {**estimates[0], "run": later.run_name, "config": {**estimates[0]["config"], **changed}}
        estimates.append(estimate | {"steps": later.steps or estimate["steps"]})
    return estimates


def check_rounds(config: RoundsConfig) -> None:
    """Check that the growing blocks of every round fit the model's context.

    Raises:
        UsageError: the context has no room for a prompt and a block.
    """
    if config.rounds == 1:
        return
    source = find_source(config.first)
    context = context_of(source.model)
    first_n = read_collected(source.collected).metadata.n if source.collected else config.n or BLOCK_SIZE
    for number in range(2, config.rounds + 1):
        n = config.round(number, first_n).n
        if context is not None and n is not None and n >= context:
            raise UsageError(
                f"round {number} has blocks of {n} tokens, and the context of {source.model} has {context}; "
                "give a smaller --round-n, or fewer --rounds"
            )


def _open_round(later: CllmConfig) -> Run:
    """Create or open the run directory of a later round, which records the values of `OWN`.

    Raises:
        UsageError: it was started with other values, or holds another run.
    """
    run = Run.create(later.run_name)
    path, settings = run.path / ROUND_FILE, {name: getattr(later, name) for name in OWN}
    if not path.is_file():
        if run.config.is_file():
            raise UsageError(f"{run.path} holds another run; choose another --name, or remove that directory")
        write_json(path, settings)
    for name, before in read_json(path).items():
        if before != settings[name]:
            raise UsageError(
                f"{run.path} holds a round with --round-{name} {before}, now it is {settings[name]}; "
                "give the same to go on, or remove that directory"
            )
    return run


def _collection(first: CllmConfig, later: CllmConfig) -> CollectConfig:
    """The collection of a later round: the first round's prompts and settings, with longer blocks and the new model."""
    source = find_source(first)
    before = read_collected(source.collected or Run(ROOT / first.run_name).collected).metadata
    assert later.model is not None
    assert later.n is not None
    kept = {name: getattr(before, name) for name in KEPT}
    # 0: a collection without plain text.
    if before.text_prompt_tokens:
        kept["text_prompt_tokens"] = before.text_prompt_tokens
    # Leave out prompts that have room for the first round's blocks only.
    if (context := context_of(later.model)) is not None:
        kept["max_prompt_tokens"] = min(before.max_prompt_tokens or context, context - later.n)
    return CollectConfig(
        model=later.model,
        data=first.data,
        output=later.data[0],
        n=later.n,
        batch_size=first.collect_batch_size,
        augment=before.augmented,
        chat=before.template is not None,
        **{name: getattr(first, name) for name in ("limit", "prompt_field", "response_field", "precision")},
        **kept,
    )
