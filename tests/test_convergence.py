"""Marks of blocks written out by hand; the counts over whole responses are in collection/test_trajectories.py."""

from __future__ import annotations

import numpy as np

from nptool.convergence import Mark, count_marks, mark_states

SIGNS = {Mark.WRONG: ".", Mark.RIGHT: "+", Mark.FAST_FORWARDED: ">", Mark.STATIONARY: "="}


def signs(*states: str) -> list[str]:
    """The marks of states given as strings, a character a token."""
    marks_SN = mark_states(np.array([[ord(token) for token in state] for state in states]))
    return ["".join(SIGNS[Mark(mark)] for mark in row) for row in marks_SN.tolist()]


def test_every_mark() -> None:
    # Pass 1 fixes a and b and gets d right; pass 2 gets e right too; pass 3 fixes the rest.
    assert signs("xxcxx", "abxdx", "abxde", "abcde") == ["..+..", "+>.=.", "++.==", "+++>>"]


def test_a_token_that_changes_again_is_right_but_not_stationary() -> None:
    assert signs("xxx", "axc", "abx", "abc") == ["...", "+.+", "++.", "+++"]


def test_the_guess_is_never_marked_as_predicted() -> None:
    assert signs("abx", "abc") == ["++.", "+++"]
    assert signs("xbc", "abc") == [".++", "+>>"]


def test_a_token_is_counted_once_however_long_it_stands_still() -> None:
    marks_SN = mark_states(np.array([[9, 9, 9, 9], [1, 9, 9, 4], [1, 2, 9, 4], [1, 2, 3, 4]]))
    assert count_marks(marks_SN) == (1, 1)


def test_one_state_is_its_own_fixed_point() -> None:
    assert signs("abc") == ["+++"]
