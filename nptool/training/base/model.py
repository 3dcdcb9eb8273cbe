"""A new Llama with random weights.

Matrices start with a standard deviation of 0.02, as in GPT-2 and Llama, also where a layer is so narrow that
1/sqrt(inputs) would be more. Those that write into the residual stream are divided by sqrt(2 layers) more (GPT-2), so
that its size does not grow with depth. On the default text-to-SQL data the choice made no clear difference: one run
each, loss on all tokens, gave an execution accuracy of 29 % from 0.02 and 26 % from 1/sqrt(inputs).
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from nptool.training.base.config import BaseConfig

INITIAL_STD = 0.02
_RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight")


def new_llama(config: BaseConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama for `tokenizer` with weights drawn from `config.seed`, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(llama_config(config, tokenizer))
        _draw_weights(model)
    return model


def llama_config(config: BaseConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Its transformers configuration."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.feed_forward_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.attention_heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=config.context,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def _draw_weights(model: LlamaForCausalLM) -> None:
    layers = model.config.num_hidden_layers
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            weight.fill_(1.0)
        else:
            shrink = (2 * layers) ** -0.5 if name.endswith(_RESIDUAL_WRITERS) else 1.0
            weight.normal_(std=INITIAL_STD * shrink)
