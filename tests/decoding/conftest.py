"""A scripted engine and scripted heads, which need no model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray


class ScriptedEngine:
    """An `Engine` whose logits are a function of the tokens in its cache; it insists on the contract of the cache."""

    def __init__(
        self,
        logits: Callable[[Sequence[int]], Sequence[float]],
        *,
        vocabulary: int = 8,
        capacity: int = 200,
        width: int = 32,
        batch_limit: int = 16,
    ) -> None:
        """Args: `logits` gives a row from all the tokens up to and including the row's own."""
        self._logits = logits
        self.vocabulary_size = vocabulary
        self.capacity = capacity
        self.width = width
        self.batch_limit = batch_limit
        self.seconds = 0.0
        self.cache: list[int] = []
        self._tree: tuple[list[int], tuple[int, ...]] | None = None
        self.batches: list[tuple[int, int, bool]] = []
        """(start, rows, outputs) of every call."""

    def evaluate(
        self,
        tokens: NDArray[np.int32],
        start: int,
        *,
        outputs: bool = True,
        show: bool = False,
        parents: tuple[int, ...] | None = None,
    ) -> NDArray[np.float32]:
        assert self._tree is None, "the rows of a tree were not judged"
        assert start == len(self.cache), "the cache does not end where the batch begins"
        assert 0 < len(tokens) <= (self.width if outputs else self.batch_limit)
        assert start + len(tokens) <= self.capacity + self.width
        assert all(0 <= token < self.vocabulary_size for token in tokens.tolist())
        self.batches.append((start, len(tokens), outputs))
        self.seconds += 0.001
        line = tuple(range(-1, len(tokens) - 1))
        texts: list[list[int]] = []
        for token, parent in zip(tokens.tolist(), parents or line, strict=True):
            texts.append([*(texts[parent] if parent >= 0 else self.cache), token])
        # z names the token and its position, so that a head can tell what it reads.
        places = [len(text) - 1 for text in texts]
        self._z_TD = np.stack([tokens, places], axis=1).astype(np.float32) if show else None
        rows = [self._logits(text) for text in texts] if outputs else []
        if parents is None:
            self.cache[:] = texts[-1]
        else:
            self._tree = (tokens.tolist(), parents)
        return np.asarray(rows, dtype=np.float32).reshape(len(rows), self.vocabulary_size)

    def layer_input(self) -> NDArray[np.float32]:
        assert self._z_TD is not None, "the batch did not show it"
        return self._z_TD

    def keep(self, path: list[int]) -> int:
        assert self._tree is not None, "the last batch was no tree"
        (tokens, parents), self._tree = self._tree, None
        assert [parents[row] for row in path] == [-1, *path[:-1]], "no path from the root"
        kept = next((place for place, row in enumerate(path) if row != place), len(path))
        self.cache += tokens[:kept]
        return kept

    def rollback(self, position: int) -> None:
        self._tree = None
        del self.cache[position:]

    @property
    def widths(self) -> list[int]:
        """Rows of every decoding step."""
        return [rows for _, rows, outputs in self.batches if outputs]


class ScriptedHead:
    """A `HeadEngine` that reads the z of a `ScriptedEngine` and insists on the contract of its cache."""

    def __init__(self, logits: Callable[[Sequence[int]], Sequence[float]]) -> None:
        """Args: `logits` gives a row from all the tokens read."""
        self._logits = logits
        self.seconds = 0.0
        self.cache: list[int] = []
        self.fails_after: int | None = None
        """Calls of `evaluate` until one is interrupted."""

    def evaluate(self, z_TD: NDArray[np.float32], start: int, *, width: int = 0) -> None:
        assert start == len(self.cache), "the cache does not end where the rows begin"
        assert len(z_TD) > 0
        if self.fails_after is not None:
            self.fails_after -= 1
            if self.fails_after < 0:
                self.fails_after = None
                raise KeyboardInterrupt
        self.seconds += 0.0001
        for token, position in z_TD.tolist():
            assert position == len(self.cache), "z of another position"
            self.cache.append(int(token))

    def logits(self) -> NDArray[np.float32]:
        return np.asarray(self._logits(self.cache), dtype=np.float32)

    def rollback(self, position: int) -> None:
        del self.cache[position:]


@pytest.fixture(scope="session")
def scripted_head() -> type[ScriptedHead]:
    return ScriptedHead


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedEngine]:
    """The class, because test modules cannot import each other."""
    return ScriptedEngine


@pytest.fixture(scope="session")
def benchmark_module() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of `benchmarks`, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        yield importlib.import_module
