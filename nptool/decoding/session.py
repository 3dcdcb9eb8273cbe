"""A conversation: messages, and the KV cache that is kept from turn to turn. Prints nothing and reads nothing."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from nptool.data.records import Message
from nptool.decoding.answer import Answer, DecodeConfig, Token
from nptool.decoding.loop.tally import Tally
from nptool.decoding.text_model import TextModel

# Between the turns of a model without a chat template, whose conversation is one growing text.
TURN_SEPARATOR = "\n"


class Session:
    """A conversation with one model."""

    def __init__(self, model: TextModel, config: DecodeConfig, *, system: str | None = None, raw: bool = False) -> None:
        """Args: `system` begins every conversation; `raw` leaves the chat template out."""
        self._model = model
        self._config = config
        self._beginning = () if system is None else (Message("system", system),)
        self._raw = raw
        self.messages: tuple[Message, ...] = self._beginning
        self.answer: Answer | None = None
        """The newest one."""
        self.total = Tally(width=model.block_length(config))
        self.turns = 0

    def ask(self, text: str) -> Generator[Token, None, None]:
        """Say something and read the answer. Closing the iterator early keeps what was answered until then.

        Raises:
            ContextError: the conversation has become too long; it is as it was before.
        """
        messages = (*self.messages, Message("user", text))
        answer = self._model.answer(self._encode(messages), self._config, reuse=True)
        self.answer = answer
        try:
            yield from answer
        finally:
            answer.close()
            self.messages = (*messages, Message("assistant", answer.text))
            self.total.add(answer.tally)
            self.turns += 1

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages = self._beginning

    def _encode(self, messages: tuple[Message, ...]) -> NDArray[np.int32]:
        if self._raw or self._model.template is None:
            text = TURN_SEPARATOR.join(message.content for message in messages)
            return self._model.encode(text, raw=True)
        return self._model.encode(messages)
