"""A causal language model taken apart into trunk, parallel heads, final norm and unembedding (arXiv 2404.19737).

Every head reads z, the input of the last layer. Head 1 is the last layer itself; heads 2..n are `ExtraHeads` of one of
`KINDS`. All share the model's final norm and unembedding. Works for every architecture whose layers are in
`model.model.layers` (Llama, Mistral, Qwen2, Qwen3).

Legend: B batch, T tokens, D hidden, M positions of one head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nptool.errors import CheckpointError
from nptool.training.heads.head import ExtraHeads, SeparateHeads, TrunkOutput
from nptool.training.heads.nextn import NextN
from nptool.training.heads.shared import SharedHeads

KINDS: dict[str, type[ExtraHeads]] = {kind.KIND: kind for kind in (SharedHeads, SeparateHeads, NextN)}


class Tap(nn.Module):
    """Replaces the last layer: stores its input and returns it unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.output: tuple[Tensor, dict[str, Any]] | None = None

    def forward(self, z_BTD: Tensor, **arguments: Any) -> Tensor:
        self.output = z_BTD, arguments
        return z_BTD


class MultiHead(nn.Module):
    """Trunk and heads of a model.

    Args:
        base: a model whose last layer becomes head 1.
        extra: heads 2..n.
    """

    _keys_to_ignore_on_save = None
    """Read by the Trainer when a checkpoint lacks weights, as one of a frozen trunk does."""

    def __init__(self, base: Any, extra: ExtraHeads) -> None:
        super().__init__()
        self.config = base.config
        trunk = base.base_model
        self.tap = Tap()
        self.last, self.extra = trunk.layers[-1], extra
        trunk.layers[-1] = self.tap
        self.trunk = trunk
        # A tied unembedding is the trunk's embedding; registered twice, it would be saved twice.
        tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
        self.lm_head = None if tied else base.get_output_embeddings()
        # In a list, so that torch does not register the trunk a second time.
        self._base = [base]

    @property
    def count(self) -> int:
        """n: heads in all, head 1 included."""
        return 1 + self.extra.count

    @property
    def norm(self) -> nn.Module:
        norm: nn.Module = self.trunk.norm
        return norm

    @property
    def unembedding_VD(self) -> nn.Parameter:
        owner = self.trunk.embed_tokens if self.lm_head is None else self.lm_head
        weight: nn.Parameter = owner.weight
        return weight

    def shared(self) -> list[nn.Parameter]:
        """Weights of the final norm and the unembedding."""
        return [*self.norm.parameters(), self.unembedding_VD]

    @property
    def device(self) -> torch.device:
        return self.unembedding_VD.device

    def run_trunk(self, ids_BT: Tensor) -> TrunkOutput:
        """z of right-padded rows, at least in float32; without gradient if the trunk is frozen."""
        trained = any(weight.requires_grad for weight in self.trunk.parameters())
        with nullcontext() if trained else torch.no_grad():
            self.trunk(input_ids=ids_BT, use_cache=False)
        output, self.tap.output = self.tap.output, None
        assert output is not None
        z_BTD, arguments = output
        return TrunkOutput(z_BTD.to(torch.promote_types(z_BTD.dtype, torch.float32)), arguments, ids_BT)

    def hidden_states(self, head: int, trunk: TrunkOutput, positions_M: Tensor) -> Tensor:
        """A head's hidden states after the norm, shape (M, D).

        Args:
            head: its number - 1, so 0 is the last layer.
            positions_M: ascending, in the flattened batch.
        """
        if head:
            output_MD = self.extra.hidden_states(head - 1, trunk, positions_M)
        else:
            output_MD = self.last(trunk.z_BTD, **trunk.arguments).flatten(0, 1)[positions_M]
        hidden_MD: Tensor = self._norm_after(head)(output_MD)
        return hidden_MD

    def weights(self, head: int) -> list[nn.Parameter]:
        """Weights that a head's hidden states depend on, besides the trunk's."""
        own = self.extra.weights(head - 1) if head else [*self.last.parameters()]
        return [*own, *self._norm_after(head).parameters()]

    def _norm_after(self, head: int) -> nn.Module:
        own = self.extra.own_norm() if head else None
        return self.norm if own is None else own

    def freeze_trunk(self) -> None:
        """Train heads 2..n only."""
        self.requires_grad_(False)
        self.extra.requires_grad_(True)

    @contextmanager
    def plain_model(self) -> Iterator[PreTrainedModel]:
        """The plain model (trunk and head 1), inside the `with` block."""
        base = self._base[0]
        layers: Any = self.trunk.layers
        layers[-1] = self.last
        try:
            yield base
        finally:
            layers[-1] = self.tap

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Called by the Trainer; the heads need no checkpointing, since they are run one at a time."""
        self.trunk.activation_checkpointing_enable(**options)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The training loss (`nptool.training.heads.losses`)."""
        from nptool.training.heads.losses import heads_loss

        return heads_loss(self, *arguments, **options)


def add_heads(base: Any, count: int, kind: str, rank: int = 0) -> MultiHead:
    """`base` with new heads 2..`count` of one of `KINDS`, at least in float32; raises as `check_layers`."""
    check_layers(base)
    return MultiHead(base, KINDS[kind].make(base, count - 1, rank).to(torch.promote_types(base.dtype, torch.float32)))


def move_layers(base: Any, heads: int) -> MultiHead:
    """An untrained model whose last `heads` layers become heads 1..n; the layers before them are the trunk.

    So the number of parameters does not depend on the number of heads (2404.19737, section 2).
    """
    layers = base.model.layers
    kept = len(layers) - (heads - 1)
    extra = list(layers[kept:])
    del layers[kept:]
    base.config.num_hidden_layers = kept
    return MultiHead(base, SeparateHeads(extra))


def check_layers(base: Any) -> None:
    """Raise `CheckpointError` if the model has no trunk below its last layer, or its parts are not found."""
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
