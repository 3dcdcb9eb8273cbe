"""Finds the part of a converted model that differs from the checkpoint.

Both models evaluate the same tokens, and the values at the seams of the graph are compared in the order they are
computed: the first that differs names the part before it. Independent of how the tensors were converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nptool.convert.reference import Reference
    from nptool.llama.model import Model

PARTS = {
    "embd": "the embedding (token_embd.weight)",
    "attn_norm": "the attention norm of layer {0} (blk.{0}.attn_norm.weight)",
    "ffn_norm": "the feed-forward norm of layer {0} (blk.{0}.ffn_norm.weight)",
    "l_out": "the feed-forward network of layer {0} (blk.{0}.ffn_gate, ffn_up, ffn_down)",
    "result_norm": "the last norm (output_norm.weight)",
    "result_output": "the unembedding (output.weight)",
}
QUERIES_KEYS = "the attention of layer {0}: rotation, order or bias of queries and keys (blk.{0}.attn_q, attn_k, RoPE)"
VALUES_OUTPUT = "the attention of layer {0}: values or output projection (blk.{0}.attn_v, attn_output)"
ROPE_SCALING = "RoPE scaling (tokens far apart differ, tokens nearby do not)"


def differing_part(model: Model, reference: Reference, ids: Sequence[int], tolerance: float) -> str:
    """The part of the model, in words and names of tensors, that differs first.

    Args:
        tolerance: share of the reference's spread that counts as equal.
    """
    from nptool.convert.graph_values import intermediates

    expected = reference.intermediates(ids)
    found = intermediates(model, ids, expected.__contains__)
    for name, values in expected.items():
        if name not in found or _equal(found[name], values, tolerance):
            continue
        kind, _, layer = name.partition("-")
        if kind != "ffn_inp":
            return PARTS[kind].format(layer)
        # The first token attends to itself alone: queries and keys do not matter to it.
        first_equal = _equal(found[name][:1], values[:1], tolerance)
        return (QUERIES_KEYS if first_equal else VALUES_OUTPUT).format(layer)
    return ROPE_SCALING


def _equal(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> bool:
    return bool(np.abs(found - expected).max() <= tolerance * expected.std())
