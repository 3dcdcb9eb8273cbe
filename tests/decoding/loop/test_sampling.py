"""`pick`: pure, distributed as the softmax, filtered as llama.cpp filters."""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import replace
from math import exp, inf, log, nan

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nptool.decoding.loop.sampling import Sampling
from nptool.errors import UsageError
from nptool.noise import gumbel, gumbel_of, state_of

EVERYTHING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
NO_TOKENS = np.empty(0, dtype=np.int32)


def chi_square(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def test_temperature_zero_takes_the_likeliest_and_of_equals_the_first() -> None:
    rows = np.array([[0.0, 3.0, 1.0], [2.0, 2.0, -1.0], [-5.0, -4.0, -3.0]], dtype=np.float32)
    assert Sampling().pick_rows(rows, 7, NO_TOKENS).tolist() == [1, 0, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_picks_follow_the_softmax(temperature: float, seed: int) -> None:
    """5,000 positions with one row of logits: chi-square with 9 degrees of freedom, 0.1 % bound."""
    logits = np.linspace(-1.5, 1.5, 10).astype(np.float32)
    sampling = Sampling(temperature, **EVERYTHING, seed=seed)
    rows = np.broadcast_to(logits, (5000, 10))
    counts = np.bincount(sampling.pick_rows(rows, 0, NO_TOKENS), minlength=10)
    assert chi_square(counts, softmax(logits / temperature)) < 27.9


def test_picks_follow_the_softmax_over_seeds_at_one_position() -> None:
    logits = np.array([0.0, 1.0, 2.0, 0.5], dtype=np.float32)
    counts = Counter(Sampling(1.0, **EVERYTHING, seed=seed).pick(logits, 41) for seed in range(4000))
    # 3 degrees of freedom, 0.1 % bound.
    assert chi_square(np.array([counts[token] for token in range(4)]), softmax(logits)) < 16.3


def test_neighbouring_positions_are_independent() -> None:
    rows = np.zeros((5000, 4), dtype=np.float32)
    picks = Sampling(1.0, **EVERYTHING).pick_rows(rows, 0, NO_TOKENS)
    pairs = np.bincount(4 * picks[:-1] + picks[1:], minlength=16)
    # 9 degrees of freedom beyond the margins, 0.1 % bound.
    assert chi_square(pairs, np.full(16, 1 / 16)) < 27.9 + 16.3


def test_neighbouring_seeds_do_not_share_their_noise() -> None:
    values = [gumbel(state_of(seed, place), 5) for seed in range(-3, 30) for place in range(30)]
    assert len(set(values)) == len(values)


def test_a_long_row_is_picked_as_if_alone() -> None:
    """Long enough for numpy's vectorized partition, and full of ties."""
    generator = np.random.default_rng(2)
    rows = generator.integers(-3, 4, (12, 3000)).astype(np.float32)
    sampling = Sampling(0.9, top_k=50, seed=1)
    together = sampling.pick_rows(rows, 100, NO_TOKENS).tolist()
    assert together == [sampling.pick(row, 100 + i) for i, row in enumerate(rows)]
    assert together == sampling.pick_rows(np.asfortranarray(rows), 100, NO_TOKENS).tolist()


def test_noise_is_standard_gumbel() -> None:
    tokens = np.arange(1000)
    noise = np.array([gumbel_of(state_of(3, position), tokens) for position in range(100)])
    assert abs(noise.mean() - np.euler_gamma) < 0.02
    assert abs(noise.std() - np.pi / np.sqrt(6)) < 0.02
    assert len(np.unique(noise)) == noise.size
    assert gumbel(state_of(4, 7), 77) != gumbel(state_of(3, 7), 77)


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**31), st.lists(st.integers(0, 2**20), min_size=1, max_size=5))
@settings(deadline=None)
def test_noise_is_that_of_its_seed_position_and_token(seed: int, position: int, tokens: list[int]) -> None:
    """One by one, many at once, and by the plain definition."""
    state = state_of(seed, position)
    expected = pytest.approx([naive_noise(seed, position, token) for token in tokens], rel=1e-12, abs=1e-12)
    assert [gumbel(state, token) for token in tokens] == expected
    assert gumbel_of(state, np.array(tokens)).tolist() == expected


def test_the_largest_hash_is_noise_too() -> None:
    """It rounds to 1, whose noise is infinite: that token is picked, and nothing fails."""
    state = unmixed(2**64 - 1)
    assert gumbel(state, 0) == inf
    with np.errstate(divide="ignore"):
        assert gumbel_of(state, np.array([0])).tolist() == [inf]


sampling_settings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.5]),
    top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.6, 1.0]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    repeat_last=st.sampled_from([0, 2, 64]),
    seed=st.integers(-5, 5),
)


@given(
    sampling_settings,
    st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), max_size=5),
    st.lists(st.integers(0, 5), min_size=5, max_size=5),
)
@settings(deadline=None, max_examples=200)
def test_a_row_is_picked_as_if_alone(
    sampling: Sampling, values: list[list[int]], text: list[int], draft: list[int]
) -> None:
    """The same token from a batch as from its row, its position and the tokens before it; ties everywhere."""
    rows = np.array(values, dtype=np.float32)
    before = np.array([*text, *draft[: len(rows) - 1]], dtype=np.int32)
    expected = [sampling.pick(row, len(text) + i, before[: len(text) + i]) for i, row in enumerate(rows)]
    assert sampling.pick_rows(rows, len(text), before).tolist() == expected


@given(sampling_settings, st.integers(0, 2**32), st.sampled_from([0.3, 1.0, 4.0]), st.booleans())
@settings(deadline=None, max_examples=300)
def test_picks_are_those_of_filtering_every_row_in_full(
    sampling: Sampling, seed: int, spread: float, ties: bool
) -> None:
    """The shortcuts of `draw` change no pick."""
    sampling = replace(sampling, repeat_penalty=1.0)
    generator = np.random.default_rng(seed)
    rows = generator.normal(0, spread, (5, 300)).astype(np.float32)
    if ties:
        rows = np.round(rows)
    assert sampling.pick_rows(rows, 9, NO_TOKENS).tolist() == [
        drawn_in_full(sampling, row, 9 + place) for place, row in enumerate(rows)
    ]


@given(sampling_settings, st.lists(st.sampled_from([-inf, -1.0, 0.0, 1.5, inf, nan]), min_size=1, max_size=6))
@settings(deadline=None)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_broken_row_is_picked_like_any_other(sampling: Sampling, values: list[float]) -> None:
    """Logits that overflowed raise no error, and the pick is the same in a batch."""
    sampling = replace(sampling, repeat_penalty=1.0)
    row = np.array(values, dtype=np.float32)
    pick = sampling.pick(row, 5)
    assert 0 <= pick < len(row)
    assert sampling.pick_rows(np.stack([np.zeros_like(row), row]), 4, NO_TOKENS)[1] == pick
    assert pick == drawn_in_full(sampling, row, 5)


@pytest.mark.parametrize("logits", [[-3.0, -1.0, -2.0], [2.0, 3.0, 1.0]])
def test_a_temperature_near_0_picks_the_likeliest(logits: list[float]) -> None:
    """Scores overflow."""
    with np.errstate(over="ignore"):
        assert Sampling(1e-320).pick(np.array(logits, dtype=np.float32), 3) == 1


@given(sampling_settings, st.integers(0, 2**32), st.sampled_from([0.3, 1.0, 4.0]), st.integers(0, 3000))
@settings(deadline=None, max_examples=200)
def test_picks_are_those_of_a_plain_loop(sampling: Sampling, seed: int, spread: float, position: int) -> None:
    """The definition of a sampled text, token by token, without vectors or shortcuts."""
    sampling = replace(sampling, repeat_penalty=1.0)
    rows = np.random.default_rng(seed).normal(0, spread, (6, 90)).astype(np.float32)
    assert sampling.pick_rows(rows, position, NO_TOKENS).tolist() == [
        naive_pick(sampling, row.tolist(), position + place) for place, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"temperature": 0.8, "seed": 1},
            [303, 151, 22, 460, 66, 212, 161, 280, 498, 442, 101, 462],
        ),
        (
            {"temperature": 0.8, "seed": -2, **EVERYTHING},
            [303, 284, 204, 460, 180, 340, 14, 113, 159, 98, 101, 22],
        ),
        (
            {"temperature": 1.2, "seed": 3, "top_p": 0.7, "min_p": 0.01},
            [315, 337, 133, 145, 66, 212, 228, 367, 498, 252, 258, 126],
        ),
    ],
)
def test_a_seed_gives_the_same_text_in_every_version(options: dict[str, float], expected: list[int]) -> None:
    """Picked by the first version. These never change: a seed is a promise of a text."""
    rows = np.random.default_rng(11).normal(0, 2.5, (12, 500)).astype(np.float32)
    assert Sampling(**options).pick_rows(rows, 1010, NO_TOKENS).tolist() == expected


def naive_pick(sampling: Sampling, row: list[float], position: int) -> int:
    order = sorted(range(len(row)), key=lambda token: -row[token])
    if sampling.greedy:
        return order[0]
    order = order[: sampling.top_k or len(order)]
    weights = [exp(row[token] - row[order[0]]) for token in order]
    kept = order[:1]
    for place in range(1, len(order)):
        if weights[place] >= sampling.min_p and sum(weights[:place]) < sampling.top_p * sum(weights):
            kept.append(order[place])
    return max(kept, key=lambda token: row[token] / sampling.temperature + naive_noise(sampling.seed, position, token))


def naive_noise(seed: int, position: int, token: int) -> float:
    """splitmix64 in Python's own numbers."""
    mask, weyl = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(value: int) -> int:
        value = (value & mask ^ (value & mask) >> 30) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
        return value ^ value >> 31

    bits = mix(mix(position * weyl + mix((seed & mask) * weyl)) + (token + 1) * weyl)
    return -log(-log(((bits >> 11) + 0.5) * 2.0**-53))


def unmixed(value: int) -> int:
    """The inverse of splitmix64's finalizer."""
    for shift, multiplier in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9)):
        value ^= value >> shift ^ value >> 2 * shift
        value = value * pow(multiplier, -1, 2**64) % 2**64
    return value ^ value >> 30 ^ value >> 60


def drawn_in_full(sampling: Sampling, row: NDArray[np.float32], position: int) -> int:
    """The token whose logit and noise are the largest, among those that pass all filters."""
    if sampling.greedy:
        return int(row.argmax())
    ids, logits = sampling.candidates(row)
    scores = logits / sampling.temperature + gumbel_of(state_of(sampling.seed, position), ids)
    return int(ids[scores.argmax()])


def llama_candidates(logits: NDArray[np.float32], recent: list[int], sampling: Sampling) -> dict[int, float]:
    """What llama.cpp's own sampler chain leaves of the vocabulary: token to logit."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in (
        llama_cpp.llama_sampler_init_penalties(len(logits), sampling.repeat_last, sampling.repeat_penalty, 0.0, 0.0),
        llama_cpp.llama_sampler_init_top_k(sampling.top_k),
        llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
    ):
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    for token in recent:
        llama_cpp.llama_sampler_accept(chain, token)
    data = (llama_cpp.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        data[token].id, data[token].logit = token, float(logit)
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
    left = {array.data[i].id: array.data[i].logit for i in range(array.size)}
    llama_cpp.llama_sampler_free(chain)
    return left


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 5},
        {"top_k": 0},
        {"top_k": 0, "top_p": 0.5, "min_p": 0.0},
        {"top_k": 10, "top_p": 1.0, "min_p": 0.3},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.01},
        {"repeat_penalty": 1.5},
        {"repeat_penalty": 0.7, "repeat_last": 3, "top_k": 12},
    ],
)
def test_the_filters_are_llama_cpps(options: dict[str, float]) -> None:
    generator = np.random.default_rng(5)
    sampling = Sampling(0.8, **options)
    for _ in range(20):
        logits = generator.normal(0, 2, 200).astype(np.float32)
        recent = generator.integers(0, 200, 30)
        expected = llama_candidates(logits, recent.tolist(), sampling)
        rows = sampling.adjusted(logits[None], recent.astype(np.int32))
        ids, values = sampling.candidates(rows[0])
        found = dict(zip(ids.tolist(), values.tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "--temp must be 0 or more, got -0.1"),
        ({"temperature": float("nan")}, "--temp must be 0 or more, got nan"),
        ({"top_k": -1}, "--top-k must be 0 or more, got -1"),
        ({"top_p": 1.1}, "--top-p must be from 0 to 1, got 1.1"),
        ({"min_p": -1.0}, "--min-p must be from 0 to 1, got -1.0"),
        ({"repeat_penalty": 0.0}, "--repeat-penalty must be above 0, got 0.0"),
    ],
)
def test_values_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        Sampling(**options)
    assert str(raised.value) == message
