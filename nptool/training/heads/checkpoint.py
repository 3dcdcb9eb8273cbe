"""Multi-head checkpoints: a Hugging Face directory of the plain model, with the extra heads beside it.

`AutoModelForCausalLM.from_pretrained` on the directory gives the plain model. File format: `nptool.heads`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nptool.checkpoints import check_whole, load_model, save_model
from nptool.errors import CheckpointError
from nptool.files import atomic_directory
from nptool.heads import HEADS_WEIGHTS, HeadsInfo, read_heads_info, trunk_digest, write_heads_info
from nptool.heads_sample import HeadsSample, write_sample
from nptool.training.heads.model import MultiHead, add_heads


def save_heads(
    model: MultiHead,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    accuracy: tuple[tuple[float, ...], ...] = (),
    dtype: torch.dtype = torch.float32,
    sample: HeadsSample | None = None,
) -> None:
    """Write the checkpoint; it appears whole or not at all.

    Args:
        accuracy: of heads 2..n, see `HeadsInfo`.
        dtype: of the plain model's weights; `model` itself is converted. The heads are written in float32.
        sample: held-out prompts that `nptool convert` scores the GGUF on.
    """
    from safetensors.torch import save_file

    tensors = {
        model.extra.file_name(name): weight.detach().float().cpu().contiguous()
        for name, weight in model.extra.state_dict().items()
    }
    with atomic_directory(path) as directory, model.plain_model() as base:
        torch.nn.Module.to(base, dtype)
        save_model(base, tokenizer, directory)
        save_file(tensors, directory / HEADS_WEIGHTS, metadata={"format": "pt"})
        if sample is not None:
            write_sample(directory, sample)
        write_heads_info(
            directory,
            HeadsInfo(
                count=model.count,
                trunk_layer=model.config.num_hidden_layers - 1,
                model_type=model.config.model_type,
                hidden_size=model.config.hidden_size,
                vocab_size=model.config.vocab_size,
                trunk_digest=trunk_digest(directory),
                accuracy=accuracy,
                kind=model.extra.KIND,
                rank=model.extra.rank,
            ),
        )


def load_heads(directory: Path, dtype: torch.dtype = torch.float32) -> MultiHead:
    """A multi-head checkpoint as a model in evaluation mode on the CPU; `dtype` is the plain model's.

    Raises:
        CheckpointError: it has no heads, or they do not fit the model beside them.
    """
    info = read_heads_info(directory)
    if info is None:
        raise CheckpointError(f"{directory} has no heads; train some with `nptool train heads -m {directory}`")
    base: Any = load_model(directory, dtype)
    check_heads(directory, info, base.config)
    model = add_heads(base, info.count, info.kind, info.rank)
    _load_extra(directory / HEADS_WEIGHTS, model)
    return model.eval()


def check_heads(directory: Path, info: HeadsInfo, config: PretrainedConfig) -> None:
    """Raise `CheckpointError` if a checkpoint's heads are for another model, or incomplete. Loads no weights."""
    for name, found in (
        ("trunk_layer", config.num_hidden_layers - 1),
        ("model_type", config.model_type),
        ("hidden_size", config.hidden_size),
        ("vocab_size", config.vocab_size),
    ):
        if (expected := getattr(info, name)) != found:
            raise CheckpointError(
                f"the heads in {directory} are for a model with {name} {expected}, the one beside them has {found}; "
                "put back the model they were trained on"
            )
    check_whole(directory / HEADS_WEIGHTS)


def _load_extra(path: Path, model: MultiHead) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again") from error
    expected = {model.extra.file_name(name): (name, tensor) for name, tensor in model.extra.state_dict().items()}
    if wrong := sorted(found.keys() ^ expected.keys()):
        kind = "lacks" if wrong[0] in expected else "has an unknown"
        raise CheckpointError(
            f"{path} {kind} {wrong[0]}; the heads are not the {model.count} {model.extra.KIND} ones of heads.json, or "
            "of another architecture than the model"
        )
    for stored, (_, tensor) in expected.items():
        if found[stored].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {stored} has shape {list(found[stored].shape)}, this model's heads {list(tensor.shape)}; the "
                "heads were trained on another model"
            )
    model.extra.load_state_dict({name: found[stored] for stored, (name, _) in expected.items()})
