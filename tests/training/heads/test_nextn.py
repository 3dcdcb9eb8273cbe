"""The chain of a NextN block against a naive loop: each position by itself, one token after the other."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from nptool.collection.store import Trajectory
from nptool.errors import CheckpointError, UsageError
from nptool.heads import HEADS_WEIGHTS, NEXTN, read_heads_info
from nptool.nextn import block_config, carrier_of
from nptool.training.base.config import BaseConfig
from nptool.training.base.train import count_heads
from nptool.training.heads.batching import heads_batch, response_sequences
from nptool.training.heads.checkpoint import load_heads
from nptool.training.heads.config import HeadsConfig
from nptool.training.heads.dry_run import dry_run
from nptool.training.heads.losses import IGNORE, heads_loss
from nptool.training.heads.model import add_heads
from nptool.training.heads.nextn import NextN
from nptool.training.heads.train import train_heads

Build = Callable[..., PreTrainedModel]
DEPTHS = 3
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


def block_of(model: PreTrainedModel) -> NextN:
    """A block whose weights are not the model's."""
    block = NextN(model, DEPTHS).double()
    generator = torch.Generator().manual_seed(1)
    for weight in block.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
    return block


def model_states(model: Any, ids: Tensor) -> Tensor:
    """Hidden states (T, D) as the model's carrier hands them on."""
    kept: list[Tensor] = []
    hook = model.model.norm.register_forward_hook(lambda _, inputs, output: kept.extend((inputs[0][0], output[0])))
    model(input_ids=ids[None], use_cache=False)
    hook.remove()
    return kept[1] if carrier_of(model.config.model_type).after_norm else kept[0]


def naive_chain(model: Any, block: NextN, ids: Tensor, depth: int) -> Tensor:
    """The last output of the chain over `ids`: the model has read all of them but the last `depth`.

    The layer runs as the only one of an ordinary model, over all rows so far, once for each depth.
    """
    alone: Any = deepcopy(model)
    alone.config = block_config(alone.config)
    alone.model.config = alone.config
    alone.model.rotary_emb = type(model.model.rotary_emb)(alone.config)
    alone.model.layers, alone.model.norm = nn.ModuleList([block.layer]), nn.Identity()
    alone.config.num_hidden_layers = 1
    states = model_states(model, ids[: len(ids) - depth])
    states = torch.cat([torch.zeros_like(states[:1]), states])
    for step in range(1, depth + 1):
        seen = ids[: len(ids) - depth + step]
        mixed = torch.cat([block.enorm(model.model.embed_tokens(seen)), block.hnorm(states)], -1)
        output = alone.model(inputs_embeds=(mixed @ block.eh_proj.weight.T)[None], use_cache=False)[0][0, -1:]
        states = torch.cat([states, block.norm(output) if block.after_norm else output])
    result: Tensor = block.norm(output)[0]
    return result


@pytest.mark.parametrize("scaled", [False, True])
def test_every_chain_is_the_naive_loop_s(build: Build, family: str, scaled: bool) -> None:
    model: Any = build(family)
    if scaled and family == "llama":
        model.config.rope_parameters = LLAMA3_ROPE
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    block = block_of(model)
    ids = torch.randint(0, 29, (2, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden_BTD = torch.stack([model_states(model, row) for row in ids])
        for depth in range(1, DEPTHS + 1):
            found_BTD = block.norm(block.run_chain(depth, ids, hidden_BTD))
            for row in range(2):
                for position in range(12 - depth):
                    expected_D = naive_chain(model, block, ids[row, : position + 1 + depth], depth)
                    torch.testing.assert_close(found_BTD[row, position], expected_D, rtol=1e-9, atol=1e-12)


def test_gradients_flow_through_the_chain(build: Build) -> None:
    """By finite differences: the third depth depends on the projection through the first two as well."""
    model: Any = build("qwen3")
    block = block_of(model)
    ids = torch.randint(0, 29, (1, 8), generator=torch.Generator().manual_seed(2))
    hidden_BTD = model_states(model, ids[0]).detach()[None]
    target_D = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def value() -> Tensor:
        return block.run_chain(3, ids, hidden_BTD)[0, 2] @ target_D

    value().backward()
    weight = block.eh_proj.weight
    found = float(weight.grad[3, 5])  # type: ignore[index]  # there is a gradient
    with torch.no_grad():
        values = []
        for step in (1e-6, -2e-6):
            weight[3, 5] += step
            values.append(float(value()))
    assert found == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
    assert block.norm.weight.grad is not None


def test_weights_are_the_paper_s(build: Build) -> None:
    assert NextN(build("llama"), 3).loss_weights() == pytest.approx([0.51, 0.31, 0.18], abs=0.005)
    assert sum(NextN(build("llama"), 5).loss_weights()) == pytest.approx(1)


def test_the_loss_is_that_of_naive_loops(build: Build, family: str) -> None:
    """Each position and depth by itself, and the gradients of that sum."""
    model = add_heads(build(family), DEPTHS + 1, NEXTN)
    block: Any = model.extra
    block.load_state_dict(block_of(build(family)).state_dict())
    model.freeze_trunk()
    rows = [([3, 7, 1, 4], [2, 9, 11, 5, 6]), ([8, 2], [13, 1, 2]), ([1, 5, 20], [17])]
    plain, terms = build(family), [[] for _ in range(DEPTHS)]
    for prompt, response in rows:
        ids = torch.tensor(prompt + response)
        for position in range(len(prompt) - 2, len(ids) - 2):
            for depth in range(1, min(DEPTHS, len(ids) - 2 - position) + 1):
                output_D = naive_chain(plain, block, ids[: position + 1 + depth], depth)
                logs_V = (model.unembedding_VD @ output_D).log_softmax(-1)
                terms[depth - 1].append(-logs_V[ids[position + 1 + depth]])
    weights = 0.6 ** torch.arange(DEPTHS, dtype=torch.float64)
    weights = weights / weights.sum()
    expected = sum(weight * torch.stack(found).mean() for weight, found in zip(weights, terms, strict=True))
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in block.named_parameters()}
    model.zero_grad()
    trajectories = [
        Trajectory(np.array(prompt, np.int32), np.array(response, np.int32), None, ()) for prompt, response in rows
    ]
    batch = heads_batch(response_sequences(trajectories), range(len(rows)), 0, DEPTHS + 1)
    counts_K = (batch["labels_NK"] != IGNORE).sum(0)
    assert counts_K[1:].tolist() == [len(found) for found in terms]
    loss, sums = heads_loss(model, **batch, counts_K=counts_K)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert sums[0] == 0
    for name, weight in block.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-7, atol=1e-10, msg=name)
    assert all(weight.grad is None for name, weight in model.named_parameters() if not name.startswith("extra."))


def test_a_training_leaves_the_model_as_it_was_and_a_block_beside_it(collected: Path, checkpoint: Path) -> None:
    config = HeadsConfig(data=(collected,), kind=NEXTN, lr=1e-2, steps=60, batch_tokens=200, heldout=0.2, name="one")
    short, long = train_heads(replace(config, steps=1, name="short")), train_heads(config)
    before, after = (load_file(path / "model.safetensors") for path in (checkpoint, Path(long.model)))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert short.loss is not None
    assert long.loss is not None
    assert all(new < 0.8 * old for old, new in zip(short.loss[1:], long.loss[1:], strict=True))
    info = read_heads_info(Path(long.model))
    assert info is not None
    assert (info.kind, info.count, len(info.accuracy)) == (NEXTN, 4, 3)
    names = set(load_file(Path(long.model) / HEADS_WEIGHTS))
    assert {"nextn.eh_proj.weight", "nextn.norm.weight", "nextn.layer.mlp.up_proj.weight"} < names
    assert len(names) == 9 + 4
    assert long.trained_parameters == sum(weight.numel() for weight in load_heads(Path(long.model)).extra.parameters())
    assert dry_run(replace(config, name="two"))["trained_parameters"] == long.trained_parameters
    again = train_heads(replace(config, model=long.model, steps=1, lr=1e-9, name="further"))
    assert again.loss == pytest.approx(long.loss, rel=1e-4)
    with pytest.raises(UsageError, match="has a NextN block, which is not trained with its model; give --heads 1"):
        count_heads(BaseConfig(data=(collected,), model=long.model))


def test_bad_input(collected: Path, build: Build) -> None:
    with pytest.raises(UsageError, match="a NextN block leaves it as it is; omit one"):
        HeadsConfig(data=(collected,), kind=NEXTN, joint=True)
    model: Any = build("llama")
    model.config.model_type = "gpt_neox"
    with pytest.raises(
        CheckpointError, match="no architecture for a NextN block on a model of type gpt_neox; expected"
    ):
        NextN(model, 3)
