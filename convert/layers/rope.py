"""Rotary position embedding: read from `config.json`, written as GGUF metadata, frequency factors and row order.

Reads both spellings of its settings: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.convert.layers.model_spec import Config
from nptool.convert.layers.weights import StoredTensor

DEFAULT = "default"
LLAMA3 = "llama3"
LINEAR = "linear"
YARN = "yarn"
ROPE_TYPES = (DEFAULT, LINEAR, LLAMA3, YARN)
"""The types that nptool reads; a family's graph may compute fewer."""


@dataclass(frozen=True)
class Rope:
    """Base of the rotation, and how positions are stretched to a longer context."""

    theta: float
    scaling: str
    """One of ROPE_TYPES."""
    factor: float = 1.0
    original_context: int = 0
    """Context length in tokens before stretching (llama3, yarn)."""
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def frequency_factors(self, head_dim: int) -> NDArray[np.float32] | None:
        """Divisors of the `head_dim / 2` rotation frequencies for llama3 scaling; None for other types.

        Frequencies that complete many turns within the original context are unchanged, those that complete few are
        divided by `factor`, and those in between are interpolated.
        """
        if self.scaling != LLAMA3:
            return None
        turns = self.original_context / (2 * np.pi * self.theta ** (np.arange(0, head_dim, 2) / head_dim))
        slow, fast = self.low_frequency_factor, self.high_frequency_factor
        share = np.clip((turns - slow) / (fast - slow), 0, 1)
        return np.asarray(1 / ((1 - share) / self.factor + share), np.float32)

    def metadata(self, head_dim: int) -> dict[str, str | int | float]:
        """GGUF entries, without the graph's prefix."""
        entries: dict[str, str | int | float] = {"rope.dimension_count": head_dim, "rope.freq_base": self.theta}
        if self.scaling in (LINEAR, YARN):
            entries |= {"rope.scaling.type": self.scaling, "rope.scaling.factor": self.factor}
        if self.scaling == YARN:
            entries["rope.scaling.original_context_length"] = self.original_context
            entries["rope.scaling.yarn_beta_fast"] = self.beta_fast
            entries["rope.scaling.yarn_beta_slow"] = self.beta_slow
        return entries


def read_rope(config: Config, context: int, types: Sequence[str] = ROPE_TYPES) -> Rope:
    """Read the settings.

    Args:
        context: of the model, in tokens.
        types: those that llama.cpp's graph computes.

    Raises:
        CheckpointError: another scaling.
    """
    settings = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    settings = {key: value for key, value in settings.items() if value is not None}
    kind = settings.get("rope_type", settings.get("type", DEFAULT))
    if kind not in types:
        raise config.error(f"RoPE scaling {kind!r} is not supported; expected one of {', '.join(types)}")
    partial = settings.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise config.error(f"partial_rotary_factor is {partial}; nptool converts models that rotate whole heads")
    factor = float(settings.get("factor", 1.0))
    if kind == YARN:
        _check_yarn(config, settings, factor)
    return Rope(
        theta=float(settings.get("rope_theta", config.get("rope_theta", 10000.0))),
        scaling=kind,
        factor=factor,
        original_context=int(settings.get("original_max_position_embeddings", context)),
        low_frequency_factor=float(settings.get("low_freq_factor", 1.0)),
        high_frequency_factor=float(settings.get("high_freq_factor", 4.0)),
        beta_fast=float(settings.get("beta_fast", 32.0)),
        beta_slow=float(settings.get("beta_slow", 1.0)),
    )


def _check_yarn(config: Config, settings: dict[str, Any], factor: float) -> None:
    """llama.cpp always applies the attention factor of the paper (arXiv 2309.00071, section 3.4)."""
    paper = 0.1 * math.log(max(factor, 1.0)) + 1
    odd: list[str] = [key for key in ("mscale", "mscale_all_dim") if key in settings]
    if not settings.get("truncate", True):
        odd.append("truncate")
    if not math.isclose(settings.get("attention_factor", paper), paper, rel_tol=1e-4):
        odd.append("attention_factor")
    if odd:
        raise config.error(f"RoPE scaling 'yarn' with its own {', '.join(odd)} is not supported")


def pair_order(rows: int, head_dim: int) -> NDArray[np.intp]:
    """Row numbers of transformers' Q or K in the order of graphs that rotate neighbouring rows.

    transformers rotates row i of a head with row i + head_dim / 2; such graphs rotate rows 2i and 2i + 1.
    """
    halves = np.arange(rows).reshape(rows // head_dim, 2, head_dim // 2)
    return halves.swapaxes(1, 2).reshape(rows)


def read_as_pairs(stored: StoredTensor, head_dim: int) -> Iterator[NDArray[np.float32]]:
    """The rows of Q or K in `pair_order`."""
    return stored.chunks(pair_order(stored.shape[0], head_dim))
