"""Batches for the heads: every trained position with the target of each head.

Head k at position i predicts the token at i + k. All heads are trained at the same positions, those whose next token is
trained; the last k - 1 of them have no target for head k. Heads 2..n are trained at the position before them as well,
where the first step of a decoding drafts.

Legend: B rows of a batch, T inputs of its longest row, N trained positions, K heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nptool.collection.store import Trajectory
from nptool.training.heads.losses import IGNORE
from nptool.training.sequences import Sequences, join_rows
from nptool.training.trainer import Batch


def heads_batch(sequences: Sequences, rows: Sequence[int] | NDArray[np.int64], pad: int, heads: int) -> Batch:
    """The rows as a batch.

    Returns:
        `input_ids` (B, T), padded on the right; `positions_N`, the trained positions in the flattened batch;
        `labels_NK`, the target of each head there, or `IGNORE`.
    """
    plain = sequences.batch(rows, pad)
    ids_BT = plain["input_ids"]
    known = np.full((len(rows), ids_BT.shape[1] + 1 + heads), IGNORE, dtype=np.int64)
    for line, row in zip(known, rows, strict=True):
        ids = sequences.ids[sequences.starts[row] : sequences.ends[row]]
        line[: len(ids)] = ids
    next_BT = plain["logits_to_keep"]
    later_BT = F.pad(next_BT[:, 1:], (0, 1))
    row_N, place_N = (next_BT | later_BT).nonzero(as_tuple=True)
    ahead_NK = place_N[:, None] + torch.arange(1, heads + 1)
    labels_NK = torch.from_numpy(known)[row_N[:, None], ahead_NK]
    labels_NK[~next_BT[row_N, place_N], 0] = IGNORE
    return {"input_ids": ids_BT, "positions_N": row_N * ids_BT.shape[1] + place_N, "labels_NK": labels_NK}


def response_sequences(rows: Sequence[Trajectory]) -> Sequences:
    """Prompts with the model's own responses; the responses' tokens are trained."""
    records = []
    for row in rows:
        prompt = len(row.prompt_ids)
        records.append((np.concatenate([row.prompt_ids, row.response_ids]), prompt, prompt))
    return join_rows([], records, context=1)
