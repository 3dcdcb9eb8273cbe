"""Counts, flaws and augmentation on trajectories written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nptool.collection.jacobi import JacobiRun, Prompt
from nptool.collection.trajectories import (
    REPEATED_SENTENCE,
    REPEATED_TOKEN,
    UNFINISHED,
    TrajectoryStats,
    augment_state,
    count,
    flaw,
    longest_repeat,
    to_trajectory,
)


def make_run(blocks: list[list[list[int]]], response: list[int], passes: int = 0, ended: bool = True) -> JacobiRun:
    states = [[np.array(state, dtype=np.int32) for state in block] for block in blocks]
    return JacobiRun(Prompt(0, [1, 2]), response, ended, passes, states)


def test_fast_forwarded_and_stationary_tokens() -> None:
    # Pass 1 fixes tokens 1 and 2 (one fast-forwarded) and gets token 4 right before token 3 (stationary);
    # pass 2 fixes tokens 3 and 4, the latter counted both ways.
    block = [[9, 9, 9, 9], [1, 2, 9, 4], [1, 2, 3, 4]]
    assert count(make_run([block], [1, 2, 3, 4], passes=2)) == TrajectoryStats(1, 4, 2, 1, 2, 1)


def test_right_tokens_that_change_again_are_not_stationary() -> None:
    block = [[9, 9, 9], [1, 9, 3], [1, 2, 8], [1, 2, 3]]
    assert count(make_run([block], [1, 2, 3], passes=3)) == TrajectoryStats(1, 3, 3, 1, 0, 0)


def test_luck_of_the_guess_does_not_count() -> None:
    block = [[9, 2, 3], [1, 2, 3]]
    assert count(make_run([block], [1, 2, 3], passes=1)) == TrajectoryStats(1, 3, 1, 1, 2, 0)


def test_tokens_after_the_end_do_not_count() -> None:
    blocks = [[[9, 9], [1, 9], [1, 2]], [[9, 9], [3, 7]]]
    stats = count(make_run(blocks, [1, 2, 3], passes=3))
    assert stats == TrajectoryStats(1, 3, 3, 2, 0, 0)
    both = stats + TrajectoryStats(1, 6, 3, 2, 1, 1)
    assert (both.tokens_per_forward, both.steps_to_fixed_point, both.mean_response_tokens) == (1.5, 1.5, 4.5)
    assert TrajectoryStats().tokens_per_forward == 0


def test_flaws() -> None:
    good = make_run([], [1, 2, 3])
    assert flaw(good, "SELECT a FROM b") is None
    assert flaw(make_run([], [1, *[7] * 9, 2]), "") is None
    assert flaw(make_run([], [1, *[7] * 10]), "") == REPEATED_TOKEN
    assert flaw(good, "It is what it is. " * 4) == REPEATED_SENTENCE
    assert flaw(good, "It is what it is.\nSo they say. " * 4) == REPEATED_SENTENCE
    assert flaw(good, "It is what it is. " * 3) is None
    assert flaw(good, "x = 1\n" * 20) is None
    assert flaw(make_run([], [1, 2], ended=False), "a") == UNFINISHED
    assert flaw(make_run([], [1, 2], ended=False), "a", open_ended=True) is None


@pytest.mark.parametrize(("ids", "length"), [([], 0), ([5], 1), ([1, 1, 2], 2), ([1, 2, 2, 2], 3), ([4, 4, 4], 3)])
def test_longest_repeat(ids: list[int], length: int) -> None:
    assert longest_repeat(ids) == length


def test_augmentation_copies_right_tokens_into_half_of_the_wrong_places() -> None:
    final = np.arange(20)
    states = np.stack([np.full(20, 99), np.where(np.arange(20) < 5, final, 98), final]).astype(np.int32)
    before = states.copy()
    rng = np.random.default_rng(0)
    for state in states[:-1]:
        augment_state(state, final, rng)
    assert (states[-1] == final).all()
    for old, new, wrong in zip(before[:-1], states[:-1], (20, 15), strict=True):
        changed = old != new
        assert (new[changed] == final[changed]).all()
        first_wrong = np.flatnonzero(old != final)[0]
        assert not changed[first_wrong]
        assert changed.sum() == (wrong - 1) // 2


def test_stored_form() -> None:
    run = make_run([[[9, 9, 9, 9], [1, 9, 9, 9], [1, 2, 3, 4]]], [1, 2, 3])
    plain = to_trajectory(run, np.array([5, 6], dtype=np.int32), None)
    assert plain.reference_ids is not None
    assert (plain.prompt_ids.tolist(), plain.reference_ids.tolist()) == ([1, 2], [5, 6])
    assert plain.states[0].tolist() == [[9, 9, 9, 9], [1, 9, 9, 9], [1, 2, 3, 4]]
    augmented = to_trajectory(run, None, 7)
    assert augmented.states[0].tolist() == to_trajectory(run, None, 7).states[0].tolist() != plain.states[0].tolist()
    # The run itself is untouched.
    assert run.states[0][0].tolist() == [9, 9, 9, 9]
