"""A GGUF model in llama.cpp: weights, vocabulary and metadata.

Every pointer that llama.cpp returns is checked here, because the first use of a NULL pointer would end the process.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from nptool.errors import DataError, GgufError
from nptool.heads import KIND_KEY, NEXTN
from nptool.llama.c_stream import c_stream
from nptool.llama.devices import model_parameters
from nptool.llama.gguf_check import Header, check_gguf
from nptool.llama.library import Closable, cause, error_lines
from nptool.llama.loading import DEFAULT_CONTEXT, LoadOptions

# In llama.cpp's description: a size that has no name there, and a file that does not say its type.
_UNKNOWN_SIZE, _GUESSED = "?B", " (guessed)"


class Model(Closable):
    """One loaded GGUF file. Closing it closes its contexts too."""

    def __init__(self, pointer: Any, header: Header, options: LoadOptions) -> None:
        self._pointer: Any = pointer
        self.header, self.options = header, options
        self.path = header.path
        if not llama_cpp.llama_model_get_vocab(pointer):
            raise GgufError(f"{self.path} has no vocabulary that llama.cpp can read")
        self._pieces: dict[int, bytes] = {}
        self._dependents: WeakSet[Closable] = WeakSet()
        self._adapters: list[Any] = []
        """`llama_adapter_lora *`, which the model frees."""

    @classmethod
    def load(cls, path: str | Path, options: LoadOptions | None = None) -> Self:
        """Load a file after `check_gguf`, with its NextN block if `convert` wrote one, and LoRA adapters for it.

        Raises:
            GgufError: see `check_gguf`, or llama.cpp cannot load it or an adapter.
            UsageError: see `model_parameters`.
        """
        options = options or LoadOptions()
        header = check_gguf(path)
        parameters = model_parameters(options)
        parameters.load_mtp = header.metadata.get(KIND_KEY) == NEXTN
        with error_lines() as lines:
            pointer = llama_cpp.llama_model_load_from_file(str(header.path).encode(), parameters)
        return cls._checked(pointer, header, options, lines)

    @classmethod
    def load_part(cls, header: Header, options: LoadOptions | None = None) -> Self:
        """Load a GGUF inside a file, at the offset of its header.

        Raises:
            GgufError: llama.cpp cannot load it.
        """
        options = options or LoadOptions()
        parameters = model_parameters(options)
        with error_lines() as lines, c_stream(header.path, header.offset) as stream:
            pointer = llama_cpp.llama_model_load_from_file_ptr(stream, parameters)
        return cls._checked(pointer, header, options, lines)

    @classmethod
    def _checked(cls, pointer: Any, header: Header, options: LoadOptions, lines: list[str]) -> Self:
        if not pointer:
            part = f"the head at byte {header.offset} of {header.path}" if header.offset else str(header.path)
            raise GgufError(f"llama.cpp cannot load {part}: {cause(lines)}")
        model = cls(pointer, header, options)
        try:
            model._check_kind()
            for path in options.lora:
                model._add_adapter(path)
        except GgufError:
            model.close()
            raise
        return model

    def _add_adapter(self, path: Path) -> None:
        if not path.is_file():
            raise GgufError(f"the LoRA adapter {path} is not a file")
        with error_lines() as lines:
            adapter = llama_cpp.llama_adapter_lora_init(self.pointer, str(path).encode())
        if not adapter:
            raise GgufError(f"llama.cpp cannot add the LoRA adapter {path} to {self.path}: {cause(lines)}")
        self._adapters.append(adapter)

    def apply_adapters(self, context: Any) -> None:
        """Add the LoRA adapters, each with scale 1, to a `llama_context *` of this model."""
        if not self._adapters:
            return
        count = len(self._adapters)
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * count)(*self._adapters)
        if llama_cpp.llama_set_adapters_lora(context, pointers, count, (ctypes.c_float * count)(*[1.0] * count)):
            raise GgufError(f"llama.cpp cannot use the LoRA adapters of {self.path}")

    def _check_kind(self) -> None:
        """Reject the architectures that llama.cpp knows to be unsuitable, but `check_gguf` does not."""
        if llama_cpp.llama_model_is_recurrent(self._pointer) or llama_cpp.llama_model_is_hybrid(self._pointer):
            raise GgufError(
                f"{self.path} is a recurrent or hybrid model ({self.header.architecture}): its state cannot be "
                "rolled back in part, so rejected drafts cannot be undone; use a transformer model"
            )
        if llama_cpp.llama_model_has_encoder(self._pointer) or not llama_cpp.llama_model_has_decoder(self._pointer):
            raise GgufError(f"{self.path} is an encoder model ({self.header.architecture}); use a causal decoder")

    @property
    def pointer(self) -> Any:
        """`llama_model *`, never NULL."""
        if not self._pointer:
            raise ValueError("the model is closed")
        return self._pointer

    @property
    def _vocabulary(self) -> Any:
        """`const llama_vocab *`, valid until the model is closed."""
        return llama_cpp.llama_model_get_vocab(self.pointer)

    @cached_property
    def vocabulary_size(self) -> int:
        return int(llama_cpp.llama_vocab_n_tokens(self._vocabulary))

    @cached_property
    def context_length(self) -> int:
        """Tokens of context that the model was trained with."""
        return int(llama_cpp.llama_model_n_ctx_train(self.pointer))

    @property
    def capacity(self) -> int:
        """Default tokens of a context: the model's own, at most `DEFAULT_CONTEXT`."""
        return min(self.context_length, DEFAULT_CONTEXT)

    @cached_property
    def description(self) -> str:
        """llama.cpp's one line of architecture, size and type, with a number where it has no name for the size."""
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.pointer, buffer, len(buffer))
        text = buffer.value.decode("utf-8", errors="replace")
        return text.replace(_GUESSED, "").replace(_UNKNOWN_SIZE, f"{self.parameters / 1e6:.1f}M")

    @cached_property
    def parameters(self) -> int:
        return int(llama_cpp.llama_model_n_params(self.pointer))

    @cached_property
    def layers(self) -> int:
        return int(llama_cpp.llama_model_n_layer(self.pointer))

    @cached_property
    def hidden_size(self) -> int:
        """Values of a hidden state."""
        return int(llama_cpp.llama_model_n_embd(self.pointer))

    @cached_property
    def attention_heads(self) -> int:
        return int(llama_cpp.llama_model_n_head(self.pointer))

    @cached_property
    def chat_template(self) -> str | None:
        """Jinja source of the chat template, if the file has one."""
        template = llama_cpp.llama_model_chat_template(self.pointer, None)
        return template.decode("utf-8", errors="replace") if template else None

    @cached_property
    def has_tokenizer(self) -> bool:
        return int(llama_cpp.llama_vocab_type(self._vocabulary)) != int(llama_cpp.LLAMA_VOCAB_TYPE_NONE)

    @cached_property
    def bos(self) -> int | None:
        """The BOS token, if the vocabulary has one."""
        return _token(llama_cpp.llama_vocab_bos(self._vocabulary))

    @cached_property
    def eos(self) -> int | None:
        """The EOS token, if the vocabulary has one."""
        return _token(llama_cpp.llama_vocab_eos(self._vocabulary))

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer adds `bos` to a text."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self._vocabulary))

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Every token that ends a generation: end of text, end of turn, ..."""
        vocabulary = self._vocabulary
        tokens = range(self.vocabulary_size)
        return frozenset(token for token in tokens if llama_cpp.llama_vocab_is_eog(vocabulary, token))

    def tokenize(
        self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False
    ) -> NDArray[np.int32]:
        """Token ids of `text`.

        Args:
            add_special: add BOS (and EOS) as the tokenizer does.
            parse_special: read the names of special tokens in the text as these tokens.

        Raises:
            GgufError: the file has no tokenizer.
            DataError: the text cannot be encoded in UTF-8.
        """
        self._require_tokenizer()
        try:
            data = text.encode() if isinstance(text, str) else text
        except UnicodeEncodeError as error:
            raise DataError("the text has bytes that are not UTF-8; convert it first") from error
        # llama.cpp returns the negative size that it needs.
        count = -len(data) - 2
        while count < 0:
            ids = np.empty(-count, dtype=np.int32)
            target = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = llama_cpp.llama_tokenize(
                self._vocabulary, data, len(data), target, len(ids), add_special, parse_special
            )
        return ids[:count].copy()

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token, maybe a part of a UTF-8 character; a special token has none unless `special`."""
        if not special and token in self._pieces:
            return self._pieces[token]
        self._require_tokenizer()
        if not 0 <= token < self.vocabulary_size:
            raise ValueError(f"token {token} is outside the vocabulary of {self.vocabulary_size}")
        count = -32
        while count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = llama_cpp.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, special)
        piece = buffer.raw[:count]
        if not special:
            self._pieces[token] = piece
        return piece

    def detokenize(self, tokens: Any, *, special: bool = False) -> bytes:
        """Bytes of `tokens`, without special ones unless `special`."""
        return b"".join(self.piece(int(token), special=special) for token in tokens)

    def token_text(self, token: int) -> str:
        """A token as the vocabulary spells it, such as `<|end|>`."""
        return self.piece(token, special=True).decode("utf-8", errors="replace")

    def add_dependent(self, dependent: Closable) -> None:
        """Close `dependent` before the weights are freed."""
        self._dependents.add(dependent)

    def close(self) -> None:
        """Free the weights, after closing the dependents."""
        for dependent in list(self._dependents):
            dependent.close()
        if self._pointer:
            llama_cpp.llama_model_free(self._pointer)
            self._pointer = None

    def _require_tokenizer(self) -> None:
        if not self.has_tokenizer:
            raise GgufError(f"{self.path} has no tokenizer; convert it again with one")


def _token(token: int) -> int | None:
    """llama.cpp's -1 is no token."""
    return token if token >= 0 else None
