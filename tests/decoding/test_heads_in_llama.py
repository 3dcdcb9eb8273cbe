"""Methods with heads on a real file: the text is that of autoregressive decoding of equal width, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nptool
from nptool.decoding.answer import Answer, DecodeConfig
from nptool.decoding.generate import TextModel
from nptool.decoding.sampling import Sampling

METHODS = [("heads", 4), ("heads", 2), ("heads-tree", 6), ("heads-tree", 13)]
SAMPLINGS = [
    Sampling(),
    Sampling(0.8, seed=7),
    Sampling(1.2, top_k=0, min_p=0.01, seed=3),
    Sampling(repeat_penalty=1.3),
]


def answer(model: TextModel, method: str, n: int, sampling: Sampling, **options: Any) -> Answer:
    config = DecodeConfig(method, n, exact=True, max_tokens=80, sampling=sampling)
    done = model.answer(model.encode("once upon a time", raw=True), config, **options)
    for _ in done:
        pass
    return done


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_every_method_gives_the_text_of_equal_width(tiny_gguf: Callable[..., Path], kind: str) -> None:
    passes: dict[str, int] = {}
    with nptool.load(tiny_gguf(kind, heads=4, counting=0.5), threads=1) as model:
        for sampling in SAMPLINGS:
            for method, n in METHODS:
                expected = answer(model, "ar", n, sampling)
                found = answer(model, method, n, sampling)
                assert found.tokens == expected.tokens, (method, n, sampling)
                passes[method] = passes.get(method, 0) + found.tally.passes
    # All of them were right now and then.
    assert all(count < 0.95 * 80 * 2 * len(SAMPLINGS) for count in passes.values()), passes


def test_a_tree_goes_on_from_what_is_cached(tiny_gguf: Callable[..., Path]) -> None:
    """A second answer to the same prompt reads little again, whatever path the first one ended on."""
    with nptool.load(tiny_gguf("f16", heads=4, counting=0.5), threads=1) as model:
        sampling = Sampling(0.8, seed=2)
        first = answer(model, "heads-tree", 8, sampling)
        second = answer(model, "heads-tree", 8, sampling, reuse=True)
    assert second.tokens == first.tokens
    assert second.tally.prefilled_tokens == 0
