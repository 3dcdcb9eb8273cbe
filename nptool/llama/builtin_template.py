"""Chat templates that llama.cpp knows by name."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import llama_cpp

from nptool.errors import UsageError

# Most templates that llama.cpp may know.
_MOST_NAMES = 1024


class Turn(Protocol):
    """One message of a conversation."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...


class BuiltinTemplate:
    def __init__(self, name: str) -> None:
        """
        Args:
            name: such as chatml.

        Raises:
            UsageError: llama.cpp does not know it.
        """
        if name not in builtin_names():
            raise UsageError(
                f"--chat-template is {name!r}; expected Jinja, or one of llama.cpp's {', '.join(builtin_names())}"
            )
        self._name = name.encode()

    def render(self, messages: Sequence[Turn]) -> str:
        """The prompt of a conversation, up to the beginning of the assistant's answer.

        Raises:
            UsageError: llama.cpp refuses it.
        """
        turns = [llama_cpp.llama_chat_message(turn.role.encode(), turn.content.encode()) for turn in messages]
        chat = (llama_cpp.llama_chat_message * len(turns))(*turns)
        size = length = 0
        while size <= length:
            size = length + 1
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_chat_apply_template(self._name, chat, len(turns), True, buffer, size)
            if length < 0:
                raise UsageError(f"llama.cpp's chat template {self._name.decode()} refuses the conversation")
        return buffer.raw[:length].decode()


@cache
def builtin_names() -> tuple[str, ...]:
    """The names that llama.cpp knows."""
    names = (ctypes.c_char_p * _MOST_NAMES)()
    count = llama_cpp.llama_chat_builtin_templates(names, _MOST_NAMES)
    return tuple(name.decode() for name in names[:count] if name is not None)
