"""A NextN block (FastMTP, arXiv 2509.18362): one layer that drafts a token, and from its own output the next one.

    x_p = eh_proj [enorm(embedding of token p); hnorm(h_{p-1})],   o_p = layer(x_0 ... x_p),   logits = U norm(o_p)

The chain of position t begins at p = t + 1, with the model's hidden state h_t; at p = t + 2, t + 3, ... it takes its
own output for the model's. It attends as it will in llama.cpp: to the rows of the model's hidden states up to t + 1,
then to its own. Before the first token h is zero. `nptool.nextn` says whether h is taken before or after the norms.

Legend: B batch, T tokens, S keys, D hidden, M positions of one head.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn

from nptool.errors import CheckpointError
from nptool.heads import NEXTN, nextn_tensor
from nptool.nextn import block_config, carrier_of
from nptool.training.heads.head import ExtraHeads, TrunkOutput

DECAY = 0.6
"""Weight of a depth's loss relative to the one before: 0.51, 0.31, 0.18 for three, the paper's."""
ATTENTION = ("sdpa", "eager")
"""transformers' implementations that take a mask."""


class NextN(ExtraHeads):
    """The block of a model, which stays as it is: heads 2..n are the depths of the chain.

    Args:
        base: its last layer is copied.
        count: n - 1.
    """

    KIND = NEXTN

    def __init__(self, base: Any, count: int) -> None:
        super().__init__()
        self._count = count
        config, trunk = base.config, base.base_model
        self.after_norm = carrier_of(config.model_type).after_norm
        if config._attn_implementation not in ATTENTION:
            raise CheckpointError(
                f"a NextN block needs attention with a mask: one of {', '.join(ATTENTION)}; got "
                f"{config._attn_implementation}"
            )
        self._boolean = config._attn_implementation == "sdpa"
        self.layer = deepcopy(trunk.layers[-1])
        self.norm: nn.Module = deepcopy(trunk.norm)
        self.enorm, self.hnorm = deepcopy(trunk.norm), deepcopy(trunk.norm)
        nn.init.ones_(self.enorm.weight)
        nn.init.ones_(self.hnorm.weight)
        size, like = config.hidden_size, self.norm.weight
        self.eh_proj = nn.Linear(2 * size, size, bias=False, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            self.eh_proj.weight.copy_(torch.eye(size).repeat(1, 2))
        self.rotary = type(trunk.rotary_emb)(block_config(config)).to(like.device)
        # In a list, so that torch does not register the model's modules a second time.
        self._shared = [trunk.layers[-1], trunk.norm, base.get_input_embeddings()]

    @classmethod
    def make(cls, base: Any, count: int, rank: int) -> Self:
        return cls(base, count)

    @property
    def count(self) -> int:
        return self._count

    def hidden_states(self, number: int, trunk: TrunkOutput, positions_M: Tensor) -> Tensor:
        with torch.no_grad():
            last, norm, _ = self._shared
            hidden_BTD = last(trunk.z_BTD, **trunk.arguments)
            hidden_BTD = norm(hidden_BTD) if self.after_norm else hidden_BTD
        return self.run_chain(number + 1, trunk.ids_BT, hidden_BTD).flatten(0, 1)[positions_M]

    def weights(self, number: int) -> list[nn.Parameter]:
        return [weight for name, weight in self.named_parameters() if not name.startswith("norm.")]

    def own_norm(self) -> nn.Module:
        return self.norm

    def loss_weights(self) -> list[float]:
        weights = [DECAY**depth for depth in range(self.count)]
        return [weight / sum(weights) for weight in weights]

    def file_name(self, name: str) -> str:
        return nextn_tensor(name)

    def run_chain(self, depth: int, ids_BT: Tensor, hidden_BTD: Tensor) -> Tensor:
        """Outputs (B, T, D) before `norm` at `depth`, 1 for the first, of the chains of all positions.

        The last `depth` positions, whose tokens are not known, have no meaning.

        Args:
            hidden_BTD: the model's hidden states, see `after_norm`.
        """
        embedding_BTD = self._shared[2](ids_BT)
        keys = _Keys()
        before_BTD = torch.cat([torch.zeros_like(hidden_BTD[:, :1]), hidden_BTD[:, :-1]], 1)
        # Row p of depth 1 belongs to the chain of position p - 1.
        state_BTD = self._step(1, embedding_BTD, before_BTD, keys).roll(-1, 1)
        for step in range(2, depth + 1):
            state_BTD = self._step(step, embedding_BTD.roll(-step, 1), self._handed_on(state_BTD), keys)
        return state_BTD

    def _handed_on(self, state_BTD: Tensor) -> Tensor:
        return self.norm(state_BTD) if self.after_norm else state_BTD

    def _step(self, depth: int, embedding_BTD: Tensor, hidden_BTD: Tensor, keys: _Keys) -> Tensor:
        """Outputs (B, T, D) of the layer for one row of each chain; its keys are added to `keys`."""
        mixed_BTD = self.eh_proj(torch.cat([self.enorm(embedding_BTD), self.hnorm(hidden_BTD)], -1))
        tokens = mixed_BTD.shape[1]
        places_1T = torch.arange(tokens, device=mixed_BTD.device)[None] + (depth if depth > 1 else 0)
        output_BTD: Tensor = self.layer(
            mixed_BTD,
            attention_mask=self._mask(depth, tokens, mixed_BTD),
            position_ids=places_1T,
            position_embeddings=self.rotary(mixed_BTD, places_1T),
            past_key_values=keys,
            use_cache=False,
        )
        return output_BTD

    def _mask(self, depth: int, tokens: int, like: Tensor) -> Tensor:
        """Which keys, of the rows of depth 1, 2, ..., each row of `depth` sees: (1, 1, T, S)."""
        full_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=like.device)
        own_TT = torch.eye(tokens, dtype=torch.bool, device=like.device)
        visible_TS = torch.cat([full_TT.tril(min(depth - 1, 1)), *[own_TT] * (depth - 1)], -1)
        if self._boolean:
            return visible_TS[None, None]
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return torch.where(visible_TS, zero, torch.finfo(like.dtype).min)[None, None]


class _Keys:
    """In the place of transformers' cache: keys and values of one layer, kept with their gradients."""

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by the attention with the keys and values (B, heads, rows, E) of its rows."""
        self._keys.append(keys)
        self._values.append(values)
        return torch.cat(self._keys, 2), torch.cat(self._values, 2)
