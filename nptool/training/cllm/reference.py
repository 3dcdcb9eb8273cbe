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


def plain_sums(
    model: nn.Module, trajectory: TrajectoryLike, chosen: Sequence[int], recipe: Recipe, phase: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sums of one trajectory.

    Returns:
        Sum of divergences and sum of cross-entropies (scalars with gradient), and the number of rows in each, (2,).
    """
    prompt = trajectory.prompt_ids.tolist()
    response = trajectory.response_ids.tolist()
    clean_TV = _logits(model, prompt + response)
    total, rows = clean_TV.new_zeros(()), 0
    for number, states in enumerate(trajectory.states):
        begin = number * states.shape[1]
        state, target = states[chosen[number]].tolist(), states[-1].tolist()
        wrong = [i for i, (token, right) in enumerate(zip(state, target, strict=True)) if token != right]
        student_TV = _logits(model, prompt + _context(trajectory, chosen, number, recipe, phase) + state)
        if recipe.consistency == "local":
            following = [min(i + 1, len(block) - 1) for i, block in zip(chosen, trajectory.states, strict=True)]
            context = _context(trajectory, following, number, recipe, phase)
            with torch.no_grad():
                teacher_TV = _logits(model, prompt + context + states[following[number]].tolist())
        else:
            teacher_TV = clean_TV.detach()
        for i in range(len(state)):
            # Row i of the block predicts response token begin + i + 1, which must exist.
            if wrong and i >= wrong[0] and begin + i + 1 < len(response):
                row = slice(len(prompt) + begin + i, len(prompt) + begin + i + 1)
                label = torch.tensor([response[begin + i + 1]])
                total = total + divergence(student_TV[row], teacher_TV[row], label, recipe.divergence)
                rows += 1
    cross_entropy, labels = _cross_entropy(model, trajectory, clean_TV, recipe)
    return total, cross_entropy, torch.tensor([rows, labels])


def plain_loss(
    model: nn.Module, samples: Sequence[tuple[TrajectoryLike, Sequence[int], int]], recipe: Recipe
) -> Tensor:
    """The loss of a batch of (trajectory, chosen states, phase)."""
    parts = [plain_sums(model, trajectory, chosen, recipe, phase) for trajectory, chosen, phase in samples]
    consistency = torch.stack([part[0] for part in parts]).sum()
    cross_entropy = torch.stack([part[1] for part in parts]).sum()
    rows, labels = torch.stack([part[2] for part in parts]).sum(0).clamp(min=1)
    loss: Tensor = consistency / rows + recipe.ar_weight * cross_entropy / labels
    return loss


def _context(trajectory: TrajectoryLike, chosen: Sequence[int], number: int, recipe: Recipe, phase: int) -> list[int]:
    """The response tokens before block `number` as its noisy state sees them."""
    tokens: list[int] = []
    for earlier in range(number):
        same_window = (earlier + phase) // recipe.window == (number + phase) // recipe.window
        noisy = recipe.context == "noisy" or (recipe.context == "window" and same_window)
        tokens += trajectory.states[earlier][chosen[earlier] if noisy else -1].tolist()
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
