"""The checkpoint in transformers, for comparison: its tokenizer, its logits, its intermediate values.

Float32 throughout. Shapes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nptool.checkpoints import load_model, load_tokenizer
from nptool.convert.layers.model_spec import Seam
from nptool.convert.samples import Sample
from nptool.convert.tensors import LAYER_PREFIX
from nptool.convert.tokenizer_files import TOKENIZER_JSON
from nptool.heads import HEADS_WEIGHTS, head_tensor, layer_tensor, nextn_tensor
from nptool.nextn import block_config, carrier_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Reference:
    """A checkpoint as transformers reads it; model and tokenizer are loaded on first use."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._directory)

    @cached_property
    def model(self) -> PreTrainedModel:
        return load_model(self._directory)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; `special` adds the tokens that the tokenizer puts around a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=special))

    def encode_by_file(self, text: str) -> list[int]:
        """Token ids by tokenizer.json alone, without the rules that transformers' tokenizer classes add."""
        from tokenizers import Tokenizer

        backend: Any = Tokenizer.from_file(str(self._directory / TOKENIZER_JSON))
        return list(backend.encode(text, add_special_tokens=False).ids)

    def encode_like_sentence_piece(self, text: str, prefix: bool) -> list[int]:
        """Token ids as SentencePiece finds them: with `prefix`, a space before each stretch of text.

        transformers' newer tokenizers put one before the first stretch only, and only if it has none.
        """
        from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

        backend: Any = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        blocks: list[Any] = [normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *blocks] if prefix else blocks)
        # A pre-tokenizer cannot be removed, only replaced by one that does nothing.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?!)"), "isolated")
        return list(backend.encode(text, add_special_tokens=False).ids)

    def plain_added_tokens(self) -> tuple[list[str], list[str]]:
        """Added tokens that match exactly, and those that swallow spaces beside them."""
        tokens = self.tokenizer.added_tokens_decoder.values()
        stripping = [token.content for token in tokens if token.lstrip or token.rstrip or token.single_word]
        return [token.content for token in tokens if token.content not in stripping], stripping

    def logits(self, sample: Sample) -> NDArray[np.float32]:
        """Logits of the near, then the far tokens: (T, V)."""
        return np.asarray(self._outputs(sample).logits[0, 1:].float().numpy(), np.float32)

    def trunk_output(self, sample: Sample) -> NDArray[np.float32]:
        """z, the input of the last layer: (1 + T, D), the filler's row first."""
        layers: Any = self.model.model.layers
        z = Seam("z", f"{LAYER_PREFIX}{len(layers) - 1}", "", of_input=True)
        return self._values([z], lambda: self._outputs(sample))["z"]

    def intermediates(self, ids: Sequence[int], seams: Iterable[Seam]) -> dict[str, NDArray[np.float32]]:
        """Values (T, rest) at the seams for the token ids, by the seam's name."""
        import torch

        return self._values(seams, lambda: self.model(input_ids=torch.tensor([list(ids)]), use_cache=False))

    @contextmanager
    def head(self, number: int | None) -> Iterator[None]:
        """Replace head 1, the last layer, by head 2..n, whose logits the model's then are; None is a shared layer."""
        from safetensors import safe_open

        layers: Any = self.model.model.layers
        own = {name: weight.clone() for name, weight in layers[-1].state_dict().items()}
        with safe_open(self._directory / HEADS_WEIGHTS, "pt") as stored:
            names = {name: layer_tensor(name) if number is None else head_tensor(number, name) for name in own}
            weights = {name: stored.get_tensor(file_name) for name, file_name in names.items()}
        layers[-1].load_state_dict(weights)
        try:
            yield
        finally:
            layers[-1].load_state_dict(own)

    def nextn(self, ids: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Hidden states (T, D) and logits (T, V) of the NextN block.

        Row t reads token t and the hidden state of token t - 1; that of row 0 is zero.
        """
        import torch

        model: Any = self.model
        hidden = Seam("hidden", "model.norm", "", of_input=not carrier_of(model.config.model_type).after_norm)
        embedding = Seam("embedding", "model.embed_tokens", "")
        found = self.intermediates(ids, (hidden, embedding))
        hidden_TD, embedding_TD = (torch.from_numpy(found[name]) for name in ("hidden", "embedding"))
        hidden_TD = torch.cat([torch.zeros_like(hidden_TD[:1]), hidden_TD[:-1]])
        count = len(ids)
        mask = torch.full((1, 1, count, count), torch.finfo(torch.float32).min).triu(1)
        positions = torch.arange(count)[None]
        with torch.inference_mode():
            layer, enorm, hnorm, norm, projection = self._nextn_block()
            mixed_TD = torch.cat([enorm(embedding_TD), hnorm(hidden_TD)], -1) @ projection.T
            rotation = type(model.model.rotary_emb)(block_config(model.config))(mixed_TD, positions)
            output = layer(mixed_TD[None], attention_mask=mask, position_ids=positions, position_embeddings=rotation)
            output_BTD = output[0] if isinstance(output, tuple) else output
            logits_TV = model.lm_head(norm(output_BTD))[0]
        return np.asarray(hidden_TD.numpy(), np.float32), np.asarray(logits_TV.numpy(), np.float32)

    def _nextn_block(self) -> Any:
        """The block's layer, its three norms (of embedding, hidden state, output) and its projection (D, 2D)."""
        from safetensors.torch import load_file

        body: Any = self.model.model
        stored = load_file(self._directory / HEADS_WEIGHTS)

        def loaded(part: str, like: torch.nn.Module) -> torch.nn.Module:
            copied = deepcopy(like)
            weights = {name: stored[nextn_tensor(f"{part}.{name}")] for name in like.state_dict()}
            copied.load_state_dict(weights)
            return copied

        norms = [loaded(part, body.norm) for part in ("enorm", "hnorm", "norm")]
        return loaded("layer", body.layers[-1]), *norms, stored[nextn_tensor("eh_proj.weight")].float()

    def _outputs(self, sample: Sample) -> Any:
        import torch

        near, far, distance = len(sample.near), len(sample.far), sample.distance
        ids = torch.tensor([[sample.filler, *sample.near, *sample.far]])
        positions = torch.tensor([[distance - 1, *range(near), *range(distance, distance + far)]])
        count = ids.shape[1]
        visible = torch.ones(count, count, dtype=torch.bool).tril()
        # The filler's row is first, its position after `near`.
        visible[1 : 1 + near, 0] = False
        mask = torch.zeros(1, 1, count, count).masked_fill(~visible, torch.finfo(torch.float32).min)
        with torch.inference_mode():
            return self.model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)

    def _values(self, seams: Iterable[Seam], run: Callable[[], Any]) -> dict[str, NDArray[np.float32]]:
        import torch

        found: dict[str, NDArray[np.float32]] = {}

        def keep(seam: Seam) -> Callable[..., None]:
            def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
                value = inputs[0] if seam.of_input else output
                value = value[0] if isinstance(value, tuple) else value
                found[seam.name] = value[0].float().numpy().copy()

            return hook

        hooks = [self.model.get_submodule(seam.module).register_forward_hook(keep(seam)) for seam in seams]
        try:
            with torch.inference_mode():
                run()
        finally:
            for hook in hooks:
                hook.remove()
        return found
