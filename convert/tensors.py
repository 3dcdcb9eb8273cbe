"""From a checkpoint's tensors to a GGUF's, by the model's specification.

A checkpoint that does not match is refused before anything is written. A `Tensor` reads its rows on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.convert.layers.model_spec import ModelSpec, Reader, TensorSpec
from nptool.convert.layers.weights import StoredTensor, same_values
from nptool.errors import CheckpointError

EMBEDDING = "model.embed_tokens.weight"
UNEMBEDDING = "lm_head.weight"
ROPE_FREQUENCIES = "rope_freqs.weight"
LAYER_PREFIX = "model.layers."
SHOWN = 4
"""Names in a message before it only counts them."""
# Buffers in old checkpoints; they follow from the configuration.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")


@dataclass(frozen=True)
class Tensor:
    """One tensor of the GGUF: a stored one that is still on disk, or `values` that were computed."""

    name: str
    shape: tuple[int, ...]
    stored: StoredTensor | None
    read: Reader = StoredTensor.chunks
    values: NDArray[np.float32] | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """Rows as float32, a few at a time."""
        if self.stored is not None:
            yield from self.read(self.stored)
        elif self.values is not None:
            yield self.values


def gguf_tensors(spec: ModelSpec, stored: Mapping[str, StoredTensor], source: str) -> Iterator[Tensor]:
    """The GGUF's tensors in the order they are written: embedding, RoPE factors, layers, norm, unembedding.

    Args:
        stored: the checkpoint's tensors by transformers' name.
        source: name of the checkpoint in messages.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape.
    """
    tied = spec.sizes.tied
    if tied and UNEMBEDDING in stored and EMBEDDING in stored:
        # transformers keeps two that differ, whatever the configuration says.
        tied = same_values(stored[EMBEDDING], stored[UNEMBEDDING])
    expected = expected_tensors(replace(spec, sizes=replace(spec.sizes, tied=tied)))
    needless = {UNEMBEDDING} if tied else set()
    found = [name for name in stored if name not in needless and not name.endswith(IGNORED_SUFFIXES)]
    check_names(source, spec.architecture, expected, found, _cause)
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    check_shapes(source, "config.json", shapes, stored, "the weights belong to another configuration")
    for name, tensor in expected.items():
        yield Tensor(tensor.name, tensor.shape, stored[name], tensor.read)
        if name == EMBEDDING and spec.frequency_factors is not None:
            yield Tensor(ROPE_FREQUENCIES, spec.frequency_factors.shape, None, values=spec.frequency_factors)


def expected_tensors(spec: ModelSpec) -> dict[str, TensorSpec]:
    """Every tensor that the checkpoint must have, by transformers' name."""
    rows = spec.sizes.vocabulary, spec.sizes.hidden
    tensors = [TensorSpec(EMBEDDING, "token_embd.weight", rows)]
    for number in range(spec.sizes.layers):
        for part in spec.layer:
            source, name = f"{LAYER_PREFIX}{number}.{part.source}", f"blk.{number}.{part.name}"
            tensors.append(replace(part, source=source, name=name))
    tensors.append(spec.final_norm)
    if not spec.sizes.tied:
        tensors.append(TensorSpec(UNEMBEDDING, "output.weight", rows))
    return {tensor.source: tensor for tensor in tensors}


def check_names(
    place: str,
    owner: str,
    expected: Collection[str],
    found: Collection[str],
    advice: Callable[[list[str], list[str]], str],
) -> None:
    """Raise CheckpointError if names of tensors are missing or unexpected.

    Args:
        place: where the names were found.
        owner: what has the expected ones.
        advice: gives the end of the message from the missing and the unexpected names.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if missing:
        raise CheckpointError(f"{place} lacks {_listed(missing)}, which {owner} has; {advice(missing, unexpected)}")
    if unexpected:
        raise CheckpointError(
            f"{place} has {_listed(unexpected)}, for which {owner} has no place; {advice(missing, unexpected)}"
        )


def check_shapes(
    place: str, owner: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any], advice: str
) -> None:
    """The same for shapes; `found` has tensors of any library."""
    for name, shape in expected.items():
        if (other := tuple(found[name].shape)) != shape:
            raise CheckpointError(f"{place}: {name} has shape {other}, {owner} asks for {shape}; {advice}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _cause(missing: list[str], unexpected: list[str]) -> str:
    if missing == [UNEMBEDDING]:
        return "if the embedding serves as unembedding, config.json must say tie_word_embeddings: true"
    if any("lora_" in name or name.startswith("base_model.") for name in unexpected):
        return "these are LoRA weights: merge them into the base model first"
    if any(name.endswith((".qweight", ".qzeros", ".scales", ".weight_scale", ".absmax")) for name in unexpected):
        return "these are quantized weights: convert the unquantized checkpoint"
    if any(name.startswith(("visual.", "vision_", "model.vision", "audio_")) for name in unexpected):
        return "this is a multimodal model: nptool converts text models"
    if any(name.startswith("mtp.") or name.endswith(".eh_proj.weight") for name in unexpected):
        return (
            "these are weights of multi-token prediction, which nptool does not import: train a block of your own with "
            "`nptool train heads --kind nextn` on the checkpoint without them"
        )
    if unexpected and not missing and all(name.endswith(".bias") for name in unexpected):
        return "if the model has biases, config.json must say attention_bias or mlp_bias: true"
    return "config.json describes another model than the weights, or a shard belongs to another checkpoint"
