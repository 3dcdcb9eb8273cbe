"""Muon against singular value decompositions, a plain loop, and torch's AdamW for what it leaves to AdamW."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nptool.training.muon import MOMENTUM, SCALE, Muon, orthogonal

LR, DECAY, BETAS = 1e-2, 0.1, (0.9, 0.95)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.wide, self.tall = nn.Linear(4, 6, bias=True), nn.Linear(6, 4, bias=False)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.lm_head(self.norm(self.tall(self.wide(self.embed(ids)).relu())))
        return found


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def muon(model: nn.Module) -> Muon:
    return Muon(model, lr=LR, precision=torch.float32, weight_decay=DECAY, betas=BETAS)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        ids = torch.randint(7, (12,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), (3 * ids + 1) % 7).backward()
        optimizer.step()


@settings(deadline=None)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), seed=st.integers(0, 99))
def test_orthogonal_has_equal_singular_values_in_the_same_directions(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    stretched = left.mT @ found @ right.mT
    diagonal = stretched.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(stretched, torch.diag_embed(diagonal), atol=1e-6, rtol=0)
    # The iteration raises what is small by a factor of about 3.4 each time.
    large = diagonal[values / values.norm(dim=1, keepdim=True) > 0.01]
    assert ((large > 0.5) & (large < 1.3)).all()


def test_matrices_move_by_orthogonal_updates() -> None:
    """Three steps against the formula, with the gradients of the same model."""
    model, reference = small(), small()
    optimizer, momentum = muon(model), torch.zeros_like(reference.wide.weight)
    expected = reference.wide.weight.detach().clone()
    for step in range(3):
        train(model, optimizer, 1, step)
        gradient = model.wide.weight.grad
        assert gradient is not None
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        update = orthogonal(((1 - MOMENTUM) * gradient + MOMENTUM * momentum)[None])[0]
        expected = expected * (1 - LR * DECAY) - LR * SCALE * 6**0.5 * update
        torch.testing.assert_close(model.wide.weight.detach(), expected)


def test_everything_else_is_adamws() -> None:
    model = small()
    optimizer = muon(model)
    others = {name: weight for name, weight in model.named_parameters() if name not in ("wide.weight", "tall.weight")}
    copies = {name: nn.Parameter(weight.detach().clone()) for name, weight in others.items()}
    decayed = [weight for weight in copies.values() if weight.dim() > 1]
    plain = [weight for weight in copies.values() if weight.dim() == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    for step in range(3):
        train(model, optimizer, 1, step)
        for name, weight in others.items():
            copies[name].grad = None if weight.grad is None else weight.grad.clone()
        adamw.step()
        for name, weight in others.items():
            torch.testing.assert_close(weight, copies[name], msg=name)


def test_a_saved_state_goes_on_alike() -> None:
    whole, cut = small(), small()
    optimizer = muon(whole)
    train(whole, optimizer, 6)
    optimizer = muon(cut)
    train(cut, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer = muon(cut)
    optimizer.load_state_dict(saved)
    train(cut, optimizer, 3, first=3)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("frozen", ["wide.weight", "embed.weight"])
def test_what_is_not_trained_stays(frozen: str) -> None:
    model = small()
    weight = model.get_parameter(frozen).requires_grad_(False)
    before = weight.clone()
    train(model, muon(model), 2)
    assert torch.equal(weight, before)
