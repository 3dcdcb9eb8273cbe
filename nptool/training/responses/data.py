"""From `--data` to trajectories that fit the model: collected first if necessary, read, checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nptool.checkpoints import check_vocabulary, load_config, load_tokenizer
from nptool.collection.config import CollectConfig
from nptool.collection.prompts import load_prompts
from nptool.collection.store import Collected, CollectionMetadata, Trajectory, is_collected, read_collected
from nptool.data.records import read_records
from nptool.data.rendering import tokenizer_digest
from nptool.data.tolerance import Tolerance
from nptool.errors import CheckpointError, DataError, UsageError
from nptool.files import atomic_file
from nptool.processes import is_main_process, main_process_first, process_count
from nptool.progress import Progress
from nptool.runs import ROOT, Run, run_of
from nptool.training.responses.config import BLOCK_SIZE, ResponsesConfig
from nptool.training.units import cut_texts, split_units, write_heldout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What `--data` and `-m` name together."""

    model: str
    """Hugging Face directory or Hub id of the model to train."""
    collected: Path | None
    """The file of trajectories; None where the data are prompts."""


def find_source(config: ResponsesConfig) -> Source:
    """Decide whether `--data` is trajectories or prompts, and which model is trained.

    Raises:
        DataError: a file is missing, or no model is named and the data cannot be read.
        UsageError: no model is named, trajectories are mixed with other files, or their block length is not `-n`.
    """
    if missing := [path for path in config.data if not path.exists()]:
        raise DataError(f"{missing[0]} does not exist; expected a file of `nptool collect`, or prompts")
    collected = [path for path in config.data if path.is_file() and is_collected(path)]
    if not collected:
        if config.model is None:
            # The file may be damaged trajectories, which need no -m: reading it raises that error first.
            next(read_records(config.data, prompt_field=config.prompt_field, response_field=config.response_field))
            raise UsageError("-m is missing; name the model to train, which first answers the prompts in --data")
        if process_count() > 1:
            raise UsageError("--data holds prompts; with several processes, run `nptool collect` first")
        return Source(config.model, None)
    if len(config.data) > 1:
        raise UsageError(f"--data holds {collected[0]}, a file of `nptool collect`, and others; give that one alone")
    metadata = read_collected(collected[0]).metadata
    if config.n is not None and config.n != metadata.n:
        raise UsageError(f"-n is {config.n}, but {collected[0]} was collected with {metadata.n}; leave -n out")
    return Source(config.model or metadata.model, collected[0])


def data_digest(paths: tuple[Path, ...]) -> str:
    """Identifies a set of files by their contents."""
    digest = blake2b(digest_size=8)
    for file in (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])):
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def keep_heldout(config: ResponsesConfig, source: Source, run: Run) -> None:
    """Write held-out prompts into the run: those of the model's or the collection's run, or a share of the data.

    The share is drawn by a hash of the prompt, so a prompt is always on the same side. Nothing is held out from
    trajectories, whose prompts have been collected already.

    Raises:
        DataError: the data cannot be read, or is too small for the share.
    """
    if run.heldout.is_file():
        return
    collections = [path for path in config.data if path.is_file() and is_collected(path)]
    places: list[str | Path] = [source.model, *collections]
    for place in places:
        origin = run_of(place) if Path(place).exists() else None
        if origin is not None and origin.heldout.is_file():
            with atomic_file(run.heldout) as stream:
                stream.write(origin.heldout.read_bytes())
            return
    if collections or not config.heldout:
        logger.info("%s has no held-out prompts; name some to `nptool bench` with --prompts", run.path)
        return
    tolerance = Tolerance(config.max_bad_share)
    names = {"prompt_field": config.prompt_field, "response_field": config.response_field}
    records = list(read_records(config.data, **names, tolerance=tolerance))
    # Those that are skipped are said where they are collected.
    _, heldout = split_units(cut_texts(records), config.heldout, str(config.data[0]))
    write_heldout(heldout, run.heldout)


def collect_config(config: ResponsesConfig, source: Source, run: Run) -> CollectConfig:
    """The collection that a training on prompts starts with."""
    return CollectConfig(
        model=source.model,
        data=config.data,
        output=run.collected,
        n=config.n or BLOCK_SIZE,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.collect_batch_size,
        limit=config.limit,
        seed=config.seed,
        prompt_field=config.prompt_field,
        response_field=config.response_field,
        max_bad_share=config.max_bad_share,
        exclude=(run.heldout,) if run.heldout.is_file() else (),
        precision=config.precision,
    )


def expected_lengths(config: ResponsesConfig, source: Source) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of each prompt, and of its response if it is as long as the data's own, or else as long as it may be."""
    limit = position_limit(load_config(source.model), config)
    collection = collect_config(config, source, Run(ROOT / config.run_name))
    prompts = load_prompts(collection, load_tokenizer(source.model), limit).prompts
    responses = [len(one.reference_ids) if one.reference_ids is not None else one.limit for one in prompts]
    return np.array([len(one.ids) for one in prompts]), np.array(responses)


def position_limit(described: PretrainedConfig, config: ResponsesConfig) -> int | None:
    """Maximum tokens of prompt and response together; None is no limit.

    With sliding-window attention it is one window, since the packed mask has no window.
    """
    text = described.get_text_config()
    limits = (config.max_length, getattr(text, "max_position_embeddings", None), getattr(text, "sliding_window", None))
    return min((limit for limit in limits if limit is not None), default=None)


def check_match(
    metadata: CollectionMetadata,
    path: Path,
    described: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
) -> None:
    """Raise `CheckpointError` if the model has another vocabulary size, or its tokenizer other tokens."""
    remedy = f"collect again with `nptool collect -m {model}`"
    rows = described.get_text_config().vocab_size
    if rows != metadata.vocab_size:
        raise CheckpointError(
            f"{path} was collected from {metadata.model}, whose vocabulary has {metadata.vocab_size} tokens; "
            f"{model} has {rows}; {remedy}"
        )
    if tokenizer_digest(tokenizer) != metadata.tokenizer_digest:
        raise CheckpointError(
            f"{path} was collected from {metadata.model}, whose tokenizer has other tokens than {model}'s; {remedy}"
        )


@dataclass(frozen=True)
class Trajectories:
    rows: list[Trajectory]
    left_out: int
    """Trajectories longer than the limit."""


def load_trajectories(collected: Collected, limit: int | None, *, references: bool) -> Trajectories:
    """Read and check all rows.

    Args:
        limit: leave out trajectories of more tokens, prompt and response together.
        references: require the data set's own answer in every row.

    Raises:
        DataError: a row is damaged or has no reference, or no row is left.
    """
    rows = []
    for number, row in enumerate(collected.rows(), start=1):
        where = f"{collected.path}, row {number}"
        _check_row(row, collected.metadata, where)
        answers = [row.response_ids]
        if references:
            if row.reference_ids is None or not len(row.reference_ids):
                raise DataError(f"{where}: no reference answer for --ar-target reference; use --ar-target response")
            answers.append(row.reference_ids)
        length = len(row.prompt_ids) + max(map(len, answers))
        if limit is None or length <= limit:
            rows.append(row)
    if not rows:
        reason = f"all {collected.row_count} rows are longer than {limit} tokens" if collected.row_count else "no rows"
        raise DataError(f"nothing to train on in {collected.path}: {reason}")
    if left_out := collected.row_count - len(rows):
        logger.warning("%d of %d trajectories left out: longer than %d tokens", left_out, collected.row_count, limit)
    return Trajectories(rows, left_out)


def _check_row(row: Trajectory, metadata: CollectionMetadata, where: str) -> None:
    """Check what packing relies on: the fixed points of all blocks concatenate to the response."""
    n, response = metadata.n, row.response_ids
    if not len(row.prompt_ids) or not len(response):
        raise DataError(f"{where}: an empty prompt or response; collect again")
    whole = len(row.states) == -(-len(response) // n) and all(
        len(states) and states.shape[1] == n for states in row.states
    )
    if not whole or (np.concatenate([states[-1] for states in row.states])[: len(response)] != response).any():
        raise DataError(f"{where}: the fixed points do not spell the response; collect again")
    references = [] if row.reference_ids is None else [row.reference_ids]
    largest = max(int(ids.max(initial=0)) for ids in (row.prompt_ids, *row.states, *references))
    if largest >= metadata.vocab_size:
        raise DataError(f"{where}: token {largest} in a vocabulary of {metadata.vocab_size}; collect again")


def open_source(source: Source) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The model's configuration and tokenizer.

    Raises:
        CheckpointError: they do not match each other or the trajectories, or cannot be read.
    """
    described, tokenizer = load_config(source.model), load_tokenizer(source.model)
    check_vocabulary(described, tokenizer, source.model)
    if source.collected is not None:
        check_match(read_collected(source.collected).metadata, source.collected, described, tokenizer, source.model)
    return described, tokenizer


def responses_of(config: ResponsesConfig, source: Source, run: Run, progress: Progress) -> Collected:
    """The trajectories; if the data are prompts, they are collected now."""
    with main_process_first():
        if is_main_process():
            keep_heldout(config, source, run)
    if source.collected is not None:
        return read_collected(source.collected)
    from nptool.collection.collect import collect

    return read_collected(collect(collect_config(config, source, run), progress).path)
