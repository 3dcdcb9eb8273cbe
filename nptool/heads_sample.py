"""`heads-sample.json` beside a checkpoint's heads: held-out prompts, and what the heads' drafts were worth on them.

Training writes it with its own figures; `nptool convert` has the finished GGUF answer the same prompts and stores what
it finds in the file, where decoding reads it. Loads neither torch nor llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nptool.errors import CheckpointError
from nptool.files import atomic_file, read_json
from nptool.heads import COUNT_KEY

SAMPLE_FILE = "heads-sample.json"
SAMPLE_PROMPTS, SAMPLE_TOKENS = 16, 64
"""Prompts of a sample, and tokens of each response: a 7B model answers them on a processor in some minutes."""
ACCEPTANCE_KEY = "nptool.heads.acceptance"
"""GGUF of the model: `HeadsFigures.acceptance` of the finished file (float32 array of n - 1)."""
TOKENS_PER_FORWARD_KEY = "nptool.heads.tokens_per_forward"
"""GGUF of the model: `HeadsFigures.tokens_per_forward` of the finished file (float32)."""


@dataclass(frozen=True)
class HeadsFigures:
    """Of the greedy chain of all heads."""

    tokens_per_forward: float
    """Accepted drafts of a step, and the one token that every step gives."""
    acceptance: tuple[float, ...]
    """Share of the steps whose first, second, ... draft is accepted, for heads 2..n."""

    @classmethod
    def of(cls, steps: Sequence[int]) -> HeadsFigures:
        """Args: `steps`: how many steps accepted 0, 1, ..., n - 1 drafts."""
        passes = max(1, sum(steps))
        reached = tuple(sum(steps[place:]) / passes for place in range(1, len(steps)))
        return cls(1.0 + sum(reached), reached)


@dataclass(frozen=True)
class HeadsSample:
    prompts: tuple[tuple[int, ...], ...]
    """Token ids."""
    responses: tuple[tuple[int, ...], ...]
    """The first tokens of the model's own greedy answers."""
    figures: HeadsFigures
    """In training, on exactly these responses."""


@dataclass(frozen=True)
class HeadsScore:
    """A finished GGUF on the sample of its checkpoint."""

    prompts: int
    trained: HeadsFigures
    """In training."""
    found: HeadsFigures
    """In the file."""
    warning: str | None = None
    """That the file is much worse, and the likely cause."""


Scorer = Callable[[Path, Path], HeadsScore]
"""Scores a GGUF with heads on the sample of the checkpoint directory that it was converted from."""


def write_sample(directory: Path, sample: HeadsSample) -> None:
    with atomic_file(directory / SAMPLE_FILE, "w") as stream:
        json.dump(asdict(sample), stream)


def read_sample(directory: Path, count: int) -> HeadsSample | None:
    """The sample of a checkpoint with `count` heads, or None if it has none.

    Raises:
        CheckpointError: it is damaged, or belongs to another number of heads.
    """
    path = directory / SAMPLE_FILE
    if not path.is_file():
        return None
    saved = read_json(path, CheckpointError)
    try:
        prompts, responses = (tuple(tuple(map(int, ids)) for ids in saved[name]) for name in ("prompts", "responses"))
        figures = _figures(saved["figures"], "tokens_per_forward", "acceptance", count)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); copy it again, or remove it") from error
    if figures is None or not prompts or len(prompts) != len(responses) or not all((*prompts, *responses)):
        raise CheckpointError(f"{path} does not fit {count} heads; copy the one beside these heads, or remove it")
    return HeadsSample(prompts, responses, figures)


def placeholders(count: int) -> dict[str, float | list[float]]:
    """GGUF metadata that have the size of the figures of `count` heads, and no meaning."""
    return {ACCEPTANCE_KEY: [0.0] * (count - 1), TOKENS_PER_FORWARD_KEY: 0.0}


def figures_in(metadata: Mapping[str, Any]) -> HeadsFigures | None:
    """The figures in a GGUF's metadata; None if there are none, or their values are impossible."""
    count = metadata.get(COUNT_KEY)
    return _figures(metadata, TOKENS_PER_FORWARD_KEY, ACCEPTANCE_KEY, count) if isinstance(count, int) else None


def _figures(values: Mapping[str, Any], tokens_key: str, acceptance_key: str, count: int) -> HeadsFigures | None:
    """None unless a chain of `count` heads can have these figures."""
    tokens, shares = values.get(tokens_key), values.get(acceptance_key)
    if not isinstance(shares, list) or len(shares) != count - 1 or not all(map(_is_number, (tokens, *shares))):
        return None
    figures = HeadsFigures(float(tokens or 0), tuple(map(float, shares)))
    possible = 1 <= figures.tokens_per_forward <= count and all(0 <= share <= 1 for share in figures.acceptance)
    return figures if possible else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
