"""What a NextN block reads (FastMTP, arXiv 2509.18362), for the sake of the llama.cpp graph that will run it.

llama.cpp has NextN blocks for some architectures only. Two of them compute exactly what a dense model of another name
does and so carry its block; training follows the carrier. One block drafts any number of tokens: row p reads token p
and a hidden state of position p - 1, the model's, or its own output where the model has not been yet. Loads neither
torch nor llama.cpp.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nptool.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Carrier:
    """An architecture of llama.cpp that contains another one together with a NextN block."""

    architecture: str
    after_norm: bool
    """The block reads hidden states after the final norm, and hands on its own after its norm; else before them."""
    scaled_rope: bool
    """The block's RoPE is scaled as the model's; else it is the unscaled one."""


STEP35 = Carrier("step35", after_norm=False, scaled_rope=False)
HY_V3 = Carrier("hy_v3", after_norm=True, scaled_rope=True)
CARRIERS = {"llama": STEP35, "mistral": STEP35, "qwen2": STEP35, "qwen3": HY_V3}
"""By transformers' `model_type`."""


def carrier_of(model_type: str) -> Carrier:
    """Raise CheckpointError if no architecture of llama.cpp carries a NextN block for the model."""
    if model_type not in CARRIERS:
        raise CheckpointError(
            f"llama.cpp has no architecture for a NextN block on a model of type {model_type}; expected one of "
            f"{', '.join(CARRIERS)}"
        )
    return CARRIERS[model_type]


def check_carried(config: PretrainedConfig) -> None:
    """Raise CheckpointError if no architecture of llama.cpp carries a NextN block for a model of this configuration."""
    carrier_of(config.model_type)
    biases = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]
    if biases:
        raise CheckpointError(
            f"llama.cpp's architecture for a NextN block on a model of type {config.model_type} has no place for "
            f"{' and '.join(biases)}; train another kind of heads"
        )


def block_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration that the rotary embedding of a model's NextN block is made from."""
    copied = deepcopy(config)
    if not carrier_of(config.model_type).scaled_rope:
        theta = config.rope_parameters["rope_theta"]
        copied.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    return copied
