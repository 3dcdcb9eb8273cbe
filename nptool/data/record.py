"""What a data file gives: conversations, prompt/response pairs, plain texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is user, assistant, system, tool or developer."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One example: a conversation, a prompt with or without response, or a text. The other fields are None."""

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    response: str | None = None
    text: str | None = None
    source: str = ""
    """`file:line`, `file:row` from 1 in tables and Parquet, or the file for a text."""
