"""A conversation: what is in the KV cache is not computed again, and the text does not depend on the mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nptool
from nptool.data.record import Message
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.session import Session
from nptool.decoding.text_model import TextModel
from nptool.errors import ContextError, GgufError, UsageError

# Answers of the random model seldom tokenize back to the tokens they were made of; these of "a" and "b" bytes do.
ONLY_LETTERS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


def talk(model: TextModel, config: DecodeConfig, *texts: str, **options: Any) -> Session:
    session = Session(model, config, **options)
    for text in texts:
        for _ in session.ask(text):
            pass
    return session


def test_only_new_tokens_are_prefilled(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf(), threads=1) as model:
        session = talk(model, DecodeConfig(max_tokens=8), "hello there")
        first = session.answer
        assert first is not None
        known = [*first.prompt.tolist(), *first.tokens]
        for _ in session.ask("and now"):
            pass
        second = session.answer
        assert second is not None
        ids = second.prompt.tolist()
        shared = next((i for i, (a, b) in enumerate(zip(ids, known, strict=False)) if a != b), len(known))
        # The last token of the first answer was picked but never evaluated.
        shared = min(shared, len(known) - 1)
        assert shared >= len(first.prompt)
        assert second.tally.prefilled_tokens == len(ids) - 1 - shared
        assert ids == model.encode([*session.messages[:3]]).tolist()
        assert [message.role for message in session.messages] == ["user", "assistant", "user", "assistant"]
        assert session.turns == 2
        assert session.total.tokens == len(first.tokens) + len(second.tokens)
        assert session.total.prefilled_tokens == first.tally.prefilled_tokens + second.tally.prefilled_tokens


def test_a_kept_cache_gives_the_text_of_an_empty_one(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf(), threads=1) as model:
        session = talk(model, DecodeConfig(max_tokens=12), "one", "two", "three")
        assert session.answer is not None
        assert session.answer.tally.prefilled_tokens < len(session.answer.prompt) - 1
        fresh = model.answer(session.answer.prompt, DecodeConfig(max_tokens=12))
        for _ in fresh:
            pass
        assert fresh.tally.prefilled_tokens == len(fresh.prompt) - 1
        assert fresh.tokens == session.answer.tokens


@pytest.mark.parametrize("stop", [(), ("e",)])
def test_a_conversation_is_the_same_in_every_mode(tiny_gguf: Callable[..., Path], stop: tuple[str, ...]) -> None:
    conversations = []
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        for method in ("ar", "jacobi", "jacobi-block"):
            config = DecodeConfig(method=method, n=5, exact=True, max_tokens=15, stop=stop)
            conversations.append(talk(model, config, "a", "b", "c", system="s").messages)
    assert conversations[0] == conversations[1] == conversations[2]
    assert conversations[0][0] == Message("system", "s")


def test_an_answer_cut_short_is_kept_as_far_as_it_went(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf(), threads=1) as model:
        session = Session(model, DecodeConfig(method="jacobi", n=4, max_tokens=50))
        tokens = session.ask("hello")
        shown = "".join(next(tokens).text for _ in range(9))
        tokens.close()
        assert session.messages == (Message("user", "hello"), Message("assistant", shown))
        assert session.total.tokens == 9
        for _ in session.ask("go on"):
            pass
        assert len(session.messages) == 4


def test_asking_again_ends_the_answer_before(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf(), threads=1) as model:
        session = Session(model, DecodeConfig(max_tokens=20))
        first = session.ask("hello")
        shown = "".join(next(first).text for _ in range(5))
        second = session.ask("go on")
        answer = next(second).text
        with pytest.raises(UsageError, match="this answer ended early because the model was asked for another one"):
            next(first)
        answer += "".join(token.text for token in second)
    said = [message.content for message in session.messages]
    assert said == ["hello", shown, "go on", answer]
    assert (session.turns, session.total.tokens) == (2, 25)


def test_a_reset_in_the_middle_of_an_answer(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf(), threads=1) as model:
        session = Session(model, DecodeConfig(max_tokens=20), system="s")
        tokens = session.ask("hello")
        next(tokens)
        session.reset()
        assert list(tokens) == []
        assert session.messages == (Message("system", "s"),)


def test_reset_forgets_the_conversation(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf(), threads=1) as model:
        session = talk(model, DecodeConfig(max_tokens=5), "one", "two", system="be kind")
        session.reset()
        assert session.messages == (Message("system", "be kind"),)
        for _ in session.ask("one"):
            pass
        again = talk(model, DecodeConfig(max_tokens=5), "one", system="be kind")
        assert session.messages == again.messages


def test_a_conversation_that_is_too_long_is_left_as_it_was(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf(), threads=1, context_length=30) as model:
        session = talk(model, DecodeConfig(max_tokens=5), "one")
        before = session.messages
        with pytest.raises(ContextError, match="tokens and the context holds 30"):
            next(session.ask("far too long " * 9))
        assert session.messages == before


def test_without_a_template_the_conversation_is_one_text(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf("f16", chat_template=None), threads=1) as model:
        session = talk(model, DecodeConfig(max_tokens=4), "one")
        assert session.answer is not None
        assert session.answer.prompt.tolist() == model.model.tokenize("one").tolist()
        answer = session.answer.text
        for _ in session.ask("two"):
            pass
        assert session.answer.prompt.tolist() == model.model.tokenize(f"one\n{answer}\ntwo").tolist()


def test_raw_text_needs_no_valid_template(tiny_gguf: Callable[..., Path]) -> None:
    """It is what the message about a broken one says to use."""
    with nptool.load(tiny_gguf("f16", chat_template="{% if %}"), threads=1) as model:
        with pytest.raises(GgufError, match="use --raw"):
            model.encode("hello")
        assert model.encode("hello", raw=True).size
        session = Session(model, DecodeConfig(max_tokens=3), raw=True)
        assert len(list(session.ask("hello"))) <= 3
        assert session.turns == 1
