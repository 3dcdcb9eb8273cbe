"""The Parquet form: what is written is read, by pyarrow alone too, and nothing half-written stays."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nptool.collection.store import (
    CollectionMetadata,
    Trajectory,
    collected_writer,
    is_collected,
    read_collected,
    write_collected,
)
from nptool.errors import DataError, DiskFullError

METADATA = CollectionMetadata(
    n=4,
    model="m",
    model_digest="a",
    tokenizer_digest="b",
    vocab_size=10,
    template="{{ messages }} é",
    seed=0,
    temperature=0.5,
    max_new_tokens=8,
    end_token_ids=(2, 3),
    pad_token_id=0,
    augmented=False,
)


def make_rows(count: int) -> list[Trajectory]:
    rng = np.random.default_rng(0)

    def ids(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        return rng.integers(0, 9, shape).astype(np.int32)

    return [
        Trajectory(
            ids(1 + i % 7), ids(i % 5), None if i % 2 else ids(i % 4), tuple(ids(k + 1, 4) for k in range(i % 4))
        )
        for i in range(count)
    ]


def assert_equal(first: Trajectory, second: Trajectory) -> None:
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist()
    assert first.response_ids.tolist() == second.response_ids.tolist()
    assert (first.reference_ids is None) == (second.reference_ids is None)
    if first.reference_ids is not None and second.reference_ids is not None:
        assert first.reference_ids.tolist() == second.reference_ids.tolist()
    assert [block.tolist() for block in first.states] == [block.tolist() for block in second.states]
    assert {block.dtype for block in second.states} <= {np.dtype(np.int32)}


def test_rows_and_metadata_come_back(tmp_path: Path) -> None:
    rows, path = make_rows(1100), tmp_path / "a.parquet"
    with collected_writer(path, METADATA, {"records": 3}) as writer:
        writer.write(rows[:700])
        writer.write([])
        writer.write(rows[700:])
    collected = read_collected(path)
    assert (collected.metadata, collected.row_count, collected.report) == (METADATA, 1100, {"records": 3})
    for expected, row in zip(rows, collected.rows(), strict=True):
        assert_equal(expected, row)


def test_any_parquet_reader_can_read_it(tmp_path: Path) -> None:
    rows, path = make_rows(9), tmp_path / "a.parquet"
    write_collected(path, METADATA, rows)
    table = pq.read_table(path)
    assert table.column("states").to_pylist()[7] == [block.tolist() for block in rows[7].states]
    assert table.column("reference_ids").to_pylist()[1] is None
    metadata = json.loads(table.schema.metadata[b"nptool"])
    assert (metadata["n"], metadata["template"], metadata["end_token_ids"]) == (4, "{{ messages }} é", [2, 3])


def test_parts_are_put_together(tmp_path: Path) -> None:
    rows = make_rows(30)
    for name, part in (("a", rows[:10]), ("b", []), ("c", rows[10:])):
        write_collected(tmp_path / name, METADATA, part)
    with collected_writer(tmp_path / "all", METADATA) as writer:
        writer.copy([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    for expected, row in zip(rows, read_collected(tmp_path / "all").rows(), strict=True):
        assert_equal(expected, row)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space left")])
def test_nothing_half_written_stays(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.parquet"
    write_collected(path, METADATA, make_rows(3))
    expected = DiskFullError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), collected_writer(path, replace(METADATA, n=8)) as writer:  # noqa: PT012
        writer.write(make_rows(5))
        raise error
    assert read_collected(path).row_count == 3
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"prompt": ["a"]}), other)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"none.parquet does not exist; make it with `nptool collect`"):
        read_collected(tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"other.parquet was not written by `nptool collect`"):
        read_collected(other)
    with pytest.raises(DataError, match=r"broken.parquet is not a readable Parquet file"):
        read_collected(tmp_path / "broken.parquet")
    write_collected(tmp_path / "future.parquet", replace(METADATA, version=99), [])
    with pytest.raises(DataError, match="format version 99, this nptool reads 1 and 2"):
        read_collected(tmp_path / "future.parquet")
    assert not any(map(is_collected, (other, tmp_path, tmp_path / "broken.parquet", tmp_path / "none.parquet")))
