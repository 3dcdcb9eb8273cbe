"""`pick`: the token that follows, as a pure function of a row of logits, its position and the tokens before it.

Greedy at temperature 0. Above, argmax of (filtered logits / temperature + Gumbel noise), which is an exact sample of
the softmax; the noise is a counter-based hash of (seed, position, token id), so evaluating a position again picks the
same token again. That is what makes parallel decoding reproduce autoregressive text token by token at any temperature
(DESIGN section 3). Filters run in llama.cpp's order with its defaults. Knows nothing of drafts or proposers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, log

import numpy as np
from numpy.typing import NDArray

from nptool.decoding.noise import gumbel_of, line_states
from nptool.errors import UsageError

# What float32 may lose in comparing two logits; a row this close to one candidate is drawn in full.
ROUNDING = 1e-3
FEW = 64
"""More near tokens than this and a share of the vocabulary take longer one by one than filtering whole rows."""


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

    def pick(self, logits_V: NDArray[np.float32], position: int, before: NDArray[np.int32] | None = None) -> int:
        """The token at `position`.

        Args:
            before: every token before that position, the last one last; only the repetition penalty looks at them.
        """
        before = np.empty(0, dtype=np.int32) if before is None else before
        return int(self.pick_rows(logits_V[None], position, before)[0])

    def pick_rows(
        self,
        logits_RV: NDArray[np.float32],
        position: int,
        before: NDArray[np.int32],
        likeliest_R: NDArray[np.intp] | None = None,
    ) -> NDArray[np.integer]:
        """The tokens at `position`, `position + 1`, ..., each as if picked alone.

        Args:
            logits_RV: one row for each position.
            before: the tokens before the LAST of these positions: the text so far and the drafts between the rows.
            likeliest_R: what `likeliest` says of the same rows, where it was asked already.

        Returns:
            Token ids (R).
        """
        if self.repeat_penalty != 1.0:
            logits_RV = self._penalized(logits_RV, before)
        if likeliest_R is None:
            likeliest_R = logits_RV.argmax(axis=1)
        return likeliest_R if self.greedy else self._sampled(logits_RV, position, likeliest_R)

    def likeliest(self, logits_RV: NDArray[np.float32], before: NDArray[np.int32]) -> NDArray[np.intp]:
        """The likeliest token of each row (R): what `pick_rows` gives at temperature 0."""
        if self.repeat_penalty != 1.0:
            logits_RV = self._penalized(logits_RV, before)
        greedy_R: NDArray[np.intp] = logits_RV.argmax(axis=1)
        return greedy_R

    def may_pick(
        self, logits_RV: NDArray[np.float32], tokens_R: NDArray[np.integer], likeliest_R: NDArray[np.integer]
    ) -> NDArray[np.bool_]:
        """Whether the noise could make each of `tokens_R` its row's pick (R): False only where min-p forbids it.

        Args:
            likeliest_R: see `likeliest`.
        """
        if self.min_p == 0.0 or self.repeat_penalty != 1.0:
            return np.ones(len(tokens_R), dtype=np.bool_)
        rows = np.arange(len(tokens_R))
        # Not `>=`, by which a row of NaN would have no tokens.
        may_R: NDArray[np.bool_] = ~(logits_RV[rows, tokens_R] < logits_RV[rows, likeliest_R] + self._least)
        return may_R

    @property
    def _least(self) -> float:
        """How far below the likeliest token's a logit that passes min-p may be, and a little more."""
        return log(self.min_p) - ROUNDING

    def likeliest_rows(
        self, logits_RV: NDArray[np.float32], before: NDArray[np.int32], count: int
    ) -> NDArray[np.integer]:
        """Ids (R, count) of the likeliest tokens of each row, the likeliest first; all of them where they are fewer.

        Args:
            before: the tokens by which all rows are penalized.
        """
        if self.repeat_penalty != 1.0:
            logits_RV = np.concatenate([self._penalized(logits_V[None], before) for logits_V in logits_RV])
        cut = logits_RV.shape[1] - min(count, logits_RV.shape[1])
        ids_RC: NDArray[np.intp] = np.argpartition(logits_RV, cut, axis=1)[:, cut:]
        order_RC = np.argsort(-np.take_along_axis(logits_RV, ids_RC, axis=1), axis=1, kind="stable")
        return np.take_along_axis(ids_RC, order_RC, axis=1)

    def _penalized(self, logits_RV: NDArray[np.float32], before: NDArray[np.int32]) -> NDArray[np.float32]:
        logits_RV = logits_RV.copy()
        first = len(before) - len(logits_RV) + 1
        for row, logits_V in enumerate(logits_RV):
            end = max(0, first + row)
            recent = np.unique(before[max(0, end - self.repeat_last) : end])
            values = logits_V[recent]
            logits_V[recent] = np.where(values <= 0, values * self.repeat_penalty, values / self.repeat_penalty)
        return logits_RV

    def _sampled(
        self, logits_RV: NDArray[np.float32], position: int, likeliest_R: NDArray[np.intp]
    ) -> NDArray[np.integer]:
        """A draw of every row, looking at no more tokens than it needs.

        Where min-p leaves the likeliest token alone, as in most rows of a sure model, it is that; elsewhere few tokens
        are near enough to pass. Only where that is too close to call, or many are near, a row is filtered in full.
        """
        rows, vocabulary = logits_RV.shape
        if self.min_p == 0.0:
            return self._drawn(logits_RV, line_states(self.seed, position, rows))
        tops_R = logits_RV[np.arange(rows), likeliest_R]
        picks_R = likeliest_R.copy()
        # Not `>=`, by which a row of NaN would have no tokens.
        near_P = (~(logits_RV < (tops_R + self._least)[:, None])).ravel().nonzero()[0]
        if len(near_P) <= rows:
            return picks_R
        states_R = line_states(self.seed, position, rows)
        if len(near_P) > rows * (FEW + vocabulary // FEW):
            return self._drawn(logits_RV, states_R)
        unclear = self._settle(logits_RV, states_R, near_P, picks_R)
        if unclear:
            picks_R[unclear] = self._drawn(logits_RV[unclear], states_R[unclear])
        return picks_R

    def _settle(
        self,
        logits_RV: NDArray[np.float32],
        states_R: NDArray[np.uint64],
        near_P: NDArray[np.intp],
        picks_R: NDArray[np.intp],
    ) -> list[int]:
        """Draw from the near tokens of each row: no other passes min-p.

        Args:
            near_P: places in the flattened logits of all tokens that may pass min-p, each row's likeliest included.
            picks_R: the likeliest tokens, in whose places the winners are put.

        Returns:
            Rows that have to be filtered in full.
        """
        rows_P, ids_P = np.divmod(near_P, logits_RV.shape[1])
        logits_P = logits_RV.ravel()[near_P].astype(np.float64)
        scores_P = logits_P / self.temperature
        scores_P += gumbel_of(states_R[rows_P], ids_P)
        logits, scores = logits_P.tolist(), scores_P.tolist()
        starts = rows_P.searchsorted(np.arange(len(picks_R) + 1)).tolist()
        unclear = []
        for row, (start, end) in enumerate(pairwise(starts)):
            if end - start > 1:
                winner = self._winner(logits_RV[row], logits[start:end], scores[start:end])
                if winner is None:
                    unclear.append(row)
                else:
                    picks_R[row] = ids_P[start + winner]
        return unclear

    def _winner(self, logits_V: NDArray[np.float32], logits: list[float], scores: list[float]) -> int | None:
        """Which of a row's near tokens has the best score among those that pass all filters.

        Args:
            logits_V: the whole row.

        Returns:
            Its place; None where rounding, or the order of equal logits, may decide.
        """
        winner = scores.index(max(scores))
        top = max(logits)
        if logits[winner] == top and logits.count(top) == 1:
            # The likeliest passes every filter, and in most rows it wins.
            return winner
        weights = [exp(value - top) for value in logits]
        # Where top-k leaves more tokens than these, their sum is only the least that all of its tokens come to.
        total, exact = sum(weights), False
        if 0 < self.top_k <= len(weights):
            total, exact = sum(sorted(weights)[-self.top_k :]), True
        while True:
            level = logits[winner]
            if logits.count(level) > 1:
                return None
            larger = [weight for weight, value in zip(weights, logits, strict=True) if value > level]
            if not larger:
                return winner
            before = sum(larger)
            if not exact and before >= self.top_p * (1 - ROUNDING) * total:
                total, exact = self._total(logits_V, top), True
            surplus = min(weights[winner] / self.min_p, self.top_p * total / before)
            # Not `<`, which is never true of NaN.
            if not abs(surplus - 1) >= ROUNDING:
                return None
            if surplus > 1 and not 0 < self.top_k <= len(larger):
                return winner
            scores[winner] = -inf
            winner = scores.index(max(scores))

    def _total(self, logits_V: NDArray[np.float32], top: float) -> float:
        """The sum of all weights that top-k leaves, that of the likeliest token being 1."""
        if 0 < self.top_k < len(logits_V):
            logits_V = np.partition(logits_V, len(logits_V) - self.top_k)[-self.top_k :]
        return float(np.exp(logits_V.astype(np.float64) - top).sum())

    def _drawn(self, logits_RV: NDArray[np.float32], states_R: NDArray[np.uint64]) -> NDArray[np.integer]:
        ids_RK, logits_RK, passing_R = self.candidates(logits_RV)
        widest = int(passing_R.max())
        scores_RK = logits_RK[:, :widest] / self.temperature
        scores_RK += gumbel_of(states_R[:, None], ids_RK[:, :widest])
        scores_RK[np.arange(widest) >= passing_R[:, None]] = -np.inf
        picks_R: NDArray[np.intp] = ids_RK[np.arange(len(ids_RK)), scores_RK.argmax(axis=1)]
        return picks_R

    def candidates(
        self, logits_RV: NDArray[np.float32]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
        """The tokens that may be picked, likeliest first: every filter keeps a beginning of that order.

        Returns:
            Ids (R, K), their logits (R, K), and how many of them pass all filters (R).
        """
        rows = np.arange(len(logits_RV))[:, None]
        ids_RK = self._likeliest(logits_RV)
        values_RK = logits_RV[rows, ids_RK]
        order_RK = np.argsort(-values_RK, axis=1, kind="stable")
        ids_RK, logits_RK = ids_RK[rows, order_RK], values_RK[rows, order_RK].astype(np.float64)
        weights_RK = np.exp(logits_RK - logits_RK[:, :1])
        inside_RK = weights_RK >= self.min_p
        if self.top_p < 1.0:
            sums_RK = np.cumsum(weights_RK, axis=1)
            # The token that reaches the sum still belongs to it.
            inside_RK &= sums_RK - weights_RK < self.top_p * sums_RK[:, -1:]
        return ids_RK, logits_RK, np.maximum(np.count_nonzero(inside_RK, axis=1), 1)

    def _likeliest(self, logits_RV: NDArray[np.float32]) -> NDArray[np.intp]:
        """Ids (R, K) of the k likeliest tokens, or of all, in no particular order."""
        rows, vocabulary = logits_RV.shape
        if not 0 < self.top_k < vocabulary:
            return np.broadcast_to(np.arange(vocabulary), (rows, vocabulary))
        cut = vocabulary - self.top_k
        ids_RV: NDArray[np.intp] = np.argpartition(logits_RV, cut, axis=1)
        return ids_RV[:, cut:]


def _range(low: float, high: float) -> str:
    return f"{low:g} or more" if high == float("inf") else f"from {low:g} to {high:g}"
