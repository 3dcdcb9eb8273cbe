"""Methods with heads on a real file: the text is that of autoregressive decoding of equal width, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nptool
from nptool.cache_folder import OVERRIDE
from nptool.decoding.answer import Answer, DecodeConfig
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.text_model import TextModel
from nptool.errors import UsageError
from nptool.llama.head import Head

COUNTS = [4, 2]
SAMPLINGS = [
    Sampling(),
    Sampling(0.8, seed=7),
    Sampling(1.2, top_k=0, min_p=0.01, seed=3),
    Sampling(repeat_penalty=1.3),
]


def answer(model: TextModel, method: str, n: int, sampling: Sampling, **options: Any) -> Answer:
    config = DecodeConfig(method, n, exact=True, max_tokens=80, sampling=sampling)
    return read(model.answer(model.encode("once upon a time", raw=True), config, **options))


@pytest.mark.parametrize("flash_attention", [True, False])
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_heads_give_the_text_of_equal_width(tiny_gguf: Callable[..., Path], kind: str, flash_attention: bool) -> None:
    passes = 0
    path = tiny_gguf(kind, heads=4, counting=0.5)
    with nptool.load(path, threads=1, flash_attention=flash_attention) as model:
        for sampling in SAMPLINGS:
            for n in COUNTS:
                expected = answer(model, "ar", n, sampling)
                found = answer(model, "heads", n, sampling)
                assert found.tokens == expected.tokens, (n, sampling)
                passes += found.tally.passes
    assert passes < 0.95 * 80 * len(COUNTS) * len(SAMPLINGS), "drafts were right now and then"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_hook_and_log_probabilities_are_of_equal_width(tiny_gguf: Callable[..., Path], temperature: float) -> None:
    def uphill(row_V: NDArray[np.float32], tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        row_V[len(tokens) % 3 :: 3] -= 2.0
        return row_V

    sampling = Sampling(temperature, seed=7, logits_hook=uphill)
    options: dict[str, Any] = {"n": 4, "fixed": True, "exact": True, "max_tokens": 80, "sampling": sampling}
    with nptool.load(tiny_gguf("f16", heads=4, counting=0.5), threads=1) as model:
        expected = model.generate("once upon a time", method="ar", raw=True, logprobs=2, **options)
        found = model.generate("once upon a time", method="heads", raw=True, logprobs=2, **options)
    assert found.tally.passes < 80
    assert found.tokens == expected.tokens
    assert found.logprobs == expected.logprobs


def test_a_second_answer_goes_on_from_what_is_cached(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf("f16", heads=4, counting=0.5), threads=1) as model:
        sampling = Sampling(0.8, seed=2)
        first = answer(model, "heads", 4, sampling)
        second = answer(model, "heads", 4, sampling, reuse=True)
    assert second.tokens == first.tokens
    assert second.tally.prefilled_tokens == 0


def test_a_padded_head_reads_only_what_it_is_given(tiny_gguf: Callable[..., Path]) -> None:
    """Whatever junk followed the rows, and up to the last position, where there is no room for junk."""
    path = tiny_gguf("f16", heads=2)
    rng = np.random.default_rng(0)
    with nptool.load(path, threads=1, context_length=64) as model:
        trunk = model.contexts.trunk(1)
        part = model.contexts.parts.heads[0]
        one, other, plain = (Head(part.header, trunk) for _ in range(3))
        cells = trunk.capacity + trunk.width
        z_TD = rng.standard_normal((cells, one.size), dtype=np.float32)
        other.evaluate(rng.standard_normal((3, one.size), dtype=np.float32), 0, width=4)
        other.rollback(0)
        place = 0
        while place < cells:
            rows = min(int(rng.integers(1, 6)), cells - place)
            for head, width in ((one, 4), (other, 4), (plain, 0)):
                head.evaluate(np.ascontiguousarray(z_TD[place : place + rows]), place, width=width)
            place += rows
            assert np.array_equal(one.logits(), other.logits())
            assert np.abs(one.logits() - plain.logits()).max() < 1e-2 * plain.logits().std()


def flat(model: TextModel) -> None:
    """Let wide steps seem to cost what narrow ones do, so that they are chosen; classes stay the machine's."""
    found = model.store.calibration
    times = tuple(tuple(1e-3 * (1 + width / 1000) for width in found.widths) for _ in found.contexts)
    model.store.calibration = replace(found, seconds=times)


@pytest.mark.parametrize(("kind", "flash_attention"), [("f32", True), ("f16", True), ("q8_0", True), ("f16", False)])
@pytest.mark.parametrize(
    ("method", "others"),
    [("heads", ()), ("jacobi", ("heads",)), ("heads", ("jacobi",))],
)
def test_chosen_methods_and_widths_give_the_text_of_their_class(
    tiny_gguf: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    method: str,
    others: tuple[str, ...],
    flash_attention: bool,
) -> None:
    monkeypatch.setenv(OVERRIDE, str(tmp_path))
    used = set[str]()
    path = tiny_gguf(kind, heads=4, counting=0.5)
    with nptool.load(path, threads=1, flash_attention=flash_attention) as model:
        flat(model)
        for sampling in SAMPLINGS:
            config = DecodeConfig(method, max_tokens=80, sampling=sampling, adapt=True, others=others)
            found = read(model.answer(model.encode("once upon a time", raw=True), config))
            assert found.method in (method, *others)
            assert set(found.tally.widths) <= set(found.widths.members)
            for width in {found.widths.members[0], max(found.tally.widths)}:
                assert found.tokens == answer(model, "ar", width, sampling).tokens
            used |= {found.method} if max(found.tally.widths) > 1 else set()
    assert used, "nothing was drafted"


def test_a_text_that_drafts_nothing_goes_without_heads(tiny_gguf: Callable[..., Path]) -> None:
    """But for a conversation, in which a later turn may use them."""
    with nptool.load(tiny_gguf("f16", heads=4, counting=0.5), threads=1) as model:
        found = model.store.calibration
        times = tuple(tuple(1e-3 * width**2 for width in found.widths) for _ in found.contexts)
        model.store.calibration = replace(found, seconds=times, classes=((1,), found.widths[1:]))
        config = DecodeConfig("heads", max_tokens=20, adapt=True)
        prompt = model.encode("once upon a time", raw=True)
        for reuse in (False, True, False):
            plain = read(model.answer(prompt, config, reuse=reuse))
            assert plain.widths.members == (1,)
            assert model.contexts.newest is not None
            assert (model.contexts.newest.heads is not None) == reuse
            expected = DecodeConfig("ar", 1, exact=True, max_tokens=20)
            assert plain.tokens == read(model.answer(prompt, expected)).tokens
            assert plain.method == "heads"


def test_a_conversation_may_change_its_method(tiny_gguf: Callable[..., Path]) -> None:
    """The caches of one way know nothing of the other's turn."""
    with nptool.load(tiny_gguf("f16", heads=4, counting=0.5), threads=1) as model:
        flat(model)
        prompt = model.encode("once upon a time", raw=True)
        for turn in range(6):
            config = DecodeConfig(("jacobi", "heads")[turn % 2], max_tokens=20, adapt=True)
            found = read(model.answer(prompt, config, reuse=True))
            plain = DecodeConfig("ar", found.widths.members[0], exact=True, max_tokens=20)
            assert found.tokens == read(model.answer(prompt, plain)).tokens
            prompt = np.concatenate([prompt, np.array(found.tokens, dtype=np.int32)])


def test_several_methods_need_a_choice() -> None:
    with pytest.raises(UsageError, match="choosing among jacobi, heads needs adaptive widths"):
        DecodeConfig("jacobi", others=("heads",))


def test_the_time_of_a_draft_is_measured_and_leaves_nothing(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf("f16", heads=4, counting=0.5), threads=1) as model:
        before = answer(model, "heads", 4, Sampling())
        assert sum(model.contexts.time_draft(4)) > 0.0
        assert answer(model, "heads", 4, Sampling(), reuse=True).tokens == before.tokens


def read(done: Answer) -> Answer:
    for _ in done:
        pass
    return done
