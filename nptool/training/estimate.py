"""What `--dry-run` reports: sizes, steps, and how much memory a training takes, before any weight is loaded.

Bytes = weights + gradients + optimizer + activations + logits, with P parameters in all, P_t trained ones, T tokens in
a forward pass of which R are trained, L layers, hidden size D, feed-forward size F, key/value size K, V tokens, and a
bytes per activation (4 in float32, 2 in bfloat16):

    weights      4 P                                in bfloat16 2 P more: autocast's copies; frozen weights of a
                                                    checkpoint in half precision take 2 P in all
    gradients    4 P_t
    optimizer    8 P_t                              AdamW's two averages
    activations  T (L (16 D + a (c D + 2 K + 4 F)) + 8 D)
                                                    for the backward pass of a Llama block: input and normalized value
                                                    of both norms (float32) 16 D; inputs of q/k/v and gate/up, q, and
                                                    attention's output c D (c = 4; 7 in bfloat16, one copy per matrix);
                                                    k and v 2 K; gate, silu(gate), up and their product 4 F; 8 D for the
                                                    final norm
                 T (4 L D + one block's + 8 D)      with gradient checkpointing
    logits       12 R V                             logits, their softmax, and the gradient, in float32

torch's fused attention kernels keep no T x T matrix. Allocator overhead is not counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from nptool.settings import to_json
from nptool.training.arguments import uses_bfloat16
from nptool.training.batches import batches_in_pass, batches_per_step, count_steps
from nptool.training.config import TrainingConfig

FLOAT32 = 4
BFLOAT16 = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only transformer of the Llama family."""

    vocab_size: int
    hidden_size: int
    layers: int
    attention_heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    tied: bool

    @property
    def parameters(self) -> int:
        """Parameters of a Llama (no biases) of this shape."""
        attention = 2 * self.hidden_size * self.head_size * (self.attention_heads + self.kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return embeddings + self.layers * (attention + feed_forward + norms) + self.hidden_size

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of LoRA adapters of `rank` on all linear layers of the blocks."""
        queries, keys = self.attention_heads * self.head_size, self.kv_heads * self.head_size
        sides = 2 * (self.hidden_size + queries) + 2 * (self.hidden_size + keys)
        sides += 3 * (self.hidden_size + self.intermediate_size)
        return self.layers * rank * sides


def shape_of(described: PretrainedConfig) -> Shape:
    """Sizes of a finished model of the Llama family, from its configuration."""
    text = described.get_text_config()
    heads = text.num_attention_heads
    return Shape(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        attention_heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        tied=bool(described.tie_word_embeddings),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of a training on one device, by purpose."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def estimate_memory(
    shape: Shape,
    tokens: int,
    *,
    trained_rows: int | None = None,
    trained_parameters: int | None = None,
    bfloat16: bool = False,
    half_frozen: bool = False,
    checkpointing: bool = False,
) -> Memory:
    """Memory of one forward and backward pass and the optimizer's step (see the module's formula).

    Args:
        tokens: in one forward pass on one device, including padding.
        trained_rows: rows whose logits are computed; None is all.
        trained_parameters: parameters of adapters; None trains all weights.
        bfloat16: passes run under autocast; trained weights stay float32.
        half_frozen: weights that are not trained are kept in bfloat16.
    """
    width = BFLOAT16 if bfloat16 else FLOAT32
    trained = shape.parameters if trained_parameters is None else trained_parameters
    # Adapters add to the weights of the model.
    frozen = 0 if trained_parameters is None else shape.parameters
    full = FLOAT32 + (BFLOAT16 if bfloat16 else 0)
    keys = shape.kv_heads * shape.head_size
    inputs = (7 if bfloat16 else 4) * shape.hidden_size
    block = 4 * FLOAT32 * shape.hidden_size + width * (inputs + 2 * keys + 4 * shape.intermediate_size)
    kept = shape.layers * FLOAT32 * shape.hidden_size + block if checkpointing else shape.layers * block
    kept += 2 * FLOAT32 * shape.hidden_size
    rows = tokens if trained_rows is None else trained_rows
    return Memory(
        weights=full * trained + (BFLOAT16 if half_frozen else full) * frozen,
        gradients=FLOAT32 * trained,
        optimizer=2 * FLOAT32 * trained,
        activations=tokens * kept,
        logits=3 * FLOAT32 * rows * shape.vocab_size,
    )


def report(
    config: TrainingConfig,
    memory: Memory,
    lengths: NDArray[np.int64],
    *,
    resolved: dict[str, Any],
    parameters: dict[str, int],
    share: float = 1.0,
) -> dict[str, Any]:
    """The result of a dry run as JSON values.

    Args:
        lengths: tokens of each row of the data, or of a `share` of it.
        resolved: fields of the configuration whose defaults depend on model or data.
        parameters: `parameters`, and `trained_parameters` where they differ.

    Returns:
        `config` (resolved), `run`, `parameters`, `steps`, `tokens_per_step` (including padding), `data_tokens` (in one
        pass) and `memory` (bytes).
    """
    resolved |= {
        "lr": config.learning_rate,
        "precision": "bfloat16" if uses_bfloat16(config.precision) else "float32",
        "name": config.run_name,
    }
    return {
        "config": to_json(config) | resolved,
        "run": config.run_name,
        **parameters,
        "steps": count_steps(config, batches_in_pass(lengths, config.batch_tokens) / share),
        "tokens_per_step": config.batch_tokens * batches_per_step(config),
        "data_tokens": round(int(lengths.sum()) / share),
        "memory": {**asdict(memory), "total": memory.total},
    }
