"""Configuration of `nptool train base`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nptool.data.options import DataOptions
from nptool.errors import UsageError
from nptool.options import AT_LEAST_1, BELOW_1, SHARE, Range, flag, limited, option
from nptool.training.config import LossTokens, TrainingConfig

# Fields that describe a new model; they cannot be combined with a finished one.
SHAPE_FIELDS = (
    "tokenizer",
    "vocab_size",
    "digits",
    "hidden_size",
    "layers",
    "attention_heads",
    "kv_heads",
    "intermediate_size",
    "tied",
    "rope_theta",
)
BYTES = "bytes"
"""A tokenizer whose tokens are the 256 bytes and the special ones."""
# 256 bytes and 6 special tokens.
SMALLEST_VOCABULARY = 262
_FROM_SCRATCH_LR = 1e-3
# Llama's feed-forward layer: 8/3 of the hidden size (arXiv 2302.13971, section 2.2), here in multiples of 32.
_INTERMEDIATE_RATIO = 8 / 3
_INTERMEDIATE_MULTIPLE = 32


@dataclass(frozen=True, kw_only=True)
class BaseConfig(DataOptions, TrainingConfig):
    """Training on the autoregressive loss: a small Llama from scratch, or a finished model (`model`)."""

    KIND: ClassVar[str] = "base"

    model: str | None = option(None, "finished model to train further", "-m", metavar="DIR|ID")
    """Hugging Face directory or Hub id; None makes a new Llama."""
    tokenizer: str | None = option(None, "use this tokenizer", metavar="DIR|ID|bytes", shown="one trained on the data")
    """`bytes` has one token per byte."""
    vocab_size: int = option(2048, "size of the new vocabulary", within=Range(SMALLEST_VOCABULARY))
    digits: bool = option(False, "one token for each digit in a new tokenizer")
    hidden_size: int = option(384, "hidden size", within=AT_LEAST_1)
    layers: int = option(6, "number of layers", within=AT_LEAST_1)
    attention_heads: int = option(6, "attention heads", within=AT_LEAST_1)
    kv_heads: int | None = option(None, "key and value heads", shown="as many as attention heads", within=AT_LEAST_1)
    intermediate_size: int | None = option(
        None, "size of the feed-forward layers", shown="8/3 of the hidden size", within=AT_LEAST_1
    )
    tied: bool = option(True, "one matrix for embedding and unembedding", "--tied/--untied")
    rope_theta: float = limited(10_000.0, AT_LEAST_1)
    """Base of the rotary position embedding."""
    heads: int | None = option(
        None, "number of heads; each extra one takes a layer", shown="the model's, or 1", within=AT_LEAST_1
    )
    """With 1, the extra heads of a multi-head model are dropped."""
    context: int = option(1024, "longest sequence in tokens", within=Range(2))
    """Also the context of a new model."""
    loss: LossTokens = option("all", "tokens of a prompt/response record to train on")
    prompt_share: float = option(1.0, "share of the prompt tokens to train on with --loss all", within=SHARE)
    """A smaller share gives the response more weight."""
    heldout: float = option(0.05, "share of the data kept for testing", within=BELOW_1)
    heldout_data: Path | None = option(None, "records to test on, instead of a share")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UsageError("--data is missing; name the files to train on")
        if self.optimizer == "muon" and self.heads not in (None, 1):
            raise UsageError("--optimizer muon is for a model without extra heads; omit it, or --heads")
        if self.model is None:
            self._check_shape()
        else:
            self._check_no_shape()

    def _check_shape(self) -> None:
        if self.heads is not None and self.layers <= self.heads > 1:
            raise UsageError(
                f"--heads {self.heads} are {self.heads} of the model's layers, --layers {self.layers} leaves none for "
                f"the trunk; give at least --layers {self.heads + 1}"
            )
        if self.hidden_size % self.attention_heads:
            raise UsageError(
                f"--hidden-size {self.hidden_size} is no multiple of --attention-heads {self.attention_heads}"
            )
        if self.head_size % 2:
            raise UsageError(
                f"--hidden-size {self.hidden_size} / --attention-heads {self.attention_heads} is {self.head_size}; "
                "a head's size must be even (rotary positions turn pairs)"
            )
        if self.attention_heads % self.key_value_heads:
            raise UsageError(f"--attention-heads {self.attention_heads} is no multiple of --kv-heads {self.kv_heads}")

    def _check_no_shape(self) -> None:
        for name in SHAPE_FIELDS:
            if getattr(self, name) != getattr(BaseConfig, name):
                raise UsageError(f"{flag(self, name)} describes a new model; {self.model} (-m) brings its own")

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: 1e-3 from scratch, 2e-5 from a finished model, unless given."""
        return _FROM_SCRATCH_LR if self.lr is None and self.model is None else super().learning_rate

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.attention_heads

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads if self.kv_heads is not None else self.attention_heads

    @property
    def feed_forward_size(self) -> int:
        if self.intermediate_size is not None:
            return self.intermediate_size
        return -(-int(self.hidden_size * _INTERMEDIATE_RATIO) // _INTERMEDIATE_MULTIPLE) * _INTERMEDIATE_MULTIPLE

    @property
    def origin(self) -> str:
        return self.data[0].resolve().stem
