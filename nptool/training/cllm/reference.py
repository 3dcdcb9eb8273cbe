"""The same loss as a plain loop: one forward pass per state, no packing, no mask.

What the packed pass is tested against, and the shortest statement of what it computes. Legend: R response tokens,
T tokens of one sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nptool.training.cllm.losses import divergence
from nptool.training.cllm.packing import TrajectoryLike
from nptool.training.cllm.recipe import Recipe
from nptool.training.cllm.schedule import Choice


def plain_loss(model: nn.Module, samples: Sequence[tuple[TrajectoryLike, Sequence[Choice]]], recipe: Recipe) -> Tensor:
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
    model: nn.Module, trajectory: TrajectoryLike, choice: Choice, number: int, clean_TV: Tensor, recipe: Recipe
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
            distance = divergence(student_TV[row], teacher_TV[row], label, recipe.divergence)
            total, weights = total + weight * distance.sum(), weights + weight
    return total, weights


def _context(trajectory: TrajectoryLike, choice: Choice, number: int, recipe: Recipe) -> list[int]:
    """The response tokens before block `number` as its noisy state sees them."""
    tokens: list[int] = []
    for earlier in range(number):
        same_window = (earlier + choice.phase) // recipe.window == (number + choice.phase) // recipe.window
        noisy = recipe.context == "noisy" or (recipe.context == "window" and same_window)
        tokens += trajectory.states[earlier][choice.states[earlier] if noisy else -1].tolist()
    return tokens


def _cross_entropy(
    model: nn.Module, trajectory: TrajectoryLike, clean_TV: Tensor, recipe: Recipe
) -> tuple[Tensor, int]:
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
