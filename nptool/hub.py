"""GGUF files on the Hugging Face Hub, named as in llama.cpp: USER/REPO, or USER/REPO:TYPE such as :Q8_0."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from nptool.errors import DataError, UsageError

PREFERRED = ("Q4_K_M", "Q8_0")
"""Types that are chosen if none is named, the first ones first; then any."""
HUB_SECONDS = 10
_REFERENCE = re.compile(r"(?P<repo>[^/:\s]+/[^/:\s]+)(:(?P<kind>[\w-]+))?")
_TYPE = re.compile(r"[-._]([a-z]*[0-9][a-z0-9_]*)\.gguf$", re.IGNORECASE)
# Projectors of images, draft models, and parts of a split file, which are no models by themselves.
_NO_MODEL = re.compile(r"(^|/)(mmproj|mtp)-|-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def fetch_gguf(ref: str) -> Path:
    """The path of a model in the Hub's cache, downloaded if it is not there. Without a connection, what is there.

    Raises:
        UsageError: `ref` is no reference.
        DataError: there is no such repository or file, or no connection to fetch it.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download

    found = _REFERENCE.fullmatch(ref)
    if found is None:
        raise UsageError(f"{ref!r} is no model on the Hub; expected USER/REPO or USER/REPO:TYPE")
    repo, kind = found["repo"], found["kind"]
    unreachable = errors.HTTPError  # type: ignore[attr-defined]  # re-exported from the HTTP client
    try:
        files = HfApi().model_info(repo, timeout=HUB_SECONDS).siblings or ()
        return Path(hf_hub_download(repo, choose_gguf(repo, [file.rfilename for file in files], kind)))
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise DataError(f"there is no model {repo} on the Hub that this machine may read; check the name") from error
    except (OSError, unreachable) as error:
        return _cached(repo, kind, error)


def choose_gguf(repo: str, names: Iterable[str], kind: str | None = None) -> str:
    """The file of a repository that has the type `kind`, or else the preferred one.

    Raises:
        DataError: there is none.
    """
    files = {name: _type_of(name) for name in sorted(names) if name.endswith(".gguf") and not _NO_MODEL.search(name)}
    if not files:
        raise DataError(f"{repo} has no GGUF of one file; convert a checkpoint with `nptool convert {repo}`")
    for wanted in PREFERRED if kind is None else (kind,):
        for name, found in files.items():
            if found == wanted.upper():
                return name
    if kind is not None:
        known = ", ".join(sorted(filter(None, set(files.values()))))
        raise DataError(f"{repo} has no GGUF of type {kind}; it has {known or ', '.join(files)}")
    return next(iter(files))


def _type_of(name: str) -> str:
    found = _TYPE.search(name)
    return found[1].upper() if found else ""


def _cached(repo: str, kind: str | None, problem: Exception) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise DataError(f"{repo} is not in the Hub's cache, and the Hub cannot be reached: {reason}") from problem
    return folder / choose_gguf(repo, [str(path.relative_to(folder)) for path in folder.rglob("*.gguf")], kind)
