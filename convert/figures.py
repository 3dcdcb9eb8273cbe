"""Writes the figures of heads into a finished GGUF, in the place of placeholders of the same size."""

from __future__ import annotations

from pathlib import Path

import gguf

from nptool.heads_sample import ACCEPTANCE_KEY, TOKENS_PER_FORWARD_KEY, HeadsFigures


def write_figures(path: Path, figures: HeadsFigures) -> None:
    """Write the figures into the model's metadata, which have `nptool.heads_sample.placeholders`."""
    reader = gguf.GGUFReader(path, "r+")
    values = {ACCEPTANCE_KEY: figures.acceptance, TOKENS_PER_FORWARD_KEY: (figures.tokens_per_forward,)}
    for key, numbers in values.items():
        field = reader.fields[key]
        for part, number in zip(field.data, numbers, strict=True):
            field.parts[part][0] = number
    reader.data.flush()
