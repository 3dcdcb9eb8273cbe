"""`nptool train base` with several heads: from scratch, and from a multi-head checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nptool.checkpoints import load_model, load_tokenizer
from nptool.errors import UsageError
from nptool.heads import HEADS_FILE, HEADS_WEIGHTS, read_heads_info
from nptool.training.base.config import SMALLEST_VOCABULARY, BaseConfig
from nptool.training.base.corpus import load_corpus
from nptool.training.base.dry_run import dry_run
from nptool.training.base.evaluation import evaluate
from nptool.training.base.train import train_base
from nptool.training.heads.checkpoint import load_heads
from nptool.training.sequences import make_sequences

Tiny = Callable[..., BaseConfig]


@pytest.fixture
def config(tiny: Tiny, records_file: Path) -> BaseConfig:
    return tiny(data=(records_file,), layers=5, heads=3, lr=1e-2, name="many")


def test_layers_move_from_the_trunk_to_the_heads(config: BaseConfig) -> None:
    several, single = train_base(config), train_base(replace(config, heads=None, name="one"))
    assert several.parameters == single.parameters
    assert several.heads == 3
    model = load_heads(Path(several.model))
    assert (model.count, model.config.num_hidden_layers) == (3, 3)
    assert load_model(several.model).config.num_hidden_layers == 3
    info = read_heads_info(Path(several.model))
    assert info is not None
    assert info.trunk_layer == 2
    assert len(info.accuracy) == 2
    assert dry_run(config)["parameters"] == several.parameters


def test_figures_of_head_1_are_the_model_s(config: BaseConfig) -> None:
    """Measured once by our heads, once by transformers' own loss."""
    result = train_base(config)
    assert result.head_loss is not None
    assert result.heldout_loss == result.head_loss[0]
    corpus = load_corpus(config)
    tokenizer = load_tokenizer(result.model)
    heldout = make_sequences(corpus.heldout, tokenizer, context=config.context, loss=config.loss)
    plain = evaluate(load_model(result.model), heldout, tokenizer, batch_tokens=config.batch_tokens)
    assert result.heldout_loss == pytest.approx(plain.loss, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(plain.bits_per_byte, rel=1e-6)
    assert train_base(config) == result


def test_all_heads_learn_from_scratch(config: BaseConfig) -> None:
    short, long = train_base(replace(config, steps=2)), train_base(replace(config, steps=80, name="long"))
    assert short.head_loss is not None
    assert long.head_loss is not None
    assert all(after < 0.8 * before for before, after in zip(short.head_loss, long.head_loss, strict=True))


def test_an_interrupted_training_ends_as_if_nothing_had_happened(config: BaseConfig) -> None:
    def interrupt(step: str, done: float, total: float, note: str = "") -> None:
        if step == "training the base model" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_base(config, interrupt)
    resumed, whole = train_base(config), train_base(replace(config, name="whole"))
    for name in ("model.safetensors", HEADS_WEIGHTS):
        mine, theirs = (load_file(Path(result.model) / name) for result in (resumed, whole))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_multi_head_checkpoint_goes_on_with_its_heads_or_without(config: BaseConfig, tiny: Tiny) -> None:
    first = Path(train_base(config).model)
    on = tiny(data=config.data, model=str(first), hidden_size=384, layers=6, attention_heads=6, vocab_size=2048)
    onward = train_base(replace(on, name="with"))
    assert onward.heads == 3
    before, after = (load_file(path / HEADS_WEIGHTS) for path in (first, Path(onward.model)))
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert dry_run(on)["parameters"] == onward.parameters
    without = train_base(replace(on, heads=1, name="without"))
    assert without.heads == 1
    assert without.head_loss is None
    assert not (Path(without.model) / HEADS_FILE).exists()
    with pytest.raises(UsageError, match="has 3 heads, --heads is 2; give --heads 3, or 1 to go on without them"):
        train_base(replace(on, heads=2))
    with pytest.raises(UsageError, match="has no extra heads; train some with `nptool train heads -m"):
        train_base(replace(on, model=without.model, heads=3))


def test_the_trunk_needs_a_layer(config: BaseConfig) -> None:
    with pytest.raises(UsageError, match="--layers 3 leaves none for the trunk; give at least --layers 4"):
        replace(config, layers=3)


def test_a_token_may_be_a_byte(config: BaseConfig) -> None:
    result = train_base(replace(config, tokenizer="bytes", steps=2))
    tokenizer = load_tokenizer(result.model)
    assert len(tokenizer) == SMALLEST_VOCABULARY
    assert len(tokenizer.encode("aé", add_special_tokens=False)) == 3
    assert dry_run(replace(config, tokenizer="bytes"))["config"]["vocab_size"] == SMALLEST_VOCABULARY
