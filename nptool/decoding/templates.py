"""The chat template of a loaded model: of its options, else of its file."""

from __future__ import annotations

from pathlib import Path

from nptool.data.chat_template import ChatTemplate
from nptool.errors import DataError
from nptool.llama.builtin_template import BuiltinTemplate
from nptool.llama.model import Model

_MARKS = "{{", "{%"
"""One of them is in every template in Jinja."""


def find_template(model: Model) -> ChatTemplate | BuiltinTemplate | None:
    """
    Raises:
        GgufError: it is not valid Jinja.
        UsageError: its name is unknown.
        DataError: its file cannot be read.
    """
    source, origin = model.chat_template, str(model.path)
    if (file := model.options.chat_template_file) is not None:
        source, origin = _read(file), str(file)
    if (given := model.options.chat_template) is not None:
        if not any(mark in given for mark in _MARKS):
            return BuiltinTemplate(given)
        source, origin = given, "--chat-template"
    if source is None:
        return None
    bos, eos = ("" if token is None else model.token_text(token) for token in (model.bos, model.eos))
    return ChatTemplate(source, bos=bos, eos=eos, origin=origin)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the chat template {file}: {error}") from error
