"""The packed pass against a plain loop (`plain_loss`): the same loss and the same gradients.

Legend: T tokens of one sequence, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from nptool.collection.store import Trajectory
from nptool.training.cllm import losses
from nptool.training.cllm.batching import collate
from nptool.training.cllm.divergences import DIVERGENCES
from nptool.training.cllm.one_pass import count_rows, packed_loss
from nptool.training.cllm.packing import pack
from nptool.training.cllm.recipe import Recipe
from nptool.training.cllm.schedule import Choice, choose, generator

Make = Callable[..., Trajectory]
Samples = list[tuple[Trajectory, list[Choice]]]
LENGTHS = ((5, 9), (3, 13), (1, 4), (2, 1), (7, 8))


def plain_loss(model: nn.Module, samples: Sequence[tuple[Trajectory, Sequence[Choice]]], recipe: Recipe) -> Tensor:
    """The loss of a batch of trajectories with their choices of states."""
    consistency, cross_entropy, weight, labels = torch.zeros(()), torch.zeros(()), 0.0, 0
    for trajectory, choices in samples:
        prompt, response = trajectory.prompt_ids.tolist(), trajectory.response_ids.tolist()
        clean_TV = _logits(model, prompt + response)
        ar_sum, ar_labels = _cross_entropy(model, trajectory, clean_TV, recipe)
        cross_entropy, labels = cross_entropy + ar_sum, labels + ar_labels
        for choice in choices:
            for number in range(len(trajectory.states)):
                distance, taught = _block(model, trajectory, choice, number, clean_TV, recipe)
                consistency, weight = consistency + distance, weight + taught
    return consistency / (weight or 1) + recipe.ar_weight * cross_entropy / max(labels, 1)


def _block(
    model: nn.Module, trajectory: Trajectory, choice: Choice, number: int, clean_TV: Tensor, recipe: Recipe
) -> tuple[Tensor, float]:
    """Weighted sum of divergences of a block in its state, and the weight of its taught rows."""
    prompt, response = trajectory.prompt_ids.tolist(), trajectory.response_ids.tolist()
    states = trajectory.states[number]
    state, target = states[choice.states[number]].tolist(), states[-1].tolist()
    wrong = [i for i, (token, right) in enumerate(zip(state, target, strict=True)) if token != right]
    student_TV = _logits(model, prompt + _context(trajectory, choice, number, recipe) + state)
    teacher_TV = clean_TV.detach()
    if recipe.consistency == "local":
        last = [len(block) - 1 for block in trajectory.states]
        following = Choice(tuple(min(i + 1, k) for i, k in zip(choice.states, last, strict=True)), choice.phase)
        context = _context(trajectory, following, number, recipe)
        with torch.no_grad():
            teacher_TV = _logits(model, prompt + context + states[following.states[number]].tolist())
    total, weights, begin = clean_TV.new_zeros(()), 0.0, number * len(state)
    for i in range(len(state)):
        # Row i of the block predicts response token begin + i + 1, which must exist.
        if wrong and i >= wrong[0] and begin + i + 1 < len(response):
            row = slice(len(prompt) + begin + i, len(prompt) + begin + i + 1)
            label = torch.tensor([response[begin + i + 1]])
            weight = recipe.decay ** (i - wrong[0])
            distance = DIVERGENCES[recipe.divergence](student_TV[row], teacher_TV[row], label)
            total, weights = total + weight * distance.sum(), weights + weight
    return total, weights


def _context(trajectory: Trajectory, choice: Choice, number: int, recipe: Recipe) -> list[int]:
    """The response tokens before block `number` as its noisy state sees them."""
    tokens: list[int] = []
    for earlier in range(number):
        same_window = (earlier + choice.phase) // recipe.window == (number + choice.phase) // recipe.window
        noisy = recipe.context == "noisy" or (recipe.context == "window" and same_window)
        tokens += trajectory.states[earlier][choice.states[earlier] if noisy else -1].tolist()
    return tokens


def _cross_entropy(model: nn.Module, trajectory: Trajectory, clean_TV: Tensor, recipe: Recipe) -> tuple[Tensor, int]:
    """Sum of the autoregressive term, and its number of labels."""
    prompt, labels = trajectory.prompt_ids.tolist(), trajectory.response_ids.tolist()
    logits_TV = clean_TV
    if recipe.ar_target == "reference":
        assert trajectory.reference_ids is not None, "the data is checked for references when it is read"
        labels = trajectory.reference_ids.tolist()
        logits_TV = _logits(model, prompt + labels)
    rows_TV = logits_TV[len(prompt) - 1 : len(prompt) - 1 + len(labels)]
    loss = F.cross_entropy(rows_TV, torch.tensor(labels), reduction="sum", label_smoothing=recipe.label_smoothing)
    return loss, len(labels)


def _logits(model: nn.Module, ids: list[int]) -> Tensor:
    logits_TV: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits_TV


def draw_samples(make_trajectory: Make, recipe: Recipe, seed: int = 0, block: int = 4) -> Samples:
    """Trajectories of different lengths with their chosen states."""
    samples = []
    for index, (prompt, response) in enumerate(LENGTHS):
        trajectory = make_trajectory(seed + index, prompt, response, block)
        samples.append((trajectory, choose(trajectory.states, response, recipe, generator(seed, 0, index))))
    return samples


def packed(model: PreTrainedModel, samples: Samples, recipe: Recipe, attention: str = "sdpa") -> Tensor:
    batch = collate([pack(trajectory, choices, recipe) for trajectory, choices in samples])
    return packed_loss(model, batch, recipe, attention=attention).loss


def gradients(model: PreTrainedModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_same(model: PreTrainedModel, samples: Samples, recipe: Recipe) -> None:
    fast, slow = packed(model, samples, recipe), plain_loss(model, samples, recipe)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(gradients(model, fast), gradients(model, slow), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("context", ["noisy", "window", "clean"])
@pytest.mark.parametrize("consistency", ["global", "local"])
def test_every_family_gives_the_plain_loop_s_loss_and_gradients(
    make_trajectory: Make, model: PreTrainedModel, context: str, consistency: str
) -> None:
    recipe = Recipe(context=context, consistency=consistency, window=2, ar_target="reference")
    assert_same(model, draw_samples(make_trajectory, recipe), recipe)


SETTINGS = [
    choice
    for choice in itertools.product(
        ("progressive", "uniform", "random", "reverse"),
        ("noisy", "window", "clean"),
        ("global", "local"),
        DIVERGENCES,
    )
    if choice[2:] != ("local", "fixed-point")
]


@pytest.mark.parametrize(("schedule", "context", "consistency", "divergence"), SETTINGS)
def test_every_setting_gives_the_plain_loop_s_loss_and_gradients(
    make_trajectory: Make,
    llama: PreTrainedModel,
    schedule: str,
    context: str,
    consistency: str,
    divergence: str,
) -> None:
    recipe = Recipe(
        schedule=schedule,
        context=context,
        consistency=consistency,
        divergence=divergence,
        window=3,
        draws=2,
        decay=0.8,
        label_smoothing=0.1,
    )
    assert_same(llama, draw_samples(make_trajectory, recipe, seed=10), recipe)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 14)), min_size=1, max_size=4),
    block=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    context=st.sampled_from(["noisy", "window", "clean"]),
    consistency=st.sampled_from(["global", "local"]),
    ar_target=st.sampled_from(["response", "reference"]),
    window=st.integers(1, 4),
    draws=st.integers(1, 3),
    decay=st.sampled_from([1.0, 0.7]),
    alike=st.integers(0, 14),
)
def test_any_lengths_and_any_states(
    make_trajectory: Make,
    llama: PreTrainedModel,
    lengths: list[tuple[int, int]],
    block: int,
    seed: int,
    context: str,
    consistency: str,
    ar_target: str,
    window: int,
    draws: int,
    decay: float,
    alike: int,
) -> None:
    """States drawn without any schedule, the fixed point among them; references that begin like the response."""
    recipe = Recipe(context=context, consistency=consistency, ar_target=ar_target, window=window, decay=decay)
    rng = generator(seed, 0, 0)
    samples = []
    for index, (prompt, response) in enumerate(lengths):
        trajectory = make_trajectory(seed + index, prompt, response, block)
        assert trajectory.reference_ids is not None
        reference = np.concatenate([trajectory.response_ids[:alike], trajectory.reference_ids[alike:]])
        trajectory = replace(trajectory, reference_ids=reference[: int(rng.integers(1, response + 3))])
        choices = [
            Choice(tuple(int(rng.integers(len(states))) for states in trajectory.states), int(rng.integers(window)))
            for _ in range(draws)
        ]
        samples.append((trajectory, choices))
    assert_same(llama, samples, recipe)


def test_eager_attention_gives_the_same(
    make_trajectory: Make, llama: PreTrainedModel, eager_llama: PreTrainedModel
) -> None:
    recipe = Recipe(window=2)
    samples = draw_samples(make_trajectory, recipe)
    eager, sdpa = packed(eager_llama, samples, recipe, "eager"), packed(llama, samples, recipe)
    # Eager attention's softmax is float32 in transformers.
    torch.testing.assert_close(eager, sdpa, rtol=1e-7, atol=1e-7)


def test_small_chunks_of_the_softmax_change_nothing(
    make_trajectory: Make, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(window=2)
    samples = draw_samples(make_trajectory, recipe)
    whole = packed(llama, samples, recipe)
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 3 * 29)
    chunked = packed(llama, samples, recipe)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients(llama, chunked), gradients(llama, whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_batches_of_one_step_add_up_to_the_whole_batch(make_trajectory: Make, llama: PreTrainedModel) -> None:
    """Gradient accumulation: with the step's totals as counts, no batch weighs more than its rows."""
    recipe = Recipe(window=2)
    samples = draw_samples(make_trajectory, recipe)
    batches = [collate([pack(*sample, recipe)]) for sample in samples]
    totals = torch.stack([count_rows(batch) for batch in batches]).sum(0)
    parts = [packed_loss(llama, batch, recipe, totals).loss for batch in batches]
    torch.testing.assert_close(torch.stack(parts).sum(), packed(llama, samples, recipe), rtol=1e-10, atol=1e-10)


def test_a_fixed_point_everywhere_has_no_consistency_loss(make_trajectory: Make, llama: PreTrainedModel) -> None:
    recipe = Recipe()
    trajectory = make_trajectory(0)
    sample = pack(trajectory, [Choice(tuple(len(states) - 1 for states in trajectory.states), 0)], recipe)
    assert len(sample) == 5 + 9 - 1
    result = packed_loss(llama, collate([sample]), recipe)
    assert count_rows(collate([sample])).tolist() == [0, 9, 0]
    assert result.sums[0] == 0
    assert result.loss.item() == pytest.approx(10 * result.sums[1].item() / 9)


def test_the_teacher_gets_no_gradient(make_trajectory: Make, llama: PreTrainedModel) -> None:
    """Forward KL's gradient on the student's logits is (q - p) / rows, and the clean rows' is zero."""
    recipe = replace(Recipe(context="clean", schedule="uniform"), ar_weight=0.0)
    batch = collate(
        [pack(trajectory, choices, recipe) for trajectory, choices in draw_samples(make_trajectory, recipe)]
    )
    torch.manual_seed(1)
    rows = losses.Rows(
        ar_A=batch["ar_rows_A"],
        ar_labels_A=batch["ar_labels_A"],
        student_M=batch["student_rows_M"],
        teacher_M=batch["teacher_rows_M"],
        fixed_labels_M=batch["fixed_labels_M"],
        weights_M=batch["weights_M"],
    )
    logits_KV = torch.randn(batch["input_ids"].numel(), 29, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(1 / len(rows.student_M), dtype=torch.float64)
    loss, _ = losses.weighted_sums(logits_KV, rows, recipe, weight, torch.tensor(0.0))
    (gradient_KV,) = torch.autograd.grad(loss, logits_KV)
    expected_KV = torch.zeros_like(logits_KV)
    student_MV, teacher_MV = logits_KV[rows.student_M].softmax(-1), logits_KV[rows.teacher_M].softmax(-1)
    expected_KV[rows.student_M] = weight * (student_MV - teacher_MV)
    torch.testing.assert_close(gradient_KV, expected_KV.detach())
    assert not gradient_KV[rows.teacher_M].any()
