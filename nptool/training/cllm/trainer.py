"""The Hugging Face Trainer with the consistency loss.

All batches of an optimizer step, of all processes, share one mean for each term of the loss: no batch weighs more than
its rows. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nptool.training.cllm.one_pass import count_rows, packed_loss
from nptool.training.cllm.recipe import Recipe
from nptool.training.trainer import PlannedTrainer

CONSISTENCY, AUTOREGRESSIVE, RIGHT = "consistency_loss", "ar_loss", "taught_rows_right"
"""Names in the log: nats per taught row, nats per label, share of taught rows that pick the fixed point's token."""


class CllmTrainer(PlannedTrainer):
    """Trains on the packed loss, and logs its terms."""

    loss_is_scaled_for_ga = True

    def __init__(self, recipe: Recipe, **options: Any) -> None:
        super().__init__(**options)
        self.recipe = recipe
        self._sums: Tensor | float = 0.0
        self._counts: Tensor | float = 0.0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of the next optimizer step, and the counts of rows in them, all processes together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.stack([count_rows(batch) for batch in batches]).sum(0) if batches else torch.zeros(3)
        totals: Tensor = self.accelerator.reduce(counts.to(device), "sum")
        return batches, totals

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This batch's part of the step's loss."""
        assert isinstance(num_items_in_batch, Tensor)
        assert not return_outputs, "there is no evaluation"
        attention = str(self.accelerator.unwrap_model(model).config._attn_implementation)
        result = packed_loss(model, inputs, self.recipe, num_items_in_batch, attention)
        self._sums += result.sums
        self._counts += result.counts
        # Gradients are averaged over the processes, but the parts add up.
        return result.loss * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the terms of the loss since the last time."""
        if "loss" in logs:
            logs |= self._terms()
        super().log(logs, start_time)

    def log_rest(self) -> None:
        """Log the terms of the steps after the last regular line."""
        if isinstance(self._counts, Tensor):
            self.log(self._terms())

    def _terms(self) -> dict[str, float]:
        sums: Tensor = self.accelerator.reduce(self._sums, "sum")
        counts: Tensor = self.accelerator.reduce(self._counts, "sum")
        self._sums = self._counts = 0.0
        consistency, cross_entropy, right = sums.tolist()
        weight, labels, rows = torch.where(counts > 0, counts, 1).tolist()
        return {CONSISTENCY: consistency / weight, AUTOREGRESSIVE: cross_entropy / labels, RIGHT: right / rows}
