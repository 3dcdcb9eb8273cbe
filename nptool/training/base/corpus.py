"""The data files of a base training, in memory: training and held-out units."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from nptool.data.record import Record
from nptool.data.records import read_records
from nptool.data.rendering import split_turns
from nptool.data.tolerance import Tolerance
from nptool.training.base.config import BaseConfig
from nptool.training.units import Unit, cut_texts, split_units, unit_texts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    train: list[Unit]
    heldout: list[Unit]

    @property
    def has_conversations(self) -> bool:
        """Whether any record has a prompt, so the tokenizer needs a chat template."""
        return any(unit.record.text is None for unit in self.train)

    @property
    def train_digest(self) -> str:
        digest = blake2b(digest_size=8)
        for unit in self.train:
            digest.update(blake2b("\0".join(unit_texts(unit)).encode(), digest_size=8).digest())
        return digest.hexdigest()


def load_corpus(config: BaseConfig) -> Corpus:
    """Read and split the data.

    Raises:
        DataError: a file is missing, malformed or empty, or too small for the held-out share.
    """
    units = cut_texts(_read(config.data, config))
    if config.heldout_data is not None:
        return Corpus(units, cut_texts(_read((config.heldout_data,), config)))
    return Corpus(*split_units(units, config.heldout, ", ".join(map(str, config.data))))


def _read(paths: tuple[Path, ...], config: BaseConfig) -> list[Record]:
    tolerance = Tolerance(config.max_bad_share)
    names = {"prompt_field": config.prompt_field, "response_field": config.response_field}
    records = list(read_records(paths, **names, tolerance=tolerance))
    tolerance.finish()
    prompts = sum(record.text is None and split_turns(record)[1] is None for record in records)
    if prompts:
        logger.warning("%d of %d records have no response: their prompts are trained as texts", prompts, len(records))
    return records
