"""Meta's multi-token checkpoints, rewritten in Hugging Face's layout with heads beside the model.

Format: a public copy of the code released with facebook/multi-token-prediction:
https://github.com/wooshikwon/wmtp/blob/68a6d68e6bf7ed7ba9d9195845b9f40756f140f2/models_backup/7b_1t_4/llama/model.py.
`layers` are the trunk and head 1, `extra_heads` the other heads; all share `norm` and `output`, and `n_layers` counts
trunk and heads. Queries and keys have the row order of `rope.pair_order`. One tokenizer serves all checkpoints, in the
folder above theirs.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nptool.checkpoints import INDEX, disk_full
from nptool.convert.families.llama import ARCHITECTURE
from nptool.convert.layers import rope
from nptool.convert.tensors import EMBEDDING, LAYER_PREFIX, UNEMBEDDING, check_names, check_shapes
from nptool.convert.tokenizer_files import SENTENCE_PIECE_MODEL
from nptool.errors import CheckpointError, DataError
from nptool.files import read_json, write_json
from nptool.heads import HEADS_WEIGHTS, HeadsInfo, head_tensor, trunk_digest, write_heads_info

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = "params.json"
WEIGHTS = "consolidated.pth"
MODEL_TYPE = "llama"
CONTEXT = 2048
"""Default of `max_seq_len` in the released code."""
NAMES = {"tok_embeddings.weight": EMBEDDING, "norm.weight": "model.norm.weight", "output.weight": UNEMBEDDING}
LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
ROTATED = ("attention.wq", "attention.wk")


def is_meta(directory: Path) -> bool:
    """Whether a directory is in Meta's layout and not in Hugging Face's."""
    return (directory / WEIGHTS).is_file() and not (directory / "config.json").is_file()


def import_meta(source: Path, target: Path) -> None:
    """Write Meta's checkpoint at `source` as a multi-head checkpoint into the empty directory `target`.

    Writes one file per layer, so that memory holds one layer at a time.

    Raises:
        CheckpointError: files or tensors are missing, damaged, or not what params.json says.
        DiskFullError: the disk filled up.
    """
    if not (source / PARAMETERS).is_file():
        raise CheckpointError(f"{source} has {WEIGHTS} but no {PARAMETERS}; expected both, as Meta's release has")
    places = [folder / SENTENCE_PIECE_MODEL for folder in (source, source.resolve().parent)]
    tokenizers = [place for place in places if place.is_file()]
    if not tokenizers:
        raise CheckpointError(
            f"there is no {SENTENCE_PIECE_MODEL} in {source} nor in the folder above it, where Meta's release has it; "
            "copy it there"
        )
    config, count = _read_parameters(source / PARAMETERS)
    weights = _load(source / WEIGHTS)
    _check(weights, config, count, source)
    shutil.copyfile(tokenizers[0], target / SENTENCE_PIECE_MODEL)
    config |= {
        "intermediate_size": len(weights["layers.0.feed_forward.w1.weight"]),
        "vocab_size": len(weights["tok_embeddings.weight"]),
        **_write_tokenizer_settings(target),
    }
    write_json(target / "config.json", config)
    _write_model(target, config, weights)
    if count > 1:
        _write_heads(target, config, count, weights)


def _read_parameters(path: Path) -> tuple[dict[str, Any], int]:
    """A params.json in the terms of config.json, and n, the number of heads."""
    try:
        values = read_json(path)
        layers, heads, count = int(values["n_layers"]), int(values["n_heads"]), int(values.get("n_future_tokens", 1))
        config = {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "hidden_size": int(values["dim"]),
            "num_hidden_layers": layers - count + 1,
            "num_attention_heads": heads,
            "num_key_value_heads": int(values.get("n_kv_heads") or heads),
            "head_dim": int(values["dim"]) // heads,
            "max_position_embeddings": int(values.get("max_seq_len", CONTEXT)),
            "rms_norm_eps": float(values.get("norm_eps", 1e-5)),
            "rope_theta": float(values.get("rope_theta", 10000.0)),
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} needs the numbers dim, n_layers and n_heads of Meta's release") from error
    if not 1 <= count <= layers:
        raise CheckpointError(
            f"{path} has n_future_tokens = {count} and n_layers = {layers}; expected 1 or more heads, which n_layers "
            "counts too"
        )
    return config, count


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors, mapped from disk."""
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, which could run code when it is loaded; expected Meta's own file"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or no file of torch.save; copy it again") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} is no table of tensors; expected Meta's own file")
    return loaded


def _check(weights: Mapping[str, Tensor], config: dict[str, Any], count: int, source: Path) -> None:
    layers, hidden, size = config["num_hidden_layers"], config["hidden_size"], config["head_dim"]
    blocks = [f"layers.{number}" for number in range(layers)] + [f"extra_heads.{number}" for number in range(count - 1)]
    expected = sorted([*NAMES, *(f"{block}.{name}.weight" for block in blocks for name in LAYER_NAMES)])
    owner = f"{PARAMETERS} (n_layers = {layers + count - 1}, n_future_tokens = {count})"
    advice = "they belong to different models"
    check_names(str(source / WEIGHTS), owner, expected, sorted(set(weights) - {"rope.freqs"}), lambda *_: advice)
    rows = {"wq": config["num_attention_heads"] * size, "wk": config["num_key_value_heads"] * size}
    shapes = {f"layers.0.attention.{name}.weight": (number, hidden) for name, number in rows.items()}
    check_shapes(str(source / WEIGHTS), PARAMETERS, shapes, weights, advice)


def _layer(weights: Mapping[str, Tensor], block: str, prefix: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of Meta's `block` under transformers' names after `prefix`, in transformers' row order."""
    import torch

    tensors = {}
    for ours, theirs in LAYER_NAMES.items():
        tensor = weights[f"{block}.{ours}.weight"]
        if ours in ROTATED:
            tensor = tensor[torch.from_numpy(np.argsort(rope.pair_order(len(tensor), config["head_dim"])))]
        tensors[f"{prefix}{theirs}.weight"] = tensor
    return tensors


def _write_model(target: Path, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """The ordinary model in one file per layer and one for the rest."""
    files: dict[str, str] = {}
    layers = config["num_hidden_layers"]
    for number in range(layers + 1):
        tensors = {theirs: weights[ours] for ours, theirs in NAMES.items()}
        if number < layers:
            tensors = _layer(weights, f"layers.{number}", f"{LAYER_PREFIX}{number}.", config)
        file = f"model-{number + 1:05}-of-{layers + 1:05}.safetensors"
        _save(tensors, target / file)
        files |= dict.fromkeys(tensors, file)
    write_json(target / INDEX, {"metadata": {}, "weight_map": files})


def _write_heads(target: Path, config: dict[str, Any], count: int, weights: Mapping[str, Tensor]) -> None:
    tensors: dict[str, Tensor] = {}
    for number in range(2, count + 1):
        tensors |= _layer(weights, f"extra_heads.{number - 2}", head_tensor(number, ""), config)
    _save(tensors, target / HEADS_WEIGHTS)
    info = HeadsInfo(
        count=count,
        trunk_layer=config["num_hidden_layers"] - 1,
        model_type=MODEL_TYPE,
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        trunk_digest=trunk_digest(target),
    )
    write_heads_info(target, info)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with disk_full(path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _write_tokenizer_settings(target: Path) -> dict[str, int]:
    """Write the special tokens of tokenizer.model to Hugging Face's file; returns their ids for config.json."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(target / SENTENCE_PIECE_MODEL))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{target / SENTENCE_PIECE_MODEL} is no SentencePiece model; copy it again") from error
    ids = {"bos": processor.bos_id(), "eos": processor.eos_id(), "unk": processor.unk_id()}
    settings: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    settings |= {f"{role}_token": processor.IdToPiece(number) for role, number in ids.items() if number >= 0}
    write_json(target / "tokenizer_config.json", settings)
    return {f"{role}_token_id": number for role, number in ids.items() if number >= 0 and role != "unk"}
