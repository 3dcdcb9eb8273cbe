"""Forward passes of a transformers model over tokens of many sequences, packed without padding.

The tokens of all sequences form one row of length T, so the linear layers see no padding; only the attention kernel
pads to a rectangle. It is registered in transformers' public `AttentionInterface`; no modeling code is copied. Keys and
values are stored at the index of their position, and a query sees only positions up to its own. Rejected guesses need
no removal: later tokens overwrite them before any query reaches their position.

Shapes: T packed tokens, A sequences, W widest sequence of the pass, L positions read, H heads, G key/value heads,
D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from nptool.errors import CheckpointError

IMPLEMENTATION = "nptool_packed"
# Attention variants that the kernel does not have: Gemma's soft cap, gpt-oss' sinks, position biases.
UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias")

Ints = NDArray[np.int64]


@dataclass
class _Layout:
    """Places of the T tokens of one pass, for the attention kernel."""

    cache: SlotCache
    write_T: torch.Tensor
    """Index of each token in the cache, slots and positions flattened."""
    gather: torch.Tensor
    """(A*W,): the packed token at each place of the rectangle, 0 for padding."""
    scatter_T: torch.Tensor
    """Place of each packed token in the rectangle."""
    positions_AW: torch.Tensor
    """Position of the query at each place of the rectangle, 0 for padding."""
    keys: int
    """L; 0 for a prefill, which reads only its own keys."""
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    """Additive mask for each sliding window (None: full attention), filled on demand."""
    layers: int = 0
    """Calls of the kernel."""


# The pass in progress. Not an argument: not every architecture passes extra ones to its kernel.
_LAYOUT: ContextVar[_Layout] = ContextVar("layout")


class SlotCache:
    """Keys and values of up to `slots` sequences: for each layer two tensors (slots, capacity, G, D)."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.capacity = 0
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def reserve(self, positions: int) -> None:
        """Make room for `positions` positions in every slot."""
        if positions <= self.capacity:
            return
        # By at least 64 positions and a quarter, so that growing is rare.
        wanted = max(positions, self.capacity + 64, self.capacity * 5 // 4)
        padding = (0, 0, 0, 0, 0, wanted - self.capacity)
        self._layers = {layer: (pad(k, padding), pad(v, padding)) for layer, (k, v) in self._layers.items()}
        self.capacity = wanted

    def write(
        self, layer: int, index_T: torch.Tensor, keys_TGD: torch.Tensor, values_TGD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values of a layer, and return all of the layer's: two tensors (slots, capacity, G, D)."""
        if layer not in self._layers:
            shape = (self.slots, self.capacity, *keys_TGD.shape[1:])
            self._layers[layer] = (keys_TGD.new_zeros(shape), values_TGD.new_zeros((*shape[:-1], values_TGD.shape[-1])))
        keys, values = self._layers[layer]
        keys.flatten(0, 1).index_copy_(0, index_T, keys_TGD)
        values.flatten(0, 1).index_copy_(0, index_T, values_TGD)
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot to another."""
        for keys, values in self._layers.values():
            keys[target, :length] = keys[source, :length]
            values[target, :length] = values[source, :length]


class PackedModel:
    """A model and its cache. To be used inside `packed_attention(model)`."""

    def __init__(self, model: PreTrainedModel, slots: int) -> None:
        self.model = model
        self.cache = SlotCache(slots)
        self._device = model.device
        self._layers = int(model.config.get_text_config().num_hidden_layers)

    def prefill(self, prompts: list[list[int]], first_slot: int) -> None:
        """Evaluate prompts, which may be empty, from position 0 into one slot each from `first_slot` on."""
        if not any(prompts):
            return
        lengths = [len(prompt) for prompt in prompts]
        slots_T = np.repeat(np.arange(len(prompts)), lengths)
        positions_T = np.concatenate([np.arange(length) for length in lengths])
        ids_T = np.array(list(chain.from_iterable(prompts)), dtype=np.int64)
        layout = self._layout(slots_T, positions_T, len(prompts), first_slot, prefill=True)
        # The logits are not needed; transformers computes those of at least one token.
        self._forward(ids_T, positions_T, layout, logits_to_keep=1)

    def logits(self, ids_T: Ints, slots_T: Ints, positions_T: Ints, sequences: int) -> torch.Tensor:
        """Logits (T, V) of tokens of the sequences in slots 0 .. `sequences` - 1, ordered by slot and position."""
        layout = self._layout(slots_T, positions_T, sequences, 0, prefill=False)
        return self._forward(ids_T, positions_T, layout, logits_to_keep=0)

    def _forward(self, ids_T: Ints, positions_T: Ints, layout: _Layout, logits_to_keep: int) -> torch.Tensor:
        token = _LAYOUT.set(layout)
        try:
            output = self.model(
                input_ids=self._tensor(ids_T)[None],
                position_ids=self._tensor(positions_T)[None],
                use_cache=False,
                logits_to_keep=logits_to_keep,
            )
        finally:
            _LAYOUT.reset(token)
        if layout.layers != self._layers:
            raise CheckpointError(
                f"{layout.layers} of the {self._layers} layers of the architecture {self.model.config.model_type} are "
                "plain attention; trajectories need a model of attention layers only"
            )
        return cast(torch.Tensor, output.logits[0])

    def _layout(self, slots_T: Ints, positions_T: Ints, sequences: int, first_slot: int, prefill: bool) -> _Layout:
        self.cache.reserve(int(positions_T.max()) + 1)
        counts_A = np.bincount(slots_T, minlength=sequences)
        width = int(counts_A.max())
        firsts_A = np.cumsum(counts_A) - counts_A
        place_T = slots_T * width + np.arange(len(slots_T)) - firsts_A[slots_T]
        gather, queries = np.zeros((2, sequences * width), dtype=np.int64)
        gather[place_T] = np.arange(len(slots_T))
        queries[place_T] = positions_T
        return _Layout(
            cache=self.cache,
            write_T=self._tensor((first_slot + slots_T) * self.cache.capacity + positions_T),
            gather=self._tensor(gather),
            scatter_T=self._tensor(place_T),
            positions_AW=self._tensor(queries.reshape(sequences, width)),
            keys=0 if prefill else int(positions_T.max()) + 1,
        )

    def _tensor(self, values: Ints) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(self._device, non_blocking=True)


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use the packed attention kernel and evaluation mode inside the block, and restore the model after it.

    Raises:
        CheckpointError: the architecture does not use transformers' attention interface.
    """
    before = model.config._attn_implementation
    training = model.training
    model.train(False)
    AttentionInterface.register(IMPLEMENTATION, _attend)
    model.set_attn_implementation(IMPLEMENTATION)
    if model.config._attn_implementation != IMPLEMENTATION:
        raise CheckpointError(f"the architecture {model.config.model_type} does not allow another attention kernel")
    try:
        with torch.inference_mode():
            yield
    finally:
        model.set_attn_implementation(before)
        model.train(training)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The kernel for `AttentionInterface`: query (1, H, T, D), key and value (1, G, T, D) -> (1, T, H, D)."""
    for name in UNSUPPORTED_OPTIONS:
        if options.get(name) is not None:
            raise CheckpointError(f"trajectories of a model whose attention uses `{name}` are not supported")
    layout = _LAYOUT.get()
    layout.layers += 1
    query_THD, key_TGD, value_TGD = (states[0].transpose(0, 1) for states in (query, key, value))
    sequences, width = layout.positions_AW.shape
    heads, groups = query_THD.shape[1], key_TGD.shape[1]
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # nn.Module types every attribute as Tensor | Module
    cached_keys, cached_values = layout.cache.write(layer, layout.write_T, key_TGD, value_TGD)
    if layout.keys:
        keys, values = (cached[:sequences, : layout.keys] for cached in (cached_keys, cached_values))
    else:
        keys, values = (states[layout.gather].view(sequences, width, groups, -1) for states in (key_TGD, value_TGD))
    share = heads // groups
    # (A, G, share*W, D): query heads that share a key head are stacked, so no key is copied.
    queries = query_THD[layout.gather].view(sequences, width, groups, share, -1)
    queries = queries.permute(0, 2, 3, 1, 4).reshape(sequences, groups, share * width, -1)
    attended = scaled_dot_product_attention(
        queries,
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=_mask(layout, sliding_window, share, query.dtype),
        scale=scaling,
    )
    attended = attended.view(sequences, groups, share, width, -1).permute(0, 3, 1, 2, 4)
    return attended.reshape(sequences * width, heads, -1)[layout.scatter_T][None], None


def _mask(layout: _Layout, window: int | None, share: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask (A, 1, share*W, L), 0 or -inf, which all layers of one window share."""
    if window not in layout.masks:
        positions = layout.positions_AW
        length = layout.keys or positions.shape[1]
        keys_L = torch.arange(length, device=positions.device)
        seen = keys_L <= positions[:, :, None]
        if window is not None and length > window:
            seen &= keys_L > positions[:, :, None] - window
        mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device).masked_fill_(~seen, float("-inf"))
        layout.masks[window] = mask.repeat(1, share, 1)[:, None]
    return layout.masks[window]
