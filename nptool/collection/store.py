"""Collected trajectories in Parquet: one row per prompt; the settings of the collection are in the file's metadata.

Columns: `prompt_ids` and `response_ids` list<int32>, `reference_ids` list<int32> or null, `states`
list<list<list<int32>>>, which is blocks x states x n. The states of block j are y(0) ... y(k), the last of them the
fixed point; the block covers positions j*n .. j*n+n-1 of the response. The last block runs past the end token: the
iteration stops once everything up to the end token is final, and later tokens are those of the last pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nptool.errors import DataError
from nptool.files import atomic_file

FORMAT_VERSION = 1
# Of files whose responses were sampled with `nptool.noise`.
SAMPLED_VERSION = 2
METADATA_KEY = b"nptool"
REPORT_KEY = b"nptool.report"
READ_ROWS = 512

_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [
        pa.field("prompt_ids", _IDS, nullable=False),
        pa.field("response_ids", _IDS, nullable=False),
        pa.field("reference_ids", _IDS),
        pa.field("states", pa.list_(pa.list_(_IDS)), nullable=False),
    ]
)

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Trajectory:
    """A prompt, the model's response and the Jacobi trajectories of its blocks."""

    prompt_ids: Ids
    """(P,)"""
    response_ids: Ids
    """(R,): with the end token if it came, and nothing after it."""
    reference_ids: Ids | None
    """The data set's own response, if it has one."""
    states: tuple[Ids, ...]
    """For each block (k + 1, n): y(0) ... y(k), the last one the fixed point (up to the end token)."""


@dataclass(frozen=True)
class CollectionMetadata:
    """The settings of a collection, named as in `CollectConfig`. Files with equal metadata may be merged."""

    n: int
    model: str
    model_digest: str
    """Of the weights, to detect a retrained model of the same name."""
    tokenizer_digest: str
    vocab_size: int
    """Rows of the model's unembedding."""
    template: str | None
    """The chat template, None without one."""
    seed: int
    temperature: float
    max_new_tokens: int
    end_token_ids: tuple[int, ...]
    pad_token_id: int
    augmented: bool
    keep_degenerate: bool = False
    max_prompt_tokens: int | None = None
    text_prompt_tokens: int = 0
    """0 if there was no plain text."""
    version: int = FORMAT_VERSION
    """`SAMPLED_VERSION`, or `FORMAT_VERSION` of greedy responses and those that an older nptool sampled."""


@dataclass(frozen=True)
class Collected:
    """A collected file. Its rows are read on demand."""

    path: Path
    metadata: CollectionMetadata
    row_count: int
    report: dict[str, Any]
    """Counts of the collection, empty if it is not finished."""

    def rows(self) -> Iterator[Trajectory]:
        """Stream the rows in the order of the file."""
        for batch in _batches(self.path):
            yield from _from_batch(batch)


def write_collected(path: str | Path, metadata: CollectionMetadata, rows: Sequence[Trajectory]) -> None:
    """Write `rows` as one file; see `collected_writer`."""
    with collected_writer(path, metadata) as writer:
        writer.write(rows)


@contextmanager
def collected_writer(
    path: str | Path, metadata: CollectionMetadata, report: dict[str, Any] | None = None
) -> Iterator[CollectedWriter]:
    """Write a collected file by row groups, atomically; DiskFullError if there is no room."""
    values = {METADATA_KEY: asdict(metadata), REPORT_KEY: report or {}}
    encoded = {key: json.dumps(value, ensure_ascii=False).encode() for key, value in values.items()}
    schema = _SCHEMA.with_metadata(encoded)
    with atomic_file(path) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        yield CollectedWriter(writer)


class CollectedWriter:
    """Appends rows to a collected file."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer

    def write(self, rows: Sequence[Trajectory]) -> None:
        """Append `rows` as one row group."""
        if rows:
            names = ("prompt_ids", "response_ids", "reference_ids")
            columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in names}
            columns["states"] = [[list(block) for block in row.states] for row in rows]
            self._writer.write_table(pa.table(columns, schema=_SCHEMA))

    def copy(self, paths: Iterable[Path]) -> None:
        """Append the rows of other collected files by about `READ_ROWS`; DataError if one is damaged."""
        waiting: list[pa.RecordBatch] = []
        for path in paths:
            for batch in _batches(path):
                waiting.append(batch)
                if sum(map(len, waiting)) >= READ_ROWS:
                    self._writer.write_table(pa.Table.from_batches(waiting, schema=_SCHEMA))
                    waiting = []
        if waiting:
            self._writer.write_table(pa.Table.from_batches(waiting, schema=_SCHEMA))


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=READ_ROWS)
    except (pa.ArrowInvalid, OSError) as error:
        remedy = "remove it, and the same command collects its prompts again"
        raise DataError(f"{path} is damaged ({error}); {remedy}") from error


def is_collected(path: str | Path) -> bool:
    """Whether `path` is a Parquet file that `nptool collect` wrote (any other file: False)."""
    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


def read_collected(path: str | Path) -> Collected:
    """Open a collected file.

    Raises:
        DataError: the file is missing, is no Parquet, or was not written by `nptool collect`.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; make it with `nptool collect`")
    try:
        with pq.ParquetFile(path) as file:
            stored, row_count = file.schema_arrow.metadata or {}, file.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    if METADATA_KEY not in stored:
        raise DataError(f"{path} was not written by `nptool collect`: it has no metadata under the key 'nptool'")
    metadata = _parse_metadata(json.loads(stored[METADATA_KEY]), path)
    return Collected(path, metadata, row_count, json.loads(stored.get(REPORT_KEY, b"{}")))


def _parse_metadata(values: dict[str, Any], path: Path) -> CollectionMetadata:
    version = values.get("version")
    if version not in (FORMAT_VERSION, SAMPLED_VERSION):
        raise DataError(
            f"{path} has format version {version}, this nptool reads {FORMAT_VERSION} and {SAMPLED_VERSION}; "
            "collect again"
        )
    known = {field.name for field in fields(CollectionMetadata)}
    if set(values) != known:
        wrong = ", ".join(sorted(set(values) ^ known))
        raise DataError(f"{path} has damaged metadata (fields missing or unknown: {wrong}); collect again")
    return CollectionMetadata(**{**values, "end_token_ids": tuple(values["end_token_ids"])})


def _from_batch(batch: pa.RecordBatch) -> Iterator[Trajectory]:
    prompts = _lists(batch.column("prompt_ids"))
    responses = _lists(batch.column("response_ids"))
    references = _lists(batch.column("reference_ids"))
    missing = batch.column("reference_ids").is_null().to_numpy(zero_copy_only=False)
    blocks = batch.column("states")
    states = blocks.flatten()
    tokens = states.flatten()
    values = tokens.flatten().to_numpy().astype(np.int32, copy=False)
    by_state = values.reshape(len(tokens), len(values) // max(len(tokens), 1))
    by_block = np.split(by_state, _ends(states)[:-1])
    first = 0
    for index, end in enumerate(_ends(blocks)):
        reference = None if missing[index] else references[index]
        yield Trajectory(prompts[index], responses[index], reference, tuple(by_block[first:end]))
        first = end


def _lists(column: pa.ListArray) -> list[Ids]:
    """The rows of a list column as views of one array; a null is an empty row."""
    values = column.flatten().to_numpy().astype(np.int32, copy=False)
    return np.split(values, _ends(column)[:-1]) if len(column) else []


def _ends(column: pa.ListArray) -> NDArray[np.int64]:
    """Where each row of a list column ends in its values."""
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.cumsum(lengths, dtype=np.int64)
