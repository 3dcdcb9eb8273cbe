"""A causal language model taken apart into trunk, parallel heads, final norm and unembedding.

z, the input of the last layer, is what every head reads. Head 1 is the last layer itself; heads 2..n are further layers
of the same architecture. All share the model's final norm and unembedding (arXiv 2404.19737). Works for every
architecture whose layers lie in `model.model.layers` (Llama, Mistral, Qwen2, Qwen3): the layers are called with the
arguments the model itself would call its last one with, so masks and rotary positions are the model's own.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nptool.errors import CheckpointError


@dataclass(frozen=True)
class TrunkOutput:
    """What the heads need of a forward pass."""

    z_BTD: Tensor
    arguments: dict[str, Any]
    """Mask, rotary embeddings and whatever else the model hands to its last layer."""


class Tap(nn.Module):
    """Stands where the last layer stood: keeps what that would have got, and passes it on."""

    def __init__(self) -> None:
        super().__init__()
        self.output: TrunkOutput | None = None

    def forward(self, z_BTD: Tensor, **arguments: Any) -> Tensor:
        """Keep z and the layer's arguments."""
        self.output = TrunkOutput(z_BTD, arguments)
        return z_BTD


class MultiHead(nn.Module):
    """Trunk and heads of a model, whose last layer moves out of it and becomes head 1.

    Args:
        base: a model whose last layer is head 1.
        extra: heads 2..n; layers of the same architecture.
    """

    _keys_to_ignore_on_save = None
    """The Trainer asks for it when a checkpoint lacks weights, as one of a frozen trunk does."""

    def __init__(self, base: Any, extra: Sequence[nn.Module]) -> None:
        super().__init__()
        self.config = base.config
        trunk = base.base_model
        self.tap = Tap()
        self.heads = nn.ModuleList([trunk.layers[-1], *extra])
        trunk.layers[-1] = self.tap
        self.trunk = trunk
        # A tied unembedding is the trunk's embedding: registered twice, it would be saved twice.
        tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
        self.lm_head = None if tied else base.get_output_embeddings()
        # In a list, so that torch does not find the trunk a second time inside it.
        self._base = [base]

    @property
    def count(self) -> int:
        """n: heads in all, head 1 included."""
        return len(self.heads)

    @property
    def extra(self) -> nn.ModuleList:
        """Heads 2..n."""
        return self.heads[1:]

    @property
    def norm(self) -> nn.Module:
        """The final norm, shared by all heads."""
        norm: nn.Module = self.trunk.norm
        return norm

    @property
    def unembedding_VD(self) -> nn.Parameter:
        """The unembedding, shared by all heads."""
        owner = self.trunk.embed_tokens if self.lm_head is None else self.lm_head
        weight: nn.Parameter = owner.weight
        return weight

    @property
    def plain_parameters(self) -> int:
        """Parameters of the ordinary model."""
        with self.plain_model() as base:
            return int(base.num_parameters())

    def shared(self) -> list[nn.Parameter]:
        """Weights of the final norm and the unembedding."""
        return [*self.norm.parameters(), self.unembedding_VD]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unembedding_VD.device

    def run_trunk(self, ids_BT: Tensor) -> TrunkOutput:
        """z of right-padded rows; no gradient is kept where nothing in the trunk is trained."""
        trained = any(weight.requires_grad for weight in self.trunk.parameters())
        with nullcontext() if trained else torch.no_grad():
            self.trunk(input_ids=ids_BT, use_cache=False)
        output, self.tap.output = self.tap.output, None
        assert output is not None
        return output

    def freeze_trunk(self) -> None:
        """Leave heads 2..n as all that is trained."""
        self.requires_grad_(False)
        self.extra.requires_grad_(True)

    @contextmanager
    def plain_model(self) -> Iterator[PreTrainedModel]:
        """The ordinary model, trunk with head 1, inside the block."""
        base = self._base[0]
        layers: Any = self.trunk.layers
        layers[-1] = self.heads[0]
        try:
            yield base
        finally:
            layers[-1] = self.tap

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Compute the activations of the trunk's layers again in the backward pass; called by the Trainer.

        Of the heads only one is in memory at a time as it is.
        """
        self.trunk.activation_checkpointing_enable(
            activation_checkpointing_kwargs=activation_checkpointing_kwargs, **options
        )

    gradient_checkpointing_enable = activation_checkpointing_enable

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The training loss (`nptool.training.heads.losses`)."""
        from nptool.training.heads.losses import heads_loss

        return heads_loss(self, *arguments, **options)


def add_heads(base: Any, count: int) -> MultiHead:
    """`base` with heads 2..`count` that start as copies of its last layer.

    Raises:
        CheckpointError: an architecture whose layers are not found.
    """
    check_layers(base)
    last = base.base_model.layers[-1]
    return MultiHead(base, [deepcopy(last) for _ in range(count - 1)])


def check_layers(base: Any) -> None:
    """Check that the model has the parts that heads need.

    Raises:
        CheckpointError: it has not.
    """
    trunk, unembedding = base.base_model, base.get_output_embeddings()
    layers: Any = getattr(trunk, "layers", None)
    parts = isinstance(layers, nn.ModuleList) and hasattr(trunk, "norm") and hasattr(trunk, "embed_tokens")
    plain = getattr(unembedding, "weight", None) is not None and getattr(unembedding, "bias", None) is None
    if not parts or not plain:
        raise CheckpointError(
            f"heads cannot be put on a model of type {base.config.model_type}; expected llama, mistral, qwen2 or qwen3"
        )
    if len(layers) < 2:
        raise CheckpointError("the model has one layer; heads need a trunk of at least one layer below the last")
