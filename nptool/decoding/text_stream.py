"""Text as it may be shown: whole UTF-8 characters only, and never a part of a stop string.

Fed with the bytes of one token at a time, which may cut characters and stop strings anywhere. Knows no tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class TextStream:
    """Turns bytes into text that is final."""

    def __init__(self, stop: Iterable[str] = ()) -> None:
        """Args: `stop` are the strings that end the text; neither they nor anything behind them is shown."""
        self._stop = tuple(string for string in stop if string)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped: str | None = None
        """The stop string that was met."""

    def feed(self, data: bytes) -> str:
        """Add bytes; return the text that became final by them. Nothing is returned once a stop string was met."""
        return self._release(self._decoder.decode(data), last=False)

    def finish(self) -> str:
        """The text ends here: return what was held back."""
        return self._release(self._decoder.decode(b"", True), last=True)

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(text.find(string) + len(string), -len(string), string) for string in self._stop if string in text]
        if found:
            # The first to be complete, so that it does not matter how the text was cut; of two the longer one.
            end, _, self.stopped = min(found)
            self._held = ""
            return text[: end - len(self.stopped)]
        keep = 0 if last else self._partial(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _partial(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max((len(string) - 1 for string in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._stop):
                return length
        return 0
