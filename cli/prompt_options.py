"""The prompt of `generate` and `trace`: from an option, a file, a pipe, or else one held out in training."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nptool.cli.decoding_options import held_out, say, utf8_input
from nptool.errors import DataError, UsageError
from nptool.options import option

if TYPE_CHECKING:
    from nptool.decoding.text_model import Text

# Seconds to wait for a pipe before saying so, and then before giving up.
REMARK_AFTER = 1.0
PATIENCE = 10.0


@dataclass(frozen=True)
class PromptOptions:
    prompt: str | None = option(None, "prompt", "-p", shown="standard input, else a held-out one")
    file: Path | None = option(None, "file with the prompt; - is standard input", "-f")


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt, and where it came from."""

    content: Text
    raw: bool
    """Decode without the chat template."""
    remark: str = ""
    """For the user; empty if the prompt was given."""

    @property
    def text(self) -> str:
        """The last turn."""
        if isinstance(self.content, str):
            return self.content
        last = self.content[-1]
        return last["content"] if isinstance(last, Mapping) else last.content


def find_prompt(path: Path, given: PromptOptions, raw: bool, seed: int) -> AskedPrompt:
    """The prompt that is given, that of a pipe, or else of the held-out split of the model at `path`.

    Raises:
        UsageError: both a text and a file are given.
        DataError: the file cannot be read, or there is no prompt at all.
    """
    from nptool.data.rendering import split_turns

    text = given.prompt
    if text is not None and given.file is not None:
        raise UsageError("-p and -f are two prompts; give one of them")
    if given.file is not None:
        text = _read(given.file)
    if text is None:
        text = _piped()
    if text is not None:
        return AskedPrompt(text, raw)
    record, source = held_out(path, seed)
    if record.text is not None:
        beginning = record.text[: max(1, len(record.text) // 2)]
        return AskedPrompt(beginning, True, f"prompt: the first half of {source} (held out)\n{beginning}")
    turns, _ = split_turns(record)
    return AskedPrompt(turns, raw, f"prompt: {source} (held out)\n{turns[-1].content}")


def _read(file: Path) -> str:
    if str(file) == "-":
        return _standard_input()
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def _piped() -> str | None:
    """The text of a pipe or a redirected file, or None.

    Programs are often started with an open pipe that never receives data, so the wait for its first byte is limited;
    `-f -` waits without limit.
    """
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return None
    if stat.S_ISREG(mode):
        return _standard_input() or None
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None
    if not _readable(REMARK_AFTER):
        say(f"nptool: waiting {PATIENCE:g} s for a prompt on standard input (-p TEXT gives it at once)")
        if not _readable(PATIENCE):
            return None
    return _standard_input() or None


def _standard_input() -> str:
    with utf8_input():
        return sys.stdin.read()


def _readable(seconds: float) -> bool:
    return bool(select.select([sys.stdin], [], [], seconds)[0])
