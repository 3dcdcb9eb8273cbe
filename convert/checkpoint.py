"""A Hugging Face checkpoint opened for conversion: configuration, tensors on disk, method note."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nptool.checkpoints import check_files, load_config, local_directory
from nptool.convert.layers.weights import StoredTensor, read_index
from nptool.errors import CheckpointError, NptoolError
from nptool.files import disk_errors, read_json
from nptool.method_note import MethodNote, read_note

FETCHED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "additional_chat_templates/*")
# llama.cpp splits special tokens differently in models with these names, and fails if such a token is missing.
SPECIAL_NAMES = ("phi-3", "phi3", "modern-bert")


@dataclass(frozen=True)
class Checkpoint:
    """A local checkpoint."""

    name: str
    """The user's name of it."""
    directory: Path
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    note: MethodNote | None
    """How the model was trained to decode in parallel, if training noted it."""

    @property
    def display_name(self) -> str:
        """A name for people, `general.name`."""
        return "model" if any(word in self.last_name.lower() for word in SPECIAL_NAMES) else self.last_name

    @property
    def last_name(self) -> str:
        """The directory's, or the Hub id's without its owner."""
        # Not `directory`, which is a temporary one for other layouts.
        return Path(self.name).resolve().name if Path(self.name).exists() else self.name.rpartition("/")[2]


def open_checkpoint(ref: str | Path) -> Checkpoint:
    """Open a directory or Hub id.

    Raises:
        CheckpointError: not there, no safetensors, a shard missing or truncated.
    """
    directory = local_directory(ref) or _fetched(str(ref))
    files = check_files(directory)
    config = read_json(directory / "config.json")
    return Checkpoint(str(ref).rstrip("/"), directory, config, read_index(files), read_note(directory))


@contextmanager
def opened_checkpoint(ref: str | Path, place: Path) -> Iterator[Checkpoint]:
    """`open_checkpoint`, also for Meta's layout, which is imported for the duration of the block.

    Args:
        place: a directory with room for the import.

    Raises:
        CheckpointError: see `open_checkpoint` and `import_meta`.
    """
    from nptool.convert.meta import import_meta, is_meta

    source = local_directory(ref)
    if source is None or not is_meta(source):
        yield open_checkpoint(ref)
        return
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place, prefix=f".{source.name}.", suffix=".tmp") as name:
            try:
                import_meta(source, Path(name))
                yield replace(open_checkpoint(name), name=str(ref).rstrip("/"))
            except NptoolError as error:
                raise type(error)(str(error).replace(name, str(source))) from error


def _fetched(ref: str) -> Path:
    """Download a checkpoint into the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # Raises a clear error for a wrong name or no connection.
    load_config(ref)
    try:
        return Path(snapshot_download(ref, allow_patterns=list(FETCHED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise CheckpointError(f"{ref} could not be fetched from the Hub: {str(error).splitlines()[0]}") from error
