"""Compares each head of a converted model in llama.cpp with the head in transformers.

Both are given the same trunk output, transformers', so that the comparison is about the head alone; the trunk is part
of the model's own verification. The heads are found and loaded as decoding does it, from the finished file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nptool.convert.file_types import FileType
from nptool.convert.samples import far_position, sample_ids
from nptool.convert.verification import NOTHING_KEPT, LogitComparison
from nptool.errors import GgufError
from nptool.llama.gguf_parts import find_parts

if TYPE_CHECKING:
    from nptool.convert.reference import Reference
    from nptool.llama.gguf_parts import Part

F32_TOLERANCE = 1e-3
"""Of the spread. Tighter than a model's: one layer from an exact input adds up little rounding."""


def verify_heads(path: Path, reference: Reference, context: int, file_type: FileType) -> tuple[LogitComparison, ...]:
    """Compare heads 2..n of the GGUF at `path` with `reference`.

    Args:
        context: the model's, in tokens.

    Raises:
        GgufError: a head cannot be loaded, or differs.
    """
    heads = find_parts(path).heads
    return tuple(
        _verify_head(number, part, reference, context, file_type) for number, part in enumerate(heads, start=2)
    )


def _verify_head(number: int, part: Part, reference: Reference, context: int, file_type: FileType) -> LogitComparison:
    from nptool.convert.graph_values import sample_head_logits
    from nptool.llama.model import Model

    with Model.load_part(part.header) as head:
        filler, near, far = sample_ids(min(len(reference.tokenizer), head.vocabulary_size))
        distance = far_position(context)
        z_TD = reference.trunk_output(filler, near, far, distance)
        found = sample_head_logits(head, z_TD, len(near), distance)
    with reference.head(number):
        logits = LogitComparison.of(found, reference.logits(filler, near, far, distance))
    tolerance = F32_TOLERANCE if file_type.name == "f32" else file_type.tolerance
    # Written so that a difference that is no number fails.
    if not logits.relative <= tolerance:
        raise GgufError(
            f"head {number} of the converted model differs from the checkpoint: logits differ by {logits.largest:.3g} "
            f"at a spread of {logits.spread:.3g} (at most {tolerance:g} of it is rounding in {file_type.name}); "
            f"{NOTHING_KEPT}"
        )
    return logits
