"""A NextN block in nptool's own loop: its drafts are those of the block written out in torch, the text is AR's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.nextn_references import naive_logits, silence
from fixtures.stock_speculation import DRAFTS

import nptool
from nptool.convert.conversion import convert
from nptool.decoding.answer import Answer, DecodeConfig
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.text_model import TextModel
from nptool.errors import ContextError, GgufError
from nptool.llama.context import Context
from nptool.llama.model import Model
from nptool.llama.nextn_heads import NextNHeads

QWEN3 = ("Qwen3ForCausalLM", "qwen2")
CARRIED = {"llama": ((), {}), "qwen 3": (QWEN3, {"head_dim": 32})}
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def converted(make_checkpoint: Make, add_nextn: Make, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Checkpoint and carrier of a case, and whether its block foresees the model."""

    def make(case: str, *, foreseeing: bool = False, kind: str = "f32") -> tuple[Path, Path]:
        names, settings = CARRIED[case]
        directory = add_nextn(make_checkpoint(*names, **settings))
        if foreseeing:
            silence(directory)
        path = tmp_path_factory.mktemp("carrier") / "model-nextn.gguf"
        return directory, convert(directory, path, type_name=kind, nextn=True).path

    return make


@pytest.mark.parametrize("case", CARRIED)
def test_drafts_are_those_of_the_block_in_torch(case: str, converted: Any) -> None:
    """Whatever the sizes of the reads before, and after a rollback to another token."""
    directory, path = converted(case)
    rng, compared = np.random.default_rng(1), 0
    ids = rng.integers(0, 400, 24).astype(np.int32)
    options: Any = {
        "width": 32,
        "batch": 64,
        "flash_attention": False,
        "cache_type_k": "f32",
        "cache_type_v": "f32",
        "threads": 1,
    }
    with Model.load(path) as model, Context(model, 64, **options) as context:
        context.choose_layer(None)
        heads = NextNHeads(context, DRAFTS)
        for _ in range(3):
            place = int(rng.integers(0, 6)) if compared else 0
            ids[place:] = rng.integers(0, 400, len(ids) - place)
            context.rollback(0)
            context.evaluate(ids, 0, show=True)
            z_TD = context.shown().copy()
            heads.rollback(place)
            while place < len(ids) - 1:
                end = min(len(ids) - 1, place + int(rng.integers(1, 6)))
                count = int(rng.integers(0, DRAFTS + 1))
                rows = z_TD[place:end], place, ids[place : end + 1]
                if count:
                    expected_KV = naive_logits(directory, ids[: end + 1].tolist())[:count]
                    found_KV = heads.draft(*rows, count)
                    assert np.abs(found_KV - expected_KV).max() < 1e-3 * expected_KV.std()
                    compared += 1
                else:
                    heads.read(*rows)
                place = end
        with pytest.raises(ContextError, match="90 rows from position 23 do not fit heads of 96 positions"):
            heads.read(np.zeros((90, model.hidden_size), np.float32), 23, np.zeros(91, np.int32))
    assert compared > 8


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("case", CARRIED)
def test_texts_are_those_of_autoregressive_decoding(case: str, kind: str, converted: Any) -> None:
    """In two turns of a conversation; the second one keeps the cache."""
    _, path = converted(case, kind=kind)
    with nptool.load(path, threads=1, context_length=96) as model:
        for sampling in (Sampling(), Sampling(0.8, seed=7), Sampling(repeat_penalty=1.3)):
            for n in (DRAFTS + 1, 2, 1):
                prompt = model.encode("the cat sat", raw=True)
                for reuse in (False, True):
                    found = answer(model, "heads", n, prompt, sampling, reuse)
                    assert found.tokens == answer(model, "ar", n, prompt, sampling, False).tokens
                    prompt = np.append(prompt, np.array([*found.tokens[:9], 5, 6], dtype=np.int32))


def test_right_drafts_are_accepted(converted: Any) -> None:
    """And without options decoding may use them."""
    _, path = converted("llama", foreseeing=True)
    with nptool.load(path, threads=1, context_length=96) as model:
        prompt = model.encode("the cat sat", raw=True)
        found = answer(model, "heads", DRAFTS + 1, prompt, Sampling(), False)
        assert found.tally.acceptance == [1.0] * DRAFTS
        assert found.tally.passes == 40 // (DRAFTS + 1)
        assert found.tokens == answer(model, "ar", DRAFTS + 1, prompt, Sampling(), False).tokens
        assert model.trained_methods() == ("heads",)


def test_a_block_without_its_model(converted: Any) -> None:
    _, path = converted("llama")
    draft = path.with_name("mtp-model.gguf")
    with nptool.load(draft) as model, pytest.raises(GgufError, match=r"is a NextN block without its model; use NAME-"):
        model.generate("x", raw=True)


def answer(model: TextModel, method: str, n: int, prompt: Any, sampling: Sampling, reuse: bool) -> Answer:
    config = DecodeConfig(method, n, exact=True, max_tokens=40 if n > 2 else 12, sampling=sampling)
    found = model.answer(prompt, config, reuse=reuse)
    for _ in found:
        pass
    return found
