"""A conversation: its messages, and the KV cache that is kept from turn to turn."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from nptool.data.record import Message
from nptool.decoding.answer import Answer, DecodeConfig, Token
from nptool.decoding.loop.tally import Tally
from nptool.decoding.text_model import TextModel

TURN_SEPARATOR = "\n"
"""Between turns without a chat template: the conversation is one growing text."""


class Session:
    def __init__(self, model: TextModel, config: DecodeConfig, *, system: str | None = None, raw: bool = False) -> None:
        """Args: `system` begins every conversation; `raw` skips the chat template."""
        self._model, self._config, self._raw = model, config, raw
        self._beginning = () if system is None else (Message("system", system),)
        self.messages: tuple[Message, ...] = self._beginning
        self._asked: tuple[Message, ...] | None = None
        """The messages that are being answered."""
        self.answer: Answer | None = None
        """The newest one."""
        self.total = Tally(width=model.block_length(config))
        self.turns = 0

    def ask(self, text: str) -> Generator[Token, None, None]:
        """Say something and read the answer. Closing the iterator or asking again keeps the answer up to there.

        Raises:
            ContextError: the conversation does not fit the context; it stays as it was.
            UsageError: the model was asked for another answer before the end of this one.
        """
        self._end_turn()
        messages = (*self.messages, Message("user", text))
        answer = self._model.answer(self._encode(messages), self._config, reuse=True)
        self.answer, self._asked = answer, messages
        try:
            yield from answer
        finally:
            if self.answer is answer:
                self._end_turn()

    def reset(self) -> None:
        """Forget the conversation."""
        self._end_turn()
        self.messages = self._beginning

    def _end_turn(self) -> None:
        if self.answer is None or self._asked is None:
            return
        self.answer.close()
        self.messages = (*self._asked, Message("assistant", self.answer.text))
        self._asked = None
        self.total.add(self.answer.tally)
        self.turns += 1

    def _encode(self, messages: tuple[Message, ...]) -> NDArray[np.int32]:
        if self._raw or self._model.template is None:
            text = TURN_SEPARATOR.join(message.content for message in messages)
            return self._model.encode(text, raw=True)
        return self._model.encode(messages)
