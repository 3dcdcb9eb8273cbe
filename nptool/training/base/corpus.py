"""The data files of a base training, in memory: training and held-out units."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from nptool.data.records import Record, read_records
from nptool.training.base.config import BaseConfig
from nptool.training.units import Unit, cut_texts, split_units, unit_texts


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
    return list(read_records(paths, prompt_field=config.prompt_field, response_field=config.response_field))
