"""The divergences against their formulas, and the hand-carried gradient against autograd."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nptool.training.cllm import losses
from nptool.training.cllm.divergences import DIVERGENCES
from nptool.training.cllm.losses import Rows, weighted_sums
from nptool.training.cllm.recipe import Recipe


def logits(seed: int, rows: int = 4, vocabulary: int = 7) -> Tensor:
    return 3 * torch.randn(rows, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


def test_the_divergences_are_what_their_names_say() -> None:
    student, teacher = logits(0), logits(1)
    q, p = student.softmax(-1), teacher.softmax(-1)
    labels = torch.tensor([0, 3, 6, 3])
    expected = {
        "forward-kl": kl(p, q),
        "reverse-kl": kl(q, p),
        "jensen-shannon": 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2),
        "fixed-point": -float(q[torch.arange(4), labels].log().sum()),
    }
    assert expected.keys() == DIVERGENCES.keys()
    for name, value in expected.items():
        assert DIVERGENCES[name](student, teacher, labels).sum().item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", sorted(DIVERGENCES.keys() - {"fixed-point"}))
def test_equal_rows_have_no_divergence(name: str) -> None:
    value = DIVERGENCES[name](logits(0), logits(0), torch.zeros(4, dtype=torch.long)).sum().item()
    assert value == pytest.approx(0, abs=1e-12)


def test_jensen_shannon_stays_finite_where_the_rows_exclude_each_other() -> None:
    student, teacher = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    value = DIVERGENCES["jensen-shannon"](student, teacher, torch.tensor([0])).item()
    assert value == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("chunk", [7, 15, 1000])
def test_the_gradient_is_autograd_s(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows serve twice (as labels' rows and teachers), and one row is taught twice."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk)
    recipe = Recipe(divergence=kind, label_smoothing=0.1)
    rows = Rows(
        ar_A=torch.tensor([0, 1, 2]),
        ar_labels_A=torch.tensor([6, 0, 3]),
        student_M=torch.tensor([3, 4, 5, 3]),
        teacher_M=torch.tensor([0, 1, 2, 1]),
        fixed_labels_M=torch.tensor([1, 2, 3, 4]),
        weights_M=torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64),
    )
    logits_KV = logits(2, 6).requires_grad_()
    weights = torch.tensor([0.3, 2.5], dtype=torch.float64)
    loss, sums = weighted_sums(logits_KV, rows, recipe, weights[0], weights[1])
    teacher_MV = logits_KV[rows.teacher_M].detach()
    divergence_M = DIVERGENCES[kind](logits_KV[rows.student_M], teacher_MV, rows.fixed_labels_M)
    plain = weights[0] * (rows.weights_M * divergence_M).sum() + weights[1] * F.cross_entropy(
        logits_KV[rows.ar_A], rows.ar_labels_A, reduction="sum", label_smoothing=0.1
    )
    torch.testing.assert_close(loss, plain)
    mine, theirs = (torch.autograd.grad(7 * value, logits_KV)[0] for value in (loss, plain))
    torch.testing.assert_close(mine, theirs)
    assert sums[2] == (logits_KV[rows.student_M].argmax(-1) == rows.fixed_labels_M).sum()


def test_bfloat16_logits_are_compared_in_float32() -> None:
    none = torch.zeros(0, dtype=torch.long)
    rows = Rows(none, none, torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.ones(1))
    logits_KV = logits(3, 2).bfloat16().requires_grad_()
    loss, sums = weighted_sums(logits_KV, rows, Recipe(), torch.tensor(1.0), torch.tensor(1.0))
    student_MV, teacher_MV = logits_KV.detach().float().split(1)
    exact = DIVERGENCES["forward-kl"](student_MV, teacher_MV, rows.fixed_labels_M)
    assert sums.dtype == torch.float32
    assert loss.item() == exact.item()
