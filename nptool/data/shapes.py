"""The shapes of records: which fields of an object are the prompt, the answer, the turns before them.

Fields that are null, and NaN, count as missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nptool.data.record import Message, Record
from nptool.errors import UnusableRecord

CONVERSATIONS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "instruction", "problem", "query")
"""The first that an object has is its prompt."""
CONTEXTS = {"instruction": ("input", "context"), "question": ("context",)}
"""What follows a prompt of this name in the user's turn."""
ANSWERS = ("completion", "response", "answer", "output", "solution", "chosen")
ALIKE = (*ANSWERS, "answers", "outputs", "target", "targets", "reply", "label")
"""Names that look like an answer; one that is not used is said."""
SYSTEMS = ("system", "system_prompt")
HISTORY = "history"
"""Earlier turns, as pairs of question and answer or as messages."""
TEXT = "text"
ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "bing", "bard", "model", "ai", "llm"),
    "system": ("system",),
    "tool": ("tool", "function", "observation", "ipython"),
    "developer": ("developer",),
}
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
KNOWN = (
    "messages, conversations, prompt/completion, prompt/response, question/answer, instruction/input/output, "
    "problem/solution, text"
)


@dataclass(frozen=True)
class Layout:
    """The names of the fields that are used; None and empty where there are none."""

    conversation: str | None = None
    prompt: str | None = None
    context: str | None = None
    answer: str | None = None
    system: str | None = None
    history: str | None = None
    unused: tuple[str, ...] = ()
    """Fields that look like an answer."""


@lru_cache(maxsize=256)
def layout_of(names: frozenset[str], prompt_field: str | None, response_field: str | None) -> Layout | None:
    """The layout of an object with these fields; None if no prompt, conversation or text is among them."""

    def first(known: tuple[str, ...]) -> str | None:
        return next((name for name in known if name in names), None)

    system, history = first(SYSTEMS), HISTORY if HISTORY in names else None
    prompt = prompt_field or first(PROMPTS)
    if prompt_field is None and (conversation := first(CONVERSATIONS)) is not None:
        return Layout(conversation=conversation, system=system)
    if prompt is None:
        return Layout(unused=_sorted(names, ALIKE)) if TEXT in names else None
    answer = response_field or (first(ANSWERS) if prompt_field is None else None)
    context = first(CONTEXTS.get(prompt, ())) if prompt_field is None else None
    unused = () if answer is not None else tuple(name for name in _sorted(names, ALIKE) if name != prompt)
    return Layout(None, prompt, context, answer, system, history, unused)


def to_record(
    fields: object, source: str, *, prompt_field: str | None = None, response_field: str | None = None
) -> Record:
    """Turn one JSON object into a record.

    Args:
        source: `Record.source`, also for messages.

    Raises:
        UnusableRecord: not an object, an unknown shape, or a field of the wrong type.
    """
    given = present(fields, source)
    layout = layout_of(frozenset(given), prompt_field, response_field)
    if layout is None:
        raise UnusableRecord(
            f"{source}: fields not recognized: {_names(given)}; "
            f"known are {KNOWN}; name others with --prompt-field and --response-field"
        )
    if layout.conversation is not None:
        turns = _messages(given[layout.conversation], layout.conversation, source)
        begins = turns[0].role == "system"
        return Record(messages=(() if begins else _system(given, layout, source)) + turns, source=source)
    if layout.prompt is None:
        return Record(text=_text(given, TEXT, source), source=source)
    return _pair(given, layout, source)


def present(fields: object, source: str) -> dict[str, Any]:
    """The fields of an object that have a value.

    Raises:
        UnusableRecord: it is no object.
    """
    if not isinstance(fields, Mapping):
        raise UnusableRecord(f"{source}: expected a JSON object, got {_shown(fields)}")
    # NaN is the only value that differs from itself.
    return {str(name): value for name, value in fields.items() if value is not None and value == value}


def _pair(fields: dict[str, Any], layout: Layout, source: str) -> Record:
    """A prompt and its answer, each a text or a list of messages (TRL's conversational format)."""
    assert layout.prompt is not None
    for field in (layout.prompt, layout.answer):
        if field and field not in fields:
            raise UnusableRecord(f"{source}: no field {field!r}; the fields are {_names(fields)}")
    before = _system(fields, layout, source) + _history(fields, layout, source)
    if isinstance(fields[layout.prompt], list):
        turns = before + _messages(fields[layout.prompt], layout.prompt, source)
    else:
        prompt = _text(fields, layout.prompt, source)
        more = "" if layout.context is None else _text(fields, layout.context, source)
        prompt = f"{prompt}\n\n{more}" if more else prompt
        if not before and not isinstance(fields.get(layout.answer or ""), list):
            answer = None if layout.answer is None else _text(fields, layout.answer, source)
            return Record(prompt=prompt, response=answer, source=source)
        turns = (*before, Message("user", prompt))
    if layout.answer is None:
        return Record(messages=turns, source=source)
    if isinstance(fields[layout.answer], list):
        return Record(messages=turns + _messages(fields[layout.answer], layout.answer, source), source=source)
    return Record(messages=(*turns, Message("assistant", _text(fields, layout.answer, source))), source=source)


def _system(fields: dict[str, Any], layout: Layout, source: str) -> tuple[Message, ...]:
    if layout.system is None or not (text := _text(fields, layout.system, source)):
        return ()
    return (Message("system", text),)


def _history(fields: dict[str, Any], layout: Layout, source: str) -> tuple[Message, ...]:
    """Earlier turns: messages, or pairs of what the user and the assistant said."""
    if layout.history is None or not (value := fields[layout.history]):
        return ()
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return _messages(value, layout.history, source)
    turns: list[Message] = []
    for pair in value if isinstance(value, list) else [value]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UnusableRecord(f"{source}: {layout.history!r} must be pairs of texts, got {_shown(pair)}")
        turns += [Message("user", _clean(pair[0], source)), Message("assistant", _clean(pair[1], source))]
    return tuple(turns)


def _messages(value: object, field: str, source: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise UnusableRecord(f"{source}: {field!r} must be a list of messages, got {_shown(value)}")
    return tuple(_message(item, f"{source}: {field}[{index}]") for index, item in enumerate(value))


def _message(item: object, where: str) -> Message:
    """A turn as {role, content} or, in ShareGPT's format, {from, value}."""
    if not isinstance(item, Mapping):
        raise UnusableRecord(f"{where} must be an object with role and content, got {_shown(item)}")
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    if not isinstance(role, str):
        raise UnusableRecord(f"{where} has no role; expected role/content or from/value, its fields are {_names(item)}")
    if (known := _ROLE_OF.get(role.strip().lower())) is None:
        raise UnusableRecord(f"{where} has the role {role!r}; known are {', '.join(_ROLE_OF)}")
    if isinstance(content, list) and all(isinstance(part, Mapping) and _is_text(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise UnusableRecord(f"{where} has no text; only text messages can be used, got {_shown(content)}")
    return Message(known, _clean(content, where))


def _is_text(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("text"), str)


def _text(fields: Mapping[str, Any], name: str, source: str) -> str:
    value = fields[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UnusableRecord(f"{source}: {name!r} must be text, got {_shown(value)}")
    return _clean(value, f"{source}: {name!r}")


def _clean(text: str, where: str) -> str:
    """
    Raises:
        UnusableRecord: half of a character, which JSON can hold and no tokenizer reads.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise UnusableRecord(
            f"{where} has \\u{code:04x}, which is half of a character; it cannot be encoded"
        ) from error
    return text


def _sorted(names: frozenset[str], known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in known if name in names)


def _names(fields: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, fields)) or "none"


def _shown(value: object) -> str:
    """A value for an error message, as shortened JSON."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
