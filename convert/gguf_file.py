"""Writes a GGUF: metadata first, then one tensor after the other, a few rows in memory at a time.

`gguf.GGUFWriter` lays the file out. It is given the size of every tensor, then objects that write themselves: it uses
only `nbytes` and `tofile` of an array. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np
from numpy.typing import NDArray

from nptool.convert.file_types import FileType
from nptool.convert.layers.model_spec import Metadata, ModelSpec
from nptool.convert.tensors import Tensor
from nptool.convert.tokenizer_files import DEFAULT_TEMPLATE
from nptool.convert.vocabulary import Vocabulary
from nptool.errors import CheckpointError
from nptool.progress import Progress

F32 = gguf.GGMLQuantizationType.F32
F16 = gguf.GGMLQuantizationType.F16
MATRIX_TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in ("f32", "f16", "bf16", "q8_0", "q4_0")}
"""What is written row by row. Only heads are written in q4_0: of a whole model llama.cpp's quantizer mixes types."""
WRITING = "writing tensors"


def write_gguf(
    path: Path,
    spec: ModelSpec,
    vocabulary: Vocabulary | None,
    tensors: Sequence[Tensor],
    file_type: FileType,
    extra: Metadata,
    progress: Progress,
) -> dict[str, str]:
    """Write the file.

    Args:
        vocabulary: None for a head, which reads no text.
        file_type: a key of MATRIX_TYPES.
        extra: further metadata by key.

    Returns:
        Matrices of another type than the one asked for, with that type.

    Raises:
        CheckpointError: a value that the type cannot hold.
    """
    encoded = [_Encoded(tensor, _tensor_type(tensor, file_type)) for tensor in tensors]
    writer = gguf.GGUFWriter(path, spec.graph)
    writer.add_type("model")
    writer.add_size_label(gguf.size_label(sum(tensor.size for tensor in tensors), 0, 0, 0))
    writer.add_file_type(file_type.number)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_metadata(writer, extra)
    writer.add_vocab_size(spec.sizes.vocabulary)
    writer.add_context_length(spec.sizes.context)
    writer.add_embedding_length(spec.sizes.hidden)
    writer.add_block_count(spec.sizes.layers)
    _add_metadata(writer, {f"{spec.graph}.{key}": value for key, value in spec.metadata.items()})
    writer.add_tokenizer_model("none" if vocabulary is None else vocabulary.model)
    if vocabulary is not None:
        _add_vocabulary(writer, vocabulary)
    for tensor in encoded:
        source = tensor.source
        writer.add_tensor_info(source.name, source.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.kind)
    _write(writer, encoded, progress)
    wanted = MATRIX_TYPES[file_type.name]
    matrices = [tensor for tensor in encoded if len(tensor.source.shape) > 1]
    return {tensor.source.name: tensor.kind.name.lower() for tensor in matrices if tensor.kind != wanted}


def _write(writer: gguf.GGUFWriter, tensors: Sequence[_Encoded], progress: Progress) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total, done = sum(tensor.source.size for tensor in tensors), 0
        for tensor in tensors:
            progress(WRITING, done, total, tensor.source.name)
            writer.write_tensor_data(tensor)
            done += tensor.source.size
        progress(WRITING, total, total)
    finally:
        writer.close()


def _tensor_type(tensor: Tensor, file_type: FileType) -> gguf.GGMLQuantizationType:
    """Norms and biases stay F32; a matrix whose rows do not divide into the type's blocks becomes F16."""
    if len(tensor.shape) < 2:
        return F32
    wanted = MATRIX_TYPES[file_type.name]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block == 0 else F16


@dataclass
class _Encoded:
    """A tensor in its type, as the array that `GGUFWriter.write_tensor_data` expects."""

    source: Tensor
    kind: gguf.GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.source.size // int(block) * int(size)

    def tofile(self, stream: IO[bytes]) -> None:
        name = self.source.stored.name if self.source.stored is not None else self.source.name
        for rows in self.source.chunks():
            if not np.isfinite(rows).all():
                raise CheckpointError(f"{name} has values that are not finite; the training diverged")
            if self.kind == F16 and (largest := float(np.abs(rows).max())) > float(np.finfo(np.float16).max):
                raise CheckpointError(
                    f"{name} has a value of {largest:.3g}, beyond F16's 65504; use --type bf16 or f32"
                )
            stream.write(_encode(rows, self.kind).data.cast("B"))


def _encode(rows: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    if kind in (F32, F16):
        return np.ascontiguousarray(rows, "<f4" if kind == F32 else "<f2")
    return np.ascontiguousarray(gguf.quants.quantize(np.ascontiguousarray(rows), kind))


def _add_metadata(writer: gguf.GGUFWriter, entries: Metadata) -> None:
    for key, value in entries.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, [item if isinstance(item, bool) else float(item) for item in value])


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
    tokens = [vocabulary.tokens[number] for number in range(len(vocabulary.tokens))]
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_types([token.type for token in tokens])
    if vocabulary.model == "llama":
        writer.add_token_scores([token.score for token in tokens])
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for role, number in vocabulary.special_ids.items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.space_prefix)
    templates = [{"name": name, "template": text} for name, text in vocabulary.chat_templates.items()]
    if len(templates) == 1 and templates[0]["name"] == DEFAULT_TEMPLATE:
        writer.add_chat_template(templates[0]["template"])
    elif templates:
        writer.add_chat_template(templates)
