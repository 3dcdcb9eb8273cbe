"""Training, collecting and converting from Python: each function does what its command does."""

from __future__ import annotations

from pathlib import Path

import pytest

import nptool
from nptool.checkpoints import load_model
from nptool.pipeline.rounds_config import RoundsConfig
from nptool.runs import Run
from nptool.training.cllm.train import CllmResult


def test_the_whole_way_from_python(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "collected.parquet"
    nptool.collect(nptool.CollectConfig(model=str(checkpoint), data=(texts,), output=out, n=4, max_new_tokens=12))
    result = nptool.train(nptool.CllmConfig(data=(out,), steps=4, batch_tokens=600, name="mine"))
    assert isinstance(result, CllmResult)
    assert (result.steps, result.block_size) == (4, 4)
    heads = nptool.train(
        nptool.HeadsConfig(data=(out,), model=result.model, heads=3, rank=2, steps=2, batch_tokens=600, name="heads")
    )
    done = nptool.convert_checkpoint(Run(Path("runs/heads")).model, tmp_path / "m.gguf", type_name="f16")
    assert str(Run(Path("runs/heads")).model) == heads.model
    with nptool.load(done.path, threads=1) as model:
        assert model.trained_methods() == ("jacobi", "heads")
        assert len(model.generate("select", raw=True, max_tokens=8).tokens) == 8


def test_a_base_model_and_rounds(checkpoint: Path, texts: Path) -> None:
    shape = {"vocab_size": 280, "hidden_size": 16, "layers": 2, "attention_heads": 2, "context": 64}
    base = nptool.train(nptool.BaseConfig(data=(texts,), steps=3, batch_tokens=300, name="base", **shape))
    assert load_model(base.model).config.num_hidden_layers == 2
    config = RoundsConfig(
        data=(texts,), model=str(checkpoint), n=4, max_new_tokens=8, steps=2, batch_tokens=400, name="one", rounds=2
    )
    assert nptool.train(config).run == "runs/one-round-2"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'nptool' has no attribute 'magic'"):
        _ = nptool.magic
    assert all(getattr(nptool, name) is not None for name in nptool.__all__)
