"""Held-out loss of each head, and how often the target is its first, second, ... choice.

Legend: B batch, T tokens, D hidden, V vocabulary, N positions, M positions of one head, C of a chunk,
K heads, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nptool.heads_sample import HeadsFigures
from nptool.progress import Progress, silent
from nptool.training.batches import cut_batches
from nptool.training.heads.batching import heads_batch
from nptool.training.heads.losses import IGNORE, chunks
from nptool.training.heads.model import MultiHead
from nptool.training.sequences import Sequences

RANKS = 10
"""Choices of a head that are counted."""


@dataclass(frozen=True)
class HeadsEvaluation:
    """Figures of heads 1..n, one entry per head."""

    tokens: tuple[int, ...]
    """Number of targets."""
    loss: tuple[float, ...]
    """Nats per target."""
    accuracy: tuple[tuple[float, ...], ...]
    """Shares of targets that are the head's first, second, ... choice, not cumulative."""
    tokens_per_forward: float = 1.0
    """Of the greedy chain of all heads, if the sequences are the model's own greedy answers."""
    acceptance: tuple[float, ...] = ()
    """Share of its steps whose first, second, ... draft is accepted."""

    def top(self, choices: int) -> tuple[float, ...]:
        """For each head the share of targets among its first `choices`."""
        return tuple(sum(row[:choices]) for row in self.accuracy)


@torch.no_grad()
def evaluate_heads(
    model: MultiHead,
    sequences: Sequences,
    *,
    batch_tokens: int,
    heads: int | None = None,
    progress: Progress = silent,
    step: str = "held-out loss",
) -> HeadsEvaluation:
    """Evaluate on all targets of `sequences`.

    Args:
        batch_tokens: padded tokens of one pass.
        heads: evaluate heads 1..`heads` only; None is all.
        step: name of this step in progress reports.
    """
    model.eval()
    count = heads or model.count
    lengths = sequences.lengths
    batches = cut_batches(lengths, np.argsort(lengths, kind="stable"), batch_tokens)
    tokens_K = torch.zeros(count, dtype=torch.long)
    loss_K = torch.zeros(count, dtype=torch.float64)
    hits_KR = torch.zeros(count, RANKS, dtype=torch.long)
    steps = np.zeros(count, dtype=np.int64)
    for index, rows in enumerate(batches):
        progress(step, index, len(batches))
        batch = {name: tensor.to(model.device) for name, tensor in heads_batch(sequences, rows, 0, count).items()}
        trunk = model.run_trunk(batch["input_ids"])
        right_NK = np.zeros((len(batch["labels_NK"]), count), dtype=bool)
        for head in range(count):
            labels_N = batch["labels_NK"][:, head]
            kept_N = labels_N != IGNORE
            hidden_MD = model.hidden_states(head, trunk, batch["positions_N"][kept_N])
            loss, rank_M = _measure(hidden_MD, labels_N[kept_N], model.unembedding_VD)
            tokens_K[head] += int(kept_N.sum())
            loss_K[head] += loss
            hits_KR[head] += torch.bincount(rank_M[rank_M < RANKS], minlength=RANKS)
            right_NK[kept_N.cpu().numpy(), head] = (rank_M == 0).numpy()
        rows_N = (batch["positions_N"] // batch["input_ids"].shape[1]).cpu().numpy()
        for row in range(len(rows)):
            steps += _chain(right_NK[rows_N == row, 1:])
    progress(step, len(batches), len(batches))
    chain = HeadsFigures.of(steps.tolist())
    share_KR = hits_KR / tokens_K.clamp(min=1)[:, None]
    return HeadsEvaluation(
        tokens=tuple(tokens_K.tolist()),
        loss=tuple((loss_K / tokens_K.clamp(min=1)).tolist()),
        accuracy=tuple(tuple(row) for row in share_KR.tolist()),
        tokens_per_forward=chain.tokens_per_forward,
        acceptance=chain.acceptance,
    )


def _chain(right_NK: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Steps of one answer by their accepted drafts, 0..K.

    Args:
        right_NK: whether each of K heads is right, from the position before the prompt's last one on.
    """
    counts, position = np.zeros(right_NK.shape[1] + 1, dtype=np.int64), 0
    while position < len(right_NK) - 1:
        accepted = int(right_NK[position].cumprod().sum())
        counts[accepted] += 1
        position += accepted + 1
    return counts


def _measure(hidden_MD: Tensor, labels_M: Tensor, unembedding_VD: Tensor) -> tuple[float, Tensor]:
    """Sum of cross-entropies, and the rank of each label among the choices (M,), on the CPU."""
    loss, ranks = 0.0, [torch.zeros(0, dtype=torch.long)]
    for rows_C in chunks(len(hidden_MD), len(unembedding_VD)):
        logits_CV = F.linear(hidden_MD[rows_C], unembedding_VD).float()
        loss += float(F.cross_entropy(logits_CV, labels_M[rows_C], reduction="sum"))
        ranks.append((logits_CV > logits_CV.gather(1, labels_M[rows_C, None])).sum(-1).cpu())
    return loss, torch.cat(ranks)
