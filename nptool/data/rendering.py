"""Render records to token ids, with the tokenizer's chat template or as plain text.

The prompt ids are exactly what the model is given in decoding, so they never depend on the response.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from nptool.data.record import Message, Record
from nptool.errors import UnusableRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = (Message("user", "a question"), Message("assistant", "an answer"))


@dataclass(frozen=True)
class Rendered:
    """Token ids of one record."""

    prompt_ids: list[int]
    response_ids: list[int] | None
    """The response in the data set, with the end token of the template or tokenizer; None if there is none."""


def render(record: Record, tokenizer: PreTrainedTokenizerBase, *, chat: bool = True) -> Rendered:
    """Render one record.

    The last assistant turn of a conversation is the response, the turns before it are the prompt, and later turns are
    left out. The prompt of a text is the tokenizer's BOS token, or empty.

    Args:
        chat: use the chat template if there is one.

    Raises:
        UnusableRecord: the template rejects the conversation, or there is no template for one of several turns.
    """
    if record.text is not None:
        return Rendered(_start(tokenizer), _encode(tokenizer, record.text) + _eos(tokenizer))
    prompt, response = split_turns(record)
    if chat and tokenizer.chat_template is not None:
        return _render_chat(prompt, response, tokenizer, record.source)
    return _render_plain(prompt, response, tokenizer, record.source)


def split_turns(record: Record) -> tuple[tuple[Message, ...], str | None]:
    """The turns of the prompt and the response, if any, of a conversation or a prompt/response pair."""
    if record.messages is None:
        return (Message("user", record.prompt or ""),), record.response
    answers = [index for index, message in enumerate(record.messages) if message.role == "assistant"]
    if not answers or answers[-1] == 0:
        return record.messages, None
    return record.messages[: answers[-1]], record.messages[answers[-1]].content


def end_token_ids(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> frozenset[int]:
    """Ids that end a response: those of the tokenizer and the model's configuration, and the template's end of turn.

    Args:
        model: a transformers model, or None.
    """
    ids = {tokenizer.eos_token_id, _turn_end(tokenizer)}
    for config in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        eos = getattr(config, "eos_token_id", None)
        ids.update(eos if isinstance(eos, list | tuple) else [eos])
    return frozenset(int(token) for token in ids if token is not None)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all tokens and their ids."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return blake2b(json.dumps(vocabulary).encode(), digest_size=16).hexdigest()


def _render_plain(
    prompt: tuple[Message, ...], response: str | None, tokenizer: PreTrainedTokenizerBase, source: str
) -> Rendered:
    turns = [message for message in prompt if message.role != "system"]
    if len(turns) > 1:
        raise UnusableRecord(
            f"{source}: a conversation of {len(turns)} turns needs a chat template, and the tokenizer has none; "
            "use a model with a template, or prompt/completion data"
        )
    text = "\n\n".join(message.content for message in prompt)
    start = _start(tokenizer)
    prompt_ids = start + _encode(tokenizer, text)
    if response is None:
        return Rendered(prompt_ids, None)
    response_ids = _continuation(tokenizer, prompt_ids, start + _encode(tokenizer, text + response), response)
    return Rendered(prompt_ids, response_ids + _eos(tokenizer))


def _render_chat(
    prompt: tuple[Message, ...], response: str | None, tokenizer: PreTrainedTokenizerBase, source: str
) -> Rendered:
    text = _apply_template(tokenizer, prompt, source, generate=True)
    prompt_ids = _encode(tokenizer, text)
    if response is None:
        return Rendered(prompt_ids, None)
    # Templates put white space after the end token, which the model does not need to generate.
    whole = _apply_template(tokenizer, (*prompt, Message("assistant", response)), source, generate=False).rstrip()
    end = _closing(tokenizer)
    if not whole.startswith(text):
        # The template changes past answers (it drops the thinking part, for example), so use the content alone.
        return Rendered(prompt_ids, _encode(tokenizer, response) + end)
    response_ids = _continuation(tokenizer, prompt_ids, _encode(tokenizer, whole), whole[len(text) :])
    closed = response_ids[-1:] == end or response_ids[-1:] == _eos(tokenizer)
    return Rendered(prompt_ids, response_ids if closed else response_ids + end)


def _continuation(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], whole_ids: list[int], text: str
) -> list[int]:
    """Ids of `text` after the prompt: tokenized with it if the boundary falls between tokens, else alone."""
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        return whole_ids[len(prompt_ids) :]
    return _encode(tokenizer, text)


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], source: str, *, generate: bool
) -> str:
    from jinja2.exceptions import TemplateError

    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate))
    except TemplateError as error:
        raise UnusableRecord(f"{source}: the model's chat template refuses the conversation: {error}") from error


def _closing(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end of a response: the template's end of turn, else the tokenizer's end token, else nothing."""
    end = _turn_end(tokenizer)
    return _eos(tokenizer) if end is None else [end]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts after an assistant's turn."""
    template = tokenizer.chat_template
    return None if template is None else _probe_turn_end(tokenizer, str(template))


@lru_cache(maxsize=8)
def _probe_turn_end(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """`template` is part of the cache's key, because a tokenizer's template may be replaced."""
    whole = _apply_template(tokenizer, PROBE, "a question and an answer", generate=False)
    tail = _encode(tokenizer, whole.rpartition(PROBE[-1].content)[2])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((token for token in tail if token in special), None)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS token, if the tokenizer adds it to a text."""
    bos = tokenizer.bos_token_id
    return [int(bos)] if bos is not None and tokenizer("a")["input_ids"][0] == bos else []


def _eos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
