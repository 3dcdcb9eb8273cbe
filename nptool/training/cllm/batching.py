"""Packed trajectories (`nptool.training.cllm.packing`) as one padded batch of tensors, with the 4D attention mask.

Legend: B batch, S packed sequence, A autoregressive rows, M taught rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nptool.training.cllm.packing import Ints, Packed

PADDING = -1
"""Segment of padding tokens: they attend only to each other, so no row of the mask is empty."""


class Batch(TypedDict):
    """Input of one forward pass; rows index the flattened (B * S) tokens."""

    input_ids: Tensor
    """(B, S); transformers' Trainer counts tokens by this name."""
    positions_BS: Tensor
    segments_BS: Tensor
    leaves_BS: Tensor
    ar_rows_A: Tensor
    ar_labels_A: Tensor
    student_rows_M: Tensor
    teacher_rows_M: Tensor
    fixed_labels_M: Tensor
    weights_M: Tensor


def collate(samples: Sequence[Packed], pad_id: int = 0) -> Batch:
    """Pad to the longest sample."""
    longest = max(len(sample) for sample in samples)

    def pad(arrays: Sequence[Ints], value: int) -> Tensor:
        padded_BS = np.full((len(arrays), longest), value)
        for row, array in zip(padded_BS, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(padded_BS)

    def rows(arrays: Sequence[Ints]) -> Tensor:
        return flat([longest * i + array for i, array in enumerate(arrays)])

    def flat(arrays: Sequence[npt.NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays))

    return Batch(
        input_ids=pad([sample.ids_S for sample in samples], pad_id),
        positions_BS=pad([sample.positions_S for sample in samples], 0),
        segments_BS=pad([sample.segments_S for sample in samples], PADDING),
        leaves_BS=pad([sample.leaves_S for sample in samples], 0),
        ar_rows_A=rows([sample.ar_rows_A for sample in samples]),
        ar_labels_A=flat([sample.ar_labels_A for sample in samples]),
        student_rows_M=rows([sample.student_rows_M for sample in samples]),
        teacher_rows_M=rows([sample.teacher_rows_M for sample in samples]),
        fixed_labels_M=flat([sample.fixed_labels_M for sample in samples]),
        weights_M=flat([sample.weights_M for sample in samples]),
    )


def visible(segments_BS: Tensor, positions_BS: Tensor, leaves_BS: Tensor) -> Tensor:
    """Whether each token (second dimension, query) attends to each (third, key), boolean (B, S, S)."""
    same_BSS = segments_BS[:, :, None] == segments_BS[:, None, :]
    before_BSS = positions_BS[:, None, :] <= positions_BS[:, :, None]
    trunk_BSS = (segments_BS == 0)[:, None, :] & (positions_BS[:, None, :] < leaves_BS[:, :, None])
    return (same_BSS & before_BSS) | trunk_BSS


def attention_mask(batch: Batch, attention: str) -> Tensor:
    """The mask for transformers' attention, shape (B, 1, S, S).

    Args:
        attention: transformers' implementation; "sdpa" takes a boolean mask, "eager" adds the mask to the scores.
    """
    visible_BSS = visible(batch["segments_BS"], batch["positions_BS"], batch["leaves_BS"])
    if attention == "sdpa":
        return visible_BSS[:, None]
    zero = torch.zeros((), device=visible_BSS.device)
    return torch.where(visible_BSS, zero, torch.finfo(zero.dtype).min)[:, None]
