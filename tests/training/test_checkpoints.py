"""Checkpoints: what is saved is what is loaded, and a damaged one is refused in one line."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nptool import checkpoints
from nptool.checkpoints import check_checkpoint, check_files, load_model, load_tokenizer, save_model
from nptool.errors import CheckpointError, DiskFullError


def message(path: Path | str) -> str:
    with pytest.raises(CheckpointError) as error:
        check_checkpoint(path)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_what_is_saved_is_loaded(checkpoint: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    check_checkpoint(checkpoint)
    loaded = load_model(checkpoint)
    assert not loaded.training
    assert loaded.dtype == torch.float32
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    text = "the cat sat, ünicode ☃ 123\n\n  x"
    assert load_tokenizer(checkpoint)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert json.loads((checkpoint / "provenance.json").read_text())["packages"]["torch"] == version("torch")


def test_the_wanted_type(checkpoint: Path) -> None:
    assert load_model(checkpoint, torch.float64).dtype == torch.float64


def test_saving_replaces_the_directory_whole(
    checkpoint: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    (checkpoint / "left_over.txt").touch()
    save_model(model, tokenizer, checkpoint)
    assert not (checkpoint / "left_over.txt").exists()
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(errno.ENOSPC, "full")]
)
def test_a_full_disk_leaves_the_old_checkpoint(
    checkpoint: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    before = load_file(checkpoint / "model.safetensors")

    def fail(directory: Path, **options: Any) -> None:
        (Path(directory) / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(DiskFullError, match="no space left on the disk while writing"):
        save_model(model, tokenizer, checkpoint)
    assert load_file(checkpoint / "model.safetensors").keys() == before.keys()
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


def shard(directory: Path) -> None:
    """Split the weights into two files with an index."""
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: weights[name] for name in names if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards(checkpoint: Path, model: LlamaForCausalLM) -> None:
    shard(checkpoint)
    assert [file.name for file in check_files(checkpoint)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    loaded = load_model(checkpoint)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    shard(checkpoint)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    assert message(checkpoint) == (
        f"{checkpoint} lacks the shard model-00002-of-00002.safetensors that model.safetensors.index.json names; "
        "copy it there again"
    )
    with pytest.raises(CheckpointError, match="lacks the shard"):
        load_model(checkpoint)


def test_a_truncated_file(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert message(checkpoint) == f"{file} is truncated: {len(whole) - 100} bytes of {len(whole)}; copy it again"
    file.write_bytes(whole[:5])
    assert message(checkpoint) == f"{file} is truncated or not a safetensors file; copy it again"
    file.write_bytes(b"\x04" + bytes(7) + b"{oops" + bytes(100))
    assert message(checkpoint) == f"{file} is not a safetensors file: its header cannot be read"


def test_pickles_are_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").touch()
    assert message(checkpoint) == (
        f"{checkpoint} has its weights in pytorch_model.bin, a pickle, which can run code when it is loaded; "
        "nptool reads safetensors only: convert it, or use a repository that has model.safetensors"
    )


def test_no_weights_no_configuration_no_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").rename("kept.json")
    (checkpoint / "tokenizer_config.json").unlink()
    assert message(checkpoint) == f"{checkpoint} has no tokenizer (tokenizer.json or the like)"
    (checkpoint / "model.safetensors").unlink()
    assert message(checkpoint) == (
        f"{checkpoint} has no model.safetensors and no model.safetensors.index.json; expected a Hugging Face checkpoint"
    )
    (checkpoint / "adapter_model.safetensors").touch()
    assert message(checkpoint) == f"{checkpoint} is a LoRA adapter; merge it into its base model first"
    (checkpoint / "config.json").unlink()
    assert message(checkpoint) == f"{checkpoint} has no config.json; expected a Hugging Face checkpoint"


def test_a_run_directory_points_to_its_model(checkpoint: Path) -> None:
    run = checkpoint.parent / "run"
    run.mkdir()
    shutil.move(checkpoint, run / "model")
    hint = f"; did you mean {run / 'model'}?"
    assert message(run) == f"{run} has no config.json; expected a Hugging Face checkpoint{hint}"
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(run)
    assert str(error.value) == f"{run} has no tokenizer (tokenizer.json or the like){hint}"


def test_a_vocabulary_that_does_not_fit(checkpoint: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    assert message(checkpoint) == (
        f"{checkpoint}: the tokenizer has {len(tokenizer)} tokens, the model's embedding 300; "
        "they belong to different models"
    )


def test_a_configuration_of_another_model(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError) as error:
        load_model(checkpoint)
    assert str(error.value) == (
        f"{checkpoint}: 9 tensors have no counterpart in the files (model.layers.2.input_layernorm.weight, "
        "model.layers.2.mlp.down_proj.weight, model.layers.2.mlp.gate_proj.weight, model.layers.2.mlp.up_proj.weight, "
        "...); config.json describes another model (llama) than the weights"
    )
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match="9 tensors have no counterpart in the architecture"):
        load_model(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(CheckpointError, match="cannot load the model of"):
        load_model(checkpoint)


def test_an_unknown_architecture(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    assert "cannot load the configuration of" in message(checkpoint)
    assert "`nonesuch`" in message(checkpoint)


def test_a_damaged_configuration(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    assert message(checkpoint).startswith(f"{checkpoint / 'config.json'} is not valid JSON")
    (checkpoint / "config.json").write_text("[]")
    assert message(checkpoint) == f"{checkpoint / 'config.json'} is not a JSON object; the checkpoint is damaged"


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("ref", ["./gone", "a/b/c", "/gone", "gone/"])
def test_paths_that_do_not_exist(ref: str) -> None:
    assert message(ref) == f"{ref} does not exist; expected a Hugging Face directory or Hub id"


@pytest.mark.usefixtures("no_hub")
def test_a_file_and_nothing(checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    assert message(file) == f"{file} is a file; expected a Hugging Face directory or Hub id"
    assert message("") == "the model does not exist; expected a Hugging Face directory or Hub id"


@pytest.mark.usefixtures("no_hub")
def test_a_hub_id_without_a_hub() -> None:
    expected = "nobody/nothing is not a local directory and not in the Hub cache, and the Hub cannot be reached"
    assert message("nobody/nothing") == expected


def test_a_hub_that_has_no_such_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    def refuse(self: HfApi, ref: str, timeout: float) -> None:
        raise HFValidationError(ref)

    monkeypatch.setattr(HfApi, "model_info", refuse)
    checkpoints.hub_has.cache_clear()
    assert message("not--allowed") == "not--allowed is neither a local directory nor a model on the Hub; check the name"
    checkpoints.hub_has.cache_clear()


def test_importing_loads_no_framework() -> None:
    script = "import sys, nptool.checkpoints; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"
