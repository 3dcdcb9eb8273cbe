"""The contexts of one loaded model: the trunk's, and those of its heads after their first use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from nptool.decoding.headed import HeadedEngine, Opened
from nptool.decoding.loop.engine import HeadsEngine
from nptool.decoding.loop.sequence import Sequence
from nptool.errors import UsageError
from nptool.heads import NEXTN
from nptool.llama.attention import prefers_fused
from nptool.llama.context import Context
from nptool.llama.gguf_parts import Parts, find_parts, require_heads
from nptool.llama.head import Head, SeparateHeads
from nptool.llama.loading import DEFAULT_WIDTH
from nptool.llama.model import Model
from nptool.llama.nextn_heads import NextNHeads
from nptool.llama.shared_heads import SharedHeads


class Contexts:
    """Makes contexts at their first use, and again when a step is too wide for them."""

    def __init__(self, model: Model) -> None:
        """They are as the model's options say."""
        self._model = model
        self._trunk: Context | None = None
        self._heads: list[Head] = []
        """Separate heads that are open; any number of the first ones can be used."""
        self._shared: SharedHeads | NextNHeads | None = None
        self._opened: dict[int | None, Opened] = {}
        self.newest: Opened | None = None
        """What was opened last, and whose sequence the caches hold."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The model's GGUF metadata."""
        return self._model.header.metadata

    @cached_property
    def parts(self) -> Parts:
        """The model and its heads in the file.

        Raises:
            GgufError: the file is truncated in a head, or what follows the model is not one of its heads.
        """
        return find_parts(self._model.header)

    def count_heads(self, wanted: int | None = None) -> int:
        """`wanted`, or the number of heads in the file; the model's own included.

        Raises:
            GgufError: the file has no extra heads.
            UsageError: it has fewer than `wanted`.
        """
        require_heads(self.parts)
        count = self.parts.count
        if wanted is not None and wanted > count:
            raise UsageError(
                f"{self._model.path} has {count} heads, and -n {wanted} asks for more; choose at most {count}"
            )
        return count if wanted is None else wanted

    def open(self, width: int, heads: int | None = None) -> Opened:
        """An engine for batches of up to `width` rows. The caches stay as they are while `heads` does not change.

        Args:
            heads: how many to use, the trunk's own included; None leaves them out.

        Raises:
            GgufError, UsageError: see `count_heads`.
            ContextError: there is no memory for the caches.
        """
        heads = None if heads is None else self.count_heads(heads)
        # Head 1 is the model's own.
        heads = None if heads == 1 else heads
        trunk = self.trunk(width)
        if heads not in self._opened:
            self._opened[heads] = self._open(trunk, heads)
        opened = self._opened[heads]
        if self.newest is not opened:
            # The caches hold another engine's sequence, which heads that it did not use have not read.
            opened.sequence.truncate(0)
            self.newest = opened
        return opened

    def time_draft(self, heads: int) -> tuple[float, float]:
        """Seconds of a draft with `heads` heads, the trunk's own included: whatever the rows of the step, and for each.

        Empties the caches.
        """
        engine = self.open(DEFAULT_WIDTH, heads).heads
        assert engine is not None, "heads were opened"
        self.scratch(DEFAULT_WIDTH)
        engine.rollback(0)
        return engine.time_draft()

    def trunk(self, width: int) -> Context:
        """The model's context, for batches of at least `width` rows."""
        if self._trunk is None or self._trunk.width < width:
            self.close()
            self._trunk = _open_trunk(self._model, max(width, DEFAULT_WIDTH))
            _warm_up(self._trunk, width)
        return self._trunk

    def scratch(self, width: int) -> Context:
        """The model's context for another use. Empties the caches."""
        trunk = self.trunk(width)
        for opened in self._opened.values():
            opened.sequence.truncate(0)
        self.newest = None
        return trunk

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        self._opened.clear()
        self.newest = None
        for head in self._heads:
            head.close()
        self._heads.clear()
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        if self._trunk is not None:
            self._trunk.close()
            self._trunk = None

    def _open(self, trunk: Context, heads: int | None) -> Opened:
        if heads is None:
            return Opened(trunk, Sequence(trunk), None)
        trunk.choose_layer(self.parts.trunk_layer)
        engine = HeadedEngine(trunk, self._open_heads(trunk, heads), heads)
        return Opened(engine, Sequence(engine), engine)

    def _open_heads(self, trunk: Context, heads: int) -> HeadsEngine:
        parts = self.parts
        if parts.kind == NEXTN:
            self._shared = self._shared or NextNHeads(trunk, parts.count - 1)
            return self._shared
        if parts.depths is not None:
            if self._shared is None:
                self._shared = SharedHeads(parts.heads[0], parts.depths, parts.count - 1, trunk)
            return self._shared
        for part in parts.heads[len(self._heads) : heads - 1]:
            self._heads.append(Head(part.header, trunk))
        return SeparateHeads(self._heads[: heads - 1])


def _open_trunk(model: Model, width: int) -> Context:
    options = model.options
    fused = options.flash_attention
    return Context(
        model,
        options.context_length,
        width=width,
        batch=options.batch_size,
        ubatch=options.computed_at_once,
        threads=options.threads,
        flash_attention=prefers_fused(model, options) if fused is None else fused,
        cache_type_k=options.cache_type_k,
        cache_type_v=options.cache_type_v,
    )


def _warm_up(engine: Context, width: int) -> None:
    """Keep page faults and graph building of the first batches out of the answers' times."""
    for rows in {1, width}:
        engine.evaluate(np.zeros(rows, dtype=np.int32), 0)
        engine.clear()
    engine.seconds = 0.0
