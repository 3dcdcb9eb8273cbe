"""Which of llama.cpp's two ways to compute attention a model uses, where nobody says.

Its fused kernel ("flash attention") is made for GPUs. On a CPU it goes through the cache once for every row, in scalar
products; without it attention is two products of matrices, which llama.cpp computes in tiles as it does all others.
Measured on 2 cores (`benchmarks/results/attention.txt`), 110M parameters in F16, behind 2,048 tokens: a row takes 21 ms
instead of 35, a step of 16 rows 68 ms instead of 191.
"""

from __future__ import annotations

from nptool.llama.library import supports_gpu
from nptool.llama.model import Model
from nptool.llama.native import UNQUANTIZED

# Without the fused kernel llama.cpp computes the scores of at least so many cells, and masks the unused ones.
_LEAST_CELLS = 256
# A larger part of a pass than this is felt where a text is shorter than that: behind 64 tokens a model of 5M parameters
# lost up to 16 % in a step, and 20 % in reading them.
_LARGE_SHARE = 0.1
# Bytes that the scores of one batch may take.
_LARGE_SCORES = 1 << 30


def prefers_fused(model: Model, capacity: int, batch: int, *, gpu_layers: int, kv_type: str) -> bool:
    """Whether the fused kernel is the better one: a function of the model and its settings alone, as the bits are.

    It is on a GPU, for a quantized cache, for a model so small that a fixed cost of attention is felt, and where the
    scores of a batch would take more than 1 GiB.

    Args:
        capacity: tokens of the context.
        batch: the most rows of one pass.
        gpu_layers: layers on the GPU; without effect where llama.cpp was built without one.
        kv_type: element type of the cache.
    """
    # Two products of a cell's key and value with every row's query and weights, as against one with each parameter.
    share = 2 * _LEAST_CELLS * model.layers * model.hidden_size / model.parameters
    scores = 4 * model.attention_heads * capacity * batch
    on_gpu = gpu_layers != 0 and supports_gpu()
    return on_gpu or kv_type not in UNQUANTIZED or share > _LARGE_SHARE or scores > _LARGE_SCORES
