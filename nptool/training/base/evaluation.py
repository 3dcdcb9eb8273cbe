"""Loss on held-out sequences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from nptool.progress import Progress, silent
from nptool.training.batches import cut_batches
from nptool.training.sequences import Sequences


@dataclass(frozen=True)
class Evaluation:
    tokens: int
    """Predicted tokens."""
    loss: float
    """Mean cross-entropy, nats per token."""
    text_bytes: int
    """UTF-8 bytes of the predicted tokens, without special tokens."""

    @property
    def perplexity(self) -> float:
        """exp(loss), or infinity if that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """The loss in bits per byte of text, comparable between tokenizers."""
        return self.loss * self.tokens / math.log(2) / self.text_bytes if self.text_bytes else None


@torch.no_grad()
def evaluate(
    model: Any,
    sequences: Sequences,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_tokens: int,
    progress: Progress = silent,
) -> Evaluation:
    """Mean loss over all targets of `sequences`.

    Args:
        model: a causal language model; it is left in evaluation mode.
        batch_tokens: padded tokens of one pass.
    """
    model.eval()
    device = next(model.parameters()).device
    lengths = sequences.lengths
    batches = cut_batches(lengths, np.argsort(lengths, kind="stable"), batch_tokens)
    total = 0.0
    for index, rows in enumerate(batches):
        progress("held-out loss", index, len(batches))
        batch = {name: tensor.to(device) for name, tensor in sequences.batch(rows, pad=0).items()}
        total += float(model(**batch).loss) * len(batch["shift_labels"])
    progress("held-out loss", len(batches), len(batches))
    return Evaluation(sequences.targets, total / sequences.targets, sum(target_bytes(sequences, tokenizer)))


def target_bytes(sequences: Sequences, tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """UTF-8 bytes of each row's targets, without special tokens."""
    for start, end, first in zip(sequences.starts, sequences.ends, sequences.first_targets, strict=True):
        ids = sequences.ids[start + first : end].tolist()
        # A character cut at a row's border decodes to a replacement character of 3 bytes: a negligible error.
        yield len(str(tokenizer.decode(ids, skip_special_tokens=True)).encode())
