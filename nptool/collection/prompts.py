"""The prompts of a collection: records rendered to token ids, checked against the context, without held-out ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nptool.collection.config import CollectConfig
from nptool.collection.store import Ids, is_collected, read_collected
from nptool.data.record import Record
from nptool.data.records import read_records
from nptool.data.rendering import render, tokenizer_digest
from nptool.data.tolerance import Tolerance
from nptool.errors import ContextError, DataError, UnusableRecord, UsageError
from nptool.runs import run_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = "prompt too long"
HELD_OUT = "held out for testing"
TOO_SHORT = "empty, or text shorter than --text-prompt-tokens"
_REMEDIES = {
    TOO_LONG: "raise --max-prompt-tokens",
    HELD_OUT: "give data that the model's run does not hold out",
    TOO_SHORT: "give longer texts, or a lower --text-prompt-tokens",
}


@dataclass(frozen=True)
class CollectionPrompt:
    ids: Ids
    reference_ids: Ids | None
    limit: int
    """Most new tokens."""
    open_ended: bool
    """Cut from a plain text: the response needs no end token."""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a collection, in the order of the data."""

    prompts: list[CollectionPrompt]
    left_out: Counter[str]
    """Number of skipped records, by reason."""

    def digest(self, first: int, end: int) -> str:
        """Digest of the prompts `first` .. `end - 1`."""
        digest = blake2b(digest_size=16)
        for prompt in self.prompts[first:end]:
            digest.update(len(prompt.ids).to_bytes(4, "little") + prompt.ids.tobytes())
        return digest.hexdigest()


def load_prompts(config: CollectConfig, tokenizer: PreTrainedTokenizerBase, context: int | None) -> PromptSet:
    """Read and render the data. `context` is the model's, in tokens; None is no limit.

    Raises:
        DataError: a file is missing, malformed or empty, or no prompt is left.
        ContextError: a prompt does not fit the context together with one block, and `max_prompt_tokens` is not set.
        UsageError: a collected file holds the tokens of another tokenizer.
    """
    is_held_out = _held_out(config, tokenizer)
    left_out: Counter[str] = Counter()
    prompts: list[CollectionPrompt] = []
    tolerance = Tolerance(config.max_bad_share)
    for candidate in chain.from_iterable(islice(_records(config, tokenizer, tolerance), config.limit)):
        if not candidate.prompt_ids:
            left_out[TOO_SHORT] += 1
        elif is_held_out(candidate):
            left_out[HELD_OUT] += 1
        elif config.max_prompt_tokens is not None and len(candidate.prompt_ids) > config.max_prompt_tokens:
            left_out[TOO_LONG] += 1
        else:
            prompts.append(_checked(candidate, config, context))
    tolerance.finish()
    if not prompts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        remedy = _REMEDIES[left_out.most_common(1)[0][0]]
        raise DataError(f"no prompt is left of {', '.join(map(str, config.data))}: {reasons}; {remedy}")
    return PromptSet(prompts, left_out)


class _Candidate(NamedTuple):
    prompt_ids: list[int]
    reference_ids: list[int] | None
    source: str
    is_text: bool = False


def _records(
    config: CollectConfig, tokenizer: PreTrainedTokenizerBase, tolerance: Tolerance
) -> Iterator[list[_Candidate]]:
    """The candidates of each record: one, or as many as a plain text is cut into."""
    collected = [path for path in config.data if is_collected(path)]
    for path in collected:
        yield from _collected_prompts(path, tokenizer)
    others = [path for path in config.data if path not in collected]
    if others:
        names = {"prompt_field": config.prompt_field, "response_field": config.response_field}
        for record in read_records(others, **names, tolerance=tolerance):
            try:
                yield _candidates(record, config, tokenizer)
            except UnusableRecord as error:
                tolerance.skip(error)


def _candidates(record: Record, config: CollectConfig, tokenizer: PreTrainedTokenizerBase) -> list[_Candidate]:
    rendered = render(record, tokenizer, chat=config.chat)
    if record.text is None:
        return [_Candidate(rendered.prompt_ids, rendered.response_ids, record.source)]
    start, ids = rendered.prompt_ids, rendered.response_ids or []
    size, step = config.text_prompt_tokens, config.text_prompt_tokens + config.max_new_tokens
    pieces = [ids[first : first + step] for first in range(0, len(ids) - size, step)] or [[]]
    return [_Candidate(start + piece[:size] if piece else [], piece[size:], record.source, True) for piece in pieces]


def _collected_prompts(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[_Candidate]]:
    """The prompts of an earlier collection, as for the second round of Jacobi Forcing.

    Which of them were cut from plain text is not stored: if any was, all count as such.
    """
    collected = read_collected(path)
    if collected.metadata.tokenizer_digest != tokenizer_digest(tokenizer):
        raise UsageError(
            f"{path} was collected from {collected.metadata.model}, which has another tokenizer; "
            "take a model trained from that one, or the records that the prompts came from"
        )
    has_text = collected.metadata.text_prompt_tokens > 0
    for number, row in enumerate(collected.rows(), start=1):
        reference = None if row.reference_ids is None else row.reference_ids.tolist()
        yield [_Candidate(row.prompt_ids.tolist(), reference, f"{path}:{number}", has_text)]


def _checked(candidate: _Candidate, config: CollectConfig, context: int | None) -> CollectionPrompt:
    """The prompt with its limit: the configuration's, or as many whole blocks as fit the context."""
    length, limit = len(candidate.prompt_ids), config.max_new_tokens
    if context is not None:
        room = (context - length) // config.n * config.n
        if room < config.n:
            raise ContextError(
                f"{candidate.source}: the prompt has {length} tokens, which with a block of {config.n} does not fit "
                f"the model's context of {context}; leave such prompts out with --max-prompt-tokens "
                f"{max(1, context - config.n)}"
            )
        limit = min(limit, room)
    reference = None if candidate.reference_ids is None else np.array(candidate.reference_ids, dtype=np.int32)
    return CollectionPrompt(np.array(candidate.prompt_ids, dtype=np.int32), reference, limit, candidate.is_text)


def _held_out(config: CollectConfig, tokenizer: PreTrainedTokenizerBase) -> Callable[[_Candidate], bool]:
    """Whether a prompt is held out; for plain text, whether the text contains a held-out prompt."""
    paths = config.exclude
    if paths is None:
        run = run_of(config.model)
        paths = (run.heldout,) if run is not None and run.heldout.is_file() else ()
    files = [path for path in paths if not path.exists() or path.stat().st_size]
    records = list(read_records(files)) if files else []
    prompts = {tuple(render(record, tokenizer, chat=config.chat).prompt_ids) for record in records}
    texts = [text for record in records if (text := record.prompt if record.text is None else record.text)]

    def is_held_out(candidate: _Candidate) -> bool:
        if not candidate.is_text:
            return tuple(candidate.prompt_ids) in prompts
        text = str(tokenizer.decode(candidate.prompt_ids + (candidate.reference_ids or [])))
        return any(held_out in text for held_out in texts)

    return is_held_out
