"""`pick`: the token that follows, as a pure function of a row of logits, its position and the tokens before it.

Greedy at temperature 0. Above, argmax of (filtered logits / temperature + Gumbel noise), which is an exact sample of
the softmax; the noise is a counter-based hash of (seed, position, token id), so evaluating a position again picks the
same token again. That is what makes parallel decoding reproduce autoregressive text token by token at any temperature
(DESIGN section 3). Filters run in llama.cpp's order with its defaults. Knows nothing of drafts or proposers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, log

import numpy as np
from numpy.typing import NDArray

from nptool.errors import UsageError
from nptool.noise import gumbel, gumbel_of, state_of

# What float32 may lose in comparing two logits; a row this close to one candidate is drawn in full.
ROUNDING = 1e-3
FEW = 64
"""More near tokens than this take longer one by one than filtering a whole row of a small vocabulary."""


@dataclass(frozen=True)
class Sampling:
    """How a token is picked. The defaults other than the temperature are llama.cpp's."""

    temperature: float = 0.0
    """0 picks the likeliest token; only the repetition penalty applies then."""
    top_k: int = 40
    """Only the k likeliest tokens; 0 is all."""
    top_p: float = 0.95
    """The fewest tokens whose probabilities reach this sum; 1 is all."""
    min_p: float = 0.05
    """Only tokens at least this probable, relative to the likeliest; 0 is all."""
    repeat_penalty: float = 1.0
    """Divides positive logits of recent tokens and multiplies negative ones; 1 is none."""
    repeat_last: int = 64
    """How many tokens are recent."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        ranges = (
            ("--temp", self.temperature, 0.0, float("inf")),
            ("--top-k", self.top_k, 0, float("inf")),
            ("--top-p", self.top_p, 0.0, 1.0),
            ("--min-p", self.min_p, 0.0, 1.0),
            ("the number of recent tokens", self.repeat_last, 0, float("inf")),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise UsageError(f"{name} must be {_range(low, high)}, got {value}")
        if not 0.0 < self.repeat_penalty < float("inf"):
            raise UsageError(f"--repeat-penalty must be above 0, got {self.repeat_penalty}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @cached_property
    def _reach(self) -> float:
        """What to add to the likeliest logit: a token below that surely fails min-p. Not above 0."""
        return log(self.min_p) - ROUNDING if self.min_p > 0.0 else -inf

    def pick(self, logits_V: NDArray[np.float32], position: int, before: NDArray[np.int32] | None = None) -> int:
        """The token at `position`.

        Args:
            before: every token before that position, the last one last; only the repetition penalty looks at them.
        """
        before = np.empty(0, dtype=np.int32) if before is None else before
        return int(self.pick_rows(logits_V[None], position, before)[0])

    def pick_rows(
        self, logits_RV: NDArray[np.float32], position: int, before: NDArray[np.int32]
    ) -> NDArray[np.integer]:
        """The tokens (R) at `position`, `position + 1`, ..., each as if picked alone.

        Args:
            logits_RV: one row for each position.
            before: see `penalized`.
        """
        logits_RV = self.penalized(logits_RV, before)
        picks_R: NDArray[np.integer] = logits_RV.argmax(axis=1)
        if not self.greedy:
            for row, likeliest in enumerate(picks_R.tolist()):
                picks_R[row] = self.draw(logits_RV[row], position + row, likeliest)
        return picks_R

    def penalized(self, logits_RV: NDArray[np.float32], before: NDArray[np.int32]) -> NDArray[np.float32]:
        """The logits behind the repetition penalty: a copy, or the same array where there is none.

        Args:
            before: the tokens before the LAST row's position: the text so far and the drafts between the rows.
        """
        if self.repeat_penalty == 1.0:
            return logits_RV
        logits_RV = logits_RV.copy()
        first = len(before) - len(logits_RV) + 1
        for row, logits_V in enumerate(logits_RV):
            end = max(0, first + row)
            recent = np.unique(before[max(0, end - self.repeat_last) : end])
            values = logits_V[recent]
            logits_V[recent] = np.where(values <= 0, values * self.repeat_penalty, values / self.repeat_penalty)
        return logits_RV

    def draw(self, logits_V: NDArray[np.float32], position: int, likeliest: int) -> int:
        """The token at `position`, not greedily: from one row of `penalized` logits, whose argmax is `likeliest`.

        Looks at no more tokens than it needs. Where min-p leaves the likeliest token alone, as in most rows of a sure
        model, it is that; elsewhere few tokens are near enough to pass. Only where that is too close to call, or many
        are near, the row is filtered in full.
        """
        least = logits_V.item(likeliest) + self._reach
        # The second likeliest, by argmax again: after a pass, a function of numpy that was not called yet takes 10 to
        # 20 microseconds of its own, and comparing, counting and indexing would be three.
        below, above = logits_V[:likeliest], logits_V[likeliest + 1 :]
        second = below.item(below.argmax()) if likeliest else -inf
        if len(above):
            second = max(second, above.item(above.argmax()))
        if second < least:
            return likeliest
        if self.min_p > 0.0:
            near_P = (logits_V >= least).nonzero()[0]
            # In a row of NaN none is near.
            if 0 < len(near_P) <= FEW:
                found = self._winner(logits_V, near_P.tolist(), logits_V[near_P].tolist(), position)
                if found is not None:
                    return found
        ids_K, scores_K = self.candidates(logits_V)
        scores_K /= self.temperature
        scores_K += gumbel_of(state_of(self.seed, position), ids_K)
        return int(ids_K[scores_K.argmax()])

    def likeliest_rows(
        self, logits_RV: NDArray[np.float32], before: NDArray[np.int32], count: int
    ) -> NDArray[np.integer]:
        """Ids (R, count) of the likeliest tokens of each row, the likeliest first; all of them where they are fewer.

        Args:
            before: the tokens by which all rows are penalized.
        """
        if self.repeat_penalty != 1.0:
            logits_RV = np.concatenate([self.penalized(logits_V[None], before) for logits_V in logits_RV])
        cut = logits_RV.shape[1] - min(count, logits_RV.shape[1])
        ids_RC: NDArray[np.intp] = np.argpartition(logits_RV, cut, axis=1)[:, cut:]
        order_RC = np.argsort(-np.take_along_axis(logits_RV, ids_RC, axis=1), axis=1, kind="stable")
        return np.take_along_axis(ids_RC, order_RC, axis=1)

    def _winner(self, logits_V: NDArray[np.float32], ids: list[int], logits: list[float], position: int) -> int | None:
        """Which of a row's near tokens has the best score among those that pass all filters.

        Returns:
            The token; None where rounding, the order of equal logits or a score that overflowed may decide.
        """
        state = state_of(self.seed, position)
        scores = [value / self.temperature + gumbel(state, token) for token, value in zip(ids, logits, strict=True)]
        winner = scores.index(max(scores))
        top = max(logits)
        if logits[winner] == top and logits.count(top) == 1:
            # The likeliest passes every filter, and in most rows it wins.
            return ids[winner]
        weights = [exp(value - top) for value in logits]
        # Where top-k leaves more tokens than these, their sum is only the least that all of its tokens come to.
        total, exact = sum(weights), False
        if 0 < self.top_k <= len(weights):
            total, exact = sum(sorted(weights)[-self.top_k :]), True
        while scores[winner] > -inf:
            level = logits[winner]
            if logits.count(level) > 1:
                return None
            larger = [weight for weight, value in zip(weights, logits, strict=True) if value > level]
            if not larger:
                return ids[winner]
            before = sum(larger)
            if not exact and before >= self.top_p * (1 - ROUNDING) * total:
                total, exact = self._total(logits_V, top), True
            surplus = min(weights[winner] / self.min_p, self.top_p * total / before)
            # Not `<`, which is never true of NaN.
            if not abs(surplus - 1) >= ROUNDING:
                return None
            if surplus > 1 and not 0 < self.top_k <= len(larger):
                return ids[winner]
            scores[winner] = -inf
            winner = scores.index(max(scores))
        return None

    def _total(self, logits_V: NDArray[np.float32], top: float) -> float:
        """The sum of all weights that top-k leaves, that of the likeliest token being 1."""
        if 0 < self.top_k < len(logits_V):
            logits_V = np.partition(logits_V, len(logits_V) - self.top_k)[-self.top_k :]
        return float(np.exp(logits_V.astype(np.float64) - top).sum())

    def candidates(self, logits_V: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The tokens of one row that may be picked, likeliest first, and their logits.

        Every filter keeps a beginning of that order; of equal logits the first is the likeliest.
        """
        ids_K = self._likeliest(logits_V)
        values_K = logits_V[ids_K]
        order_K = np.argsort(-values_K, kind="stable")
        ids_K, logits_K = ids_K[order_K], values_K[order_K].astype(np.float64)
        weights_K = np.exp(logits_K - logits_K[0])
        inside_K = weights_K >= self.min_p
        if self.top_p < 1.0:
            sums_K = np.cumsum(weights_K)
            # The token that reaches the sum still belongs to it.
            inside_K &= sums_K - weights_K < self.top_p * sums_K[-1]
        passing = max(int(np.count_nonzero(inside_K)), 1)
        return ids_K[:passing], logits_K[:passing]

    def _likeliest(self, logits_V: NDArray[np.float32]) -> NDArray[np.intp]:
        """Ids (K) of the k likeliest tokens, or of all, in no particular order."""
        if not 0 < self.top_k < len(logits_V):
            return np.arange(len(logits_V))
        cut = len(logits_V) - self.top_k
        ids_V: NDArray[np.intp] = np.argpartition(logits_V, cut)
        return ids_V[cut:]


def _range(low: float, high: float) -> str:
    return f"{low:g} or more" if high == float("inf") else f"from {low:g} to {high:g}"
