"""Muon for the matrices of the layers, AdamW for embeddings, norms and biases.

Muon (Jordan, https://kellerjordan.github.io/posts/muon) makes the update of a matrix orthogonal: all directions learn
alike, not only those of large gradients. Scaled as in Moonlight (arXiv 2502.16982, section 2.2) it has the size of
AdamW's update. torch.optim.Muon computes in bfloat16, which takes twenty times as long on processors without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from nptool.training.arguments import native_bfloat16
from nptool.training.config import TrainingConfig

MOMENTUM = 0.95
SCALE = 0.2
"""Root mean square of AdamW's updates."""
ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of Jordan's polynomial: a X + (b A + c A A) X with A = X X^T moves all singular values into 0.7 to 1.2."""


class Muon(torch.optim.AdamW):
    """Groups with `matrices` are updated by Muon."""

    def __init__(self, model: nn.Module, *, lr: float, precision: torch.dtype, weight_decay: float, **options: Any):
        """
        Args:
            lr: of both.
            precision: of the orthogonalization.
            options: of AdamW.
        """
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        matrices, rest, undecayed = list[Tensor](), list[Tensor](), list[Tensor]()
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                outer = id(weight) in tables or name.endswith("lm_head.weight")
                (undecayed if weight.dim() < 2 else rest if outer or weight.dim() > 2 else matrices).append(weight)
        groups = [
            {"params": matrices, "weight_decay": weight_decay, "matrices": True},
            {"params": rest, "weight_decay": weight_decay, "matrices": False},
            {"params": undecayed, "weight_decay": 0.0, "matrices": False},
        ]
        super().__init__(groups, lr=lr, **options)
        self._precision = precision

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no loss is returned
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["matrices"]]
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        updates = sorted(self._momenta(group["params"]), key=lambda pair: pair[1].shape)
        for _, alike in groupby(updates, key=lambda pair: pair[1].shape):
            weights, momenta = zip(*alike, strict=True)
            for weight, update in zip(weights, orthogonal(torch.stack(momenta).to(self._precision)), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.to(weight.dtype), alpha=-group["lr"] * SCALE * max(weight.shape) ** 0.5)

    def _momenta(self, weights: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The weights that have gradients, with their Nesterov momentum."""
        for weight in weights:
            if weight.grad is not None:
                state = self.state[weight]
                if not state:
                    # AdamW looks for a step in every state that it loads.
                    state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                yield weight, weight.grad.lerp(momentum, MOMENTUM)


def optimizers(config: TrainingConfig, model: nn.Module) -> tuple[Muon | None, None]:
    """What a Trainer is given: Muon if it is configured, and nothing where the Trainer makes its own."""
    if config.optimizer != "muon":
        return None, None
    precision = torch.bfloat16 if native_bfloat16() else torch.float32
    betas = config.beta1, config.beta2
    return Muon(
        model, lr=config.learning_rate, precision=precision, weight_decay=config.weight_decay, betas=betas
    ), None


def orthogonal(matrices_BMN: Tensor) -> Tensor:
    """The nearest matrices with equal singular values, by Newton-Schulz iterations: U V^T of U S V^T, nearly."""
    wide = matrices_BMN.shape[1] <= matrices_BMN.shape[2]
    found: Tensor = matrices_BMN if wide else matrices_BMN.mT
    found = found / (found.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = found @ found.mT
        found = a * found + (b * square + c * square @ square) @ found
    return found if wide else found.mT
