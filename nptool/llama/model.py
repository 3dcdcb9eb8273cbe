"""A GGUF model in llama.cpp: weights, vocabulary and metadata. Knows no context and no decoding.

Every pointer that llama.cpp returns is checked here, because a NULL one would end the process at its first use.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import WeakSet

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from nptool.errors import DataError, GgufError
from nptool.llama.c_stream import c_stream
from nptool.llama.gguf_check import Header, check_gguf
from nptool.llama.library import cause, error_lines, initialise, supports_gpu

logger = logging.getLogger(__name__)

# llama.cpp takes any negative number of layers as "all".
ALL_LAYERS = -1
# What llama.cpp calls a size that is not among those it has a name for.
_UNKNOWN_SIZE = "?B"
# What it adds where the file does not say its type.
_GUESSED = " (guessed)"


class Closable(Protocol):
    """What lives on a model's weights."""

    def close(self) -> None:
        """Free it."""


class Model:
    """One loaded GGUF file. Close it, which closes its contexts too, or use it as a context manager."""

    def __init__(self, pointer: Any, header: Header) -> None:
        self._pointer: Any = pointer
        self.header = header
        self.path = header.path
        vocabulary = llama_cpp.llama_model_get_vocab(pointer)
        if not vocabulary:
            raise GgufError(f"{self.path} has no vocabulary that llama.cpp can read")
        self._vocabulary_pointer: Any = vocabulary
        self._pieces: dict[int, bytes] = {}
        self._dependents: WeakSet[Closable] = WeakSet()

    @classmethod
    def load(cls, path: str | Path, gpu_layers: int = 0, *, memory_map: bool = True) -> Self:
        """Check `path`, then load it.

        Args:
            gpu_layers: layers to put on the GPU; negative is all of them.
            memory_map: False reads the file into memory, so that it may be replaced while the model is in use.

        Raises:
            GgufError: it is missing, damaged, not decodable in parallel, or llama.cpp refuses it.
        """
        header = check_gguf(path)
        parameters = _parameters(gpu_layers, memory_map)
        with error_lines() as lines:
            pointer = llama_cpp.llama_model_load_from_file(str(header.path).encode(), parameters)
        return cls._checked(pointer, header, lines)

    @classmethod
    def load_part(cls, header: Header, gpu_layers: int = 0, *, memory_map: bool = True) -> Self:
        """Load a GGUF that lies inside a file, at its header's offset.

        Raises:
            GgufError: llama.cpp refuses it.
        """
        parameters = _parameters(gpu_layers, memory_map)
        with error_lines() as lines, c_stream(header.path, header.offset) as stream:
            pointer = llama_cpp.llama_model_load_from_file_ptr(stream, parameters)
        return cls._checked(pointer, header, lines)

    @classmethod
    def _checked(cls, pointer: Any, header: Header, lines: list[str]) -> Self:
        if not pointer:
            part = f"the head at byte {header.offset} of {header.path}" if header.offset else str(header.path)
            raise GgufError(f"llama.cpp cannot load {part}: {cause(lines)}")
        model = cls(pointer, header)
        try:
            model._check_kind()
        except GgufError:
            model.close()
            raise
        return model

    def _check_kind(self) -> None:
        """What the header's list of architectures may not know yet, llama.cpp does."""
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
        """`const llama_vocab *`, which lives as long as the model."""
        if not self._pointer:
            raise ValueError("the model is closed")
        return self._vocabulary_pointer

    @cached_property
    def vocabulary_size(self) -> int:
        return int(llama_cpp.llama_vocab_n_tokens(self._vocabulary))

    @cached_property
    def context_length(self) -> int:
        """Tokens of context the model was trained with."""
        return int(llama_cpp.llama_model_n_ctx_train(self.pointer))

    @cached_property
    def description(self) -> str:
        """llama.cpp's one line: architecture, size, type; the size, of which it knows only some, as a number."""
        text = self._text(partial(llama_cpp.llama_model_desc, self.pointer)) or ""
        return text.replace(_GUESSED, "").replace(_UNKNOWN_SIZE, f"{self.parameters / 1e6:.1f}M")

    @cached_property
    def parameters(self) -> int:
        """How many there are."""
        return int(llama_cpp.llama_model_n_params(self.pointer))

    @cached_property
    def layers(self) -> int:
        return int(llama_cpp.llama_model_n_layer(self.pointer))

    @cached_property
    def hidden_size(self) -> int:
        """Values of a token's vector between two layers."""
        return int(llama_cpp.llama_model_n_embd(self.pointer))

    @cached_property
    def attention_heads(self) -> int:
        """Heads of attention in each layer: queries, of which several may share a key."""
        return int(llama_cpp.llama_model_n_head(self.pointer))

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Every metadata entry as llama.cpp prints it (arrays in JSON, shortened)."""
        entries = {}
        for index in range(llama_cpp.llama_model_meta_count(self.pointer)):
            key = self._text(partial(llama_cpp.llama_model_meta_key_by_index, self.pointer, index))
            value = self._text(partial(llama_cpp.llama_model_meta_val_str_by_index, self.pointer, index))
            if key is not None:
                entries[key] = value or ""
        return entries

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja source of the file's chat template, if it has one."""
        template = llama_cpp.llama_model_chat_template(self.pointer, None)
        return template.decode("utf-8", errors="replace") if template else None

    @cached_property
    def has_tokenizer(self) -> bool:
        return int(llama_cpp.llama_vocab_type(self._vocabulary)) != int(llama_cpp.LLAMA_VOCAB_TYPE_NONE)

    @cached_property
    def bos(self) -> int | None:
        """The token that begins a text, if the vocabulary has one."""
        return self._special(llama_cpp.llama_vocab_bos)

    @cached_property
    def eos(self) -> int | None:
        """The token that ends a text, if the vocabulary has one."""
        return self._special(llama_cpp.llama_vocab_eos)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts `bos` before a text by itself."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self._vocabulary))

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Every token that ends a generation: end of text, end of turn and their relatives."""
        ends = (token for token in range(self.vocabulary_size) if llama_cpp.llama_vocab_is_eog(self._vocabulary, token))
        return frozenset(ends)

    def tokenize(
        self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False
    ) -> NDArray[np.int32]:
        """Token ids of `text`.

        Args:
            add_special: put the tokenizer's own BOS (and EOS) around it.
            parse_special: read the names of special tokens in the text as these tokens.

        Raises:
            GgufError: the file has no tokenizer.
            DataError: the text is none that UTF-8 can hold: it was made of other bytes.
        """
        self._require_tokenizer()
        try:
            data = text.encode() if isinstance(text, str) else text
        except UnicodeEncodeError as error:
            raise DataError("the text has bytes that are not UTF-8; convert it first") from error
        ids = np.empty(len(data) + 2, dtype=np.int32)
        while True:
            target = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = llama_cpp.llama_tokenize(
                self._vocabulary, data, len(data), target, len(ids), add_special, parse_special
            )
            if count >= 0:
                return ids[:count].copy()
            ids = np.empty(-count, dtype=np.int32)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; a special token is empty unless `special`. May be a part of a UTF-8 character."""
        if not special and token in self._pieces:
            return self._pieces[token]
        self._require_tokenizer()
        if not 0 <= token < self.vocabulary_size:
            raise ValueError(f"token {token} is outside the vocabulary of {self.vocabulary_size}")
        size = 32
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, special)
            if count >= 0:
                break
            size = -count
        piece = buffer.raw[:count]
        if not special:
            self._pieces[token] = piece
        return piece

    def detokenize(self, tokens: Any, *, special: bool = False) -> bytes:
        """The bytes of `tokens`, special ones left out unless `special`."""
        return b"".join(self.piece(int(token), special=special) for token in tokens)

    def token_text(self, token: int) -> str:
        """The name of a token as the vocabulary spells it, such as `<|end|>`."""
        return self.piece(token, special=True).decode("utf-8", errors="replace")

    def add_dependent(self, dependent: Closable) -> None:
        """Have `dependent` closed before the weights are freed under it."""
        self._dependents.add(dependent)

    def close(self) -> None:
        """Free the weights. A second call does nothing."""
        for dependent in list(self._dependents):
            dependent.close()
        if self._pointer:
            llama_cpp.llama_model_free(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_tokenizer(self) -> None:
        if not self.has_tokenizer:
            raise GgufError(f"{self.path} has no tokenizer; convert it again with one")

    def _special(self, getter: Callable[[Any], int]) -> int | None:
        token = int(getter(self._vocabulary))
        return token if token >= 0 else None

    @staticmethod
    def _text(call: Callable[[Any, int], int]) -> str | None:
        """A string from a function that writes into a buffer and returns the length it needed, or -1."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            needed = call(buffer, size)
            if needed < 0:
                return None
            if needed < size:
                return buffer.value.decode("utf-8", errors="replace")
            size = needed + 1


# An empty list of devices, as llama.cpp wants it: the first pointer is NULL.
_NO_DEVICES = (ctypes.c_void_p * 1)(None)


def _parameters(gpu_layers: int, memory_map: bool) -> Any:
    initialise()
    if gpu_layers and not supports_gpu():
        logger.warning("this build of llama.cpp has no GPU support: -ngl is without effect")
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = gpu_layers
    if not gpu_layers:
        # With 0 layers on it, llama.cpp still computes on a GPU that it finds, even with op_offload off: logits of F32
        # models moved by 1 % of their spread, so that `nptool convert` took right files for wrong ones.
        parameters.devices = ctypes.cast(_NO_DEVICES, ctypes.c_void_p)
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if memory_map else llama_cpp.LLAMA_LOAD_MODE_NONE
    return parameters
