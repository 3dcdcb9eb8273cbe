"""Sum over the heads of the mean cross-entropy, with one head's activations and one chunk of logits in memory.

    loss = sum over heads k of  1 / N_k * sum over positions i of  CE(head k's logits at i, x_{i+k})

(arXiv 2404.19737, equation 2 and figure 2). Head by head: forward on z detached, logits in chunks of positions,
backward at once, the gradient added up at z; then one backward pass through the trunk. The gradient of a chunk's logits
is computed directly, (softmax - one-hot) / N_k, so no logit is kept for autograd. All of it happens in the forward pass
of one autograd function, so gradient accumulation and data parallelism see an ordinary loss.

Optionally head 1 is kept near an original model: guard / N_1 * KL(original || head 1) is added.

Legend: B batch, T tokens, D hidden, V vocabulary, N trained positions, M positions of one head, C of a chunk, K heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nptool.training.heads.head import TrunkOutput
from nptool.training.heads.model import MultiHead

CHUNK_ELEMENTS = 2**23
"""Logits that go through one softmax at once (32 MiB in float32)."""

IGNORE = -100
"""Label where a head has no target: after the last token."""


class HeadsLoss(NamedTuple):
    loss: Tensor
    """Scalar with gradient."""
    sums: Tensor
    """(K + 1,) without gradient, nats: each head's sum of cross-entropies, then the guard's sum of divergences; 0 for
    heads that are not trained."""


@dataclass(frozen=True)
class Guard:
    """The original model that head 1 is kept near."""

    weight: float
    """Weight of the mean divergence; that of head 1's mean cross-entropy is 1."""
    hidden_ND: Tensor
    """The original's final hidden states at the trained positions."""
    unembedding_VD: Tensor


def heads_loss(
    model: MultiHead,
    input_ids: Tensor,
    positions_N: Tensor,
    labels_NK: Tensor,
    counts_K: Tensor,
    guard: Guard | None = None,
) -> HeadsLoss:
    """Loss of one batch; only heads that change a trained parameter take part.

    Args:
        input_ids: (B, T), right-padded.
        positions_N: of the trained positions in the flattened batch.
        labels_NK: target of each head there, or `IGNORE`.
        counts_K: targets that each head's mean is over: those of the whole optimizer step.
    """
    trunk = model.run_trunk(input_ids)
    own = (*model.last.parameters(), *model.extra.parameters(), *model.shared())
    weights = [weight for weight in own if weight.requires_grad]
    batch = _Batch(model, trunk, positions_N, labels_NK, counts_K, guard)
    loss, sums = _PerHead.apply(batch, weights, trunk.z_BTD, *weights)  # type: ignore[no-untyped-call]  # untyped in torch
    return HeadsLoss(loss, sums)


@dataclass(frozen=True)
class _Batch:
    """Arguments of the autograd function that get no gradient."""

    model: MultiHead
    trunk: TrunkOutput
    positions_N: Tensor
    labels_NK: Tensor
    counts_K: Tensor
    guard: Guard | None


class _PerHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, batch: _Batch, parameters: list[nn.Parameter], z_BTD: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradients = _Gradients(z_BTD, parameters)
        exact = torch.promote_types(z_BTD.dtype, torch.float32)
        sums = z_BTD.new_zeros(batch.model.count + 1, dtype=exact)
        weights_K = torch.tensor([1.0, *batch.model.extra.loss_weights()], dtype=exact, device=z_BTD.device)
        shares_K = weights_K / batch.counts_K.clamp(min=1).to(exact)
        for head in range(batch.model.count):
            if gradients.wanted(head, batch.model):
                _one_head(batch, head, z_BTD, shares_K[head], gradients, sums)
        # Not by `save_for_backward`, which would keep them alive after backward returns them.
        ctx.gradients = gradients
        ctx.mark_non_differentiable(sums)
        loss = (sums[:-1] * shares_K).sum()
        if batch.guard is not None:
            loss = loss + batch.guard.weight * sums[-1] * shares_K[0]
        return loss, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients: _Gradients = ctx.gradients
        del ctx.gradients
        return (None, None, *gradients.scaled(outer))


class _Gradients:
    """Of z and of the trained weights, added up over heads and chunks."""

    def __init__(self, z_BTD: Tensor, weights: list[nn.Parameter]) -> None:
        self._z_BTD = torch.zeros_like(z_BTD) if z_BTD.requires_grad else None
        self._weights = weights
        self._sums: dict[int, Tensor] = {}

    def wanted(self, head: int, model: MultiHead) -> bool:
        """Whether a head's loss changes any trained parameter."""
        weights = (*model.weights(head), model.unembedding_VD)
        return self._z_BTD is not None or any(weight.requires_grad for weight in weights)

    def backward(self, hidden_MD: Tensor, gradient_MD: Tensor, z_BTD: Tensor, weights: list[nn.Parameter]) -> None:
        """Backward pass of one head, from its hidden states to its weights and z."""
        inputs = [tensor for tensor in (z_BTD, *weights) if tensor.requires_grad]
        if not inputs:
            return
        for tensor, gradient in zip(inputs, torch.autograd.grad(hidden_MD, inputs, gradient_MD), strict=True):
            if tensor is z_BTD:
                assert self._z_BTD is not None
                self._z_BTD += gradient
            elif id(tensor) in self._sums:
                self._sums[id(tensor)] += gradient
            else:
                self._sums[id(tensor)] = gradient

    def add_product(self, weight_VD: nn.Parameter, left_CV: Tensor, right_CD: Tensor) -> None:
        """Add left' right to a weight's gradient, in place where the types allow it."""
        if not weight_VD.requires_grad:
            return
        sum_VD = self._sums.setdefault(id(weight_VD), torch.zeros_like(weight_VD))
        if left_CV.dtype == right_CD.dtype == sum_VD.dtype:
            sum_VD.addmm_(left_CV.T, right_CD)
        else:
            sum_VD += left_CV.T @ right_CD.to(left_CV.dtype)

    def scaled(self, factor: Tensor) -> list[Tensor | None]:
        """All gradients times `factor`, in the order of the function's inputs; no reference to them is kept."""
        found = [self._z_BTD, *(self._sums.pop(id(weight), None) for weight in self._weights)]
        self._z_BTD = None
        for gradient in found:
            if gradient is not None:
                gradient *= factor.to(gradient.dtype)
        return found


def _one_head(batch: _Batch, head: int, z_BTD: Tensor, share: Tensor, gradients: _Gradients, sums: Tensor) -> None:
    """Forward and backward of one head; adds to `gradients` and `sums`."""
    model = batch.model
    chosen_M = (batch.labels_NK[:, head] != IGNORE).nonzero()[:, 0]
    leaf_BTD = z_BTD.detach().requires_grad_(z_BTD.requires_grad)
    with torch.enable_grad():
        trunk = replace(batch.trunk, z_BTD=leaf_BTD)
        hidden_MD = model.hidden_states(head, trunk, batch.positions_N[chosen_M])
    gradient_MD = torch.empty_like(hidden_MD)
    for rows_C in chunks(len(chosen_M), len(model.unembedding_VD)):
        gradient_MD[rows_C] = _chunk(batch, head, hidden_MD.detach()[rows_C], chosen_M[rows_C], share, gradients, sums)
    gradients.backward(hidden_MD, gradient_MD, leaf_BTD, model.weights(head))


def chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Slices of `rows` positions whose logits go through one softmax."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return (slice(begin, begin + size) for begin in range(0, rows, size))


def _chunk(
    batch: _Batch, head: int, hidden_CD: Tensor, chosen_C: Tensor, share: Tensor, gradients: _Gradients, sums: Tensor
) -> Tensor:
    """Loss of a chunk of positions, and its gradient at the hidden states (C, D)."""
    weight_VD = batch.model.unembedding_VD
    logits_CV = F.linear(hidden_CD, weight_VD)
    narrow = logits_CV.dtype
    logs_CV = logits_CV.to(sums.dtype).log_softmax(-1)
    labels_C1 = batch.labels_NK[chosen_C, head, None]
    sums[head] -= logs_CV.gather(1, labels_C1).sum()
    error_CV = logs_CV.exp()
    if batch.guard is not None and head == 0:
        original_CV = F.linear(batch.guard.hidden_ND[chosen_C], batch.guard.unembedding_VD)
        original_CV = original_CV.to(sums.dtype).log_softmax(-1)
        sums[-1] += F.kl_div(logs_CV, original_CV, reduction="sum", log_target=True)
        error_CV += batch.guard.weight * (error_CV - original_CV.exp())
    del logits_CV, logs_CV
    error_CV.scatter_add_(1, labels_C1, -torch.ones_like(labels_C1, dtype=error_CV.dtype))
    error_CV = (error_CV * share).to(narrow)
    gradients.add_product(weight_VD, error_CV, hidden_CD)
    return error_CV @ weight_VD.to(narrow)
