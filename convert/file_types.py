"""The types a GGUF's matrices can be written in, under llama.cpp's names.

Numbers and names only: the command line lists them without loading numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

from nptool.errors import UsageError


@dataclass(frozen=True)
class FileType:
    """One choice of `--type`."""

    name: str
    number: int
    """`general.file_type`, llama.cpp's `llama_ftype`."""
    tolerance: float
    """Largest difference of a logit from transformers', in standard deviations of the logits, that rounding explains.
    A larger one is an error in a type written directly, and a remark in one of the quantizer's. Wrong models differ by
    3 and more."""
    direct: bool = False
    """Written by nptool row by row; the others by llama.cpp's quantizer."""


FILE_TYPES = {
    file_type.name: file_type
    for file_type in (
        FileType("f32", 0, 5e-3, direct=True),
        FileType("f16", 1, 0.25, direct=True),
        FileType("bf16", 32, 1.0, direct=True),
        FileType("q8_0", 7, 2.0, direct=True),
        FileType("q6_k", 18, 1.0),
        FileType("q5_k_m", 17, 1.0),
        FileType("q5_k_s", 16, 1.0),
        FileType("q5_1", 9, 1.0),
        FileType("q5_0", 8, 1.0),
        FileType("q4_k_m", 15, 2.0),
        FileType("q4_k_s", 14, 2.0),
        FileType("iq4_nl", 25, 2.0),
        FileType("iq4_xs", 30, 2.0),
        FileType("q4_1", 3, 2.0),
        FileType("q4_0", 2, 2.0),
        FileType("q3_k_l", 13, 4.0),
        FileType("q3_k_m", 12, 4.0),
        FileType("q3_k_s", 11, 4.0),
        FileType("q2_k", 10, 8.0),
    )
}
DEFAULT_TYPE = "f16"
AUTO = "auto"
"""`--type auto`: the command measures types and chooses one, see `nptool.pipeline.type_choice`."""


def file_type(name: str, option: str = "--type") -> FileType:
    """The type called `name`, in any case.

    Args:
        option: where the user gave it.

    Raises:
        UsageError: there is none of that name.
    """
    found = FILE_TYPES.get(name.lower())
    if found is None:
        raise UsageError(f"{option} {name} is not known; choose one of {', '.join(FILE_TYPES)}")
    return found


def other_types(others: dict[str, str], chosen: FileType) -> list[str]:
    """A remark on matrices that could not be written in the chosen type, given their names and types."""
    if not others:
        return []
    return [
        f"{len(others)} tensors, whose rows do not divide into blocks of {chosen.name}, are "
        f"{', '.join(sorted(set(others.values())))} instead (the first: {next(iter(others))})"
    ]
