"""Batches, logits and rollbacks; the same bits at every place of a batch, which exact decoding needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nptool.errors import ContextError, UsageError
from nptool.llama.context import Context
from nptool.llama.model import Model

WIDTH = 8


def text(length: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(6, 320, length, dtype=np.int32)


def test_rows_are_the_logits_of_one_token_at_a_time(tiny_gguf: Callable[..., Path]) -> None:
    tokens = text(12)
    with (
        Model.load(tiny_gguf()) as model,
        Context(model, 64, threads=1, flash_attention=False, cache_type_k="f32", cache_type_v="f32") as engine,
    ):
        single = np.concatenate([engine.evaluate(tokens[i : i + 1], i).copy() for i in range(len(tokens))])
        engine.clear()
        together = engine.evaluate(tokens, 0)
        assert together.shape == (12, 320)
        assert np.abs(single - together).max() < 1e-4 * np.std(together)


def test_the_view_shows_llama_cpps_own_buffer(tiny_gguf: Callable[..., Path]) -> None:
    tokens = text(20)
    with Model.load(tiny_gguf()) as model, Context(model, 64, threads=1) as engine:
        engine.evaluate(tokens[:16], 0, outputs=False)
        first = engine.evaluate(tokens[16:18], 16)
        kept = first.copy()
        assert not first.flags.owndata
        engine.rollback(16)
        second = engine.evaluate(tokens[17:19], 16)
        assert np.shares_memory(first, second)
        assert not np.array_equal(kept, second)


def test_rollback_forgets_to_the_bit(tiny_gguf: Callable[..., Path]) -> None:
    tokens = text(40)
    with Model.load(tiny_gguf()) as model, Context(model, 64, threads=1) as engine:
        engine.evaluate(tokens[:20], 0, outputs=False)
        clean = engine.evaluate(tokens[20:28], 20).copy()
        for position in (27, 24, 20):
            engine.rollback(position)
            engine.evaluate(text(4, seed=position), position)
        engine.rollback(20)
        assert np.array_equal(engine.evaluate(tokens[20:28], 20), clean)


@pytest.mark.parametrize("flash_attention", [True, False])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_rows_have_the_same_bits_at_equal_width(
    tiny_gguf: Callable[..., Path], kind: str, flash_attention: bool
) -> None:
    """In any row, with any junk after it, and across the growth of the cache at 256 tokens."""
    tokens, junk = text(300), text(300, seed=1)
    start = 240
    with (
        Model.load(tiny_gguf(kind)) as model,
        Context(model, 400, width=WIDTH, threads=1, flash_attention=flash_attention) as engine,
    ):
        engine.evaluate(tokens[:start], 0, outputs=False)
        autoregressive = []
        for position in range(start, 280):
            batch = np.concatenate([tokens[position : position + 1], junk[: WIDTH - 1]])
            autoregressive.append(engine.evaluate(batch, position)[0].copy())
            engine.rollback(position + 1)
        engine.rollback(start)
        position = start
        while position < 280:
            real = 1 + position % WIDTH
            batch = np.concatenate([tokens[position : position + real], junk[: WIDTH - real]])
            rows = engine.evaluate(batch, position)[:real]
            expected = np.stack(autoregressive[position - start : position - start + real])
            assert np.array_equal(rows[: len(expected)], expected), position
            position += real
            engine.rollback(position)


def test_sizes_are_checked_before_the_call(tiny_gguf: Callable[..., Path]) -> None:
    with Model.load(tiny_gguf()) as model, Context(model, 300, width=4, batch=64, threads=1) as engine:
        assert (engine.capacity, engine.width, engine.batch_limit) == (300, 4, 64)
        with pytest.raises(ContextError, match="a batch of 5 rows, but 1 to 4 are possible"):
            engine.evaluate(text(5), 0)
        with pytest.raises(ContextError, match="a batch of 65 rows, but 1 to 64 are possible"):
            engine.evaluate(text(65), 0, outputs=False)
        with pytest.raises(ContextError, match="a batch of 0 rows"):
            engine.evaluate(text(0), 0)
        with pytest.raises(ContextError, match="4 rows from position 301 do not fit the context of 300 tokens"):
            engine.evaluate(text(4), 301)
        assert engine.evaluate(text(4), 0).shape == (4, 320)
        with pytest.raises(ContextError, match=r"llama_decode failed on 4 rows from position 7: .*invalid"):
            engine.evaluate(text(4), 7)
        assert engine.evaluate(text(4), 4).shape == (4, 320)


def test_padding_has_room_after_the_last_token(tiny_gguf: Callable[..., Path]) -> None:
    with Model.load(tiny_gguf()) as model, Context(model, 248, width=8, threads=1) as engine:
        engine.evaluate(text(247), 0, outputs=False)
        assert engine.evaluate(text(8), 247).shape == (8, 320)


def test_settings_that_cannot_be(tiny_gguf: Callable[..., Path]) -> None:
    with Model.load(tiny_gguf()) as model:
        with pytest.raises(UsageError, match="context must be at least 1, got 0"):
            Context(model, 0)
        with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
            Context(model, 64, threads=0)
        cores = os.cpu_count()
        with pytest.raises(UsageError, match=f"9999 threads, but this machine has {cores} cores"):
            Context(model, 64, threads=9999)
        with pytest.raises(UsageError, match="unknown cache type 'f12'; known are f32, f16"):
            Context(model, 64, cache_type_k="f12")
        with pytest.raises(UsageError, match="needs flash attention"):
            Context(model, 64, cache_type_k="q8_0", flash_attention=False)
        with pytest.raises(ContextError, match="600 tokens is above the batch limit of 512"):
            Context(model, 1000, width=600)
        engine = Context(model, 64, threads=1)
        engine.close()
        engine.close()
        with pytest.raises(ValueError, match="closed"):
            engine.evaluate(text(1), 0)
        with pytest.raises(ValueError, match="closed"):
            engine.rollback(0)


def test_seconds_inside_llama_cpp_are_counted(tiny_gguf: Callable[..., Path]) -> None:
    with Model.load(tiny_gguf()) as model, Context(model, 64, threads=1) as engine:
        assert engine.seconds == 0.0
        engine.evaluate(text(8), 0)
        assert 0.0 < engine.seconds < 10.0
