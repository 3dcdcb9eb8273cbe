"""Check, load and save Hugging Face checkpoints. Safetensors only: a pickle can run code.

Every function raises CheckpointError with the reason if the checkpoint cannot be used. The checks read no weights.
Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nptool.errors import CheckpointError, DiskFullError
from nptool.files import atomic_directory, read_json, write_json
from nptool.provenance import provenance
from nptool.silence import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_LENGTH_BYTES = 8
_SHOWN_KEYS = 4
HUB_SECONDS = 10


def check_checkpoint(ref: str | Path) -> None:
    """Check files, shards, sizes and vocabulary without reading the weights.

    Args:
        ref: a local directory, or a Hub id; only the configuration and the tokenizer of the latter are fetched.
    """
    if (directory := local_directory(ref)) is not None:
        check_files(directory)
    config = load_config(ref)
    check_vocabulary(config, load_tokenizer(ref), ref)


def check_files(directory: Path) -> list[Path]:
    """The weight files of a local checkpoint, each checked with `check_whole`."""
    _read_json(directory / "config.json", directory)
    if (directory / WEIGHTS).is_file():
        files = [directory / WEIGHTS]
    elif (directory / INDEX).is_file():
        weight_map = _read_json(directory / INDEX, directory).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{directory / INDEX} has no `weight_map`; the checkpoint is damaged")
        files = [directory / name for name in sorted(set(weight_map.values()))]
    else:
        raise CheckpointError(_no_weights(directory))
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{directory} lacks the shard {file.name} that {INDEX} names; copy it there again")
        check_whole(file)
    return files


def load_config(ref: str | Path) -> PretrainedConfig:
    from transformers import AutoConfig

    with _loading(ref, "configuration") as options:
        return cast("PretrainedConfig", AutoConfig.from_pretrained(str(ref), **options))


def load_tokenizer(ref: str | Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    directory = local_directory(ref)
    if directory is not None and not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{directory} has no tokenizer ({TOKENIZER_FILES[0]} or the like){_hint(directory)}")
    with _loading(ref, "tokenizer") as options:
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(str(ref), **options))


def load_model(ref: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, on the CPU.

    Args:
        dtype: type of the weights; None is float32.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if (directory := local_directory(ref)) is not None:
        check_files(directory)
    with _loading(ref, "model") as options:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(ref), dtype=dtype or torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    model, report = loaded
    for kind, place in (("missing", "in the files"), ("unexpected", "in the architecture")):
        if keys := sorted(map(str, report[f"{kind}_keys"])):
            names = ", ".join(keys[:_SHOWN_KEYS]) + (", ..." if len(keys) > _SHOWN_KEYS else "")
            raise CheckpointError(
                f"{ref}: {len(keys)} tensors have no counterpart {place} ({names}); "
                f"config.json describes another model ({model.config.model_type}) than the weights"
            )
    return cast("PreTrainedModel", model.eval())


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write safetensors, tokenizer and provenance to a directory, atomically.

    Args:
        state_dict: the weights, if `model` itself holds only a shard of them (FSDP, DeepSpeed).

    Raises:
        DiskFullError: the disk filled up; `path` is unchanged.
    """
    with atomic_directory(path) as directory, quiet(), disk_full(path):
        model.save_pretrained(directory, state_dict=state_dict)
        tokenizer.save_pretrained(directory)
        write_json(directory / "provenance.json", provenance())


@contextmanager
def disk_full(path: str | Path) -> Iterator[None]:
    """Translate the error that safetensors raises when the disk fills up while `path` is written.

    Raises:
        DiskFullError: the disk is full.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        # The Rust code does not raise OSError.
        if f"os error {errno.ENOSPC}" in str(error):
            raise DiskFullError(f"no space left on the disk while writing {path}; free some first") from error
        raise


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    with atomic_directory(path) as directory, quiet():
        tokenizer.save_pretrained(directory)


def check_vocabulary(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, ref: str | Path) -> None:
    """Check that every token id has a row in the embedding."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is not None and len(tokenizer) > rows:
        raise CheckpointError(
            f"{ref}: the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows}; "
            "they belong to different models"
        )


def local_directory(ref: str | Path) -> Path | None:
    """The directory that `ref` names, or None if it can only be a Hub id. A file or a missing path is an error."""
    path, text = Path(ref), str(ref)
    if text and path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{ref} is a file; expected a Hugging Face directory or Hub id")
    if isinstance(ref, Path) or not text or text[0] in "./~\\" or text.count("/") > 1 or text.endswith("/"):
        raise CheckpointError(f"{text or 'the model'} does not exist; expected a Hugging Face directory or Hub id")
    return None


@contextmanager
def _loading(ref: str | Path, part: str) -> Iterator[dict[str, Any]]:
    """Yield the options for a transformers loader, and translate what it raises for a bad checkpoint.

    The types of these exceptions differ between releases of transformers.
    """
    from safetensors import SafetensorError

    options: dict[str, Any] = {"trust_remote_code": False}
    if local_directory(ref) is None and not hub_has(str(ref)):
        options["local_files_only"] = True
    with quiet():
        try:
            yield options
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise DiskFullError(f"no space left on the disk while fetching {ref}; free some first") from error
            if isinstance(error, OSError) and "local_files_only" in options:
                raise CheckpointError(
                    f"{ref} is not a local directory and not in the Hub cache, and the Hub cannot be reached"
                ) from error
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
            raise CheckpointError(f"cannot load the {part} of {ref}: {reason}") from error


@cache
def hub_has(ref: str) -> bool:
    """Whether the Hub has a model; False if the Hub cannot be reached within `HUB_SECONDS`."""
    from huggingface_hub import HfApi, errors

    unreachable = errors.HTTPError  # type: ignore[attr-defined]  # re-exported from the HTTP client
    try:
        HfApi().model_info(ref, timeout=HUB_SECONDS)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise CheckpointError(f"{ref} is neither a local directory nor a model on the Hub; check the name") from error
    except (OSError, unreachable):
        return False
    return True


def _no_weights(directory: Path) -> str:
    for pattern in _PICKLES:
        if found := sorted(directory.glob(pattern)):
            return (
                f"{directory} has its weights in {found[0].name}, a pickle, which can run code when it is loaded; "
                "nptool reads safetensors only: convert it, or use a repository that has model.safetensors"
            )
    if any(directory.glob("adapter_model.*")):
        return f"{directory} is a LoRA adapter; merge it into its base model first"
    return f"{directory} has no {WEIGHTS} and no {INDEX}; expected a Hugging Face checkpoint"


def _hint(directory: Path) -> str:
    """The end of a message for a run directory, which has its checkpoint one level deeper."""
    inside = directory / "model"
    return f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""


def check_whole(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file (tensor name to entry) and the offset of its data, in bytes.

    The file begins with the length of its JSON header: 8 bytes, little-endian.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if start > size:
            raise CheckpointError(f"{file} is truncated or not a safetensors file; copy it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{file} is not a safetensors file: its header cannot be read") from error
    if size < end:
        raise CheckpointError(f"{file} is truncated: {size} bytes of {end}; copy it again")
    return header, start


def _read_json(path: Path, directory: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{directory} has no {path.name}; expected a Hugging Face checkpoint{_hint(directory)}")
    value = read_json(path, CheckpointError)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; the checkpoint is damaged")
    return value
