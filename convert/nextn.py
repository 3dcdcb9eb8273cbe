"""The NextN block of a checkpoint: checked, and joined to its model in an architecture of llama.cpp that has both.

Unmodified llama.cpp runs the file with `--spec-type draft-mtp`: one block, `nextn_predict_layers` = 1, is applied again
to its own output for every further token. In `step35`, RoPE rotates transformers' halves of Q and K; a layer that is
not marked as sliding gets half of `rope.dimension_count` and the model's scaling, a sliding one neither. At least one
layer must slide, so the block does, with a window beyond every context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import gguf

from nptool.checkpoints import check_whole
from nptool.convert.checkpoint import Checkpoint
from nptool.convert.file_types import FileType
from nptool.convert.heads import AGAIN, ANOTHER, check_info, info_metadata
from nptool.convert.layers.model_spec import Metadata, ModelSpec
from nptool.convert.layers.weights import StoredTensor, read_index
from nptool.convert.staging import staged_file
from nptool.convert.tensors import EMBEDDING, LAYER_PREFIX, Tensor, check_names, check_shapes, gguf_tensors
from nptool.convert.verification import LogitComparison, verify_nextn
from nptool.errors import CheckpointError
from nptool.heads import HEADS_WEIGHTS, NEXTN, nextn_tensor, read_heads_info
from nptool.nextn import STEP35, Carrier, carrier_of
from nptool.progress import Progress

if TYPE_CHECKING:
    from nptool.convert.reference import Reference

UNEMBEDDING = "output.weight"
WINDOW = 1 << 20
"""Tokens that a sliding layer attends to."""
GRAPH_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
"""Those that a layer of `step35` can have."""
NAMES = {
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "eh_proj.weight": "nextn.eh_proj.weight",
    "norm.weight": "nextn.shared_head_norm.weight",
}
"""A block's tensors beside its layer: name in `heads.safetensors`, name in the GGUF."""


@dataclass(frozen=True)
class Carried:
    """A model with its NextN block, not yet read."""

    spec: ModelSpec
    """Of the whole; the block is the last layer."""
    tensors: tuple[Tensor, ...]
    metadata: Metadata
    """What nptool runs it by."""


@dataclass(frozen=True)
class ConvertedBlock:
    """The NextN block in the finished GGUF."""

    draft: Path
    """The block alone, for llama.cpp's `--spec-draft-model`; runtimes find it by its name `mtp-...`."""
    logits: LogitComparison | None
    """None if it was not verified."""


def read_carried(checkpoint: Checkpoint, spec: ModelSpec) -> Carried:
    """The checkpoint's model and block in the terms of the carrier's graph.

    Args:
        spec: of the plain model.

    Raises:
        CheckpointError: it has no NextN block, a damaged one, or one that llama.cpp cannot run.
    """
    info = read_heads_info(checkpoint.directory)
    if info is None or info.kind != NEXTN:
        found = "no heads" if info is None else f"heads of kind {info.kind}"
        raise CheckpointError(
            f"{checkpoint.name} has {found}, and --nextn needs a NextN block; train one with `nptool train heads "
            f"--kind nextn -m {checkpoint.name}`"
        )
    check_info(info, checkpoint, spec)
    carrier = carrier_of(info.model_type)
    carried = replace(
        spec,
        graph=carrier.architecture,
        sizes=replace(spec.sizes, layers=spec.sizes.layers + 1),
        metadata=_metadata(carrier, spec),
    )
    if carrier is STEP35:
        carried = _rotating_halves(carried, checkpoint.name)
    path = checkpoint.directory / HEADS_WEIGHTS
    check_whole(path)
    stored = read_index([path])
    _check(carried, stored, path)
    return Carried(carried, tuple(_tensors(carried, checkpoint, stored)), info_metadata(info))


def block_left_out(directory: Path) -> list[str]:
    """A remark on a plain file if the checkpoint has a NextN block."""
    info = read_heads_info(directory)
    if info is None or info.kind != NEXTN:
        return []
    return ["the checkpoint's NextN block is not in this file; `nptool convert --nextn` writes a file with it"]


def write_draft(
    path: Path, final: Path, reference: Reference | None, file_type: FileType, progress: Progress
) -> ConvertedBlock:
    """Verify the NextN block in the file at `path`, which will be `final`, and write it alone beside `final`.

    Raises:
        GgufError: see `verify_nextn`.
    """
    logits = None
    if reference is not None:
        step = "verifying the NextN block"
        progress(step, 0, 1)
        logits = verify_nextn(path, reference, file_type)
        progress(step, 1, 1)
    draft = final.with_name(f"mtp-{final.stem.removesuffix(f'-{NEXTN}')}.gguf")
    with staged_file(draft) as staged:
        _copy_block(path, staged)
    return ConvertedBlock(draft, logits)


def _copy_block(source: Path, target: Path) -> None:
    """Write the block alone, with what it shares with the model, as llama.cpp's draft for the carrier at `source`."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=item)
    block = max(int(tensor.name.split(".")[1]) for tensor in reader.tensors if tensor.name.startswith("blk."))
    kept = [
        tensor
        for tensor in reader.tensors
        if not tensor.name.startswith("blk.") or tensor.name.startswith(f"blk.{block}.")
    ]
    for tensor in kept:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, raw_dtype=tensor.tensor_type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in kept:
            writer.write_tensor_data(tensor.data)
    finally:
        writer.close()


def _metadata(carrier: Carrier, spec: ModelSpec) -> Metadata:
    sizes = spec.sizes
    # Both graphs insist on a size of experts, and have none without `expert_count`.
    entries: Metadata = {
        **spec.metadata,
        "nextn_predict_layers": 1,
        "expert_feed_forward_length": sizes.feed_forward,
    }
    if carrier is not STEP35:
        return entries
    return {
        **entries,
        "rope.dimension_count": 2 * sizes.head_dim,
        "rope.dimension_count_swa": sizes.head_dim,
        "rope.freq_base_swa": spec.metadata["rope.freq_base"],
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [False] * sizes.layers + [True],
    }


def _rotating_halves(spec: ModelSpec, source: str) -> ModelSpec:
    """The rows of Q and K in transformers' order; CheckpointError for biases that the graph has not."""
    for part in spec.layer:
        if part.name.endswith(".bias") and part.name not in GRAPH_BIASES:
            raise CheckpointError(
                f"{source}: llama.cpp's {spec.graph} graph, which runs NextN blocks, has no place for "
                f"{part.source}; a model with attention_bias or mlp_bias takes another kind of head"
            )
    return replace(spec, layer=tuple(replace(part, read=StoredTensor.chunks) for part in spec.layer))


def _check(spec: ModelSpec, stored: Mapping[str, StoredTensor], path: Path) -> None:
    hidden = spec.sizes.hidden
    expected = {nextn_tensor(f"layer.{part.source}"): part.shape for part in spec.layer}
    expected |= {nextn_tensor(name): (hidden, 2 * hidden) if name.startswith("eh") else (hidden,) for name in NAMES}
    check_names(str(path), f"{spec.architecture} with a NextN block", expected, stored, lambda *_: AGAIN)
    check_shapes(str(path), "the model beside it", expected, stored, ANOTHER)


def _tensors(spec: ModelSpec, checkpoint: Checkpoint, stored: Mapping[str, StoredTensor]) -> Iterator[Tensor]:
    """The model's with the block as its last layer, a tied unembedding where the graph needs one, the block's rest."""
    block = spec.sizes.layers - 1
    layer = {f"{LAYER_PREFIX}{block}.{part.source}": nextn_tensor(f"layer.{part.source}") for part in spec.layer}
    joined = {**checkpoint.tensors, **{name: stored[source] for name, source in layer.items()}}
    written: Sequence[Tensor] = list(gguf_tensors(spec, joined, checkpoint.name))
    yield from written
    if spec.graph == STEP35.architecture and all(tensor.name != UNEMBEDDING for tensor in written):
        embedding = checkpoint.tensors[EMBEDDING]
        yield Tensor(UNEMBEDDING, embedding.shape, embedding)
    for source, name in NAMES.items():
        found = stored[nextn_tensor(source)]
        yield Tensor(f"blk.{block}.{name}", found.shape, found)
