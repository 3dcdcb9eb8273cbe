"""The result of a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """Where an answer first differs from autoregressive decoding of width 1."""

    source: str
    """The prompt."""
    position: int
    """Index in the answer, from 0."""
    margin: float
    """Difference of the two largest logits of autoregressive decoding there."""


@dataclass(frozen=True)
class MethodReport:
    """One method at one block length, over all prompts and rounds."""

    name: str
    n: int
    tokens_per_second: float
    """Without the prefill; median over rounds, as are the other rates."""
    tokens_per_second_with_prefill: float
    speedup: float
    """Over autoregressive decoding of width 1; median of the ratios on one prompt in one round."""
    speedup_with_prefill: float
    speedup_by_round: list[float]
    tokens_per_forward: float
    cost_ratio: float
    """Mean time of a step relative to a batch of one row."""
    trunk_ms: float
    """Mean milliseconds of a step inside the model itself."""
    heads_ms: float
    """Mean milliseconds of a step inside extra heads."""
    loop_ms: float
    """Mean milliseconds of a step outside both: drafting, sampling, bookkeeping."""
    predicted_speedup: float
    """`tokens_per_forward * t(1) / (t(n) + heads_ms)`."""
    identical_equal_width: float
    """Share of answers equal to those of autoregressive decoding of the same width."""
    identical_width_1: float
    """Share of answers equal to those of autoregressive decoding of width 1."""
    differences: list[Difference]
    """From autoregressive decoding of width 1."""
    margin_median: float | None
    margin_worst: float | None
    """The largest margin, which is the least like a tie."""
    acceptance_by_position: list[float]
    """Share of passes in which the draft was right up to this position."""
    accuracy: float | None
    """Share of queries that give the gold query's result; None if the prompts have no gold query."""
    first_token_ms: float
    """Prefill and first forward pass; median."""
    tokens: int
    forward_passes: int
    passes_by_width: dict[str, int]
    """Rows of a batch to number of forward passes."""
    answers_by_method: dict[str, int]
    """Method used to number of answers."""


@dataclass(frozen=True)
class BenchReport:
    model: str
    model_description: str
    model_bytes: int
    machine: dict[str, Any]
    threads: int
    gpu_layers: int
    flash_attention: bool
    """Whether llama.cpp's fused kernel was used."""
    rounds: int
    prompts: int
    prompts_file: str
    prompt_tokens_median: float
    max_tokens: int
    sampling: dict[str, Any]
    step_ms: dict[str, float]
    """Milliseconds of a batch by its rows, after `step_context` tokens; median."""
    step_context: int
    peak_memory_bytes: int | None
    """Largest resident memory of the process, with the mapped part of the file; None if unknown."""
    methods: list[MethodReport]
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return asdict(self)
