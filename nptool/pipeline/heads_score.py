"""Scores the heads of a finished GGUF: it answers its checkpoint's held-out sample, and a large gap gets a cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nptool.checkpoints import load_tokenizer
from nptool.data.record import Record
from nptool.data.rendering import render
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.proposers.methods import HEADS
from nptool.decoding.text_model import TextModel
from nptool.errors import CheckpointError, NptoolError
from nptool.heads import read_heads_info
from nptool.heads_sample import SAMPLE_FILE, HeadsFigures, HeadsSample, HeadsScore, read_sample
from nptool.llama.gguf_summary import PartSummary, summarize
from nptool.llama.loading import LoadOptions

LARGE_GAP, SMALL_LOSS = 0.1, 0.05
"""Share of the drafted tokens, those beyond one per forward, that a file may lose without a warning, and tokens per
forward that it may lose in any case."""
Q8_BITS = 8.5
"""Bits of a weight in q8_0."""
PROBE = "a question"


def score_heads(path: Path, directory: Path) -> HeadsScore:
    """Decode the sample of the checkpoint in `directory` greedily by all heads of the GGUF at `path`, in exact mode.

    Raises:
        CheckpointError: the checkpoint has no heads or no sample.
        GgufError: the file cannot be used.
    """
    info = read_heads_info(directory)
    sample = read_sample(directory, info.count) if info is not None else None
    if info is None or sample is None:
        raise CheckpointError(f"{directory} has no {SAMPLE_FILE}; `nptool train heads` writes it beside the heads")
    # Another tokenizer may need more tokens for the same prompts.
    capacity = 4 * max(map(len, sample.prompts)) + max(map(len, sample.responses)) + info.count
    with TextModel(path, LoadOptions(context_length=capacity)) as model:
        prompts = [_served(model, ids) for ids in sample.prompts]
        pairs = zip(prompts, sample.responses, strict=True)
        steps_K = sum(_count_steps(model, prompt, len(response), info.count) for prompt, response in pairs)
        found = HeadsFigures.of(np.asarray(steps_K).tolist())
        warning = None
        lost = sample.figures.tokens_per_forward - found.tokens_per_forward
        if lost > max(SMALL_LOSS, LARGE_GAP * (sample.figures.tokens_per_forward - 1)):
            causes = [*_causes(model, directory, sample, prompts)] or ["the cause is not known"]
            warning = (
                f"the heads give {found.tokens_per_forward:.2f} tokens per forward in this file, on the same prompts "
                f"{sample.figures.tokens_per_forward:.2f} in training: {'; '.join(causes)}"
            )
    return HeadsScore(len(prompts), sample.figures, found, warning)


def _served(model: TextModel, ids: tuple[int, ...]) -> NDArray[np.int32]:
    """The tokens that the file's tokenizer gives to the text of a prompt."""
    text = model.model.detokenize(ids, special=True)
    found = model.model.tokenize(text, parse_special=True)
    # SentencePiece puts a space before a text, which detokenizing spells.
    stripped = model.model.tokenize(text.removeprefix(b" "), parse_special=True)
    return stripped if stripped.tolist() == list(ids) else found


def _count_steps(model: TextModel, prompt: NDArray[np.int32], length: int, count: int) -> NDArray[np.int64]:
    """Steps (K + 1,) of one answer of at most `length` tokens by their accepted drafts.

    Drafts beyond the last token do not count, as in `nptool.training.heads.evaluation`.
    """
    answer = model.answer(prompt, DecodeConfig(HEADS, count, max_tokens=length + count))
    steps_K = np.zeros(count, dtype=np.int64)
    seen_K = steps_K.copy()
    for _ in answer:
        now_K = np.array(answer.tally.passes_by_accepted[:count])
        if (now_K != seen_K).any():
            # This token is the first one of a step.
            accepted, left = int((now_K - seen_K).argmax()), length - len(answer.tokens) + 1
            steps_K[min(accepted, left)] += 1
            seen_K = now_K
        if len(answer.tokens) == length:
            break
    answer.close()
    return steps_K


def _causes(model: TextModel, directory: Path, sample: HeadsSample, prompts: list[NDArray[np.int32]]) -> Iterator[str]:
    """What may make the drafts worse than in training, with a remedy, the likeliest first."""
    changed = sum(list(ids) != found.tolist() for ids, found in zip(sample.prompts, prompts, strict=True))
    if changed:
        yield f"its tokenizer splits {changed} of {len(prompts)} prompts otherwise (--pre names other splitting rules)"
    if not _same_template(model, directory):
        yield "its chat template renders a question otherwise than the checkpoint's"
    trunk, *heads = summarize(model.path).parts
    for part, bits in (("heads have", _bits(heads[0])), ("model has", _bits(trunk))):
        if bits < Q8_BITS:
            option = "--heads-type f16" if part.startswith("heads") else "a larger --type, and --heads-type f16"
            yield f"its {part} {bits:.1f} bits a weight; convert with {option}"


def _same_template(model: TextModel, directory: Path) -> bool:
    """Whether the file and the checkpoint's tokenizer render a question alike; True if either refuses it."""
    with suppress(NptoolError):
        expected = render(Record(prompt=PROBE), load_tokenizer(directory)).prompt_ids
        return list(model.encode(PROBE)) == expected
    return True


def _bits(part: PartSummary) -> float:
    """Mean bits of a weight."""
    return 8 * sum(tensor.bytes for tensor in part.tensors) / part.parameters
