"""Trajectories against transformers' `generate` and against a plain loop without cache or batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from nptool.collection.jacobi import (
    JacobiRun,
    JacobiSettings,
    Prompt,
    initial_guess,
    jacobi_trajectories,
)
from nptool.collection.picking import gumbel_noise, pick_rows
from nptool.decoding.loop.sampling import Sampling
from nptool.errors import CheckpointError
from nptool.noise import gumbel, gumbel_of, state_of

VOCABULARY = 61
PROMPT = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)
few_examples = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def logits_of(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) of a sequence: one forward pass without cache."""
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def picks_of(model: PreTrainedModel, config: JacobiSettings, key: int, ids: list[int], count: int) -> list[int]:
    """What decoding, with the sequence's seed and no filters, picks after each of the last `count` tokens."""
    sampling = Sampling(config.temperature, top_k=0, top_p=1.0, min_p=0.0, seed=config.seed + key)
    rows = logits_of(model, ids).numpy()[-count:]
    return [sampling.pick(row, len(ids) - count + 1 + place) for place, row in enumerate(rows)]


def token_by_token(model: PreTrainedModel, config: JacobiSettings, prompt: Prompt) -> list[int]:
    """Autoregressive decoding."""
    response: list[int] = []
    while len(response) < config.max_new_tokens and not (response and response[-1] in config.end_token_ids):
        response += picks_of(model, config, prompt.key, [*prompt.ids, *response], 1)
    return response


def naive_block(
    model: PreTrainedModel, config: JacobiSettings, prompt: Prompt, before: list[int], guess: list[int]
) -> list[list[int]]:
    """The states of one block by Jacobi iteration as in the paper: the whole block is evaluated until it repeats."""
    states = [guess]
    while True:
        ids = [*prompt.ids, *before, *states[-1][:-1]]
        state = picks_of(model, config, prompt.key, ids, len(guess))
        if state == states[-1]:
            return states
        states.append(state)


def check_run(model: PreTrainedModel, run: JacobiRun, config: JacobiSettings) -> None:
    """Response, end, states and number of passes of one run against the plain loops."""
    expected = token_by_token(model, config, run.prompt)
    assert run.response_ids == expected
    assert run.ended == (expected[-1] in config.end_token_ids)
    assert len(run.states) == -(-len(expected) // config.n)
    before: list[int] = []
    for block, states in enumerate(run.states):
        guess = initial_guess(run.prompt, block, config.n, config.seed).tolist()
        naive = naive_block(model, config, run.prompt, before, guess)
        collected = [state.tolist() for state in states]
        if not config.end_token_ids.intersection(collected[-1]):
            assert collected == naive
        else:
            # The last block: it stops once everything up to the end token is final.
            assert block == len(run.states) - 1
            assert collected == naive[: len(collected)]
            count = len(expected) - len(before)
            assert collected[-1][:count] == expected[len(before) :]
        before += collected[-1]


@few_examples
@given(
    prompts=st.lists(PROMPT, min_size=1, max_size=6),
    n=st.sampled_from([1, 2, 3, 5, 8]),
    batch_size=st.integers(1, 4),
    ends=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=6),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=st.sampled_from([3, 2**63 - 101, 2**70]),
)
def test_trajectories_equal_the_plain_loops(
    model: PreTrainedModel,
    prompts: list[list[int]],
    n: int,
    batch_size: int,
    ends: frozenset[int],
    temperature: float,
    seed: int,
) -> None:
    config = JacobiSettings(n, 20, ends, batch_size=batch_size, seed=seed, temperature=temperature)
    waiting = [Prompt(100 + index, ids) for index, ids in enumerate(prompts)]
    runs = list(jacobi_trajectories(model, waiting, config))
    assert sorted(run.prompt.key for run in runs) == [prompt.key for prompt in waiting]
    for run in runs:
        check_run(model, run, config)


@few_examples
@given(prompts=st.lists(PROMPT, min_size=1, max_size=5), end=st.integers(0, VOCABULARY - 1))
def test_greedy_equals_generate_of_transformers(
    float32_model: PreTrainedModel, prompts: list[list[int]], end: int
) -> None:
    model = float32_model
    expected = []
    for ids in prompts:
        output = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=17,
            eos_token_id=end,
            pad_token_id=0,
        )
        expected.append(output[0, len(ids) :].tolist())
    for n in (1, 6):
        config = JacobiSettings(n, max_new_tokens=17, end_token_ids=frozenset({end}), batch_size=3)
        runs = jacobi_trajectories(model, [Prompt(index, ids) for index, ids in enumerate(prompts)], config)
        assert {run.prompt.key: run.response_ids for run in runs} == dict(enumerate(expected))


def test_result_does_not_depend_on_the_batch(llama: PreTrainedModel) -> None:
    rng = np.random.default_rng(1)
    prompts = [Prompt(key, rng.integers(0, VOCABULARY, 1 + 3 * key).tolist()) for key in range(9)]

    def collect(order: list[Prompt], batch_size: int) -> dict[int, tuple[list[int], int, list[list[list[int]]]]]:
        config = JacobiSettings(5, 20, frozenset({7}), batch_size=batch_size, seed=2, temperature=0.9)
        return {
            run.prompt.key: (
                run.response_ids,
                run.passes,
                [[state.tolist() for state in block] for block in run.states],
            )
            for run in jacobi_trajectories(llama, order, config)
        }

    assert collect(prompts, 9) == collect(prompts[::-1], 2) == collect(prompts[4:] + prompts[:4], 1)


def test_passes_stop_when_the_block_is_final(llama: PreTrainedModel) -> None:
    """A pass accepts at least one token, and at most one pass per block only confirms it."""
    config = JacobiSettings(4, 12, frozenset(), seed=5)
    (run,) = jacobi_trajectories(llama, [Prompt(0, [1, 2, 3])], config)
    steps = sum(len(states) - 1 for states in run.states)
    assert steps <= run.passes <= min(steps + len(run.states), len(run.response_ids))
    (run,) = jacobi_trajectories(llama, [Prompt(0, [1, 2, 3])], JacobiSettings(1, 12, frozenset()))
    assert run.passes == len(run.response_ids) == 12


def test_prompts_are_taken_only_as_slots_become_free(llama: PreTrainedModel) -> None:
    taken = 0

    def prompts() -> object:
        nonlocal taken
        for key in range(20):
            taken += 1
            yield Prompt(key, [key, 1, 2])

    runs = jacobi_trajectories(llama, prompts(), JacobiSettings(4, 8, frozenset(), batch_size=3))  # type: ignore[arg-type]
    next(runs)
    assert taken == 3
    assert len(list(runs)) == 19


def test_the_model_is_restored(llama: PreTrainedModel) -> None:
    before = llama.config._attn_implementation
    runs = jacobi_trajectories(llama, [Prompt(0, [1])], JacobiSettings(4, 8, frozenset()))
    next(runs)
    runs.close()
    assert llama.config._attn_implementation == before
    assert logits_of(llama, [1, 2]).shape == (2, VOCABULARY)


def test_a_model_without_plain_attention_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(CheckpointError, match="mamba"):
        list(jacobi_trajectories(model, [Prompt(0, [1, 2])], JacobiSettings(4, 8, frozenset())))


def test_learned_positions_work_too() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.6)
    model = GPT2LMHeadModel(config).double().eval()
    jacobi = JacobiSettings(4, 12, frozenset(), batch_size=2)
    for run in jacobi_trajectories(model, [Prompt(0, [1, 2, 3]), Prompt(1, [5])], jacobi):
        check_run(model, run, jacobi)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 2**31)), min_size=1, max_size=4),
    st.integers(1, 50),
)
def test_noise_is_that_of_decoding(rows: list[tuple[int, int]], vocabulary: int) -> None:
    """At most one unit in the last place of each of the two logarithms apart, for any seed."""
    seeds, positions = zip(*rows, strict=True)
    noise = gumbel_noise(seeds, positions, vocabulary).numpy()
    expected = [[gumbel(state_of(seed, position), token) for token in range(vocabulary)] for seed, position in rows]
    np.testing.assert_allclose(noise, expected, rtol=4e-16, atol=4e-16)


def test_noise_beyond_the_first_tokens_is_that_of_decoding() -> None:
    noise = gumbel_noise([7, -1], [1000, 5], 150_000).numpy()
    for row, (seed, position) in enumerate([(7, 1000), (-1, 5)]):
        expected = gumbel_of(state_of(seed, position), np.arange(150_000))
        np.testing.assert_allclose(noise[row], expected, rtol=4e-16, atol=4e-16)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    count, temperature = 20_000, 0.7
    picks = pick_rows(logits.expand(count, 4), temperature, [9] * count, range(count))
    shares = torch.bincount(picks, minlength=4) / count
    assert torch.allclose(shares, torch.softmax(logits / temperature, 0), atol=0.012)
