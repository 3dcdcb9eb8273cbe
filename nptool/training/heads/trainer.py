"""The Hugging Face Trainer with the heads' loss.

Checkpoints hold trained weights only, so those of heads on a frozen trunk are small.

Legend: B batch, T tokens, D hidden, N trained positions, K heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from nptool.errors import UsageError
from nptool.training.heads.losses import IGNORE, Guard
from nptool.training.heads.model import MultiHead
from nptool.training.summed_loss import SummedLossTrainer

GUARD = "guard_divergence"
"""Name in the log: nats between the original model and head 1, per target."""
FAST = 3.0
"""Learning rate of what tells the depths of a shared layer apart, relative to that of the layer."""


class HeadsTrainer(SummedLossTrainer):
    """Trains on the heads' loss, and logs each head's.

    Args:
        original: model that head 1 is kept near, with weight `guard`.
    """

    def __init__(self, model: MultiHead, original: PreTrainedModel | None = None, guard: float = 0.0, **options: Any):
        super().__init__(model=model, **options)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UsageError("heads are trained by data parallelism only; launch without FSDP and DeepSpeed")
        self._original: Any = original
        if original is not None:
            nn.Module.to(original, self.args.device).requires_grad_(False)
        self._guard = guard

    def create_optimizer(self, *arguments: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(*arguments)
        model: Any = self.accelerator.unwrap_model(self.model)
        fast = {id(weight) for weight in model.extra.fast_weights()}
        for group in [*optimizer.param_groups]:
            if found := [weight for weight in group["params"] if id(weight) in fast]:
                group["params"] = [weight for weight in group["params"] if id(weight) not in fast]
                optimizer.add_param_group({**group, "params": found, "lr": FAST * group["lr"]})
        return optimizer

    def count(self, batch: Any) -> Tensor:
        """Targets of each head (K,)."""
        counts_K: Tensor = (batch["labels_NK"] != IGNORE).sum(0)
        return counts_K

    def sum_losses(self, model: nn.Module, batch: Any, counts: Tensor) -> tuple[Tensor, Tensor]:
        loss, sums = model(**batch, counts_K=counts, guard=self._guard_of(batch))
        return loss, sums

    def _guard_of(self, batch: Any) -> Guard | None:
        if self._original is None:
            return None
        with torch.no_grad():
            hidden_BTD = self._original.base_model(input_ids=batch["input_ids"], use_cache=False)[0]
        unembedding_VD = self._original.get_output_embeddings().weight
        return Guard(self._guard, hidden_BTD.flatten(0, 1)[batch["positions_N"]], unembedding_VD)

    def terms(self, sums: Tensor, counts: Tensor) -> dict[str, float]:
        """Mean cross-entropy of each trained head, nats per target, and the mean divergence from the original."""
        counts_K = counts.clamp(min=1)
        means = (sums[:-1] / counts_K).tolist()
        terms = {f"head_{head}_loss": mean for head, mean in enumerate(means, start=1) if mean}
        return terms | ({GUARD: float(sums[-1] / counts_K[0])} if self._original is not None else {})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with safe_open(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME, "pt") as stored:
            if not any(name.startswith("extra.") for name in stored.keys()):  # noqa: SIM118  # not a mapping
                raise UsageError(
                    f"{resume_from_checkpoint} is of a training that an older nptool began; finish it with that one, "
                    "or choose another --name"
                )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        weights = model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: weight for name, weight in weights.items() if name in trained})
