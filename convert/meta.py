"""Meta's multi-token checkpoints, put into the layout of Hugging Face with heads beside it.

The layout is that of the code released with facebook/multi-token-prediction, of which a copy is public:
https://github.com/wooshikwon/wmtp/blob/68a6d68e6bf7ed7ba9d9195845b9f40756f140f2/models_backup/7b_1t_4/llama/model.py.
`layers` are the trunk and head 1, `extra_heads` the other heads; all share `norm` and `output`, and `n_layers` counts
trunk and heads. Rotary positions turn neighbouring rows (2i, 2i + 1) of queries and keys, transformers turns row i with
row i + head_dim / 2. The release's README runs `--ckpt_dir 7B_200B_4/ --tokenizer_path tokenizer.model`: one tokenizer
lies beside the checkpoints' directories. Knows no GGUF.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nptool.checkpoints import INDEX, disk_full
from nptool.convert.rope import pair_order
from nptool.convert.tensors import EMBEDDING, LAYER_PREFIX, UNEMBEDDING, check_names
from nptool.convert.tokenizer_files import SENTENCE_PIECE_MODEL
from nptool.errors import CheckpointError, DataError
from nptool.files import read_json
from nptool.heads import HEADS_WEIGHTS, HeadsInfo, head_tensor, trunk_digest, write_heads_info

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = "params.json"
WEIGHTS = "consolidated.pth"
CONTEXT = 2048
"""`max_seq_len` of the released code, where params.json does not say it."""
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


@dataclass(frozen=True)
class Parameters:
    """What params.json says."""

    hidden: int
    layers: int
    """Of trunk and all heads together."""
    heads: int
    """Of attention."""
    key_value_heads: int
    future_tokens: int
    """n: heads of prediction in all."""
    norm_epsilon: float
    rope_theta: float
    context: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """
        Raises:
            CheckpointError: it is damaged, or a size is missing.
        """
        try:
            values = read_json(path)
            found = cls(
                hidden=int(values["dim"]),
                layers=int(values["n_layers"]),
                heads=int(values["n_heads"]),
                key_value_heads=int(values.get("n_kv_heads") or values["n_heads"]),
                future_tokens=int(values.get("n_future_tokens", 1)),
                norm_epsilon=float(values.get("norm_eps", 1e-5)),
                rope_theta=float(values.get("rope_theta", 10000.0)),
                context=int(values.get("max_seq_len", CONTEXT)),
            )
        except DataError as error:
            raise CheckpointError(str(error)) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path} does not have the numbers of Meta's release, dim, n_layers and n_heads among them"
            ) from error
        if not 1 <= found.future_tokens <= found.layers:
            raise CheckpointError(
                f"{path} has n_future_tokens = {found.future_tokens} and n_layers = {found.layers}; expected 1 or more "
                "heads, which n_layers counts too"
            )
        return found

    @property
    def own_layers(self) -> int:
        """Layers of the ordinary model: the trunk's and head 1."""
        return self.layers - self.future_tokens + 1

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def is_meta(directory: Path) -> bool:
    """Whether a directory is in Meta's layout and not in that of Hugging Face."""
    return (directory / WEIGHTS).is_file() and not (directory / "config.json").is_file()


def import_meta(source: Path, target: Path) -> None:
    """Write Meta's checkpoint at `source` as a multi-head checkpoint into the empty directory `target`.

    One file for each layer is written, so that memory holds one at a time.

    Raises:
        CheckpointError: files or tensors are missing, damaged, or not what params.json says.
        DiskFullError: the disk filled up.
    """
    if not (source / PARAMETERS).is_file():
        raise CheckpointError(f"{source} has {WEIGHTS} but no {PARAMETERS}; expected both, as Meta's release has")
    places = [folder / SENTENCE_PIECE_MODEL for folder in (source, source.resolve().parent)]
    tokenizer = next((place for place in places if place.is_file()), None)
    if tokenizer is None:
        raise CheckpointError(
            f"there is no {SENTENCE_PIECE_MODEL} in {source} nor in the folder above it, where Meta's release has it; "
            "copy it there"
        )
    parameters = Parameters.read(source / PARAMETERS)
    weights = _load(source / WEIGHTS)
    _check(weights, parameters, source)
    shutil.copyfile(tokenizer, target / SENTENCE_PIECE_MODEL)
    ends = _write_tokenizer_settings(target)
    _write_config(target, parameters, weights, ends)
    _write_model(target, parameters, weights)
    if parameters.future_tokens > 1:
        _write_heads(target, parameters, weights)


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors, still on the disk."""
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


def _layer_tensors(prefix: str) -> dict[str, str]:
    """Names of a layer's tensors: transformers' behind its own prefix, to Meta's with `prefix`."""
    return {f"{theirs}.weight": f"{prefix}.{ours}.weight" for ours, theirs in LAYER_NAMES.items()}


def _check(weights: Mapping[str, Tensor], parameters: Parameters, source: Path) -> None:
    expected = set(NAMES)
    for number in range(parameters.own_layers):
        expected.update(_layer_tensors(f"layers.{number}").values())
    for number in range(parameters.future_tokens - 1):
        expected.update(_layer_tensors(f"extra_heads.{number}").values())
    owner = f"{PARAMETERS} (n_layers = {parameters.layers}, n_future_tokens = {parameters.future_tokens})"
    found = sorted(set(weights) - {"rope.freqs"})
    check_names(str(source / WEIGHTS), owner, sorted(expected), found, lambda *_: "they belong to different models")
    for name, heads in (("wq", parameters.heads), ("wk", parameters.key_value_heads)):
        shape, needed = tuple(weights[f"layers.0.attention.{name}.weight"].shape), heads * parameters.head_dim
        if shape != (needed, parameters.hidden):
            raise CheckpointError(
                f"{source / WEIGHTS}: attention.{name} has shape {shape}, {PARAMETERS} asks for "
                f"{(needed, parameters.hidden)}; they belong to different models"
            )


def _layer(
    weights: Mapping[str, Tensor], ours: str, theirs: str, parameters: Parameters
) -> Iterator[tuple[str, Tensor]]:
    """A layer's tensors by transformers' name, rows of queries and keys in transformers' order.

    Args:
        ours, theirs: what stands before a tensor's name in Meta's layout, and is put before transformers'.
    """
    import torch

    for name, stored in _layer_tensors(ours).items():
        tensor = weights[stored]
        if any(part in stored for part in ROTATED):
            order = np.argsort(pair_order(len(tensor), parameters.head_dim))
            tensor = tensor[torch.from_numpy(order)]
        yield f"{theirs}{name}", tensor


def _write_model(target: Path, parameters: Parameters, weights: Mapping[str, Tensor]) -> None:
    """The ordinary model in one file for each layer and one for the rest."""
    parts: list[Iterator[tuple[str, Tensor]]] = [iter([(theirs, weights[ours]) for ours, theirs in NAMES.items()])]
    for number in range(parameters.own_layers):
        parts.append(_layer(weights, f"layers.{number}", f"{LAYER_PREFIX}{number}.", parameters))
    files: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        tensors, file = dict(part), f"model-{number:05}-of-{len(parts):05}.safetensors"
        _save(tensors, target / file)
        files |= dict.fromkeys(tensors, file)
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")


def _write_heads(target: Path, parameters: Parameters, weights: Mapping[str, Tensor]) -> None:
    tensors: dict[str, Tensor] = {}
    for number in range(2, parameters.future_tokens + 1):
        tensors |= _layer(weights, f"extra_heads.{number - 2}", head_tensor(number, ""), parameters)
    _save(tensors, target / HEADS_WEIGHTS)
    info = HeadsInfo(
        count=parameters.future_tokens,
        trunk_layer=parameters.own_layers - 1,
        model_type="llama",
        hidden_size=parameters.hidden,
        vocab_size=len(weights["tok_embeddings.weight"]),
        trunk_digest=trunk_digest(target),
    )
    write_heads_info(target, info)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with disk_full(path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _write_config(target: Path, parameters: Parameters, weights: Mapping[str, Tensor], ends: dict[str, int]) -> None:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": parameters.hidden,
        "intermediate_size": len(weights["layers.0.feed_forward.w1.weight"]),
        "num_hidden_layers": parameters.own_layers,
        "num_attention_heads": parameters.heads,
        "num_key_value_heads": parameters.key_value_heads,
        "vocab_size": len(weights["tok_embeddings.weight"]),
        "max_position_embeddings": parameters.context,
        "rms_norm_eps": parameters.norm_epsilon,
        "rope_theta": parameters.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **ends,
    }
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _write_tokenizer_settings(target: Path) -> dict[str, int]:
    """What tokenizer.model says of its special tokens, in Hugging Face's file; and their ids for config.json.

    Raises:
        CheckpointError: tokenizer.model is no SentencePiece model.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(target / SENTENCE_PIECE_MODEL))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{target / SENTENCE_PIECE_MODEL} is no SentencePiece model; copy it again") from error
    ids = {"bos": processor.bos_id(), "eos": processor.eos_id(), "unk": processor.unk_id()}
    settings: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    settings |= {f"{role}_token": processor.IdToPiece(number) for role, number in ids.items() if number >= 0}
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return {f"{role}_token_id": number for role, number in ids.items() if number >= 0 and role != "unk"}
