"""From `config.json` to the numbers a GGUF needs, for the architectures nptool converts.

Reads both spellings of RoPE's settings (`rope_theta` + `rope_scaling`, and transformers 5's `rope_parameters`).
Whatever in a configuration would change the arithmetic and has no counterpart here is refused. Knows no tensors and no
tokenizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nptool.errors import CheckpointError

LLAMA3 = "llama3"
LINEAR = "linear"
YARN = "yarn"
ROPE_TYPES = ("default", LINEAR, LLAMA3, YARN)


@dataclass(frozen=True)
class Family:
    """What sets one architecture of transformers apart from the others."""

    architecture: str
    """Name in `config.json`."""
    arch: str
    """`general.architecture` in the GGUF: the graph llama.cpp builds."""
    rope_pairs: bool
    """The graph rotates neighbouring rows (2i, 2i+1), so Q and K rows are permuted from transformers' halves."""
    qkv_bias: bool = False
    """Q, K and V always have biases (else `attention_bias` of the configuration decides)."""
    query_key_norm: bool = False
    """Q and K are normalised per head before RoPE."""
    head_dim: int | None = None
    """Where the configuration does not say it; None is hidden size / heads."""
    context: int = 2048
    """`max_position_embeddings` where the configuration does not say it."""


FAMILIES = {
    family.architecture: family
    for family in (
        Family("LlamaForCausalLM", "llama", rope_pairs=True),
        Family("MistralForCausalLM", "llama", rope_pairs=True, context=131072),
        # As `llama`: llama.cpp's own qwen2 graph does not give out the layer inputs that parallel heads need.
        Family("Qwen2ForCausalLM", "llama", rope_pairs=True, qkv_bias=True, context=32768),
        Family("Qwen3ForCausalLM", "qwen3", rope_pairs=False, query_key_norm=True, head_dim=128, context=32768),
    )
}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base, and how positions are stretched to a longer context."""

    theta: float
    scaling: str
    """One of ROPE_TYPES."""
    factor: float = 1.0
    original_context: int = 0
    """Tokens the model was trained with before stretching (llama3, yarn)."""
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def frequency_factors(self, head_dim: int) -> list[float] | None:
        """Divisors of the `head_dim / 2` rotation frequencies (llama3's scaling); None where there are none.

        A rotation that completes within the original context often enough is left alone, one that hardly turns is
        slowed by the whole factor, and those between are interpolated.
        """
        if self.scaling != LLAMA3:
            return None
        slow, fast = self.low_frequency_factor, self.high_frequency_factor
        divisors = []
        for pair in range(head_dim // 2):
            wavelength = 2 * math.pi * self.theta ** (2 * pair / head_dim)
            turns = self.original_context / wavelength
            if turns > fast:
                divisors.append(1.0)
            elif turns < slow:
                divisors.append(self.factor)
            else:
                share = (turns - slow) / (fast - slow)
                divisors.append(1 / ((1 - share) / self.factor + share))
        return divisors


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes of one model, in tokens, rows and heads."""

    family: Family
    vocabulary: int
    """Rows of the embedding; the tokenizer may have fewer tokens."""
    context: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    norm_epsilon: float
    tied: bool
    """The unembedding is the embedding."""
    qkv_bias: bool
    output_bias: bool
    feed_forward_bias: bool
    rope: Rope
    sliding_window: int | None
    """Attention span in tokens that llama.cpp's graph does not keep."""


def read_hyperparameters(config: dict[str, Any], source: str) -> Hyperparameters:
    """Take the sizes from a parsed `config.json`.

    Args:
        source: what the messages call the checkpoint.

    Raises:
        CheckpointError: an architecture, activation, RoPE scaling or quantisation nptool does not convert; a missing
            size.
    """
    family = _family(config, source)
    _refuse_unsupported(config, family, source)
    heads, hidden = _size(config, "num_attention_heads", source), _size(config, "hidden_size", source)
    head_dim = config.get("head_dim") or family.head_dim or hidden // heads
    context = int(config.get("max_position_embeddings") or family.context)
    bias = bool(config.get("attention_bias"))
    llama = family.architecture == "LlamaForCausalLM"
    return Hyperparameters(
        family=family,
        vocabulary=_size(config, "vocab_size", source),
        context=context,
        hidden=hidden,
        feed_forward=_size(config, "intermediate_size", source),
        layers=_size(config, "num_hidden_layers", source),
        heads=heads,
        key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(head_dim),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias or (llama and bias),
        output_bias=llama and bias,
        feed_forward_bias=llama and bool(config.get("mlp_bias")),
        rope=_read_rope(config, context, source),
        sliding_window=_sliding_window(config, family, context),
    )


def _family(config: dict[str, Any], source: str) -> Family:
    named = config.get("architectures") or []
    known = f"nptool converts {', '.join(FAMILIES)}"
    if not named:
        raise CheckpointError(f"{source}: config.json names no architecture (`architectures`); {known}")
    if named[0] not in FAMILIES:
        raise CheckpointError(f"{source}: architecture {named[0]} is not one nptool converts; {known}")
    return FAMILIES[named[0]]


def _refuse_unsupported(config: dict[str, Any], family: Family, source: str) -> None:
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise CheckpointError(
            f"{source}: the weights are quantised already (quantization_config: {method}); "
            "convert the unquantised checkpoint and choose the type with --type"
        )
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"{source}: hidden_act is {activation}; llama.cpp's {family.arch} graph has silu only")
    if config.get("use_sliding_window"):
        raise CheckpointError(
            f"{source}: use_sliding_window is on; llama.cpp's {family.arch} graph attends to the whole context"
        )
    if family.query_key_norm and config.get("attention_bias"):
        raise CheckpointError(f"{source}: attention_bias is on; llama.cpp's {family.arch} graph has no biases")


def _size(config: dict[str, Any], key: str, source: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{source}: config.json has {key} = {value!r}; expected a number above 0")
    return value


def _read_rope(config: dict[str, Any], context: int, source: str) -> Rope:
    settings = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    settings = {key: value for key, value in settings.items() if value is not None}
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise CheckpointError(
            f"{source}: RoPE scaling {kind!r} is not one nptool converts; it knows {', '.join(ROPE_TYPES)}"
        )
    partial = settings.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise CheckpointError(
            f"{source}: partial_rotary_factor is {partial}; nptool converts models that rotate whole heads"
        )
    factor = float(settings.get("factor", 1.0))
    if kind == YARN:
        _check_yarn(settings, factor, source)
    if kind == LLAMA3 and FAMILIES[config["architectures"][0]].arch != "llama":
        raise CheckpointError(f"{source}: RoPE scaling 'llama3' has no place in llama.cpp's graph of this architecture")
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


def _check_yarn(settings: dict[str, Any], factor: float, source: str) -> None:
    """Only the paper's own attention factor, 0.1 ln(factor) + 1, is what llama.cpp applies."""
    given = settings.get("attention_factor", 0.1 * math.log(max(factor, 1.0)) + 1)
    odd: list[str] = [key for key in ("mscale", "mscale_all_dim") if key in settings]
    if not settings.get("truncate", True):
        odd.append("truncate")
    if not math.isclose(given, 0.1 * math.log(max(factor, 1.0)) + 1, rel_tol=1e-4):
        odd.append("attention_factor")
    if odd:
        raise CheckpointError(f"{source}: RoPE scaling 'yarn' with {', '.join(odd)} of its own is not converted")


def _sliding_window(config: dict[str, Any], family: Family, context: int) -> int | None:
    window = config.get("sliding_window", 4096) if family.architecture == "MistralForCausalLM" else None
    return int(window) if window and int(window) < context else None
