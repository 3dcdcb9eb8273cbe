"""What is done of a collection, on disk: parts that come to stay as they are finished, one file in the end.

Beside the output stands a directory `<output>.parts`: the settings, and for each part its rows (Parquet) and what was
counted (JSON, written last: it makes the part valid). A finished output is itself the first part of a larger one. Knows
no model.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from nptool.provenance import provenance
from nptool.settings import flag

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
# Two collections that differ only in these give the same rows.
FREE_FIELDS = frozenset({"model"})
REMEDY = "choose another -o, or begin anew with --overwrite"


@dataclass(frozen=True)
class Part:
    """What was counted over the prompts `first` .. `first + prompts - 1`."""

    first: int
    prompts: int
    digest: str
    """Of the prompts: other data under the same settings is noticed."""
    rows: int
    dropped: dict[str, int]
    stats: TrajectoryStats

    @property
    def end(self) -> int:
        """One behind the last prompt."""
        return self.first + self.prompts

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Part:
        """The reverse of `asdict`."""
        return cls(**{**values, "stats": TrajectoryStats(**values["stats"])})


class Journal:
    """Parts that are done, for one output, one setting and one set of prompts."""

    def __init__(self, output: Path, metadata: CollectionMetadata, prompts: PromptSet) -> None:
        """Open the journal of `output`; what is there must have been collected alike.

        Raises:
            UsageError: the output or its parts were collected with another setting (which is named) or from other
                prompts, or the output is another file.
        """
        self._output = output
        self._metadata = metadata
        self._prompts = prompts
        self._folder = parts_folder(output)
        self._finished = self._read_output()
        self.parts = [*self._finished, *self._read_folder()]
        for part in self.parts:
            self._check_prompts(part)

    @property
    def complete(self) -> bool:
        """Whether the output holds every prompt already."""
        return bool(self._finished) and self._finished[0].prompts == len(self._prompts.prompts)

    def missing(self, size: int) -> list[range]:
        """The prompts that are not done, in stretches of at most `size`."""
        stretches: list[range] = []
        done = 0
        ends = [(part.first, part.end) for part in self.parts]
        for first, end in [*ends, (len(self._prompts.prompts),) * 2]:
            stretches += [range(start, min(start + size, first)) for start in range(done, first, size)]
            done = max(done, end)
        return stretches

    def add(self, stretch: range, rows: Sequence[Trajectory], dropped: dict[str, int], stats: TrajectoryStats) -> None:
        """Write what was collected of a stretch of prompts."""
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
        """Write the output from all parts, and remove them."""
        totals = self.totals()
        report = {**asdict(totals), "left_out": dict(self._prompts.left_out), "provenance": provenance()}
        paths = [self._output] if self._finished else []
        paths += [self._rows_path(part) for part in self.parts[len(paths) :]]
        with collected_writer(self._output, self._metadata, report) as writer:
            writer.copy(paths)
        shutil.rmtree(self._folder, ignore_errors=True)

    def totals(self) -> Part:
        """All parts as one, which begins with prompt 0."""
        count = sum(part.prompts for part in self.parts)
        dropped = Counter[str]()
        for part in self.parts:
            dropped.update(part.dropped)
        stats = sum((part.stats for part in self.parts), TrajectoryStats())
        rows = sum(part.rows for part in self.parts)
        return Part(0, count, self._prompts.digest(0, count), rows, dict(dropped), stats)

    def _read_output(self) -> list[Part]:
        if not self._output.exists():
            return []
        if not is_collected(self._output):
            raise UsageError(f"{self._output} exists and was not written by `nptool collect`; choose another -o")
        collected = read_collected(self._output)
        _check_settings(asdict(collected.metadata), self._metadata, self._output)
        names = Part.__dataclass_fields__
        return [Part.from_json({name: value for name, value in collected.report.items() if name in names})]

    def _read_folder(self) -> list[Part]:
        settings = self._folder / SETTINGS
        if not settings.is_file():
            return []
        _check_settings(read_json(settings), self._metadata, self._folder)
        # What is in the output already was left behind when a merge was interrupted at its very end.
        end = self._finished[0].end if self._finished else 0
        parts: list[Part] = []
        for path in sorted(self._folder.glob("part-*.json")):
            # A damaged part stays where it was, and what was collected instead of it may go further.
            if _first(path) >= end and (part := self._read_part(path)) is not None:
                parts.append(part)
                end = part.end
        return parts

    def _read_part(self, path: Path) -> Part | None:
        """A part by its counts; None where they or its rows were cut short, as by a loss of power."""
        try:
            part = Part.from_json(read_json(path))
            if read_collected(self._rows_path(part)).row_count == part.rows:
                return part
            cause = f"{self._rows_path(part)} holds other rows than were counted"
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


def _first(path: Path) -> int:
    """The first prompt of the part whose counts are in `path`."""
    return int(path.stem.rpartition("-")[2])


def parts_folder(output: Path) -> Path:
    """Where the parts of an output stand until it is finished."""
    return output.with_name(output.name + ".parts")


def discard(output: Path) -> None:
    """Remove an output and what was done of it.

    Raises:
        UsageError: the output is not one of ours.
    """
    if output.exists() and not is_collected(output):
        raise UsageError(f"{output} exists and was not written by `nptool collect`; choose another -o")
    output.unlink(missing_ok=True)
    shutil.rmtree(parts_folder(output), ignore_errors=True)


def _check_settings(before: dict[str, Any], metadata: CollectionMetadata, place: Path) -> None:
    now = asdict(metadata)
    for name, value in now.items():
        old = before.get(name)
        old = tuple(old) if isinstance(value, tuple) and old is not None else old
        if name not in FREE_FIELDS and old != value:
            raise UsageError(f"{place} was collected {_difference(name, old, value)}; {REMEDY}")


def _difference(name: str, old: object, new: object) -> str:
    """What differs, as the message says it: digests and templates mean nothing to a reader."""
    named = {
        "model_digest": "model (its weights or --precision differ)",
        "tokenizer_digest": "tokenizer",
        "template": "chat template",
        "version": "version of nptool, whose sampling noise differs",
    }
    if name in named:
        return f"with another {named[name]}"
    option = {"n": "-n", "augmented": "--augment"}.get(name, flag(name))
    return f"with {option} {old}, now it is {new}"
