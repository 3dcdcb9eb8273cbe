"""A model's own chat template, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nptool.data.record import Message
from nptool.errors import GgufError, UsageError


class _GenerationTag(Extension):
    """`{% generation %}`, which marks the assistant's text in some templates; only its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    def __init__(self, source: str, *, bos: str = "", eos: str = "", origin: str = "the model") -> None:
        """
        Args:
            source: Jinja.
            bos, eos: text of the special tokens, which templates may print.
            origin: the file, for messages.

        Raises:
            GgufError: `source` is not valid Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.now().strftime(form))
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._origin = origin
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise GgufError(f"the chat template of {origin} is not valid: {error}; use --raw") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation, up to the beginning of the assistant's answer.

        Raises:
            UsageError: the template refuses these messages.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, tools=None, **self._tokens)
        except (jinja2.TemplateError, TypeError) as error:
            raise UsageError(f"the chat template of {self._origin} refuses the conversation: {error}") from error


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
