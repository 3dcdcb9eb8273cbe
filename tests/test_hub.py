"""GGUFs on the Hub: which file is chosen, and what happens without a connection."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from nptool.errors import DataError, UsageError
from nptool.hub import choose_gguf, fetch_gguf

FILES = ("README.md", "mmproj-q8_0.gguf", "m-Q8_0.gguf", "m.q4_k_m.gguf", "m-f16.gguf", "m-Q2_K-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("names", "kind", "chosen"),
    [
        (FILES, None, "m.q4_k_m.gguf"),
        (FILES, "Q4_K_M", "m.q4_k_m.gguf"),
        (FILES, "f16", "m-f16.gguf"),
        (FILES[:3], None, "m-Q8_0.gguf"),
        (("sub/model.gguf",), None, "sub/model.gguf"),
    ],
)
def test_the_chosen_file(names: tuple[str, ...], kind: str | None, chosen: str) -> None:
    assert choose_gguf("a/b", names, kind) == chosen


def test_no_such_file() -> None:
    with pytest.raises(DataError, match=r"^a/b has no GGUF of type q2_k; it has F16, Q4_K_M, Q8_0$"):
        choose_gguf("a/b", FILES, "q2_k")
    with pytest.raises(DataError, match="a/b has no GGUF of one file; convert a checkpoint with `nptool convert a/b`"):
        choose_gguf("a/b", ("model.safetensors",))


@pytest.mark.parametrize("ref", ["model", "a/b/c", "a/b:", "a b/c", ""])
def test_no_reference(ref: str) -> None:
    with pytest.raises(UsageError, match="expected USER/REPO or USER/REPO:TYPE"):
        fetch_gguf(ref)


def test_the_file_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in FILES])
    monkeypatch.setattr(HfApi, "model_info", lambda self, repo, **_: listing)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: f"/cache/{repo}/{name}")
    assert fetch_gguf("a/b:f16") == Path("/cache/a/b/m-f16.gguf")


def test_an_unknown_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: HfApi, repo: str, **_: Any) -> None:
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "model_info", missing)
    with pytest.raises(DataError, match="there is no model a/b on the Hub"):
        fetch_gguf("a/b")


def test_without_a_connection_the_cache_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(self: HfApi, repo: str, **_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "model_info", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="a/b is not in the Hub's cache, and the Hub cannot be reached: no route"):
        fetch_gguf("a/b")
    (tmp_path / "m-Q8_0.gguf").touch()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, local_files_only: str(tmp_path))
    assert fetch_gguf("a/b") == tmp_path / "m-Q8_0.gguf"
