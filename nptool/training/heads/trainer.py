"""The Hugging Face Trainer with the heads' loss.

All batches of an optimizer step, of all processes, share one mean for each head. Checkpoints hold what is trained only,
so that those of heads on a frozen trunk are small. Knows no files.

Legend: B batch, T tokens, D hidden, N trained positions, K heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nptool.errors import UsageError
from nptool.training.heads.losses import IGNORE, Guard
from nptool.training.heads.model import MultiHead
from nptool.training.trainer import PlannedTrainer

GUARD = "guard_divergence"
"""Name in the log: nats between the original model and head 1, per target."""


def head_loss_name(head: int) -> str:
    """Name in the log of a head's mean cross-entropy, nats per target; head 1..n."""
    return f"head_{head}_loss"


class HeadsTrainer(PlannedTrainer):
    """Trains on the heads' loss, and logs each head's.

    Args:
        original: model that head 1 is held near to, with what weight.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, model: MultiHead, original: PreTrainedModel | None = None, guard: float = 0.0, **options: Any):
        super().__init__(model=model, **options)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UsageError("heads are trained by data parallelism only; launch without FSDP and DeepSpeed")
        self._original: Any = original
        if original is not None:
            nn.Module.to(original, self.args.device).requires_grad_(False)
        self._guard = guard
        self._sums: Tensor | float = 0.0
        self._counts: Tensor | float = 0.0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of the next optimizer step, and each head's targets in them, all processes together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [(batch["labels_NK"] != IGNORE).sum(0) for batch in batches]
        total_K = torch.stack(counts).sum(0) if counts else torch.zeros(1)
        totals: Tensor = self.accelerator.reduce(total_K.to(device), "sum")
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
        loss, sums = model(**inputs, counts_K=num_items_in_batch, guard=self._held(inputs))
        self._sums += sums
        self._counts += (inputs["labels_NK"] != IGNORE).sum(0)
        # Gradients are averaged over the processes, but the parts add up.
        return loss * self.accelerator.num_processes

    def _held(self, inputs: Any) -> Guard | None:
        if self._original is None:
            return None
        with torch.no_grad():
            hidden_BTD = self._original.base_model(input_ids=inputs["input_ids"], use_cache=False)[0]
        unembedding_VD = self._original.get_output_embeddings().weight
        return Guard(self._guard, hidden_BTD.flatten(0, 1)[inputs["positions_N"]], unembedding_VD)

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
        counts_K: Tensor = self.accelerator.reduce(self._counts, "sum").clamp(min=1)
        self._sums = self._counts = 0.0
        means = (sums[:-1] / counts_K).tolist()
        terms = {head_loss_name(head): mean for head, mean in enumerate(means, start=1) if mean}
        return terms | ({GUARD: float(sums[-1] / counts_K[0])} if self._original is not None else {})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save what is trained."""
        model: Any = self.accelerator.unwrap_model(self.model)
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        weights = model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: weight for name, weight in weights.items() if name in trained})
