"""Scores of a text-to-SQL checkpoint: execution accuracy and tokens per forward.

Jacobi decoding gives the greedy answer, so one pass over the held-out prompts measures both; extra heads are measured
on the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nptool.checkpoints import load_model, load_tokenizer
from nptool.collection.jacobi import JacobiSettings, Prompt, jacobi_trajectories
from nptool.collection.store import Trajectory
from nptool.collection.trajectories import TrajectoryStats, count
from nptool.data.record import Record
from nptool.data.rendering import end_token_ids, render
from nptool.heads import read_heads_info
from nptool.heads_sample import HeadsFigures
from nptool.processes import best_device
from nptool.progress import Progress, silent
from nptool.text_to_sql import Example, execution_match

BATCH_SIZE = 96
HEADS_TOKENS = 2048
"""Tokens of a batch in which heads are measured."""


@dataclass(frozen=True)
class Scores:
    """The closing table of `nptool train`."""

    examples: int
    execution_accuracy: float
    """Share of held-out questions whose query gives the gold query's result, 0 to 1."""
    tokens_per_forward: float
    """Of Jacobi decoding in blocks."""
    steps_to_fixed_point: float
    """Mean forward passes of a block."""
    fast_forwarded_per_block: float
    stationary_per_block: float
    mean_response_tokens: float
    heads: HeadsFigures | None = None
    """Of the checkpoint's extra heads."""


def score(
    checkpoint: Path,
    heldout: Sequence[Example],
    block_size: int,
    *,
    max_new_tokens: int,
    progress: Progress = silent,
    step: str = "scoring",
) -> Scores:
    """Answer every held-out question by Jacobi decoding in blocks, execute the answers, and draft them by the heads."""
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    model.to(best_device())  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    ends = end_token_ids(tokenizer, model)
    prompts = [
        Prompt(key, render(Record(prompt=example.prompt), tokenizer).prompt_ids) for key, example in enumerate(heldout)
    ]
    settings = JacobiSettings(block_size, max_new_tokens, ends, batch_size=BATCH_SIZE)
    stats, right, answers = TrajectoryStats(), 0, list[Trajectory]()
    progress(step, 0, len(heldout))
    for run in jacobi_trajectories(model, sorted(prompts, key=lambda prompt: len(prompt.ids)), settings):
        stats += count(run)
        answers.append(Trajectory(np.array(run.prompt.ids, np.int32), np.array(run.response_ids, np.int32), None, ()))
        answer = str(tokenizer.decode(run.response_ids, skip_special_tokens=True))
        right += execution_match(heldout[run.prompt.key], answer)
        progress(step, stats.responses, len(heldout), f"accuracy {right / stats.responses:.2f}")
    return Scores(
        examples=stats.responses,
        execution_accuracy=right / stats.responses,
        tokens_per_forward=stats.tokens_per_forward,
        steps_to_fixed_point=stats.steps_to_fixed_point,
        fast_forwarded_per_block=stats.fast_forwarded / stats.blocks,
        stationary_per_block=stats.stationary / stats.blocks,
        mean_response_tokens=stats.mean_response_tokens,
        heads=_score_heads(checkpoint, answers, progress),
    )


def _score_heads(checkpoint: Path, answers: Sequence[Trajectory], progress: Progress) -> HeadsFigures | None:
    """Figures of the checkpoint's heads on its own greedy answers; None if it has no heads."""
    from nptool.training.heads.batching import response_sequences
    from nptool.training.heads.checkpoint import load_heads
    from nptool.training.heads.evaluation import evaluate_heads

    if read_heads_info(checkpoint) is None:
        return None
    model = load_heads(checkpoint).to(best_device())
    sequences = response_sequences(answers)
    found = evaluate_heads(model, sequences, batch_tokens=HEADS_TOKENS, progress=progress, step="scoring the heads")
    return HeadsFigures(found.tokens_per_forward, found.acceptance)
