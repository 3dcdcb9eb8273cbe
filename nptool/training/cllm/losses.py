"""Consistency and autoregressive loss of the packed rows.

    loss = weighted mean over taught rows of D(teacher row, student row)  +  ar_weight * mean over labels of CE

as in CLLM (arXiv 2403.00835, section 3.2) and Jacobi Forcing (arXiv 2512.14681), with D one of
`nptool.training.cllm.divergences`. Both means are over all rows of the optimizer step. The teacher's rows carry no
gradient.

Legend: K rows with logits, V vocabulary, A autoregressive rows, M taught rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nptool.training.cllm.divergences import DIVERGENCES
from nptool.training.cllm.recipe import Recipe

CHUNK_ELEMENTS = 2**25
"""Logits that go through one softmax at once (128 MiB in float32)."""


@dataclass(frozen=True)
class Rows:
    """Which rows of the logits are compared with what, and with which weight."""

    ar_A: Tensor
    ar_labels_A: Tensor
    student_M: Tensor
    teacher_M: Tensor
    fixed_labels_M: Tensor
    weights_M: Tensor


def weighted_sums(logits_KV: Tensor, rows: Rows, recipe: Recipe, consistency_weight: Tensor, ar_weight: Tensor) -> Any:
    """consistency_weight * sum of divergences + ar_weight * sum of cross-entropies, and both sums without gradient.

    The gradient of the logits is computed chunk by chunk in the forward pass, so only one chunk's intermediate values
    are in memory.

    Returns:
        The loss (scalar), and a tensor (3,): the weighted sum of divergences, the sum of cross-entropies, and the
        number of taught rows whose greedy pick is the fixed point's token.
    """
    return _WeightedSums.apply(logits_KV, rows, recipe, consistency_weight, ar_weight)  # type: ignore[no-untyped-call]  # untyped in torch


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_KV: Tensor, rows: Rows, recipe: Recipe, consistency_weight: Tensor, ar_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradient_KV = torch.zeros_like(logits_KV)
        exact = torch.promote_types(logits_KV.dtype, torch.float32)
        sums = logits_KV.new_zeros(3, dtype=exact)
        size = max(1, CHUNK_ELEMENTS // logits_KV.shape[1])
        divergence = DIVERGENCES[recipe.divergence]

        def add(term: int, weight: Tensor, chunk: Tensor, student_V: Tensor, loss: Tensor) -> None:
            (gradient,) = torch.autograd.grad(loss, student_V)
            gradient_KV.index_add_(0, chunk, (weight * gradient).to(gradient_KV.dtype))
            sums[term] += loss.detach()

        with torch.enable_grad():
            for begin in range(0, len(rows.student_M), size):
                chunk = slice(begin, begin + size)
                student_MV = logits_KV[rows.student_M[chunk]].to(exact).detach().requires_grad_()
                teacher_MV = logits_KV[rows.teacher_M[chunk]].to(exact).detach()
                divergence_M = divergence(student_MV, teacher_MV, rows.fixed_labels_M[chunk])
                loss = rows.weights_M[chunk].to(exact) @ divergence_M
                add(0, consistency_weight, rows.student_M[chunk], student_MV, loss)
                sums[2] += (student_MV.detach().argmax(-1) == rows.fixed_labels_M[chunk]).sum()
            for begin in range(0, len(rows.ar_A), size):
                chunk = slice(begin, begin + size)
                student_AV = logits_KV[rows.ar_A[chunk]].to(exact).detach().requires_grad_()
                loss = F.cross_entropy(
                    student_AV, rows.ar_labels_A[chunk], reduction="sum", label_smoothing=recipe.label_smoothing
                )
                add(1, ar_weight, rows.ar_A[chunk], student_AV, loss)
        ctx.save_for_backward(gradient_KV)
        ctx.mark_non_differentiable(sums)
        return consistency_weight * sums[0] + ar_weight * sums[1], sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient_KV,) = ctx.saved_tensors
        return (gradient_KV * outer).to(gradient_KV.dtype), None, None, None, None
