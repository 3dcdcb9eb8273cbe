"""The new tokenizer and the new model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nptool.training.base.config import BaseConfig
from nptool.training.base.model import llama_config, new_llama
from nptool.training.base.tokenizer import SPECIAL_TOKENS, train_tokenizer
from nptool.training.estimate import Shape, estimate_memory, shape_of

TINY = Callable[..., BaseConfig]
TEXT = "the cat sat on a mat, 12345 times.\n\n\tdef f(x):\n        return 'é ☃ 😀'  # done"


@pytest.mark.parametrize("digits", [False, True])
def test_any_text_comes_back(digits: bool) -> None:
    tokenizer = train_tokenizer(["the cat sat"] * 9, 300, digits=digits)
    for text in (TEXT, "", " ", "\r\n\x00", "👩‍👩‍👧"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_come_first_and_are_one_token_each() -> None:
    tokenizer = train_tokenizer(["the cat"], 300)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4, 5]
    assert tokenizer("a<|end|>b")["input_ids"][1] == 1
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|bos|>", "<|end|>", "<|pad|>")
    assert tokenizer.decode(tokenizer("<|user|>a<|end|>")["input_ids"], skip_special_tokens=True) == "a"


def test_frequent_words_become_tokens_up_to_the_size() -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, 270)
    assert len(tokenizer) == 270
    assert len(tokenizer(" the")["input_ids"]) == 1


def test_single_digits() -> None:
    texts = ["in 2024 there were 2024 and 2024"] * 20
    assert len(train_tokenizer(texts, 300)("2024")["input_ids"]) < 4
    single = train_tokenizer(texts, 300, digits=True)
    assert [single.decode([token]) for token in single("2024")["input_ids"]] == ["2", "0", "2", "4"]


def test_the_chat_template() -> None:
    tokenizer = train_tokenizer(["the cat"], 300)
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|system|>s<|end|><|user|>a<|end|><|assistant|>"
    assert train_tokenizer(["the cat"], 300, chat=False).chat_template is None


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"tied": False, "kv_heads": 1},
        {"hidden_size": 48, "attention_heads": 6, "kv_heads": 2, "layers": 3, "intermediate_size": 100},
    ],
)
def test_the_parameter_count_is_exact(tokenizer: PreTrainedTokenizerFast, tiny: TINY, sizes: dict[str, Any]) -> None:
    config = tiny(**sizes)
    count = sum(weight.numel() for weight in new_llama(config, tokenizer).parameters())
    assert shape_of(llama_config(config, tokenizer)).parameters == count


def test_the_weights_depend_on_the_seed_alone(tokenizer: PreTrainedTokenizerFast, tiny: TINY) -> None:
    torch.manual_seed(1)
    first = new_llama(tiny(seed=3), tokenizer)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), "the caller's random state is left alone"
    second, other = new_llama(tiny(seed=3), tokenizer), new_llama(tiny(seed=4), tokenizer)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_the_first_loss_is_that_of_guessing(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.randint(len(tokenizer), (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss == pytest.approx(torch.log(torch.tensor(len(tokenizer))).item(), abs=0.1)


def test_the_residual_stream_keeps_its_size_with_depth(tokenizer: PreTrainedTokenizerFast, tiny: TINY) -> None:
    model = new_llama(tiny(layers=12, hidden_size=64), tokenizer)
    ids = torch.arange(6, 70)[None]
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    # The last state is normalized; the embeddings' own size is small.
    sizes = [state.std().item() for state in states[1:-1]]
    assert max(sizes) < 1.5
    assert all(one <= 1.5 * other for other, one in pairwise(sizes[1:]))


def test_keys_start_as_queries_and_outputs_as_values_transposed(tokenizer: PreTrainedTokenizerFast, tiny: TINY) -> None:
    model = new_llama(tiny(hidden_size=32, attention_heads=4, kv_heads=2, layers=2), tokenizer)
    for layer in model.model.layers:
        weight = {name: getattr(layer.self_attn, f"{name}_proj").weight for name in "qkvo"}
        for group, queries in enumerate((0, 2)):
            key, value = (weight[name][8 * group : 8 * group + 8] for name in "kv")
            assert torch.equal(key, weight["q"][8 * queries : 8 * queries + 8])
            torch.testing.assert_close(value @ value.T, 0.25 * torch.eye(8), atol=1e-6, rtol=0)
            for head in (queries, queries + 1):
                # Four writers into the residual stream: half of it.
                torch.testing.assert_close(weight["o"][:, 8 * head : 8 * head + 8], value.T / 2)


def test_forms_of_a_word_start_alike(tiny: TINY) -> None:
    tokenizer = train_tokenizer(["level Level levels of level, of Level"] * 9, 300)
    model = new_llama(tiny(hidden_size=256, attention_heads=4), tokenizer)
    table = model.get_input_embeddings().weight

    def likeness(one: str, other: str) -> float:
        (first,), (second,) = tokenizer(one)["input_ids"], tokenizer(other)["input_ids"]
        return torch.cosine_similarity(table[first], table[second], dim=0).item()

    assert likeness(" level", " Level") == pytest.approx(0.8, abs=0.05)
    assert likeness("l", "L") == pytest.approx(0.8, abs=0.05)
    assert likeness(" level", " of") == pytest.approx(0.0, abs=0.2)
    assert likeness("\n", " ") == pytest.approx(0.0, abs=0.2)


def saved_bytes(model: LlamaForCausalLM, ids: torch.Tensor, *, bfloat16: bool) -> int:
    """What autograd keeps for the backward pass of the blocks, weights not counted."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (pointer := tensor.untyped_storage().data_ptr()) not in own:
            kept[pointer] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        model.model(input_ids=ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_activations_are_those_autograd_keeps(
    tokenizer: PreTrainedTokenizerFast, tiny: TINY, bfloat16: bool
) -> None:
    config = tiny(hidden_size=128, layers=3, attention_heads=4, kv_heads=2)
    model = new_llama(config, tokenizer)
    shape = shape_of(model.config)
    ids = torch.zeros((4, 512), dtype=torch.int64)
    estimate = estimate_memory(shape, ids.numel(), bfloat16=bfloat16)
    # Autocast's copies of the weights are counted with the weights.
    copies = 2 * (shape.parameters - shape.vocab_size * shape.hidden_size) if bfloat16 else 0
    assert saved_bytes(model, ids, bfloat16=bfloat16) == pytest.approx(estimate.activations + copies, rel=0.02)


def test_memory_by_purpose() -> None:
    shape = Shape(
        vocab_size=10,
        hidden_size=4,
        layers=2,
        attention_heads=2,
        kv_heads=1,
        head_size=2,
        intermediate_size=8,
        tied=True,
    )
    assert shape.parameters == 10 * 4 + 2 * (2 * 4 * 2 * 3 + 3 * 4 * 8 + 2 * 4) + 4
    memory = estimate_memory(shape, 100, trained_rows=30)
    assert (memory.weights, memory.gradients, memory.optimizer) == tuple(shape.parameters * size for size in (4, 4, 8))
    assert memory.logits == 3 * 4 * 30 * 10
    block = 16 * 4 + 4 * (4 * 4 + 2 * 2 + 4 * 8)
    assert memory.activations == 100 * (2 * block + 8 * 4)
    less = estimate_memory(shape, 100, trained_rows=30, checkpointing=True)
    assert less.activations == 100 * (2 * 4 * 4 + block + 8 * 4)
    adapters = shape.adapter_parameters(3)
    lora = estimate_memory(shape, 100, trained_rows=30, trained_parameters=adapters)
    assert (lora.weights, lora.gradients) == (4 * (shape.parameters + adapters), 4 * adapters)
    half = estimate_memory(shape, 100, trained_parameters=adapters, bfloat16=True, half_frozen=True)
    assert half.weights == 2 * shape.parameters + 6 * adapters
    assert lora.total == lora.weights + lora.gradients + lora.optimizer + lora.activations + lora.logits
