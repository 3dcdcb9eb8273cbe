"""`pick`: the token that follows, as a pure function of a row of logits, its position and the tokens before it.

Greedy at temperature 0. Above, argmax of (filtered logits / temperature + Gumbel noise), which is an exact sample of
the softmax; the noise is a counter-based hash of (seed, position, token id), so evaluating a position again picks the
same token again. That is what makes parallel decoding reproduce autoregressive text token by token at any temperature
(DESIGN section 3). Filters run in llama.cpp's order with its defaults. Knows nothing of drafts or proposers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from nptool.errors import UsageError

# Weyl increment and multipliers of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1
# What float32 may lose in comparing two logits; a row this close to one candidate is drawn in full.
ROUNDING = 1e-3
FEW = 16
"""Tokens of a row, on average, that are compared one by one; numpy is faster where there are more."""
_UNIT = 2.0**-53


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
        self, logits_RV: NDArray[np.float32], position: int, before: NDArray[np.int32]
    ) -> NDArray[np.integer]:
        """The tokens at `position`, `position + 1`, ..., each as if picked alone.

        Args:
            logits_RV: one row for each position.
            before: the tokens before the LAST of these positions: the text so far and the drafts between the rows.

        Returns:
            Token ids (R).
        """
        if self.repeat_penalty != 1.0:
            logits_RV = self._penalized(logits_RV, before)
        if self.greedy:
            greedy_R: NDArray[np.intp] = logits_RV.argmax(axis=1)
            return greedy_R
        return self._sampled(logits_RV, position)

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

    def _sampled(self, logits_RV: NDArray[np.float32], position: int) -> NDArray[np.integer]:
        """The likeliest token where min-p leaves no other, as it does in most rows of a sure model; else a draw."""
        picks_R: NDArray[np.intp] = logits_RV.argmax(axis=1)
        rows_R = np.arange(len(logits_RV))
        if self.min_p == 0.0:
            return self._drawn(logits_RV, rows_R + position)
        least_R1 = logits_RV[rows_R, picks_R][:, None] + (log(self.min_p) - ROUNDING)
        near_P = np.flatnonzero(logits_RV >= least_R1)
        if len(near_P) <= len(rows_R):
            return picks_R
        for row in self._settle(logits_RV, position, near_P, picks_R):
            picks_R[row : row + 1] = self._drawn(logits_RV[row : row + 1], rows_R[row : row + 1] + position)
        return picks_R

    def _settle(
        self, logits_RV: NDArray[np.float32], position: int, near_P: NDArray[np.intp], picks_R: NDArray[np.intp]
    ) -> list[int]:
        """Draw the rows in which few tokens are near enough to the likeliest to pass min-p.

        Args:
            near_P: places in the flattened logits of all tokens that may pass min-p.
            picks_R: where the picks are put.

        Returns:
            Rows that have to be filtered in full.
        """
        rows_P, ids_P = np.divmod(near_P, logits_RV.shape[1])
        starts = np.searchsorted(rows_P, np.arange(len(logits_RV) + 1)).tolist()
        ranges = {row: slice(*ends) for row, ends in enumerate(pairwise(starts)) if ends[1] - ends[0] > 1}
        if len(near_P) > FEW * len(logits_RV):
            return list(ranges)
        logits_P = logits_RV.ravel()[near_P].astype(np.float64)
        scores_P = logits_P / self.temperature + gumbel(self.seed, rows_P + position, ids_P)
        logits, scores = logits_P.tolist(), scores_P.tolist()
        unclear = []
        for row, part in ranges.items():
            winner = self._winner(logits[part], scores[part])
            if winner is None:
                unclear.append(row)
            else:
                picks_R[row] = ids_P[part.start + winner]
        return unclear

    def _winner(self, logits: list[float], scores: list[float]) -> int | None:
        """Which of the tokens nearest to the likeliest wins a draw; None where that takes the tokens behind them too.

        Tokens that the filters remove do no harm unless one of them wins.
        """
        winner = max(range(len(scores)), key=scores.__getitem__)
        level, top = logits[winner], max(logits)
        above = [value for value in logits if value > level]
        if logits.count(level) > 1 or 0 < self.top_k < len(logits):
            return None
        if not above:
            return winner
        # What is behind them only adds to the sum that top-p takes its share of.
        share = sum(exp(value - top) for value in above) / sum(exp(value - top) for value in logits)
        passes = exp(level - top) > self.min_p * (1 + ROUNDING) and share < self.top_p * (1 - ROUNDING)
        return winner if passes else None

    def _drawn(self, logits_RV: NDArray[np.float32], positions_R: NDArray[np.intp]) -> NDArray[np.integer]:
        ids_RK, logits_RK, passing_R = self.candidates(logits_RV)
        widest = int(passing_R.max())
        noise_RK = gumbel(self.seed, positions_R[:, None], ids_RK[:, :widest])
        scores_RK = logits_RK[:, :widest] / self.temperature + noise_RK
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


def gumbel(seed: int, positions: NDArray[np.integer], tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard Gumbel noise, one value for each pair of `positions` and `tokens` (broadcast against each other)."""
    state = _mix(positions.astype(np.uint64) * _WEYL + _key(seed))
    bits = _mix(state + (tokens.astype(np.uint64) + np.uint64(1)) * _WEYL)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * _UNIT
    return -np.log(-np.log(uniform))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer: every bit of the input flips half of the output's."""
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLY_1
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLY_2
    return values ^ (values >> np.uint64(31))


@lru_cache
def _key(seed: int) -> np.uint64:
    """The seed, mixed: neighbouring seeds must not give each other's noise one position later."""
    return np.uint64(_mix(np.array([seed & _MASK], dtype=np.uint64) * _WEYL)[0])


def _range(low: float, high: float) -> str:
    return f"{low:g} or more" if high == float("inf") else f"from {low:g} to {high:g}"
