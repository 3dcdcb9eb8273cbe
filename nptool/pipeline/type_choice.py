"""`--type auto`: the type with most tokens per second on this machine among those that keep the model's greedy tokens.

Each candidate is written beside the output, measured, and removed before the next one; the chosen type is written again
by the ordinary command. So there is room needed for the source and one candidate, and the largest is no larger than the
source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nptool.bench.prediction import Prediction, plain, predict
from nptool.bench.prompts import read_prompts
from nptool.convert.checkpoint import opened_checkpoint
from nptool.convert.conversion import MEMORY_LEFT, convert
from nptool.convert.file_types import DEFAULT_TYPE
from nptool.convert.requantize import quantize
from nptool.convert.samples import TEXTS
from nptool.convert.staging import staging_folder
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.loop.timing import prefill
from nptool.decoding.text_model import TextModel
from nptool.errors import GgufError
from nptool.llama.gguf_summary import MODEL, summarize
from nptool.llama.loading import DEFAULT_WIDTH
from nptool.progress import Progress, silent
from nptool.resources import free_memory
from nptool.runs import run_of

CANDIDATES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m")
SAME = 0.99
"""Share of the greedy tokens that a type must keep."""
SAMPLE_PROMPTS, SAMPLE_TOKENS = 16, DEFAULT_WIDTH
"""Prompts, and most tokens of each answer, which is one batch."""
LONGEST_PROMPT = 512
"""Tokens."""
ROUNDS = 3
"""Measurements of source and candidate in turns; the median counts, because the machine's speed may change."""
MEASURING = "measuring types"


class Continuation(NamedTuple):
    """A prompt and the source's own greedy answer."""

    prompt: NDArray[np.int32]
    answer: NDArray[np.int32]


@dataclass(frozen=True)
class Candidate:
    """One type, as measured."""

    type: str
    speed: float
    """Tokens per second, times those of the source measured just before: the median of `ROUNDS`."""
    best: Prediction
    """The method and width of this speed."""
    same: float
    """Share of the greedy next tokens that are the source's."""
    bytes: int


@dataclass(frozen=True)
class TypeChoice:
    type: str
    candidates: tuple[Candidate, ...]
    impossible: dict[str, str]
    """Types that llama.cpp's quantizer refuses for this model, with the reason."""
    sentence: str


def choose_for_checkpoint(
    ref: str | Path,
    out: Path | None,
    *,
    heads_type_name: str | None = None,
    pre: str | None = None,
    progress: Progress = silent,
) -> TypeChoice:
    """The type for `nptool convert`, from a copy of the checkpoint in F32, or F16 where F32 does not fit in memory.

    Raises:
        CheckpointError, UsageError, GgufError, DiskFullError: see `convert`.
    """
    place = out or Path("model.gguf")
    with opened_checkpoint(ref, place.parent) as checkpoint, staging_folder(place) as folder:
        needed = 4 * sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()) + MEMORY_LEFT
        free = free_memory()
        whole = folder / "whole.gguf"
        convert(
            checkpoint.directory,
            whole,
            type_name="f32" if free is None or needed <= free else DEFAULT_TYPE,
            heads_type_name=heads_type_name,
            verified=False,
            pre=pre,
            progress=progress,
        )
        return _choose(whole, folder, _heldout(checkpoint.directory), heads_type_name, progress)


def choose_for_file(
    source: Path, target: Path, *, heads_type_name: str | None = None, progress: Progress = silent
) -> TypeChoice:
    """The type for `nptool quantize`.

    Raises:
        UsageError: the file is already quantized.
        GgufError, DiskFullError: see `quantize`.
    """
    with staging_folder(target) as folder:
        return _choose(source, folder, _heldout(source), heads_type_name, progress)


def _heldout(path: Path) -> Path | None:
    run = run_of(path)
    return run.heldout if run is not None and run.heldout.is_file() else None


def _choose(
    source: Path, folder: Path, heldout: Path | None, heads_type_name: str | None, progress: Progress
) -> TypeChoice:
    candidates: list[Candidate] = []
    impossible: dict[str, str] = {}
    sample: list[Continuation] = []
    expected = np.empty(0, dtype=np.int64)
    names = possible_types(source)
    for number, name in enumerate(names):
        progress(MEASURING, number, len(names), name)
        path = folder / f"{name}.gguf"
        try:
            quantize(source, path, name, heads_type_name=heads_type_name)
        except GgufError as error:
            impossible[name] = str(error)
            continue
        if not sample:
            # After the first `quantize`, which has checked the source.
            with TextModel(source) as model:
                sample = draw_sample(model, heldout)
                expected = greedy_choices(model, sample)
        candidates.append(_measure(source, path, name, sample, expected))
        path.unlink()
    progress(MEASURING, len(names), len(names))
    return decide(candidates, impossible)


def possible_types(source: Path) -> list[str]:
    """The candidates that are no larger than the source, the source's own type first."""
    part = next(part for part in summarize(source).parts if part.part == MODEL)
    own = next(iter(part.parameters_by_type)).lower()
    smaller = [name for name in CANDIDATES if name not in (own, "f32")]
    return [own, *smaller] if own in CANDIDATES else smaller


def draw_sample(model: TextModel, heldout: Path | None) -> list[Continuation]:
    """The model's greedy answers to its run's held-out prompts, or its continuations of texts that try tokenizers."""
    if heldout is None:
        encoded = [model.encode(text, raw=True) for text in TEXTS.values()]
    else:
        encoded = [model.encode(prompt.turns, raw=prompt.raw) for prompt in read_prompts(heldout, SAMPLE_PROMPTS)]
    longest = max(1, min(LONGEST_PROMPT, model.contexts.trunk(DEFAULT_WIDTH).capacity - SAMPLE_TOKENS))
    return [*_continued(model, [ids[:longest] for ids in encoded if len(ids)])]


def _continued(model: TextModel, prompts: Sequence[NDArray[np.int32]]) -> Iterator[Continuation]:
    for prompt in prompts:
        answer = model.answer(prompt, DecodeConfig(max_tokens=SAMPLE_TOKENS))
        yield Continuation(prompt, np.array([token.id for token in answer], dtype=np.int32))


def greedy_choices(model: TextModel, sample: Sequence[Continuation]) -> NDArray[np.int64]:
    """The likeliest token at every place of the answers, each after the tokens before it in the sample."""
    engine = model.contexts.scratch(DEFAULT_WIDTH)
    found = []
    for prompt, answer in sample:
        engine.rollback(0)
        if len(prompt) > 1:
            prefill(engine, prompt[:-1])
        logits_TV = engine.evaluate(np.concatenate([prompt[-1:], answer[:-1]]), len(prompt) - 1)
        found.append(logits_TV.argmax(-1))
    engine.rollback(0)
    return np.concatenate(found)


def _measure(
    source: Path, path: Path, name: str, sample: Sequence[Continuation], expected: NDArray[np.int64]
) -> Candidate:
    pairs = [(_fastest(source), _fastest(path)) for _ in range(ROUNDS)]
    before, best = sorted(pairs, key=lambda pair: pair[1].rate / pair[0].rate)[ROUNDS // 2]
    with TextModel(path) as model:
        same = float((greedy_choices(model, sample) == expected).mean())
    return Candidate(name, best.rate / before.rate, best, same, path.stat().st_size)


def _fastest(path: Path) -> Prediction:
    with TextModel(path) as model:
        calibration = model.store.calibrate()
        return max((plain(calibration), *predict(model, calibration)), key=lambda found: found.rate)


def decide(candidates: Sequence[Candidate], impossible: dict[str, str]) -> TypeChoice:
    """The fastest candidate that keeps at least `SAME` of the greedy tokens.

    Raises:
        GgufError: no candidate does.
    """
    kept = [candidate for candidate in candidates if candidate.same >= SAME]
    if not candidates:
        raise GgufError(f"llama.cpp's quantizer refuses every type: {'; '.join(impossible.values())}")
    if not kept:
        tried = "; ".join((f"{_listed([one.type for one in candidates])} {_changes(candidates)}", *impossible.values()))
        raise GgufError(f"no type keeps {SAME:.0%} of the greedy tokens ({tried}); name a type")
    chosen = max(kept, key=lambda candidate: candidate.speed)
    default = next((one for one in candidates if one.type == DEFAULT_TYPE), None)
    faster = [one for one in candidates if one.speed > chosen.speed]
    if default is not None and default is not chosen:
        head = f"{chosen.type}: {chosen.speed / default.speed:.2f} times {DEFAULT_TYPE} here"
    else:
        head = f"{chosen.type}: the fastest here" + (f" that keeps {SAME:.0%} of greedy tokens" if faster else "")
    lost = f"; {_listed([one.type for one in faster])} would be faster but {_changes(faster)}" if faster else ""
    sentence = f"{head} by t({chosen.best.width}) and {chosen.best.tokens:.1f} tokens per forward{lost}"
    return TypeChoice(chosen.type, tuple(candidates), impossible, sentence)


def _changes(candidates: Sequence[Candidate]) -> str:
    verb = "changes" if len(candidates) == 1 else "change"
    return f"{verb} {_listed([f'{100 * (1 - one.same):.2g}' for one in candidates])} % of greedy tokens"


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
