"""The chain of a NextN block against a naive loop: each position by itself, one token after the other."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nptool.nextn import block_config, carrier_of
from nptool.training.heads.nextn import NextN, depth_weights

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
    block = NextN(model).double()
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
            found_BTD = block.run_chain(depth, ids, hidden_BTD)
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
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_weights_are_the_paper_s() -> None:
    assert depth_weights(3) == pytest.approx([0.51, 0.31, 0.18], abs=0.005)
    assert sum(depth_weights(5)) == pytest.approx(1)
