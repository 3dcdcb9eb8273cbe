"""The divergences of the consistency loss: one function each, and `DIVERGENCES` as the only list of them.

To add one, write its function and enter it in `DIVERGENCES`; `--divergence` and the checks of a configuration read the
names there. Loads torch only when a function is called. Legend: M taught rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def forward_kl(student_MV: Tensor, teacher_MV: Tensor, labels_M: Tensor) -> Tensor:
    """KL(teacher || student)."""
    return _kl(teacher_MV.log_softmax(-1), student_MV.log_softmax(-1))


def reverse_kl(student_MV: Tensor, teacher_MV: Tensor, labels_M: Tensor) -> Tensor:
    """KL(student || teacher)."""
    return _kl(student_MV.log_softmax(-1), teacher_MV.log_softmax(-1))


def jensen_shannon(student_MV: Tensor, teacher_MV: Tensor, labels_M: Tensor) -> Tensor:
    """Mean KL of teacher and student from their mixture."""
    import torch

    student_MV, teacher_MV = student_MV.log_softmax(-1), teacher_MV.log_softmax(-1)
    mixture_MV = torch.logaddexp(student_MV, teacher_MV) - torch.log(student_MV.new_tensor(2.0))
    return 0.5 * (_kl(teacher_MV, mixture_MV) + _kl(student_MV, mixture_MV))


def fixed_point(student_MV: Tensor, teacher_MV: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy on the fixed point's tokens."""
    import torch.nn.functional as F

    return F.cross_entropy(student_MV, labels_M, reduction="none")


def _kl(p_MV: Tensor, q_MV: Tensor) -> Tensor:
    """KL(p || q) of each row, from log-probabilities."""
    import torch.nn.functional as F

    return F.kl_div(q_MV, p_MV, reduction="none", log_target=True).sum(-1)


Divergence = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""From the logits of students and teachers (M, V) and the fixed point's tokens (M,) to the divergence of each row (M,),
in nats. The teacher's logits carry no gradient."""

DIVERGENCES: dict[str, Divergence] = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "jensen-shannon": jensen_shannon,
    "fixed-point": fixed_point,
}
