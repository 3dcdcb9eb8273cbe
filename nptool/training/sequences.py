"""Token sequences to train on, and batches of them.

Texts are joined, each with an end token, and cut into rows of the context's length; a record with a prompt is a row of
its own. A row of L tokens has L - 1 inputs and L - 1 targets.

Legend: B rows of a batch, T inputs of its longest row, N targets that are trained.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from nptool.data.record import Record
from nptool.data.rendering import render
from nptool.data.tolerance import Tolerance
from nptool.errors import UnusableRecord
from nptool.progress import Progress, silent
from nptool.training.config import LossTokens
from nptool.training.trainer import Batch
from nptool.training.units import Unit

logger = logging.getLogger(__name__)

Ids = NDArray[np.int32]

# Reports of progress while tokenizing.
_REPORTS = 200


@dataclass(frozen=True)
class Sequences:
    """Rows of token ids in one flat array; neighbouring rows of a text share the token at their border."""

    ids: Ids
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    first_targets: NDArray[np.int64]
    """Index in each row of the first trained token, at least 1."""
    response_starts: NDArray[np.int64]
    """Index in each row from which every token is trained."""
    skipped: int
    """Records left out: longer than the context, or nothing to train on."""
    prompt_share: float = 1.0
    """Share of the tokens between `first_targets` and `response_starts` that are trained."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Inputs of each row."""
        return self.ends - self.starts - 1

    @property
    def targets(self) -> int:
        """Trained tokens of all rows; with a `prompt_share`, the expected number."""
        responses = np.maximum(self.first_targets, self.response_starts)
        prompts = responses - self.first_targets
        return int((self.ends - self.starts - responses).sum() + round(self.prompt_share * int(prompts.sum())))

    def batch(self, rows: Sequence[int] | NDArray[np.int64], pad: int) -> Batch:
        """The rows as a batch for a transformers model.

        Returns:
            `input_ids` (B, T), padded on the right; `shift_labels` (N), the targets in the order of the rows;
            `logits_to_keep` (B, T), true where there is a target, so that no other logits are computed.
        """
        lengths = self.lengths[rows]
        ids_BT = np.full((len(rows), int(lengths.max())), pad, dtype=np.int64)
        keep_BT = np.zeros(ids_BT.shape, dtype=bool)
        targets = []
        for index, row in enumerate(rows):
            ids = self.ids[self.starts[row] : self.ends[row]]
            trained = self._trained_indices(int(row), len(ids))
            ids_BT[index, : len(ids) - 1] = ids[:-1]
            keep_BT[index, trained - 1] = True
            targets.append(ids[trained])
        labels_N = torch.from_numpy(np.concatenate(targets).astype(np.int64))
        return {
            "input_ids": torch.from_numpy(ids_BT),
            # transformers computes a loss if `labels` is given, and uses `shift_labels` for it.
            "labels": labels_N,
            "shift_labels": labels_N,
            "logits_to_keep": torch.from_numpy(keep_BT),
        }

    def _trained_indices(self, row: int, length: int) -> NDArray[np.int64]:
        """Indices of a row's trained tokens; the same in every pass."""
        indices = np.arange(self.first_targets[row], length)
        if self.prompt_share == 1:
            return indices
        drawn = np.random.default_rng(row).random(len(indices)) < self.prompt_share
        trained: NDArray[np.int64] = indices[drawn | (indices >= self.response_starts[row])]
        return trained


def make_sequences(
    units: Sequence[Unit],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    loss: LossTokens,
    prompt_share: float = 1.0,
    max_bad_share: float = 0.0,
    progress: Progress = silent,
) -> Sequences:
    """Tokenize units.

    Args:
        context: maximum inputs in a row of text, and maximum tokens in a record.
        loss: whether a record's prompt is trained too.
        prompt_share: share of a prompt's tokens that are trained, drawn at random.
        max_bad_share: share of the units that the chat template may refuse.

    Raises:
        DataError: it refuses more.
    """
    text: list[Ids] = []
    records: list[tuple[Ids, int, int]] = []
    skipped, tolerance = 0, Tolerance(max_bad_share, len(units))
    for index, unit in enumerate(units):
        if index % max(1, len(units) // _REPORTS) == 0:
            progress("tokenizing", index, len(units))
        if unit.record.text is not None:
            text.append(_text_ids(unit, tokenizer))
            continue
        try:
            ids, prompt_length = _record_ids(unit.record, tokenizer)
        except UnusableRecord as error:
            tolerance.skip(error)
            continue
        first = max(1, prompt_length if loss == "response" else 1)
        if len(ids) > context or first >= len(ids):
            skipped += 1
            continue
        # `prompt_share` does not apply to records without a response.
        response_start = max(first, prompt_length) if prompt_length < len(ids) else first
        records.append((ids, first, response_start))
    progress("tokenizing", len(units), len(units))
    tolerance.finish()
    if skipped:
        logger.warning("%d of %d records left out: longer than %d tokens, or empty", skipped, len(units), context)
    return replace(join_rows(text, records, context), skipped=skipped, prompt_share=prompt_share)


def join_rows(text: Sequence[Ids], records: Sequence[tuple[Ids, int, int]], context: int) -> Sequences:
    """Sequences of texts, which are cut into rows, and of records: their ids, first target and response start."""
    stream = np.concatenate([*text, np.empty(0, np.int32)])
    text_starts = np.arange(0, max(0, len(stream) - 1), context, dtype=np.int64)
    text_ends = np.minimum(text_starts + context + 1, len(stream))
    sizes = np.array([len(ids) for ids, _, _ in records], dtype=np.int64)
    ends = len(stream) + np.cumsum(sizes, dtype=np.int64)
    ones = np.ones(len(text_starts), np.int64)
    return Sequences(
        ids=np.concatenate([stream, *(ids for ids, _, _ in records)]),
        starts=np.concatenate([text_starts, ends - sizes]),
        ends=np.concatenate([text_ends, ends]),
        first_targets=np.concatenate([ones, np.array([first for _, first, _ in records], np.int64)]),
        response_starts=np.concatenate([ones, np.array([start for _, _, start in records], np.int64)]),
        skipped=0,
    )


def _text_ids(unit: Unit, tokenizer: PreTrainedTokenizerBase) -> Ids:
    rendered = render(unit.record, tokenizer)
    response = rendered.response_ids or []
    if not unit.closes and response[-1:] == [tokenizer.eos_token_id]:
        response = response[:-1]
    return np.array((rendered.prompt_ids if unit.opens else []) + response, dtype=np.int32)


def _record_ids(record: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, int]:
    """Ids of prompt and response, if there is one, and the length of the prompt."""
    rendered = render(record, tokenizer)
    return np.array(rendered.prompt_ids + (rendered.response_ids or []), dtype=np.int32), len(rendered.prompt_ids)
