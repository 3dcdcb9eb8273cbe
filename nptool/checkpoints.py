"""Hugging Face checkpoints: checked, loaded, saved.

Safetensors only: a pickle can run code. Everything that can be found out without reading the weights is found out
before they are read, so a mistake costs seconds. Knows no training; importing this module loads neither torch nor
transformers.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nptool.errors import CheckpointError, DiskFullError
from nptool.files import atomic_directory
from nptool.provenance import provenance
from nptool.silence import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PROVENANCE = "provenance.json"
# A safetensors file begins with the length of its JSON header: 8 bytes, little-endian.
_LENGTH_BYTES = 8
_SHOWN_KEYS = 4
HUB_SECONDS = 10


def check_checkpoint(ref: str | Path) -> None:
    """Check all that can be checked without reading the weights: files, shards, sizes, vocabulary.

    Args:
        ref: a local directory or a Hub id (of which only configuration and tokenizer are fetched).

    Raises:
        CheckpointError: the checkpoint cannot be used; the message says why.
    """
    if (directory := local_directory(ref)) is not None:
        check_files(directory)
    config = load_config(ref)
    check_vocabulary(config, load_tokenizer(ref), ref)


def check_files(directory: Path) -> list[Path]:
    """The weight files of a local checkpoint, after checking that all are there and whole.

    Raises:
        CheckpointError: no configuration, pickle weights only, a shard missing or truncated.
    """
    _read_json(directory / "config.json", directory)
    if (directory / INDEX).is_file() and not (directory / WEIGHTS).is_file():
        weight_map = _read_json(directory / INDEX, directory).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{directory / INDEX} has no `weight_map`; the checkpoint is damaged")
        files = [directory / name for name in sorted(set(weight_map.values()))]
    elif (directory / WEIGHTS).is_file():
        files = [directory / WEIGHTS]
    else:
        raise CheckpointError(_no_weights(directory))
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{directory} lacks the shard {file.name} that {INDEX} names; copy it there again")
        check_whole(file)
    return files


def load_config(ref: str | Path) -> PretrainedConfig:
    """The checkpoint's configuration.

    Raises:
        CheckpointError: there is none, or its architecture is not one of transformers'.
    """
    from transformers import AutoConfig

    with _loading(ref, "configuration") as options:
        return cast("PretrainedConfig", AutoConfig.from_pretrained(str(ref), **options))


def load_tokenizer(ref: str | Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    directory = local_directory(ref)
    if directory is not None and not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{directory} has no tokenizer ({TOKENIZER_FILES[0]} or the like){_hint(directory)}")
    with _loading(ref, "tokenizer") as options:
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(str(ref), **options))


def load_model(ref: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The checkpoint as a causal language model in evaluation mode, on the CPU.

    Args:
        dtype: of the weights; None is float32.

    Raises:
        CheckpointError: files missing or damaged, pickle weights, unknown architecture, tensors that do not fit it.
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
    """Write a Hugging Face directory (safetensors, tokenizer, provenance) that appears whole or not at all.

    Args:
        state_dict: the weights, where `model` itself holds only a share of them (FSDP, DeepSpeed).

    Raises:
        DiskFullError: the disk filled up; `path` is as it was before.
    """
    with atomic_directory(path) as directory, quiet(), disk_full(path):
        model.save_pretrained(directory, state_dict=state_dict)
        tokenizer.save_pretrained(directory)
        (directory / PROVENANCE).write_text(json.dumps(provenance(), indent=2) + "\n", encoding="utf-8")


@contextmanager
def disk_full(path: str | Path) -> Iterator[None]:
    """Turn what safetensors raises when the disk fills up while `path` is written into one clear line.

    Raises:
        DiskFullError: it did.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        # The Rust side does not raise OSError.
        if f"os error {errno.ENOSPC}" in str(error):
            raise DiskFullError(f"no space left on the disk while writing {path}; free some first") from error
        raise


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Write a tokenizer's directory that appears whole or not at all."""
    with atomic_directory(path) as directory, quiet():
        tokenizer.save_pretrained(directory)


def check_vocabulary(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, ref: str | Path) -> None:
    """Check that every token id has a row in the embedding.

    Raises:
        CheckpointError: the tokenizer has more tokens than the model.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is not None and len(tokenizer) > rows:
        raise CheckpointError(
            f"{ref}: the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows}; "
            "they belong to different models"
        )


def local_directory(ref: str | Path) -> Path | None:
    """The directory `ref` names, or None when `ref` can only be a Hub id.

    Raises:
        CheckpointError: `ref` is a file, or is written like a path and does not exist.
    """
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
    """Yield the options for a transformers loader, and turn what it raises for a bad checkpoint into one line.

    Its own exceptions differ from release to release (OSError, ValueError, KeyError, RuntimeError, ...), but all of
    them mean here that the files are not what they should be.
    """
    from safetensors import SafetensorError

    options: dict[str, Any] = {"trust_remote_code": False}
    if local_directory(ref) is None and not hub_has(str(ref)):
        options["local_files_only"] = True
    with quiet():
        try:
            yield options
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFullError(f"no space left on the disk while fetching {ref}; free some first") from error
            if options.get("local_files_only"):
                raise CheckpointError(
                    f"{ref} is no directory here, and neither in the local Hub cache nor is the Hub reachable"
                ) from error
            raise CheckpointError(f"cannot load the {part} of {ref}: {_first_sentence(error)}") from error
        except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
            raise CheckpointError(f"cannot load the {part} of {ref}: {_first_sentence(error)}") from error


@cache
def hub_has(ref: str) -> bool:
    """Ask the Hub once; False when it cannot be reached (transformers itself would try for 45 seconds per file).

    Raises:
        CheckpointError: the Hub answers that it has no such model.
    """
    from huggingface_hub import HfApi, errors

    unreachable = errors.HTTPError  # type: ignore[attr-defined]  # its HTTP client's, re-exported
    try:
        HfApi().model_info(ref, timeout=HUB_SECONDS)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise CheckpointError(f"{ref} is no directory here and no model on the Hub; check the name") from error
    except (OSError, unreachable):
        return False
    return True


def _first_sentence(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


def _no_weights(directory: Path) -> str:
    for pattern in PICKLE_PATTERNS:
        if found := sorted(directory.glob(pattern)):
            return (
                f"{directory} has its weights in {found[0].name}, a pickle, which can run code when it is loaded; "
                "nptool reads safetensors only: convert it, or use a repository that has model.safetensors"
            )
    if any(directory.glob("adapter_model.*")):
        return f"{directory} is a LoRA adapter; merge it into its base model first"
    return f"{directory} has no {WEIGHTS} and no {INDEX}; expected a Hugging Face checkpoint"


def _hint(directory: Path) -> str:
    """A run directory holds its checkpoint one level deeper."""
    inside = directory / "model"
    return f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""


def check_whole(file: Path) -> None:
    """Compare a safetensors file's size with what its header announces.

    Raises:
        CheckpointError: it is truncated, or no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        length = struct.unpack("<Q", start)[0] if len(start) == _LENGTH_BYTES else size
        if _LENGTH_BYTES + length > size:
            raise CheckpointError(f"{file} is truncated or no safetensors file; copy it again")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{file} is no safetensors file; its header cannot be read") from error
    expected = _LENGTH_BYTES + length + max(ends, default=0)
    if size < expected:
        raise CheckpointError(f"{file} is truncated: {size} bytes of {expected}; copy it again")


def _read_json(path: Path, directory: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory} has no {path.name}; expected a Hugging Face checkpoint{_hint(directory)}"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; the checkpoint is damaged")
    return value
