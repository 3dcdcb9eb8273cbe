"""The loss of the heads in plain autograd: all logits of all heads at once.

The reference that `nptool.training.heads.losses` is tested and measured against.

Legend: B batch, T tokens, D hidden, V vocabulary, N trained positions, K heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nptool.training.heads.losses import IGNORE, Guard
from nptool.training.heads.model import MultiHead


def plain_loss(
    model: MultiHead, input_ids: Tensor, positions_N: Tensor, labels_NK: Tensor, guard: Guard | None = None
) -> Tensor:
    """Sum over the heads of the mean cross-entropy, and head 1's divergence from the original."""
    trunk = model.run_trunk(input_ids)
    logits = [
        F.linear(model.hidden_states(head, trunk, positions_N), model.unembedding_VD) for head in range(model.count)
    ]
    means = [
        F.cross_entropy(
            logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), labels_N, ignore_index=IGNORE
        )
        for logits_NV, labels_N in zip(logits, labels_NK.T, strict=True)
    ]
    loss = torch.stack(means).sum()
    if guard is None:
        return loss
    original_NV = F.linear(guard.hidden_ND, guard.unembedding_VD).log_softmax(-1)
    divergence_N = F.kl_div(logits[0].log_softmax(-1), original_NV, reduction="none", log_target=True).sum(-1)
    return loss + guard.weight * divergence_N[labels_NK[:, 0] != IGNORE].mean()
