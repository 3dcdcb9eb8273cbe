"""Prompts and responses as the model sees them, by template and without."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from transformers import PreTrainedTokenizerFast

from nptool.data.record import Message, Record
from nptool.data.rendering import Rendered, end_token_ids, render, split_turns, tokenizer_digest
from nptool.errors import DataError

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PAIR = Record(prompt="question", response="answer", source="f:1")
TALK = Record(
    messages=(
        Message("system", "be brief"),
        Message("user", "one"),
        Message("assistant", "two"),
        Message("user", "three"),
        Message("assistant", "four"),
        Message("user", "left out"),
    ),
    source="f:2",
)


def texts(rendered: Rendered, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str | None]:
    response = rendered.response_ids
    return tokenizer.decode(rendered.prompt_ids), None if response is None else tokenizer.decode(response)


def test_chat_template(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    assert texts(render(PAIR, chat_tokenizer), chat_tokenizer) == (
        "<|user|>question<|end|><|assistant|>",
        "answer<|end|>",
    )
    prompt, response = texts(render(TALK, chat_tokenizer), chat_tokenizer)
    assert (
        prompt == "<|system|>be brief<|end|><|user|>one<|end|><|assistant|>two<|end|><|user|>three<|end|><|assistant|>"
    )
    assert response == "four<|end|>"
    assert render(Record(prompt="question"), chat_tokenizer).response_ids is None


def test_prompt_does_not_depend_on_the_response(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    for response in ("", " ", "b", "  spaces  ", "\n", "ends with <|end|>", "<|end|>"):
        record = Record(prompt="xa", response=response)
        for chat in (True, False):
            rendered = render(record, chat_tokenizer, chat=chat)
            alone = render(Record(prompt="xa"), chat_tokenizer, chat=chat)
            assert rendered.prompt_ids == alone.prompt_ids
            assert rendered.response_ids is not None
            end = "<|end|>" if chat else "<|eos|>"
            assert chat_tokenizer.decode(rendered.response_ids).endswith(end)


def test_plain_text_without_template(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    assert texts(render(PAIR, plain_tokenizer), plain_tokenizer) == ("<|bos|>question", "answer<|eos|>")
    # "a" + "b" is one token when tokenized together; the prompt keeps its own tokens all the same.
    rendered = render(Record(prompt="xa", response="b"), plain_tokenizer)
    assert texts(rendered, plain_tokenizer) == ("<|bos|>xa", "b<|eos|>")
    system = Record(messages=(Message("system", "be brief"), Message("user", "one"), Message("assistant", "two")))
    assert texts(render(system, plain_tokenizer), plain_tokenizer) == ("<|bos|>be brief\n\none", "two<|eos|>")
    with pytest.raises(DataError, match="f:2: a conversation of 3 turns needs a chat template"):
        render(TALK, plain_tokenizer)


def test_text(plain_tokenizer: PreTrainedTokenizerFast, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    text = Record(text="some text")
    assert texts(render(text, plain_tokenizer), plain_tokenizer) == ("<|bos|>", "some text<|eos|>")
    assert texts(render(text, chat_tokenizer), chat_tokenizer) == ("", "some text<|eos|>")


def test_white_space_after_the_end_is_left_out(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(TEMPLATE.replace("<|end|>", "<|end|>\n"))
    assert texts(render(PAIR, tokenizer), tokenizer) == ("<|user|>question<|end|>\n<|assistant|>", "answer<|end|>")


def test_template_without_end_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(TEMPLATE.replace("<|end|>", "\n"))
    assert texts(render(PAIR, tokenizer), tokenizer) == ("<|user|>question\n<|assistant|>", "answer<|eos|>")


def test_template_that_rewrites_answers(make_tokenizer: MakeTokenizer) -> None:
    """As Qwen3's, whose generation prompt may have an empty thinking part that past answers do not have."""
    tokenizer = make_tokenizer(TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think></think>{% endif %}"))
    prompt, response = texts(render(PAIR, tokenizer), tokenizer)
    assert (prompt, response) == ("<|user|>question<|end|><|assistant|><think></think>", "answer<|end|>")


def test_template_that_refuses(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    )
    with pytest.raises(DataError, match="f:2: the model's chat template refuses the conversation: no system role"):
        render(TALK, tokenizer)


def test_split_turns() -> None:
    assert split_turns(TALK) == (TALK.messages[:4], "four")  # type: ignore[index]  # it has messages
    only_user = Record(messages=(Message("user", "one"),))
    assert split_turns(only_user) == (only_user.messages, None)
    assert split_turns(PAIR) == ((Message("user", "question"),), "answer")


def test_end_tokens(chat_tokenizer: PreTrainedTokenizerFast, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    eos, end = (chat_tokenizer.convert_tokens_to_ids(token) for token in ("<|eos|>", "<|end|>"))
    assert end_token_ids(chat_tokenizer) == {eos, end}
    assert end_token_ids(plain_tokenizer) == {eos}
    model = SimpleNamespace(
        config=SimpleNamespace(eos_token_id=90), generation_config=SimpleNamespace(eos_token_id=[91, 92])
    )
    assert end_token_ids(plain_tokenizer, model) == {eos, 90, 91, 92}


def test_digest_tells_vocabularies_apart(
    make_tokenizer: MakeTokenizer, chat_tokenizer: PreTrainedTokenizerFast, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert tokenizer_digest(chat_tokenizer) == tokenizer_digest(plain_tokenizer)
    other = make_tokenizer()
    other.add_tokens(["new"])
    assert tokenizer_digest(other) != tokenizer_digest(chat_tokenizer)
