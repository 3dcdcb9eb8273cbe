"""Multi-head checkpoints: a Hugging Face directory of the plain model, with the extra heads beside it.

`AutoModelForCausalLM.from_pretrained` on the directory gives the plain model. File format: `nptool.heads`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nptool.checkpoints import check_whole, load_model, save_model
from nptool.errors import CheckpointError
from nptool.files import atomic_directory
from nptool.heads import HEADS_WEIGHTS, HeadsInfo, head_tensor, read_heads_info, trunk_digest, write_heads_info
from nptool.training.heads.head import new_head
from nptool.training.heads.model import MultiHead, check_layers


def save_heads(
    model: MultiHead,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    accuracy: tuple[tuple[float, ...], ...] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the checkpoint; it appears whole or not at all.

    Args:
        accuracy: of heads 2..n, see `HeadsInfo`.
        dtype: of the plain model's weights; `model` itself is converted. The heads are written in float32.
    """
    from safetensors.torch import save_file

    tensors = {
        head_tensor(number, name): weight.detach().float().cpu().contiguous()
        for number, head in enumerate(model.extra, start=2)
        for name, weight in head.state_dict().items()
    }
    with atomic_directory(path) as directory, model.plain_model() as base:
        torch.nn.Module.to(base, dtype)
        save_model(base, tokenizer, directory)
        save_file(tensors, directory / HEADS_WEIGHTS, metadata={"format": "pt"})
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
            ),
        )


def load_heads(directory: Path) -> MultiHead:
    """A multi-head checkpoint as a model in evaluation mode, in float32 on the CPU.

    Raises:
        CheckpointError: it has no heads, or they do not fit the model beside them.
    """
    info = read_heads_info(directory)
    if info is None:
        raise CheckpointError(f"{directory} has no heads; train some with `nptool train heads -m {directory}`")
    base: Any = load_model(directory)
    check_layers(base)
    check_heads(directory, info, base.config)
    return MultiHead(base, _load_extra(directory, info, base.base_model.layers[-1])).eval()


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


def _load_extra(directory: Path, info: HeadsInfo, last_layer: torch.nn.Module) -> list[torch.nn.Module]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / HEADS_WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again") from error
    heads = []
    for number in range(2, info.count + 1):
        prefix = head_tensor(number, "")
        own = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        head = new_head(last_layer)
        _check_shapes(own, head.state_dict(), f"{path}: head {number}")
        head.load_state_dict(own)
        heads.append(head)
    if tensors:
        raise CheckpointError(f"{path} holds {min(tensors)}, which is none of the {info.count} heads of heads.json")
    return heads


def _check_shapes(found: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    if wrong := sorted(found.keys() ^ expected.keys()):
        kind = "lacks" if wrong[0] in expected else "has an unknown"
        raise CheckpointError(f"{where} {kind} {wrong[0]}; the heads are of another architecture than the model")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{where}: {name} has shape {list(found[name].shape)}, the model's layers {list(tensor.shape)}; "
                "the heads were trained on another model"
            )
