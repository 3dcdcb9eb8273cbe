"""What a head is: one transformer layer with the architecture of the model's last layer (arXiv 2404.19737).

Another kind of head changes this module: how a new one is made, how it is run, and its size. The final norm and the
unembedding after it are shared with the model (`nptool.training.heads.model`).

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from nptool.training.estimate import Shape


@dataclass(frozen=True)
class TrunkOutput:
    """What the heads read."""

    z_BTD: Tensor
    """Input of the model's last layer."""
    arguments: dict[str, Any]
    """Mask, rotary embeddings and whatever else the model passes to its last layer."""


def new_head(last_layer: nn.Module) -> nn.Module:
    """A head that starts as a copy of the model's last layer."""
    return deepcopy(last_layer)


def run_head(head: nn.Module, trunk: TrunkOutput) -> Tensor:
    """The head's output, shape (B, T, D)."""
    output_BTD: Tensor = head(trunk.z_BTD, **trunk.arguments)
    return output_BTD


def with_heads(shape: Shape, heads: int) -> Shape:
    """Sizes of a model of `shape` with heads 2..`heads` added."""
    return replace(shape, layers=shape.layers + heads - 1)
