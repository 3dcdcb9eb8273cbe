"""The default choice between llama.cpp's two implementations of attention.

The fused kernel ("flash attention") is made for GPUs. On a CPU it reads the cache once for every row; without it,
attention is two matrix products that llama.cpp tiles like all others. Measured in `benchmarks/results/attention.txt`.
"""

from __future__ import annotations

from nptool.llama.library import supports_gpu
from nptool.llama.loading import LoadOptions
from nptool.llama.model import Model

# Without the fused kernel llama.cpp computes the scores of at least this many cells and masks the unused ones.
_LEAST_CELLS = 256
# Share of a forward pass from which these unused cells are felt in short sequences.
_LARGE_SHARE = 0.1
# Bytes of one batch's scores that are too many.
_LARGE_SCORES = 1 << 30


def prefers_fused(model: Model, options: LoadOptions) -> bool:
    """Whether to use the fused kernel. Depends on the model and its settings alone, because the bits depend on it.

    True on a GPU, for a quantized cache, for a model so small that the unused cells are felt, and where the scores of a
    batch would take more than 1 GiB.
    `gpu_layers` is ignored by a build without GPU support.
    """
    # Per cell and row: two products of hidden size (keys with the query, values with the weights) in every layer.
    share = 2 * _LEAST_CELLS * model.layers * model.hidden_size / model.parameters
    capacity = model.capacity if options.context_length is None else options.context_length
    scores = 4 * model.attention_heads * capacity * options.computed_at_once
    on_gpu = options.gpu_layers != 0 and supports_gpu()
    return on_gpu or options.quantized_cache or share > _LARGE_SHARE or scores > _LARGE_SCORES
