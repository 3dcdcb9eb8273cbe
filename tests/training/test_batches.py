"""Plans of batches: every row once in a pass, similar lengths together, the same plan for the same seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.training.batches import batches_in_pass, cut_batches, plan_batches, plan_pass

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@settings(deadline=None)
@given(lengths=LENGTHS, batch_tokens=st.integers(1, 200), seed=st.integers(0, 9))
def test_a_pass_has_every_row_once_in_batches_of_the_wanted_size(
    lengths: list[int], batch_tokens: int, seed: int
) -> None:
    sizes = np.array(lengths)
    batches = plan_pass(sizes, batch_tokens, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * sizes[rows].max() <= batch_tokens for rows in batches)
    assert len(plan_pass(sizes, batch_tokens, np.random.default_rng(0))) == batches_in_pass(lengths, batch_tokens)


def test_a_batch_mixes_rows_from_a_small_part_of_the_pass_only() -> None:
    sizes = np.random.default_rng(0).integers(10, 100, size=4000)
    batches = plan_pass(sizes, 1000, np.random.default_rng(1))
    padded = sum(len(rows) * sizes[rows].max() for rows in batches)
    assert padded < 1.1 * sizes.sum(), "similar lengths stand together"
    assert np.mean([sizes[rows].min() < sizes[rows].max() for rows in batches]) > 0.9, "but not only equal ones"


@settings(deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 9), count=st.integers(1, 30))
def test_a_shorter_plan_is_the_beginning_of_a_longer_one(lengths: list[int], seed: int, count: int) -> None:
    longer = plan_batches(lengths, 100, count + 7, seed)
    shorter = plan_batches(lengths, 100, count, seed)
    assert len(shorter) == count
    assert all(np.array_equal(one, other) for one, other in zip(shorter, longer, strict=False))


def test_rows_of_similar_length_come_together() -> None:
    lengths = np.array([10, 1, 9, 2, 10, 1, 2, 9])
    batches = cut_batches(lengths, np.argsort(lengths, kind="stable"), 20)
    assert [rows.tolist() for rows in batches] == [[1, 5, 3, 6], [2, 7], [0, 4]]


def test_passes_differ() -> None:
    first, second = np.split(np.concatenate(plan_batches([5] * 40, 10, 40, seed=0)), 2)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first.tolist() != second.tolist()
