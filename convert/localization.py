"""Finds the part of a converted model that differs from the checkpoint.

Both evaluate the same tokens; of the values at the seams of the graph, the first that differs names the part before it.
Independent of how the tensors were converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nptool.convert.layers.model_spec import ModelSpec, Seam
from nptool.convert.tensors import LAYER_PREFIX

if TYPE_CHECKING:
    from nptool.convert.reference import Reference
    from nptool.llama.model import Model

ROPE_SCALING = "RoPE scaling (tokens far apart differ, tokens nearby do not)"


def differing_part(model: Model, reference: Reference, spec: ModelSpec, ids: Sequence[int], tolerance: float) -> str:
    """The part of the model, in words and names of tensors, that differs first.

    Differences up to `tolerance` standard deviations of the reference's values count as equal.
    """
    from nptool.convert.graph_values import intermediates

    seams = {seam.name: seam for seam in _seams(spec)}
    expected = reference.intermediates(ids, seams.values())
    found = intermediates(model, ids, seams.__contains__)
    for name, seam in seams.items():
        if name not in found or _equal(found[name], expected[name], tolerance):
            continue
        if seam.later_part is not None and _equal(found[name][:1], expected[name][:1], tolerance):
            return seam.later_part
        return seam.part
    return ROPE_SCALING


def _seams(spec: ModelSpec) -> Iterator[Seam]:
    """Those of the whole model, with complete names."""
    yield Seam("embd", "model.embed_tokens", "the embedding (token_embd.weight)")
    for layer in range(spec.sizes.layers):
        for seam in spec.seams:
            yield replace(
                seam,
                name=f"{seam.name}-{layer}",
                module=f"{LAYER_PREFIX}{layer}.{seam.module}".removesuffix("."),
                part=seam.part.format(layer),
                later_part=seam.later_part and seam.later_part.format(layer),
            )
    yield Seam("result_norm", "model.norm", "the last norm (output_norm.weight)")
    yield Seam("result_output", "lm_head", "the unembedding (output.weight)")


def _equal(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> bool:
    return bool(np.abs(found - expected).max() <= tolerance * expected.std())
