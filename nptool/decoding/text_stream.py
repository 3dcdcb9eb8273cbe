"""Bytes to text that may be shown: whole UTF-8 characters, and no part of a stop string.

The bytes may be cut anywhere, inside characters and inside stop strings.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class TextStream:
    def __init__(self, stop: Iterable[str] = ()) -> None:
        """Args: `stop` are strings that end the text; neither they nor anything after them is shown."""
        self._stop = tuple(string for string in stop if string)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped: str | None = None
        """The stop string that was met."""

    def feed(self, data: bytes) -> str:
        """Add bytes and return the text that became final. Returns nothing after a stop string."""
        return self._release(self._decoder.decode(data), last=False)

    def finish(self) -> str:
        """End the text and return what was held back."""
        return self._release(self._decoder.decode(b"", True), last=True)

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(text.find(string) + len(string), -len(string), string) for string in self._stop if string in text]
        if found:
            # The first one that is complete, so that cuts do not matter; of two that end together the longer one.
            end, _, self.stopped = min(found)
            self._held = ""
            return text[: end - len(self.stopped)]
        keep = 0 if last else self._partial(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _partial(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a prefix of a stop string."""
        longest = max((len(string) - 1 for string in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._stop):
                return length
        return 0
