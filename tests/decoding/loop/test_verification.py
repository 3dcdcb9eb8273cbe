"""A draft is verified as if every row were sampled alone; picks after the first rejected token are the likeliest."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence
from nptool.decoding.loop.verification import verify

PROMPT = [3, 1, 4, 1, 5]
VOCABULARY = 12


class OneBatch:
    """An engine whose only batch has the given logits."""

    capacity, width, batch_limit, vocabulary_size, seconds = 64, 32, 64, VOCABULARY, 0.0

    def __init__(self, logits_RV: NDArray[np.float32]) -> None:
        self._logits_RV = logits_RV

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        return self._logits_RV[: len(tokens)]

    def rollback(self, position: int) -> None:
        """Nothing is cached."""


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 20),
    right=st.integers(0, 20),
    temperature=st.sampled_from([0.0, 0.8, 2.0]),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_picks_are_those_of_single_rows_as_far_as_the_draft_is_right(
    seed: int, rows: int, right: int, temperature: float, penalty: float
) -> None:
    rng = np.random.default_rng(seed)
    logits_RV = rng.normal(0, 2, (rows, VOCABULARY)).astype(np.float32)
    sampling = Sampling(temperature=temperature, seed=seed, repeat_penalty=penalty)
    greedy = Sampling(repeat_penalty=penalty)
    # A draft with `right` tokens that equal the single picks, a different one, then a mixture.
    draft, picked = list[int](), list[int]()
    for row in range(rows):
        before = np.array(PROMPT + draft, dtype=np.int32)
        picked.append(sampling.pick(logits_RV[row], len(PROMPT) + row, before))
        if row + 1 < rows:
            wrong = (picked[-1] + 1 + int(rng.integers(VOCABULARY - 1))) % VOCABULARY
            draft.append(wrong if row == right or (row > right and rng.random() < 0.5) else picked[-1])
    sequence = Sequence(OneBatch(logits_RV))
    sequence.open(PROMPT)
    sequence.prefill()
    step = verify(OneBatch(logits_RV), sequence, np.array(draft, dtype=np.int32), sampling, rows)
    accepted = min(right, rows - 1)
    assert step.accepted == accepted
    assert step.picks[: accepted + 1].tolist() == picked[: accepted + 1]
    guesses = [
        greedy.pick(logits_RV[row], 0, np.array(PROMPT + draft[:row], dtype=np.int32))
        for row in range(accepted + 1, rows)
    ]
    assert step.picks[accepted + 1 :].tolist() == guesses
