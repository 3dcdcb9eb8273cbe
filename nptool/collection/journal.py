"""Progress of a collection on disk: parts as they finish, merged into one file at the end.

The directory `<output>.parts` holds the settings and, for each part, its rows (Parquet) and counts (JSON). Counts are
written last: a part without them is ignored. A finished output is the first part of a larger collection.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nptool.collection.config import CollectConfig
from nptool.collection.prompts import PromptSet
from nptool.collection.store import (
    CollectionMetadata,
    Trajectory,
    collected_writer,
    is_collected,
    read_collected,
    write_collected,
)
from nptool.collection.trajectories import TrajectoryStats
from nptool.errors import DataError, UsageError
from nptool.files import disk_errors, read_json, write_json
from nptool.options import flag
from nptool.provenance import provenance

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
REMEDY = "choose another -o, or start over with --overwrite"
# Settings whose values say nothing to a user.
UNREADABLE = {
    "model_digest": "model (its weights or --precision differ)",
    "tokenizer_digest": "tokenizer",
    "template": "chat template",
    "version": "version of nptool, whose sampling noise differs",
}


@dataclass(frozen=True)
class Part:
    """Counts over the prompts `first` .. `end - 1`."""

    first: int
    prompts: int
    digest: str
    """Of the prompts, to detect other data under the same settings."""
    rows: int
    dropped: dict[str, int]
    stats: TrajectoryStats

    @property
    def end(self) -> int:
        return self.first + self.prompts

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Part:
        """The inverse of `asdict`; ignores other keys."""
        own = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**own, "stats": TrajectoryStats(**own["stats"])})


class Journal:
    """The finished parts of one output, all from the same settings and prompts."""

    def __init__(self, output: Path, metadata: CollectionMetadata, prompts: PromptSet) -> None:
        """Read what exists of `output`.

        Raises:
            UsageError: it was collected with another setting (the message names it) or from other prompts, or `output`
                is some other file.
        """
        self._output = output
        self._metadata = metadata
        self._prompts = prompts
        self._folder = parts_folder(output)
        self.complete = False
        """Whether the output holds all prompts."""
        self._finished = self._read_output()
        self.parts = [*self._finished, *self._read_folder()]
        for part in self.parts:
            self._check_prompts(part)

    def missing(self, size: int) -> list[range]:
        """The prompts without a response, in ranges of at most `size`."""
        stretches: list[range] = []
        done, total = 0, len(self._prompts.prompts)
        for first, end in [*((part.first, part.end) for part in self.parts), (total, total)]:
            stretches += [range(start, min(start + size, first)) for start in range(done, first, size)]
            done = max(done, end)
        return stretches

    def add(self, stretch: range, rows: Sequence[Trajectory], dropped: dict[str, int], stats: TrajectoryStats) -> None:
        """Write the responses to a range of prompts as a part."""
        settings = self._folder / SETTINGS
        if not settings.is_file():
            with disk_errors(settings):
                self._folder.mkdir(parents=True, exist_ok=True)
            write_json(settings, asdict(self._metadata))
        digest = self._prompts.digest(stretch.start, stretch.stop)
        part = Part(stretch.start, len(stretch), digest, len(rows), dict(dropped), stats)
        write_collected(self._rows_path(part), self._metadata, rows)
        write_json(self._rows_path(part).with_suffix(".json"), asdict(part))
        self.parts = sorted([*self.parts, part], key=lambda other: other.first)

    def merge(self) -> None:
        """Merge all parts into the output, and remove them."""
        report = {**asdict(self.totals()), "left_out": dict(self._prompts.left_out), "provenance": provenance()}
        paths = [self._output] if self._finished else []
        paths += [self._rows_path(part) for part in self.parts[len(paths) :]]
        with collected_writer(self._output, self._metadata, report) as writer:
            writer.copy(paths)
        shutil.rmtree(self._folder, ignore_errors=True)

    def totals(self) -> Part:
        """The counts of all parts together."""
        prompts = sum(part.prompts for part in self.parts)
        rows = sum(part.rows for part in self.parts)
        dropped = sum((Counter(part.dropped) for part in self.parts), Counter[str]())
        stats = sum((part.stats for part in self.parts), TrajectoryStats())
        return Part(0, prompts, self._prompts.digest(0, prompts), rows, dict(dropped), stats)

    def _read_output(self) -> list[Part]:
        _check_ours(self._output)
        if not self._output.exists():
            return []
        collected = read_collected(self._output)
        part = Part.from_json(collected.report)
        self.complete = part.prompts == len(self._prompts.prompts)
        # The noise of a complete output does not matter: nothing is added to it.
        version = collected.metadata.version if self.complete else self._metadata.version
        _check_settings(asdict(collected.metadata), replace(self._metadata, version=version), self._output)
        return [part]

    def _read_folder(self) -> list[Part]:
        settings = self._folder / SETTINGS
        if not settings.is_file():
            return []
        _check_settings(read_json(settings), self._metadata, self._folder)
        # An interrupted merge may leave parts that the output holds already.
        end = self._finished[0].end if self._finished else 0
        parts: list[Part] = []
        for path in sorted(self._folder.glob("part-*.json")):
            # A part that replaces a damaged one may cover later parts too.
            first = int(path.stem.rpartition("-")[2])
            if first >= end and (part := self._read_part(path)) is not None:
                parts.append(part)
                end = part.end
        return parts

    def _read_part(self, path: Path) -> Part | None:
        """Read a part; None if its counts or rows are incomplete, as after a power failure."""
        try:
            part = Part.from_json(read_json(path))
            if read_collected(self._rows_path(part)).row_count == part.rows:
                return part
            cause = f"{self._rows_path(part)} does not hold {part.rows} rows"
        except (DataError, KeyError, TypeError) as error:
            cause = str(error)
        logger.warning("a part of %s is collected again: %s", self._output, cause)
        return None

    def _check_prompts(self, part: Part) -> None:
        place = self._output if part in self._finished else self._folder
        if part.end > len(self._prompts.prompts):
            raise UsageError(
                f"{place} holds the responses to {part.end} prompts, now there are {len(self._prompts.prompts)}; "
                f"give the same data and no smaller --limit, {REMEDY}"
            )
        if self._prompts.digest(part.first, part.end) != part.digest:
            raise UsageError(f"{place} was collected from other prompts than --data now has; {REMEDY}")

    def _rows_path(self, part: Part) -> Path:
        return self._folder / f"part-{part.first:09d}.parquet"


def parts_folder(output: Path) -> Path:
    """The directory of an output's parts until it is finished."""
    return output.with_name(output.name + ".parts")


def discard(output: Path) -> None:
    """Remove an output and its parts; UsageError if `nptool collect` did not write the output."""
    _check_ours(output)
    output.unlink(missing_ok=True)
    shutil.rmtree(parts_folder(output), ignore_errors=True)


def _check_ours(output: Path) -> None:
    if output.exists() and not is_collected(output):
        raise UsageError(f"{output} exists and was not written by `nptool collect`; choose another -o")


def _check_settings(before: dict[str, Any], metadata: CollectionMetadata, place: Path) -> None:
    for name, value in asdict(metadata).items():
        old = before.get(name)
        old = tuple(old) if isinstance(value, tuple) and old is not None else old
        # The same model may have another path.
        if name != "model" and old != value:
            option = flag(CollectConfig, {"augmented": "augment"}.get(name, name))
            difference = f"another {UNREADABLE[name]}" if name in UNREADABLE else f"{option} {old}, now it is {value}"
            raise UsageError(f"{place} was collected with {difference}; {REMEDY}")
