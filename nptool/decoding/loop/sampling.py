"""`pick`: the token at a position, as a pure function of its row of logits, the position and the tokens before it.

Greedy at temperature 0. Above 0 it is the argmax of (filtered logits / temperature + Gumbel noise), which is an exact
sample of the softmax. The noise depends on (seed, position, token) only, so evaluating a position again picks the same
token: parallel decoding reproduces the autoregressive text at any temperature. Filters run in llama.cpp's order.

Shapes: R rows, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, isfinite, log

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.loop.options import SamplingOptions
from nptool.errors import UsageError
from nptool.noise import gumbel, gumbel_of, state_of

# Relative margin above any rounding error: closer decisions are left to the filters themselves.
ROUNDING = 1e-3
# With more near tokens than this, scoring them one by one takes longer than filtering a whole row.
FEW = 64


LogitsHook = Callable[[NDArray[np.float32], NDArray[np.int32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Sampling(SamplingOptions):
    """How a token is picked, and picking it."""

    logits_hook: LogitsHook | None = None
    """Changes a row of logits (V) before everything else, given all tokens before its position, drafts included. A pure
    function, so that every method picks what autoregressive decoding picks; rows of rejected drafts are given to it
    too. It gets a copy of the row."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def raw(self) -> bool:
        """Whether `adjusted` changes nothing."""
        return self.repeat_penalty == 1.0 and self.logits_hook is None

    @cached_property
    def _reach(self) -> float:
        """At most 0: a token whose logit is below the largest logit plus this surely fails min-p."""
        return log(self.min_p) - ROUNDING if self.min_p > 0.0 else -inf

    def pick(self, logits_V: NDArray[np.float32], position: int, before: NDArray[np.int32] | None = None) -> int:
        """The token at `position`; `before` holds all tokens before it, for the repetition penalty."""
        before = np.empty(0, dtype=np.int32) if before is None else before
        return int(self.pick_rows(logits_V[None], position, before)[0])

    def pick_rows(
        self, logits_RV: NDArray[np.float32], position: int, before: NDArray[np.int32]
    ) -> NDArray[np.integer]:
        """The tokens (R) at `position`, `position + 1`, ..., each as if picked alone; `before` as in `adjusted`."""
        logits_RV = self.adjusted(logits_RV, before)
        picks_R: NDArray[np.integer] = logits_RV.argmax(axis=1)
        if not self.greedy:
            for row, likeliest in enumerate(picks_R.tolist()):
                picks_R[row] = self.draw(logits_RV[row], position + row, likeliest)
        return picks_R

    def adjusted(self, logits_RV: NDArray[np.float32], before: NDArray[np.int32]) -> NDArray[np.float32]:
        """The logits after hook and repetition penalty: a copy, or `logits_RV` itself without both.

        Args:
            before: all tokens before the position of the last row, drafts included.

        Raises:
            UsageError: the hook returned something else than a row.
        """
        if self.raw:
            return logits_RV
        logits_RV = logits_RV.copy()
        first = len(before) - len(logits_RV) + 1
        for row, logits_V in enumerate(logits_RV):
            end = max(0, first + row)
            if self.logits_hook is not None:
                changed_V = np.asarray(self.logits_hook(logits_V.copy(), before[:end]))
                if changed_V.shape != logits_V.shape:
                    raise UsageError(
                        f"a logits hook must return a row of {len(logits_V)} logits, got shape {changed_V.shape}"
                    )
                logits_V[:] = changed_V
            if self.repeat_penalty != 1.0:
                recent = np.unique(before[max(0, end - self.repeat_last) : end])
                values = logits_V[recent]
                logits_V[recent] = np.where(values <= 0, values * self.repeat_penalty, values / self.repeat_penalty)
        return logits_RV

    def draw(self, logits_V: NDArray[np.float32], position: int, likeliest: int) -> int:
        """Sample the token at `position` from one row of `adjusted` logits, whose argmax is `likeliest`."""
        least = logits_V.item(likeliest) + self._reach
        # The second largest by argmax again: functions of numpy that have left the processor's cache are slow.
        below, above = logits_V[:likeliest], logits_V[likeliest + 1 :]
        second = below.item(below.argmax()) if likeliest else -inf
        if len(above):
            second = max(second, above.item(above.argmax()))
        if second < least:
            return likeliest
        if self.min_p > 0.0:
            near_P = (logits_V >= least).nonzero()[0]
            # Empty if the row has NaN.
            if 0 < len(near_P) <= FEW:
                winner = self._winner(near_P.tolist(), logits_V[near_P].tolist(), position)
                if winner is not None:
                    return winner
        ids_K, scores_K = self.candidates(logits_V)
        scores_K /= self.temperature
        scores_K += gumbel_of(state_of(self.seed, position), ids_K)
        return int(ids_K[scores_K.argmax()])

    def _winner(self, ids: list[int], logits: list[float], position: int) -> int | None:
        """The best of a row's tokens that min-p may leave, None if rounding or equal logits may change the answer."""
        state, top = state_of(self.seed, position), max(logits)
        scores = [value / self.temperature + gumbel(state, token) for value, token in zip(logits, ids, strict=True)]
        winner = scores.index(score := max(scores))
        if not isfinite(score) or logits.count(logits[winner]) > 1:
            return None
        larger = [exp(value - top) for value in logits if value > logits[winner]]
        if not larger:
            return ids[winner]
        # The least that the weights after top-k add up to, the likeliest token's being 1.
        total = sum(sorted((exp(value - top) for value in logits), reverse=True)[: self.top_k or None])
        passes = (
            not 0 < self.top_k <= len(larger)
            and exp(logits[winner] - top) > self.min_p * (1 + ROUNDING)
            and sum(larger) < self.top_p * (1 - ROUNDING) * total
        )
        return ids[winner] if passes else None

    def candidates(self, logits_V: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Ids (K) of the tokens of one row that pass all filters, likeliest first, and their logits (K)."""
        ids_K: NDArray[np.intp] = np.arange(len(logits_V))
        if 0 < self.top_k < len(logits_V):
            ids_K = np.argpartition(logits_V, -self.top_k)[-self.top_k :]
        values_K = logits_V[ids_K]
        order_K = np.argsort(-values_K, kind="stable")
        ids_K, logits_K = ids_K[order_K], values_K[order_K].astype(np.float64)
        weights_K = np.exp(logits_K - logits_K[0])
        for kept_by in FILTERS:
            kept = kept_by(self, weights_K)
            ids_K, logits_K, weights_K = ids_K[kept], logits_K[kept], weights_K[kept]
        return ids_K, logits_K


def _top_p(sampling: Sampling, weights_K: NDArray[np.float64]) -> slice:
    if sampling.top_p == 1.0:
        return slice(None)
    sums_K = np.cumsum(weights_K)
    # The token that reaches the sum still belongs to it.
    return slice(max(1, np.count_nonzero(sums_K - weights_K < sampling.top_p * sums_K[-1])))


def _min_p(sampling: Sampling, weights_K: NDArray[np.float64]) -> slice:
    return slice(max(1, np.count_nonzero(weights_K >= sampling.min_p)))


FILTERS: tuple[Callable[[Sampling, NDArray[np.float64]], slice], ...] = (_top_p, _min_p)
"""The filters after top-k, in order. Each gets the weights (K) of the tokens left, likeliest first and relative to the
likeliest of the row, and returns the tokens to keep, at least one. One that may drop the likeliest token must switch
`Sampling._winner` off."""
