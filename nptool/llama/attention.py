"""The default choice between llama.cpp's two implementations of attention.

The fused kernel ("flash attention") is made for GPUs. On a CPU it reads the cache once for every row; without it,
attention is two matrix products that llama.cpp tiles like all others. Measured in `benchmarks/results/attention.txt`.
"""

from __future__ import annotations

from nptool.llama.library import supports_gpu
from nptool.llama.model import Model
from nptool.llama.native import UNQUANTIZED

# Without the fused kernel llama.cpp computes the scores of at least this many cells and masks the unused ones.
_LEAST_CELLS = 256
# Share of a forward pass from which these unused cells are felt in short sequences.
_LARGE_SHARE = 0.1
# Bytes of one batch's scores that are too many.
_LARGE_SCORES = 1 << 30


def prefers_fused(model: Model, capacity: int, batch: int, *, gpu_layers: int, kv_type: str) -> bool:
    """Whether to use the fused kernel. Depends on the model and its settings alone, because the bits depend on it.

    True on a GPU, for a quantized cache, for a model so small that the unused cells are felt, and where the scores of a
    batch would take more than 1 GiB.

    Args:
        capacity: tokens of the context.
        batch: most rows of one pass.
        gpu_layers: layers on the GPU; ignored by a build without GPU support.
        kv_type: element type of the cache.
    """
    # Per cell and row: two products of hidden size (keys with the query, values with the weights) in every layer.
    share = 2 * _LEAST_CELLS * model.layers * model.hidden_size / model.parameters
    scores = 4 * model.attention_heads * capacity * batch
    on_gpu = gpu_layers != 0 and supports_gpu()
    return on_gpu or kv_type not in UNQUANTIZED or share > _LARGE_SHARE or scores > _LARGE_SCORES
