"""`nptool train cllm --rounds`: train, collect again from the trained model in longer blocks, train it further.

Jacobi Forcing's progressive distillation (arXiv 2512.14681): what a trained model is still wrong about is in its own
trajectories, and it is worth longer blocks than its base was. Every round is a run of its own (`runs/NAME`,
`runs/NAME-round-2`, ...), so a done round is not repeated, a later `--rounds 3` goes on from round 2, and every round's
model can be converted and compared. The stages' own code does the work; here is only their order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nptool.collection.collect import collect, context_of
from nptool.collection.config import CollectConfig
from nptool.collection.store import CollectionMetadata, read_collected
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
"""Of a later round's run: what it was begun with, of `OWN`."""
OWN = ("n", "window", "steps", "lr")
"""What a later round need not share with the first."""


def train_rounds(config: RoundsConfig, progress: Progress = silent) -> list[CllmResult]:
    """Train all rounds, or go on with them; returns the result of each.

    Raises:
        NptoolError: what a collection or a training raises.
        UsageError: several processes train, or a round's directory was begun with other settings.
        KeyboardInterrupt: Ctrl-C; done rounds, and what is done of this one, are kept.
    """
    if config.rounds == 1:
        return [train_cllm(config.first, progress)]
    if process_count() > 1:
        raise UsageError("--rounds collects between trainings, in one process; train each round by itself instead")
    check_rounds(config)
    # `runs/latest` stays as it is until all is done: the same command, which may take its data from there, goes on.
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
    """What each round would do, as `nptool.training.cllm.dry_run` says it.

    A later round's trajectories do not exist yet. There are about as many as in the first, so its tokens, steps and
    memory are taken to be the same.
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
    """Check that the blocks of every round fit the model: they grow.

    Raises:
        UsageError: the context has no room for a block behind a prompt.
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
    """The run directory of a later round, with a note of what it is begun with; everything else is the first round's.

    Raises:
        UsageError: it was begun with other settings, or holds another run.
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
    """The collection of a later round: the first round's prompts and settings, longer blocks, the new model."""
    source = find_source(first)
    before = read_collected(source.collected or Run(ROOT / first.run_name).collected).metadata
    assert later.model is not None
    assert later.n is not None
    settings = CollectConfig(
        model=later.model,
        data=first.data,
        output=later.data[0],
        n=later.n,
        batch_size=first.collect_batch_size,
        limit=first.limit,
        prompt_field=first.prompt_field,
        response_field=first.response_field,
        precision=first.precision,
        **_kept_settings(before),
    )
    context = context_of(later.model)
    if context is None:
        return settings
    # A prompt that only just had room for a shorter block is left out instead of being an error.
    longest = min(before.max_prompt_tokens or context, context - later.n)
    return replace(settings, max_prompt_tokens=longest)


def _kept_settings(before: CollectionMetadata) -> dict[str, Any]:
    """What a collection was made with and the next one is made with again."""
    kept = {
        "max_new_tokens": before.max_new_tokens,
        "seed": before.seed,
        "temperature": before.temperature,
        "augment": before.augmented,
        "keep_degenerate": before.keep_degenerate,
        "max_prompt_tokens": before.max_prompt_tokens,
        "chat": before.template is not None,
    }
    # 0 stands for a collection without plain text.
    return kept | ({"text_prompt_tokens": before.text_prompt_tokens} if before.text_prompt_tokens else {})
