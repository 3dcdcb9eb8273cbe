"""The heads' loss against plain autograd, and against transformers' own forward pass, one token at a time."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from heads_memory import plain_loss
from torch import Tensor, nn
from transformers import PreTrainedModel

from nptool.collection.store import Trajectory
from nptool.heads import SEPARATE, SHARED
from nptool.training.heads import losses
from nptool.training.heads.batching import heads_batch, response_sequences
from nptool.training.heads.losses import IGNORE, Guard, heads_loss
from nptool.training.heads.model import MultiHead, add_heads

Build = Callable[..., PreTrainedModel]
HEADS = 4
# Prompt and response of each row; the last is shorter than what head 4 looks ahead.
LENGTHS = ((5, 9), (3, 6), (7, 2))


def trajectories(vocabulary: int = 29) -> list[Trajectory]:
    rng = np.random.default_rng(0)

    def draw(count: int) -> Any:
        return rng.integers(vocabulary, size=count).astype(np.int32)

    return [Trajectory(draw(prompt), draw(response), None, ()) for prompt, response in LENGTHS]


def batch(heads: int = HEADS) -> dict[str, Tensor]:
    return heads_batch(response_sequences(trajectories()), range(len(LENGTHS)), 0, heads)


@pytest.fixture(params=[SHARED, SEPARATE])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def multi_head(build: Build, family: str, tied: bool, kind: str = SEPARATE, heads: int = HEADS) -> MultiHead:
    """A model whose heads differ from each other."""
    model = add_heads(build(family, tied), heads, kind, rank=3)
    generator = torch.Generator().manual_seed(1)
    for weight in model.extra.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
    return model


def counts(labels_NK: Tensor) -> Tensor:
    return (labels_NK != IGNORE).sum(0)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [1, 100, 10_000])
def test_loss_and_gradients_are_autograd_s(
    build: Build, family: str, kind: str, tied: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk)
    model, inputs = multi_head(build, family, tied, kind), batch()
    plain = plain_loss(model, **inputs)
    (3 * plain).backward()
    expected = gradients(model)
    loss, sums = heads_loss(model, **inputs, counts_K=counts(inputs["labels_NK"]))
    (3 * loss).backward()
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close((sums[:-1] / counts(inputs["labels_NK"])).sum(), plain.detach(), rtol=1e-12, atol=0)
    found = gradients(model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert_same(found, expected)


def test_the_shift_is_that_of_a_naive_loop(build: Build, family: str) -> None:
    """Each head as the last layer of an ordinary model, one prefix at a time, by transformers' own forward pass."""
    model = multi_head(build, family, False)
    total = 0.0
    for head in range(1, HEADS + 1):
        plain: Any = build(family)
        plain.model.layers[-1] = deepcopy(model.last if head == 1 else model.extra.layers[head - 2])
        terms = []
        for row in trajectories():
            prompt, response = row.prompt_ids.tolist(), row.response_ids.tolist()
            text = prompt + response
            for seen in range(len(prompt) - (head > 1), len(text)):
                if seen + head - 1 < len(text):
                    with torch.no_grad():
                        logits_V = plain(input_ids=torch.tensor([text[:seen]])).logits[0, -1]
                    terms.append(-float(logits_V.log_softmax(-1)[text[seen + head - 1]]))
        total += sum(terms) / len(terms)
    inputs = batch()
    loss = heads_loss(model, **inputs, counts_K=counts(inputs["labels_NK"])).loss
    assert loss.item() == pytest.approx(total, rel=1e-10)


def test_a_shared_layer_reads_each_depth_as_one_row_after_the_text(build: Build, family: str) -> None:
    """Each prefix and depth by itself: transformers' one-layer model reads z of the prefix, then the depth's row."""
    model = multi_head(build, family, False, SHARED)
    one_layer: Any = build(family)
    one_layer.model.layers = nn.ModuleList([model.extra.layer])
    one_layer.config.num_hidden_layers = 1
    total = 0.0
    for head in range(2, HEADS + 1):
        depth, terms = model.extra.depths[head - 2], []
        for row in trajectories():
            prompt, response = row.prompt_ids.tolist(), row.response_ids.tolist()
            text = prompt + response
            z_TD = model.run_trunk(torch.tensor([text])).z_BTD[0]
            for seen in range(len(prompt) - (head > 1), len(text)):
                if seen + head - 1 < len(text):
                    z_D = z_TD[seen - 1]
                    x_D = z_D + depth.e + depth.b @ (depth.a @ z_D)
                    with torch.no_grad():
                        inputs = torch.stack([*z_TD[:seen], x_D])[None]
                        hidden_TD = one_layer.model(inputs_embeds=inputs, use_cache=False)[0][0]
                    logits_V = model.unembedding_VD @ hidden_TD[-1]
                    terms.append(-float(logits_V.detach().log_softmax(-1)[text[seen + head - 1]]))
        total += sum(terms) / len(terms)
    inputs = batch()
    sums = heads_loss(model, **inputs, counts_K=counts(inputs["labels_NK"])).sums
    assert float((sums[1:-1] / counts(inputs["labels_NK"])[1:]).sum()) == pytest.approx(total, rel=1e-10)


def test_a_frozen_trunk_leaves_gradients_of_the_extra_heads_only(build: Build, family: str, kind: str) -> None:
    model, inputs = multi_head(build, family, True, kind), batch()
    model.freeze_trunk()
    plain_loss(model, **inputs).backward()
    expected = gradients(model)
    loss, sums = heads_loss(model, **inputs, counts_K=counts(inputs["labels_NK"]))
    loss.backward()
    assert_same(gradients(model), expected)
    assert expected.keys() == {f"extra.{name}" for name, _ in model.extra.named_parameters()}
    assert sums[0] == 0


def test_batches_of_a_step_add_up_to_one_mean(build: Build, kind: str) -> None:
    model, whole = multi_head(build, "llama", True, kind), batch()
    total = counts(whole["labels_NK"])
    heads_loss(model, **whole, counts_K=total).loss.backward()
    expected = gradients(model)
    sequences = response_sequences(trajectories())
    for rows in ([0], [1, 2]):
        heads_loss(model, **heads_batch(sequences, rows, 0, HEADS), counts_K=total).loss.backward()
    assert_same(gradients(model), expected)


def test_the_guard_is_the_divergence_from_the_original(build: Build) -> None:
    model, inputs = multi_head(build, "llama", True), batch()
    original: Any = build("llama", False)
    hidden_BTD = original.model(input_ids=inputs["input_ids"])[0]
    guard = Guard(0.7, hidden_BTD.flatten(0, 1)[inputs["positions_N"]].detach(), original.lm_head.weight.detach())
    hidden_ND = model.hidden_states(0, model.run_trunk(inputs["input_ids"]), inputs["positions_N"])
    logs_NV = F.linear(hidden_ND, model.unembedding_VD).log_softmax(-1)
    original_NV = F.linear(guard.hidden_ND, guard.unembedding_VD).log_softmax(-1)
    own_N = inputs["labels_NK"][:, 0] != IGNORE
    divergence = F.kl_div(logs_NV[own_N], original_NV[own_N], reduction="batchmean", log_target=True)
    plain = plain_loss(model, **inputs) + guard.weight * divergence
    plain.backward()
    expected = gradients(model)
    loss, sums = heads_loss(model, **inputs, counts_K=counts(inputs["labels_NK"]), guard=guard)
    loss.backward()
    torch.testing.assert_close(loss, plain)
    assert_same(gradients(model), expected)
    assert sums[-1] > 0
    near = Guard(0.7, hidden_ND.detach(), model.unembedding_VD.detach())
    assert heads_loss(model, **inputs, counts_K=counts(inputs["labels_NK"]), guard=near).sums[-1].abs() < 1e-10


def test_no_chunk_is_larger_than_said(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all logits of all heads, only a chunk's are ever there."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 3 * 29)
    sizes = []
    linear = losses.F.linear

    def record(hidden: Tensor, weight: Tensor) -> Tensor:
        sizes.append(len(hidden))
        result: Tensor = linear(hidden, weight)
        return result

    model, inputs = multi_head(build, "llama", True), batch()
    monkeypatch.setattr(losses, "F", type("F", (), {"linear": staticmethod(record), "kl_div": losses.F.kl_div}))
    heads_loss(model, **inputs, counts_K=counts(inputs["labels_NK"]))
    assert max(sizes) == 3
    assert sum(sizes) == int(counts(inputs["labels_NK"]).sum())


def test_the_gradients_are_handed_over_not_copied(build: Build) -> None:
    model, inputs = multi_head(build, "llama", True), batch()
    loss = heads_loss(model, **inputs, counts_K=counts(inputs["labels_NK"])).loss
    held = loss.grad_fn.gradients._sums[id(model.extra.layers[0].mlp.up_proj.weight)].data_ptr()
    loss.backward()
    assert model.extra.layers[0].mlp.up_proj.weight.grad.data_ptr() == held
