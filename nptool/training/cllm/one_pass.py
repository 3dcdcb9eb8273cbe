"""The loss of a batch of packed trajectories in one forward pass.

The model is called as a whole, so it may be wrapped (DDP, FSDP, DeepSpeed, peft). Logits are computed only for rows
that carry or teach a loss. Legend: B batch, S packed sequence.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from nptool.training.cllm.batching import Batch, attention_mask
from nptool.training.cllm.losses import Rows, weighted_sums
from nptool.training.cllm.recipe import Recipe


class PackedLoss(NamedTuple):
    loss: Tensor
    """Scalar with gradient."""
    sums: Tensor
    """Weighted sum of divergences (nats), sum of cross-entropies (nats), taught rows whose pick is right; (3,)."""


def count_rows(batch: Batch) -> Tensor:
    """Total weight of the taught rows, autoregressive labels, and taught rows of a batch; shape (3,)."""
    rows, labels = len(batch["student_rows_M"]), len(batch["ar_rows_A"])
    return torch.tensor([float(batch["weights_M"].sum()), labels, rows], dtype=torch.float64)


def packed_loss(
    model: nn.Module, batch: Batch, recipe: Recipe, counts: Tensor | None = None, attention: str = "sdpa"
) -> PackedLoss:
    """Run one forward pass over a batch.

    Args:
        counts: `count_rows` of all batches that are averaged over (those of the optimizer step), shape (3,); None is
            this batch alone.
        attention: the model's attention implementation, "sdpa" or "eager".

    Returns:
        The loss: consistency sum / counts[0] + ar_weight * cross-entropy sum / counts[1].
    """
    counts = count_rows(batch).to(batch["input_ids"].device) if counts is None else counts
    kept_BS, numbers = _kept_rows(batch)
    output = cast(
        Any,
        model(
            input_ids=batch["input_ids"],
            attention_mask=attention_mask(batch, attention),
            position_ids=batch["positions_BS"],
            logits_to_keep=kept_BS,
            use_cache=False,
        ),
    )
    rows = Rows(
        ar_A=numbers[batch["ar_rows_A"]],
        ar_labels_A=batch["ar_labels_A"],
        student_M=numbers[batch["student_rows_M"]],
        teacher_M=numbers[batch["teacher_rows_M"]],
        fixed_labels_M=batch["fixed_labels_M"],
        weights_M=batch["weights_M"],
    )
    shares = 1 / torch.where(counts > 0, counts, 1).to(torch.promote_types(output.logits.dtype, torch.float32))
    loss, sums = weighted_sums(output.logits, rows, recipe, shares[0], recipe.ar_weight * shares[1])
    return PackedLoss(loss, sums)


def _kept_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which tokens need logits, boolean (B, S), and the index of each among them, (B * S,)."""
    kept_BS = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    for name in ("ar_rows_A", "student_rows_M", "teacher_rows_M"):
        kept_BS.view(-1)[batch[name]] = True
    return kept_BS, kept_BS.view(-1).cumsum(0) - 1
