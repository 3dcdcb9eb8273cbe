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
    generate_greedy,
    initial_guess,
    jacobi_trajectories,
)
from nptool.collection.picking import Picker, gumbel_noise
from nptool.errors import CheckpointError

VOCABULARY = 61
PROMPT = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)
few_examples = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def logits_of(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) of a sequence: one forward pass without cache."""
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def picks_of(model: PreTrainedModel, picker: Picker, key: int, ids: list[int], count: int) -> list[int]:
    """What is picked after each of the last `count` tokens of a sequence."""
    positions = torch.arange(len(ids) - count + 1, len(ids) + 1)
    return picker(logits_of(model, ids)[-count:], torch.full_like(positions, key), positions).tolist()


def token_by_token(
    model: PreTrainedModel, picker: Picker, prompt: Prompt, limit: int, ends: frozenset[int]
) -> list[int]:
    """Autoregressive decoding."""
    response: list[int] = []
    while len(response) < limit and not (response and response[-1] in ends):
        response += picks_of(model, picker, prompt.key, [*prompt.ids, *response], 1)
    return response


def naive_block(
    model: PreTrainedModel, picker: Picker, prompt: Prompt, before: list[int], guess: list[int]
) -> list[list[int]]:
    """The states of one block by Jacobi iteration as in the paper: the whole block anew until it stands still."""
    states = [guess]
    while True:
        ids = [*prompt.ids, *before, *states[-1][:-1]]
        state = picks_of(model, picker, prompt.key, ids, len(guess))
        if state == states[-1]:
            return states
        states.append(state)


def check_run(model: PreTrainedModel, run: JacobiRun, config: JacobiSettings) -> None:
    """Response, end, states and number of passes of one run against the plain loops."""
    picker = Picker(config.temperature, config.seed)
    expected = token_by_token(model, picker, run.prompt, config.max_new_tokens, config.end_token_ids)
    assert run.response_ids == expected
    assert run.ended == (expected[-1] in config.end_token_ids)
    assert len(run.states) == -(-len(expected) // config.n)
    before: list[int] = []
    for block, states in enumerate(run.states):
        guess = initial_guess(run.prompt, block, config.n, config.seed).tolist()
        naive = naive_block(model, picker, run.prompt, before, guess)
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
    temperature=st.sampled_from([0.0, 0.0, 0.7]),
)
def test_trajectories_equal_the_plain_loops(
    model: PreTrainedModel, prompts: list[list[int]], n: int, batch_size: int, ends: frozenset[int], temperature: float
) -> None:
    config = JacobiSettings(n, 20, ends, batch_size=batch_size, seed=3, temperature=temperature)
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
    assert generate_greedy(model, prompts, 17, frozenset({end}), batch=3) == expected
    config = JacobiSettings(n=6, max_new_tokens=17, end_token_ids=frozenset({end}), batch_size=3)
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
    """One accepted token a pass at least, one pass to confirm what is right at most."""
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


def test_the_model_comes_back_as_it_was(llama: PreTrainedModel) -> None:
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


def test_noise_is_gumbel_and_depends_on_every_key() -> None:
    sequences, positions = torch.arange(40).repeat_interleave(25), torch.arange(25).repeat(40)
    noise = gumbel_noise(1, sequences, positions, 64)
    assert noise.shape == (1000, 64)
    # Mean and variance of a standard Gumbel variable; 64,000 samples.
    assert abs(noise.mean().item() - 0.5772) < 0.02
    assert abs(noise.var().item() - torch.pi**2 / 6) < 0.04
    assert noise.unique().numel() > 63_000
    assert torch.equal(noise[[30]], gumbel_noise(1, sequences[[30]], positions[[30]], 64))
    assert not torch.equal(noise, gumbel_noise(2, sequences, positions, 64))


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    count, temperature = 20_000, 0.7
    rows = torch.arange(count)
    picks = Picker(temperature, 9)(logits.expand(count, 4), torch.zeros_like(rows), rows)
    shares = torch.bincount(picks, minlength=4) / count
    assert torch.allclose(shares, torch.softmax(logits / temperature, 0), atol=0.012)
