"""The held-out prompts that are saved with a checkpoint's heads, and the heads' figures on them."""

from __future__ import annotations

import numpy as np

from nptool.collection.store import Trajectory
from nptool.heads_sample import SAMPLE_PROMPTS, SAMPLE_TOKENS, HeadsFigures, HeadsSample
from nptool.training.heads.batching import response_sequences
from nptool.training.heads.evaluation import evaluate_heads
from nptool.training.heads.model import MultiHead
from nptool.training.sequences import Sequences


def take_sample(model: MultiHead, heldout: Sequences, batch_tokens: int) -> HeadsSample:
    """The first held-out prompts with the beginnings of their responses.

    Args:
        batch_tokens: padded tokens of one pass.
    """
    rows = []
    for row in range(min(SAMPLE_PROMPTS, len(heldout.starts))):
        ids = heldout.ids[heldout.starts[row] : heldout.ends[row]]
        prompt, response = np.split(ids, [int(heldout.response_starts[row])])
        rows.append(Trajectory(prompt, response[:SAMPLE_TOKENS], None, ()))
    found = evaluate_heads(model, response_sequences(rows), batch_tokens=batch_tokens)
    return HeadsSample(
        prompts=tuple(tuple(row.prompt_ids.tolist()) for row in rows),
        responses=tuple(tuple(row.response_ids.tolist()) for row in rows),
        figures=HeadsFigures(found.tokens_per_forward, found.acceptance),
    )
