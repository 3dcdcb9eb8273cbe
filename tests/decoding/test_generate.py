"""A GGUF to text: every mode gives the same tokens, and the library is used as its docstring says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nptool
from nptool.data.record import Message
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.text_model import TextModel
from nptool.errors import ContextError, DataError, UsageError

SAMPLED: dict[str, Any] = {"sampling": Sampling(0.8, seed=7)}
N = 6
UNFILTERED: dict[str, Any] = {"sampling": Sampling(0.8, top_k=0, min_p=0.0, seed=7)}
FIXED: dict[str, Any] = {"method": "jacobi", "fixed": True}
MODES: dict[str, dict[str, Any]] = {
    "sliding": FIXED,
    "blocks": {"method": "jacobi-block", "fixed": True},
}


@pytest.fixture(scope="module")
def model(tiny_gguf: Callable[..., Path]) -> Iterator[TextModel]:
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        yield model


def test_the_use_in_the_docstring(tiny_gguf: Callable[..., Path]) -> None:
    shown = ""
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        answer = model.stream("prompt", method="jacobi", fixed=True, n=16, max_tokens=20)
        for token in answer:
            shown += token.text
        prompt = model.model.tokenize("prompt")
    assert shown == answer.text
    assert len(answer.tokens) == 20
    assert answer.finish == "length"
    assert answer.tally.prompt_tokens == len(prompt) + 3


@pytest.mark.parametrize(
    "options",
    [{}, SAMPLED, {"sampling": Sampling(repeat_penalty=1.3)}, UNFILTERED],
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flash_attention", [True, False])
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_every_mode_gives_the_text_of_equal_width(
    tiny_gguf: Callable[..., Path], kind: str, mode: str, options: dict[str, Any], flash_attention: bool
) -> None:
    with nptool.load(tiny_gguf(kind), threads=1, flash_attention=flash_attention) as model:
        expected = model.generate("once upon a time", n=N, exact=True, max_tokens=80, **options)
        found = model.generate("once upon a time", n=N, max_tokens=80, **MODES[mode], **options)
    assert found.tokens == expected.tokens
    assert found.text == expected.text
    assert expected.tally.passes == len(expected.tokens)
    assert found.tally.passes <= expected.tally.passes


def test_parallel_decoding_accepts_more_than_a_token_where_the_text_repeats(model: TextModel) -> None:
    answer = model.generate("a", method="jacobi", fixed=True, n=8, max_tokens=300)
    assert answer.tally.tokens_per_forward > 1.0
    assert answer.tally.tokens == 300
    assert answer.tally.drafted[0] >= answer.tally.passes - 1


def test_an_answer_does_not_depend_on_the_one_before(model: TextModel) -> None:
    first = model.generate("b", max_tokens=30)
    model.generate("b and more", max_tokens=10, **SAMPLED)
    again = model.generate("b", max_tokens=30)
    assert again.tokens == first.tokens
    assert again.tally.prefilled_tokens == first.tally.prefilled_tokens == len(first.prompt) - 1


def test_end_tokens_end_the_answer(tiny_gguf: Callable[..., Path]) -> None:
    """At a high temperature the end token comes sooner or later, in every mode at the same place."""
    options: dict[str, Any] = {"sampling": Sampling(3.0, top_k=0, top_p=1.0, min_p=0.0), "max_tokens": 900, "n": N}
    with nptool.load(tiny_gguf(), threads=1) as model:
        answers = [model.generate("c", **options, **mode) for mode in ({"exact": True}, FIXED, {"exact": False})]
    assert [answer.finish for answer in answers] == ["end"] * 3
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].tokens[-1] == 1
    assert 1 not in answers[0].tokens[:-1]
    assert answers[0].text == b"".join(model.model._pieces[token] for token in answers[0].tokens[:-1]).decode(
        errors="replace"
    )


@pytest.mark.parametrize("method", ["ar", "jacobi"])
def test_a_stop_string_may_span_tokens_and_never_shows(model: TextModel, method: str) -> None:
    whole = model.generate("d", max_tokens=60, n=N, exact=True)
    pieces = [model.model.piece(token).decode("latin-1") for token in whole.tokens]
    place = next(i for i in range(5, 50) if all(piece.isascii() and piece for piece in pieces[i : i + 2]))
    stop = pieces[place][-1] + pieces[place + 1][0]
    before = whole.text[: whole.text.index(stop)]
    answer = model.stream("d", max_tokens=60, n=N, exact=True, method=method, fixed=True, stop=["never this", stop])
    shown = [token.text for token in answer]
    assert "".join(shown) == answer.text == before
    assert answer.finish == "stop"
    assert answer.tokens == whole.tokens[: len(answer.tokens)]
    assert answer.tally.tokens == len(answer.tokens)


def test_every_mode_leaves_the_same_text_and_cache(model: TextModel) -> None:
    whole = model.generate("d", max_tokens=60, n=N, exact=True)
    stop = whole.text[12:14]
    kept = []
    for method in ("ar", "jacobi"):
        model.generate("d", max_tokens=60, n=N, exact=True, method=method, fixed=True, stop=[stop])
        assert model.contexts.newest is not None
        sequence = model.contexts.newest.sequence
        kept.append((sequence.tokens.tolist(), sequence.cached))
    assert kept[0] == kept[1]


def test_text_is_whole_characters(model: TextModel) -> None:
    """Random bytes at a high temperature: the pieces join to the decoding of all bytes."""
    answer = model.stream("e", max_tokens=200, sampling=Sampling(2.0, top_k=0, top_p=1.0, min_p=0.0, seed=1))
    shown = [token.text for token in answer]
    assert len(shown) == len(answer.tokens)
    data = b"".join(model.model.piece(token) for token in answer.tokens)
    assert "".join(shown) == data.decode(errors="replace")


def test_the_context_is_filled_to_its_last_token(tiny_gguf: Callable[..., Path]) -> None:
    answers = []
    with nptool.load(tiny_gguf(), threads=1, context_length=40) as model:
        for options in (
            {"exact": True},
            FIXED,
            {"method": "jacobi-block", "fixed": True},
        ):
            answers.append(model.generate("context", n=16, max_tokens=500, **options))
        free = model.generate("context", n=16, max_tokens=500, method="jacobi", fixed=True, exact=False)
    assert {answer.finish for answer in (*answers, free)} == {"context"}
    assert {len(answer.prompt) + len(answer.tokens) for answer in (*answers, free)} == {40}
    assert answers[0].tokens == answers[1].tokens == answers[2].tokens


def test_leaving_early_and_asking_again(model: TextModel) -> None:
    expected = model.generate("f", max_tokens=20).tokens
    abandoned = model.stream("g", method="jacobi", fixed=True, n=N, max_tokens=50)
    for _ in abandoned:
        if len(abandoned.tokens) == 7:
            break
    again = model.stream("f", max_tokens=20)
    assert again.finished().tokens == expected
    assert (len(abandoned.tokens), abandoned.tally.tokens, abandoned.finish) == (7, 7, None)
    assert list(again) == []


@pytest.mark.parametrize("mode", [{}, FIXED, {**FIXED, "n": 2 * N}])
def test_another_answer_ends_the_one_before(model: TextModel, mode: dict[str, Any]) -> None:
    """Two answers share one cache, so the first one cannot go on; the second one is as if it were alone."""
    expected = model.generate("f", max_tokens=20).tokens
    first = model.stream("g", max_tokens=50, **mode)
    shown = [next(first).id for _ in range(3)]
    second = model.stream("f", max_tokens=20)
    begun = [next(second).id for _ in range(3)]
    for _ in range(2):
        with pytest.raises(UsageError, match="this answer ended early because the model was asked for another one; "):
            next(first)
    assert begun + [token.id for token in second] == expected
    assert (first.tokens, first.finish) == (shown, None)


def test_an_answer_that_was_never_read_is_ended_too(model: TextModel) -> None:
    expected = model.generate("f", max_tokens=20).tokens
    first = model.stream("g", max_tokens=20)
    assert model.generate("f", max_tokens=20).tokens == expected
    with pytest.raises(UsageError, match="this answer ended early"):
        next(first)


def test_a_finished_answer_is_not_touched_by_the_next_one(model: TextModel) -> None:
    first = model.generate("g", max_tokens=9)
    tokens, text = list(first.tokens), first.text
    model.generate("f", max_tokens=20)
    assert list(first) == []
    assert (first.tokens, first.text, first.finish) == (tokens, text, "length")


def test_prompts_are_rendered_as_in_training(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        tokenize = model.model.tokenize
        a, b = tokenize("a").tolist(), tokenize("b").tolist()
        assert model.encode("a").tolist() == [2, *a, 1, 3]
        turns = [Message("system", "b"), {"role": "user", "content": "a"}]
        assert model.encode(turns).tolist() == [4, *b, 1, 2, *a, 1, 3]
        assert model.encode("a", raw=True).tolist() == a
        with pytest.raises(UsageError, match="a message needs role and content, got text"):
            model.encode([{"text": "a"}])
    with nptool.load(tiny_gguf("f16", chat_template=None, add_bos=True), threads=1) as model:
        assert model.encode("a").tolist() == [0, *a]
        assert model.encode("<|bos|>a").tolist() == [0, *a]
        assert model.encode("").tolist() == [0]
    with nptool.load(tiny_gguf("f16", chat_template="{{ bos_token }}{{ messages[0].content }}", add_bos=True)) as model:
        assert model.encode("a").tolist() == [0, *a]


def test_the_file_may_say_its_block_size(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf("f16", metadata={"nptool.block_size": 5}), threads=1) as model:
        assert model.block_length(DecodeConfig("jacobi")) == 5
        assert model.generate("a", method="jacobi", fixed=True, max_tokens=1).tally.width == 5
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        assert model.block_length(DecodeConfig("jacobi")) == 16


def test_the_engine_is_replaced_for_a_wider_block(model: TextModel) -> None:
    assert len(model.generate("h", method="jacobi", fixed=True, n=100, max_tokens=10).tokens) == 10
    assert model.contexts.newest is not None
    assert model.contexts.newest.engine.width == 100


def test_what_cannot_be_asked(model: TextModel) -> None:
    with pytest.raises(UsageError, match="-n must be at least 1, got 0"):
        model.generate("a", method="jacobi", fixed=True, n=0)
    with pytest.raises(ContextError, match="-n 513 is above the batch limit of 512 rows"):
        model.generate("a", method="jacobi", fixed=True, n=513)
    with pytest.raises(UsageError, match="--max-tokens must be at least 1, got 0"):
        model.generate("a", max_tokens=0)
    with pytest.raises(UsageError, match="unknown method 'magic'; known are ar, jacobi, jacobi-block, heads, "):
        DecodeConfig(method="magic")
    with pytest.raises(ContextError, match="the prompt is empty"):
        model.generate("", raw=True)
    with pytest.raises(ContextError, match=r"the prompt has 2001 tokens and the context holds 1024"):
        model.answer(np.full(2001, 9, dtype=np.int32), DecodeConfig())


def test_without_a_path_it_is_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no run in runs/ yet"):
        nptool.load()


class TestWhatPeopleTypeFirst:
    """One-liners of mlx_lm, llama-cpp-python and vLLM, translated."""

    def test_generate_gives_the_text(self, model: TextModel) -> None:
        answer = model.generate("once", max_tokens=12)
        assert answer.text == str(answer) == "".join(token.text for token in model.stream("once", max_tokens=12))
        assert (len(answer.tokens), answer.finish) == (12, "length")

    def test_a_list_of_prompts_gives_their_answers_in_order(self, model: TextModel) -> None:
        answers = model.generate(["once", "upon"], max_tokens=9)
        assert [answer.text for answer in answers] == [
            model.generate(one, max_tokens=9).text for one in ("once", "upon")
        ]

    def test_a_conversation(self, model: TextModel) -> None:
        messages = [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]
        answer = model.chat(messages, max_tokens=5)
        assert answer.prompt.tolist() == model.encode(messages).tolist()
        assert answer.text == model.generate(messages, max_tokens=5).text

    @pytest.mark.parametrize("kind", [list, np.array])
    def test_token_ids_are_used_as_they_are(self, model: TextModel, kind: Callable[..., Any]) -> None:
        ids = model.encode("once")
        assert model.generate(kind(ids.tolist()), max_tokens=9).tokens == model.generate("once", max_tokens=9).tokens

    def test_automatic_is_what_the_file_was_trained_for(self, tiny_gguf: Callable[..., Path]) -> None:
        with nptool.load(tiny_gguf("f16", metadata={"nptool.method": "cllm"}), threads=1) as model:
            assert model.generate("a", max_tokens=3).method == "jacobi"
            assert model.generate("a", method="ar", max_tokens=3).method == "ar"
            assert model.generate("a", method=("jacobi", "lookahead"), max_tokens=3).method in ("jacobi", "lookahead")

    def test_sampling_is_an_object(self, model: TextModel) -> None:
        sampling = nptool.Sampling(temperature=0.8, top_p=0.9, seed=3)
        assert model.generate("a", sampling=sampling, max_tokens=20).tokens != model.generate("a", max_tokens=20).tokens

    def test_one_stop_string_may_be_a_string(self, model: TextModel) -> None:
        whole = model.generate("d", max_tokens=60).text
        stop = whole[12:14]
        assert model.generate("d", max_tokens=60, stop=stop).text == whole[: whole.index(stop)]

    @pytest.mark.parametrize("method", ["ar", "jacobi"])
    def test_tokens_may_end_an_answer(self, model: TextModel, method: str) -> None:
        options: dict[str, Any] = {"method": method, "n": N, "fixed": True, "exact": True, "max_tokens": 60}
        whole = model.generate("d", **options)
        place = next(place for place in range(5, 60) if whole.tokens[place] not in whole.tokens[:place])
        for stop_tokens in (whole.tokens[place], [whole.tokens[place]]):
            answer = model.generate("d", stop_tokens=stop_tokens, **options)
            assert (answer.tokens, answer.finish) == (whole.tokens[: place + 1], "end")
        assert whole.text.startswith(answer.text.rstrip("\ufffd"))

    def test_an_answer_can_be_cancelled(self, model: TextModel) -> None:
        answer = model.stream("a", method="jacobi", fixed=True, n=N, max_tokens=50)
        shown = [next(answer), next(answer)]
        answer.cancel()
        assert list(answer) == []
        assert (len(answer.tokens), answer.finish) == (len(shown), "cancelled")

    def test_an_async_stream(self, model: TextModel) -> None:
        async def read() -> list[int]:
            return [token.id async for token in model.astream("a", max_tokens=9)]

        assert asyncio.run(read()) == model.generate("a", max_tokens=9).tokens

    def test_an_async_stream_that_is_left_frees_the_model(self, model: TextModel) -> None:
        async def leave() -> None:
            async for _ in model.astream("b", max_tokens=500):
                break

        expected = model.generate("a", max_tokens=9).tokens
        asyncio.run(leave())
        assert model.generate("a", max_tokens=9).tokens == expected

    def test_wrong_options(self, model: TextModel) -> None:
        for options, message in (
            ({"method": "magic"}, "unknown method 'magic'; known are ar, jacobi, "),
            ({"n": "x"}, "n must be a whole number, got 'x'"),
            ({"max_tokens": 2.5}, "max_tokens must be a whole number, got 2.5"),
            ({"method": ()}, "method is empty; name one or several, or leave it out"),
            ({"method": 3}, "method must be of type str, one or a sequence of them, got 3"),
            ({"stop": ""}, "a stop string is empty; leave it out"),
            ({"stop": ["a", 3]}, "stop must be of type str, one or a sequence of them, got ['a', 3]"),
            ({"stop_tokens": "x"}, "stop_tokens must be of type int, one or a sequence of them, got 'x'"),
            ({"sampling": {"seed": 1}}, "sampling must be a Sampling, got {'seed': 1}"),
            ({"logprobs": -1}, "logprobs must be 0 or more, got -1"),
        ):
            with pytest.raises(UsageError, match=re.escape(message)):
                model.generate("a", **options)  # type: ignore[call-overload]  # the point

    @pytest.mark.parametrize("prompt", [[-1, 5], [2**40], np.array([1.5, 2.0]), np.array([[1, 2]])])
    def test_what_are_no_token_ids(self, model: TextModel, prompt: Any) -> None:
        with pytest.raises(UsageError, match=r"token ids must be whole numbers from 0 to \d+, in one dimension"):
            model.generate(prompt)

    def test_what_is_no_prompt(self, model: TextModel) -> None:
        for prompt, message in (
            (3, "expected a text, messages or token ids, got 3"),
            (b"text", "expected a text, messages or token ids, got b'text'"),
            (["text", 3], "a message is a mapping with role and content, got 'text'"),
        ):
            with pytest.raises(UsageError, match=re.escape(message)):
                model.generate(prompt)  # type: ignore[call-overload]  # the point


def even_only(row_V: NDArray[np.float32], tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Only even tokens after an even number of tokens, all of them less likely the more often they occurred."""
    row_V = row_V - 0.5 * np.bincount(tokens, minlength=len(row_V)).astype(np.float32)
    if len(tokens) % 2 == 0:
        row_V[1::2] = -np.inf
    return row_V


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["jacobi", "jacobi-block", "lookahead", "prompt-lookup"])
def test_a_logits_hook_keeps_the_text_of_every_method(model: TextModel, method: str, temperature: float) -> None:
    sampling = Sampling(temperature, seed=5, logits_hook=even_only)
    expected = model.generate("once upon", method="ar", n=N, exact=True, max_tokens=60, sampling=sampling)
    found = model.generate("once upon", method=method, n=N, fixed=True, max_tokens=60, sampling=sampling)
    assert found.tokens == expected.tokens
    before = len(expected.prompt)
    assert all(token % 2 == 0 for place, token in enumerate(expected.tokens) if (before + place) % 2 == 0)
    assert any(token % 2 for token in expected.tokens)


def test_a_logits_hook_of_another_length_is_refused(model: TextModel) -> None:
    with pytest.raises(UsageError, match=r"a logits hook must return a row of \d+ logits, got shape \(3,\)"):
        model.generate("a", max_tokens=3, sampling=Sampling(logits_hook=lambda row, tokens: row[:3]))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["ar", "jacobi", "jacobi-block"])
def test_log_probabilities_are_those_of_each_row_of_logits(model: TextModel, method: str, temperature: float) -> None:
    sampling = Sampling(temperature, repeat_penalty=1.2, seed=4)
    answer = model.generate(
        "c", method=method, n=N, fixed=True, exact=True, max_tokens=40, sampling=sampling, logprobs=3
    )
    ids = np.concatenate([answer.prompt, np.array(answer.tokens, dtype=np.int32)])
    engine = model.contexts.scratch(len(ids))
    engine.rollback(0)
    logits_RV = engine.evaluate(ids, 0)[len(answer.prompt) - 1 : -1].astype(np.float64)
    expected_RV = logits_RV - np.log(np.exp(logits_RV).sum(axis=1, keepdims=True))
    assert len(answer.logprobs) == len(answer.tokens) == 40
    for token, found, row_V in zip(answer.tokens, answer.logprobs, expected_RV, strict=True):
        assert found.id == token
        assert found.logprob == pytest.approx(row_V[token], abs=2e-2)
        assert [value for _, value in found.top] == pytest.approx(np.sort(row_V)[:-4:-1].tolist(), abs=2e-2)
        assert dict(found.top).get(token, found.logprob) == found.logprob


def test_log_probabilities_of_the_picked_token_alone(model: TextModel) -> None:
    answer = model.generate("c", max_tokens=5, logprobs=0)
    assert [found.top for found in answer.logprobs] == [()] * 5
    assert model.generate("c", max_tokens=5).logprobs == []
