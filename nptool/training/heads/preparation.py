"""What a training of heads starts from: the model with its heads, and responses to train and evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PretrainedConfig

from nptool.checkpoints import load_model, local_directory
from nptool.collection.store import Trajectory
from nptool.errors import UsageError
from nptool.heads import NEXTN, SHARED, read_heads_info
from nptool.nextn import check_carried
from nptool.processes import process_count
from nptool.training.heads.batching import response_sequences
from nptool.training.heads.checkpoint import check_heads, load_heads
from nptool.training.heads.config import HeadsConfig
from nptool.training.heads.model import MultiHead, add_heads
from nptool.training.responses.data import Source, find_source
from nptool.training.sequences import Sequences
from nptool.training.units import split_by_hash


def find_responses(config: HeadsConfig) -> Source:
    """As `find_source`; with `answer_anew`, trajectories count as prompts.

    Raises:
        UsageError: several processes would have to answer them.
    """
    source = find_source(config)
    if source.collected is None or not config.answer_anew:
        return source
    if process_count() > 1:
        raise UsageError(
            f"--answer-anew works in one process; with several, run `nptool collect -m {source.model} --data "
            f"{source.collected}` first"
        )
    return replace(source, collected=None)


def check_count(config: HeadsConfig, source: Source, described: PretrainedConfig) -> bool:
    """Whether the model has heads already, which are then trained further.

    Raises:
        UsageError: it has another number of them than the configuration, or another kind.
        CheckpointError: they do not fit the model.
    """
    directory = local_directory(source.model)
    info = read_heads_info(directory) if directory is not None else None
    if info is not None and directory is not None:
        check_heads(directory, info, described)
    if info is not None and (info.count, info.kind) != (config.count, config.kind):
        raise UsageError(
            f"{source.model} has {info.count} {info.kind} heads, and {config.count} {config.kind} ones were asked for; "
            f"give --heads {info.count} --kind {info.kind} to train them further, or start from the plain model"
        )
    if info is not None and info.kind == SHARED and info.rank != config.rank:
        raise UsageError(
            f"{source.model} has shared heads of rank {info.rank}, --rank is {config.rank}; give --rank {info.rank} to "
            "train them further, or start from the plain model"
        )
    if config.kind == NEXTN:
        check_carried(described)
    return info is not None


def split_heldout(rows: Sequence[Trajectory], share: float) -> tuple[Sequences, Sequences | None]:
    """Sequences to train on, and a share held out by a hash of the prompt (see `split_by_hash`)."""
    train, heldout = split_by_hash(rows, [row.prompt_ids.tobytes() for row in rows], share)
    return response_sequences(train), response_sequences(heldout) if share else None


def start_model(config: HeadsConfig, source: Source, dtype: torch.dtype = torch.float32) -> MultiHead:
    """The model with its own heads, or with new ones; `dtype` is the plain model's."""
    directory = local_directory(source.model)
    if directory is not None and read_heads_info(directory) is not None:
        model = load_heads(directory, dtype)
    else:
        model = add_heads(load_model(source.model, dtype), config.count, config.kind, config.rank)
    if not config.joint:
        model.freeze_trunk()
    return model
