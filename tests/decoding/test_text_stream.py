"""Streaming: whole characters, no part of a stop string ever shown."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.decoding.text_stream import TextStream


def stream(data: bytes, stop: list[str], cuts: list[int] | None = None) -> tuple[list[str], str | None]:
    """Feed `data` in pieces; return what was shown, piece by piece, and the stop string that was met."""
    text = TextStream(stop)
    bounds = [0, *sorted({cut % (len(data) + 1) for cut in cuts or range(len(data))}), len(data)]
    shown = [text.feed(data[start:end]) for start, end in pairwise(bounds)]
    shown.append(text.finish())
    return shown, text.stopped


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    text = TextStream()
    euro = "€".encode()
    assert [text.feed(euro[i : i + 1]) for i in range(3)] == ["", "", "€"]
    assert text.feed("a😀".encode()[:3]) == "a"
    assert text.feed("a😀".encode()[3:]) == "😀"
    assert text.finish() == ""


def test_bytes_that_are_no_utf_8_become_the_replacement_character() -> None:
    text = TextStream()
    assert text.feed(b"a\xffb") == "a\ufffdb"
    assert text.feed(b"\xe2\x82") == ""
    assert text.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("data", "stop", "shown", "met"),
    [
        ("one\ntwo", ["\n"], "one", "\n"),
        ("SELECT 1;\n\nSELECT 2;", [";\n\n"], "SELECT 1", ";\n\n"),
        ("a stoo stop b", ["stop"], "a stoo ", "stop"),
        ("aaab", ["aab"], "a", "aab"),
        ("no stop here", ["stop!"], "no stop here", None),
        ("ends in sto", ["stop"], "ends in sto", None),
        ("x<|end|>y", ["end", "<|end|>"], "x<|", "end"),
        ("xabc", ["bc", "abc"], "x", "abc"),
        ("abc", ["abc", "ab"], "", "ab"),
        ("naïve", ["ï"], "na", "ï"),
        ("", ["a"], "", None),
    ],
)
def test_stop_strings_over_single_bytes(data: str, stop: list[str], shown: str, met: str | None) -> None:
    pieces, stopped = stream(data.encode(), stop)
    assert "".join(pieces) == shown
    assert stopped == met


def test_nothing_comes_after_a_stop_string() -> None:
    text = TextStream(["x"])
    assert text.feed(b"ax") == "a"
    assert text.feed(b"more") == ""
    assert text.finish() == ""
    assert text.stopped == "x"


@given(
    st.text("abc€", max_size=30),
    st.lists(st.text("abc€", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(0, 200), max_size=12),
)
@settings(deadline=None, max_examples=300)
def test_what_is_shown_does_not_depend_on_the_cuts(text: str, stop: list[str], cuts: list[int]) -> None:
    """Always the text before the first stop string to be complete, and no piece is ever taken back."""
    pieces, stopped = stream(text.encode(), stop, cuts)
    ends = {text.find(string) + len(string) for string in stop if string in text}
    if ends:
        complete = max((string for string in stop if text[: min(ends)].endswith(string)), key=len)
        assert stopped == complete
        assert "".join(pieces) == text[: min(ends) - len(complete)]
    else:
        assert stopped is None
        assert "".join(pieces) == text
