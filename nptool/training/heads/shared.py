"""One layer for all heads: every depth is a row of its own after the plain rows.

The row of head k after position t, whose layer input is z_t, is x = z_t + e_k + B_k A_k z_t at position t + 1. It
attends to the plain rows up to t, which are read as they are, and to itself. e_k, A_k and B_k, of a low rank, tell the
depths apart. llama.cpp takes only consecutive positions in a sequence, so all depths are at t + 1.

Legend: B batch, T tokens, S rows of one depth in the batch's longest row, D hidden, R rank, M positions of one head.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nptool.errors import CheckpointError
from nptool.heads import SHARED, depth_tensor, layer_tensor
from nptool.training.heads.head import ExtraHeads, TrunkOutput

DEPTH_SCALE = 0.13
"""Deviation of a new e_k, relative to the root mean square of z. The depths stay alike if it is much smaller."""
ATTENTION = ("sdpa", "eager")
"""transformers' implementations that take a mask."""


class Depth(nn.Module):
    """What tells one depth from the others."""

    def __init__(self, hidden: int, rank: int) -> None:
        super().__init__()
        self.e = nn.Parameter(torch.zeros(hidden))
        self.a = nn.Parameter(torch.randn(rank, hidden) / hidden**0.5)
        self.b = nn.Parameter(torch.zeros(hidden, rank))

    def forward(self, z_D: Tensor) -> Tensor:
        """The row's input for z (..., D)."""
        return z_D + self.e + F.linear(F.linear(z_D, self.a), self.b)


class SharedHeads(ExtraHeads):
    """One layer, and for each head a `Depth`."""

    KIND = SHARED

    def __init__(self, base: Any, layer: nn.Module, depths: Iterable[Depth]) -> None:
        super().__init__()
        self.layer: Any = layer
        self.depths: Any = nn.ModuleList(depths)
        config = base.config
        attention = config._attn_implementation
        if attention not in ATTENTION:
            raise CheckpointError(
                f"shared heads need attention with a mask: one of {', '.join(ATTENTION)}; got {attention}"
            )
        slides = getattr(config, "layer_types", None) or []
        sliding = slides[-1] == "sliding_attention" if slides else config.model_type == "mistral"
        self._window = getattr(config, "sliding_window", None) if sliding else None
        self._boolean = attention == "sdpa"
        # In a list, so that torch does not register the model's module a second time.
        self._rotary = [base.base_model.rotary_emb]

    @classmethod
    def make(cls, base: Any, count: int, rank: int) -> Self:
        last = base.base_model.layers[-1]
        hidden, like = base.config.hidden_size, next(last.parameters())
        return cls(base, deepcopy(last), (Depth(hidden, rank).to(like) for _ in range(count)))

    @torch.no_grad()
    def start(self, z_ND: Tensor) -> None:
        """Draw every e_k at the scale of z."""
        scale = DEPTH_SCALE * float(z_ND.float().square().mean().sqrt())
        for depth in self.depths:
            depth.e.copy_(scale * torch.randn(depth.e.shape))

    @property
    def count(self) -> int:
        return len(self.depths)

    @property
    def rank(self) -> int:
        return len(self.depths[0].a)

    def hidden_states(self, number: int, trunk: TrunkOutput, positions_M: Tensor) -> Tensor:
        z_BTD = trunk.z_BTD
        rows, tokens, _ = z_BTD.shape
        row_M, token_M = positions_M // tokens, positions_M % tokens
        counts_B = torch.bincount(row_M, minlength=rows)
        slot_M = torch.arange(len(row_M), device=row_M.device) - (counts_B.cumsum(0) - counts_B)[row_M]
        # Unused slots repeat token 0.
        token_BS = token_M.new_zeros(rows, max(1, int(counts_B.max())))
        token_BS[row_M, slot_M] = token_M
        x_BSD = self.depths[number](z_BTD.gather(1, token_BS[..., None].expand(-1, -1, z_BTD.shape[2])))
        places_BS = token_BS + 1
        output_BSD: Tensor = self.layer(
            x_BSD,
            attention_mask=self._mask(token_BS, tokens, x_BSD.dtype),
            position_ids=places_BS,
            position_embeddings=self._rotary[0](x_BSD, position_ids=places_BS),
            past_key_values=_Keys(self._plain_keys(trunk)),
            use_cache=False,
        )
        return output_BSD[row_M, slot_M]

    def weights(self, number: int) -> list[nn.Parameter]:
        return [*self.layer.parameters(), *self.depths[number].parameters()]

    def fast_weights(self) -> Iterable[nn.Parameter]:
        return [*self.depths.parameters()]

    def file_name(self, name: str) -> str:
        kind, rest = name.split(".", 1)
        if kind == "layer":
            return layer_tensor(rest)
        number, tensor = rest.split(".")
        return depth_tensor(int(number) + 2, tensor)

    def _plain_keys(self, trunk: TrunkOutput) -> _Keys:
        """Keys and values of the plain rows."""
        found, layer = _Keys(), self.layer
        layer.self_attn(layer.input_layernorm(trunk.z_BTD), **trunk.arguments | {"past_key_values": found})
        return found

    def _mask(self, token_BS: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
        """Which keys, first the plain rows' and then the depth's own, each row of a depth sees: (B, 1, S, T + S)."""
        plain_T = torch.arange(tokens, device=token_BS.device)
        plain_BST = plain_T <= token_BS[..., None]
        if self._window is not None:
            plain_BST &= token_BS[..., None] + 1 - plain_T < self._window
        own_BSS = torch.eye(token_BS.shape[1], dtype=torch.bool, device=token_BS.device).expand(len(token_BS), -1, -1)
        visible_B1SK = torch.cat([plain_BST, own_BSS], -1)[:, None]
        if self._boolean:
            return visible_B1SK
        zero = torch.zeros((), dtype=dtype, device=token_BS.device)
        return torch.where(visible_B1SK, zero, torch.finfo(dtype).min)


class _Keys:
    """In the place of transformers' cache: keys and values of one layer, after those of other rows."""

    def __init__(self, before: _Keys | None = None) -> None:
        self._before = before
        self.keys = self.values = torch.empty(0)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by the attention with the keys and values (B, heads, rows, E) of its rows."""
        if self._before is not None:
            keys, values = torch.cat([self._before.keys, keys], 2), torch.cat([self._before.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values
