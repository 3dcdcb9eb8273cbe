"""Low-rank adapters: nothing changes when they are put on, and merging keeps what they learned."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from nptool.errors import UsageError
from nptool.training.estimate import shape_of
from nptool.training.lora import add_adapters, merge_adapters

IDS = torch.arange(6, 30)[None]


def test_adapters_start_as_nothing_and_merge_exactly(model: LlamaForCausalLM) -> None:
    names = list(model.state_dict())
    before = model(IDS).logits.detach()
    adapted = add_adapters(model, rank=4)
    assert torch.equal(adapted(IDS).logits.detach(), before)
    for name, weight in adapted.named_parameters():
        assert weight.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    learned = adapted.eval()(IDS).logits.detach()
    assert not torch.allclose(learned, before, atol=1e-3)
    merged = merge_adapters(adapted)
    assert type(merged) is LlamaForCausalLM
    assert list(merged.state_dict()) == names
    torch.testing.assert_close(merged(IDS).logits.detach(), learned, rtol=1e-4, atol=1e-5)


def test_the_number_of_adapter_parameters(model: LlamaForCausalLM) -> None:
    shape = shape_of(model.config)
    adapted = add_adapters(model, rank=3)
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert trained == shape.adapter_parameters(3)


def test_gradients_reach_the_first_layer_through_checkpointed_blocks(model: LlamaForCausalLM) -> None:
    adapted = add_adapters(model, rank=2).train()
    adapted.activation_checkpointing_enable()
    adapted(IDS, labels=IDS).loss.backward()
    first = adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("rank", [0, 33])
def test_ranks_that_cannot_be(model: LlamaForCausalLM, rank: int) -> None:
    with pytest.raises(UsageError) as error:
        add_adapters(model, rank)
    assert str(error.value) == (f"--lora-rank is {rank}; it must be above 0 and at most 32, the model's hidden size")
