"""The Hugging Face Trainer with the consistency loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nptool.training.cllm.one_pass import count_rows, packed_loss
from nptool.training.cllm.recipe import Recipe
from nptool.training.summed_loss import SummedLossTrainer

CONSISTENCY, AUTOREGRESSIVE, RIGHT = "consistency_loss", "ar_loss", "taught_rows_right"
"""Names in the log: nats per taught row, nats per label, share of taught rows that pick the fixed point's token."""


class CllmTrainer(SummedLossTrainer):
    def __init__(self, recipe: Recipe, **options: Any) -> None:
        super().__init__(**options)
        self.recipe = recipe

    def count(self, batch: Any) -> Tensor:
        """Weight of the taught rows, labels, and taught rows; shape (3,)."""
        return count_rows(batch)

    def sum_losses(self, model: nn.Module, batch: Any, counts: Tensor) -> tuple[Tensor, Tensor]:
        attention = str(self.accelerator.unwrap_model(model).config._attn_implementation)
        return packed_loss(model, batch, self.recipe, counts, attention)

    def terms(self, sums: Tensor, counts: Tensor) -> dict[str, float]:
        consistency, cross_entropy, right = sums.tolist()
        weight, labels, rows = torch.where(counts > 0, counts, 1).tolist()
        return {CONSISTENCY: consistency / weight, AUTOREGRESSIVE: cross_entropy / labels, RIGHT: right / rows}
