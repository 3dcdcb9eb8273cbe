"""A Trainer whose loss is made of sums: each term is one mean over the whole optimizer step.

No batch weighs more than its rows, whether they come from gradient accumulation or from several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nptool.training.trainer import PlannedTrainer


class SummedLossTrainer(PlannedTrainer):
    """Counts the targets of each step before its batches are trained, and logs the terms of the loss."""

    loss_is_scaled_for_ga = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sums: Tensor | float = 0.0
        self._counts: Tensor | float = 0.0

    def count(self, batch: Any) -> Tensor:
        """How many targets a batch has for each term of the loss."""
        raise NotImplementedError

    def sum_losses(self, model: nn.Module, batch: Any, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's share of the step's loss, a scalar with gradient, and the sums to log, without gradient.

        Args:
            counts: `count` of the whole step.
        """
        raise NotImplementedError

    def terms(self, sums: Tensor, counts: Tensor) -> dict[str, float]:
        """What is logged for sums and counts since the last line of the log."""
        raise NotImplementedError

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of the next optimizer step, and the counts of all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.stack([self.count(batch) for batch in batches]).sum(0) if batches else torch.zeros(1)
        totals: Tensor = self.accelerator.reduce(counts.to(device), "sum")
        return batches, totals

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        assert isinstance(num_items_in_batch, Tensor)
        assert not return_outputs, "there is no evaluation"
        loss, sums = self.sum_losses(model, inputs, num_items_in_batch)
        self._sums += sums
        self._counts += self.count(inputs).to(loss.device)
        # Gradients are averaged over the processes, while their shares of the loss add up.
        return loss * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
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
        return self.terms(sums, counts)
