"""Consistency and autoregressive loss of the packed rows.

    loss = weighted mean over taught rows of D(teacher row, student row)  +  ar_weight * mean over labels of CE

as in CLLM (arXiv 2403.00835, section 3.2) and Jacobi Forcing (arXiv 2512.14681). The first mean is one over all taught
rows of the step, not divided once more by the number of blocks; all rows weigh alike, unless the recipe's decay lowers
those far behind a wrong token. The teacher's rows carry no gradient. Knows no packing: it gets logits and row numbers.
Legend: K rows with logits, V vocabulary, A autoregressive rows, M taught rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nptool.training.cllm.recipe import Divergence, Recipe

CHUNK_ELEMENTS = 2**25
"""Logits that go through one softmax at once (128 MiB in float32)."""


@dataclass(frozen=True)
class Rows:
    """Which rows of the logits are compared with what, and the weight of each such comparison."""

    ar_A: Tensor
    ar_labels_A: Tensor
    student_M: Tensor
    teacher_M: Tensor
    fixed_labels_M: Tensor
    weights_M: Tensor


def divergence(student_MV: Tensor, teacher_MV: Tensor, labels_M: Tensor, kind: Divergence) -> Tensor:
    """The distance between the teacher's and the student's distribution in each row, shape (M,), in nats.

    Args:
        student_MV: logits.
        teacher_MV: logits, without gradient.
        labels_M: the fixed point's tokens, the target of `fixed-point`.
    """
    if kind == "fixed-point":
        return F.cross_entropy(student_MV, labels_M, reduction="none")
    student_MV, teacher_MV = student_MV.log_softmax(-1), teacher_MV.log_softmax(-1)
    if kind == "forward-kl":
        return _kl(teacher_MV, student_MV)
    if kind == "reverse-kl":
        return _kl(student_MV, teacher_MV)
    mixture_MV = torch.logaddexp(student_MV, teacher_MV) - torch.log(student_MV.new_tensor(2.0))
    return 0.5 * (_kl(teacher_MV, mixture_MV) + _kl(student_MV, mixture_MV))


def _kl(p_MV: Tensor, q_MV: Tensor) -> Tensor:
    """KL(p || q) of each row, from log-probabilities."""
    return F.kl_div(q_MV, p_MV, reduction="none", log_target=True).sum(-1)


def weighted_sums(logits_KV: Tensor, rows: Rows, recipe: Recipe, consistency_weight: Tensor, ar_weight: Tensor) -> Any:
    """consistency_weight * sum of divergences + ar_weight * sum of cross-entropies, and both sums without gradient.

    The gradient with respect to the logits is computed here, chunk by chunk, so that of all intermediate values only
    one chunk's are in memory.

    Returns:
        The loss (scalar), and a tensor (3,): the divergences' sum (each by its row's weight), the cross-entropies' sum,
        and the number of taught rows whose greedy pick is the fixed point's token.
    """
    return _WeightedSums.apply(logits_KV, rows, recipe, consistency_weight, ar_weight)  # type: ignore[no-untyped-call]  # untyped in torch


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_KV: Tensor, rows: Rows, recipe: Recipe, consistency_weight: Tensor, ar_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss and the sums of `weighted_sums`; the gradient (K, V) is computed with them, chunk by chunk."""
        gradient_KV = torch.zeros_like(logits_KV)
        exact = torch.promote_types(logits_KV.dtype, torch.float32)
        sums = logits_KV.new_zeros(3, dtype=exact)
        size = max(1, CHUNK_ELEMENTS // logits_KV.shape[1])

        def add(term: int, weight: Tensor, chunk: Tensor, student_V: Tensor, loss: Tensor) -> None:
            (gradient,) = torch.autograd.grad(loss, student_V)
            gradient_KV.index_add_(0, chunk, (weight * gradient).to(gradient_KV.dtype))
            sums[term] += loss.detach()

        with torch.enable_grad():
            for begin in range(0, len(rows.student_M), size):
                chunk = slice(begin, begin + size)
                student_MV = logits_KV[rows.student_M[chunk]].to(exact).detach().requires_grad_()
                teacher_MV = logits_KV[rows.teacher_M[chunk]].to(exact).detach()
                distance_M = divergence(student_MV, teacher_MV, rows.fixed_labels_M[chunk], recipe.divergence)
                loss = rows.weights_M[chunk].to(exact) @ distance_M
                add(0, consistency_weight, rows.student_M[chunk], student_MV, loss)
                sums[2] += (student_MV.detach().argmax(-1) == rows.fixed_labels_M[chunk]).sum()
            for begin in range(0, len(rows.ar_A), size):
                chunk = slice(begin, begin + size)
                student_AV = logits_KV[rows.ar_A[chunk]].to(exact).detach().requires_grad_()
                loss = F.cross_entropy(
                    student_AV,
                    rows.ar_labels_A[chunk],
                    reduction="sum",
                    label_smoothing=recipe.label_smoothing,
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
