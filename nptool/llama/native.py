"""llama.cpp's functions with prototypes of our own: the calls of every step, and those that llama_cpp does not bind.

llama_cpp's `get_logits` returns a ctypes pointer object, which costs more than the call itself. The two functions that
show a layer's input are declared in llama.cpp's `llama-ext.h` and exported under C++ names.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any, get_args

import llama_cpp
import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from nptool.errors import ContextError, GgufError, UsageError
from nptool.heads import KIND_KEY, NEXTN
from nptool.llama.library import LIBRARY, Closable, cause, error_lines
from nptool.llama.loading import UNQUANTIZED, CacheType
from nptool.llama.model import Model
from nptool.resources import usable_cores

CACHE_TYPES = {name: int(GGMLQuantizationType[name.upper()]) for name in get_args(CacheType)}

get_logits = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("llama_get_logits", LIBRARY))
decode = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, llama_cpp.llama_batch)(("llama_decode", LIBRARY))
remove_tokens = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)(
    ("llama_memory_seq_rm", LIBRARY)
)

# Symbol names of the GNU and the Microsoft compiler.
_SHOW = (
    "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
    "?llama_set_embeddings_layer_inp@@YAXPEAUllama_context@@I_N@Z",
)
_SHOWN = (
    "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
    "?llama_get_embeddings_layer_inp@@YAPEAMPEAUllama_context@@I@Z",
)
_SHOW_NEXTN = (
    "_Z26llama_set_embeddings_nextnP13llama_contextbb",
    "?llama_set_embeddings_nextn@@YAXPEAUllama_context@@_N1@Z",
)
_SHOWN_NEXTN = (
    "_Z26llama_get_embeddings_nextnP13llama_context",
    "?llama_get_embeddings_nextn@@YAPEAMPEAUllama_context@@@Z",
)
# Architectures, among those that `convert` writes, whose graphs in llama.cpp mark the input of their layers.
_MARKING = frozenset({"llama", "qwen3"})


@dataclass(frozen=True)
class ContextSettings:
    """How a context computes.

    Raises:
        UsageError: a number below 1, more threads than cores, an unknown cache type, or a quantized cache without flash
            attention.
    """

    threads: int | None = None
    """None is every usable core."""
    flash_attention: bool = True
    """llama.cpp's fused attention kernel; needed by a quantized cache."""
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    """Element types of the cache."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"the threads must be at least 1, got {self.threads}")
        if self.threads is not None and self.threads > (cores := os.cpu_count() or self.threads):
            raise UsageError(f"{self.threads} threads, but this machine has {cores} cores; give at most {cores}")
        for name in (self.cache_type_k, self.cache_type_v):
            if name not in CACHE_TYPES:
                raise UsageError(f"unknown cache type {name!r}; known are {', '.join(CACHE_TYPES)}")
            if name not in UNQUANTIZED and not self.flash_attention:
                raise UsageError(f"a cache of type {name} needs flash attention; leave it on or use f16")


class NativeContext(Closable):
    """A `llama_context` and its KV cache: what contexts of tokens and of heads share."""

    def __init__(
        self,
        model: Model,
        settings: ContextSettings,
        *,
        cells: int,
        batch: int,
        outputs: int,
        ubatch: int | None = None,
        sequences: int = 1,
        nextn: bool = False,
    ) -> None:
        """
        Args:
            cells: positions in the cache.
            batch: most rows of a batch.
            outputs: most rows of a batch that have logits.
            ubatch: most rows computed at once; None is all of a batch.
            sequences: most sequences; all of them share the cells.
            nextn: run the model's NextN block alone.

        Raises:
            ContextError: llama.cpp makes no context, usually because memory is short.
            GgufError: the model has no KV cache, or is a NextN block without a model.
        """
        alone = "blk.0.attn_norm.weight" not in model.header.tensors
        if alone and not nextn and model.header.metadata.get(KIND_KEY) == NEXTN:
            # llama.cpp would end the process.
            raise GgufError(f"{model.path} is a NextN block without its model; use NAME-nextn.gguf, which has both")
        parameters = llama_cpp.llama_context_default_params()
        parameters.ctx_type = (llama_cpp.LLAMA_CONTEXT_TYPE_DEFAULT, llama_cpp.LLAMA_CONTEXT_TYPE_MTP)[nextn]
        parameters.n_ctx = cells
        parameters.n_batch, parameters.n_ubatch = batch, ubatch or batch
        parameters.n_outputs_max = outputs
        parameters.n_seq_max, parameters.kv_unified = sequences, True
        parameters.n_threads = parameters.n_threads_batch = settings.threads or usable_cores()
        parameters.type_k, parameters.type_v = CACHE_TYPES[settings.cache_type_k], CACHE_TYPES[settings.cache_type_v]
        attention = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.flash_attn_type = attention[settings.flash_attention]
        # The default size of a sliding-window cache drops cells that a rollback would need.
        parameters.swa_full = True
        parameters.no_perf = True
        with error_lines() as lines:
            self._pointer: Any = llama_cpp.llama_init_from_model(model.pointer, parameters)
        if not self._pointer:
            raise ContextError(f"no context of {cells} tokens for {model.path}: {cause(lines)}")
        self.model = model
        self.seconds = 0.0
        """Time spent inside llama.cpp."""
        # llama.cpp lowers it to the size of the cache.
        self.batch_limit = min(batch, int(llama_cpp.llama_n_batch(self._pointer)))
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        if not self._memory:
            self.close()
            raise GgufError(f"{model.path} has no KV cache in llama.cpp; it cannot generate text")

    @property
    def pointer(self) -> Any:
        """`llama_context *`, never NULL."""
        if not self._pointer:
            raise ValueError("the context is closed")
        return self._pointer

    @property
    def memory(self) -> Any:
        """`llama_memory_t`, never NULL."""
        return self.pointer and self._memory

    def rollback(self, position: int) -> None:
        """Remove everything in sequence 0 from `position` on."""
        if not remove_tokens(self.memory, 0, position, -1):
            raise GgufError(f"{self.model.path}: llama.cpp cannot remove tokens from this model's cache")

    def close(self) -> None:
        """Free the context."""
        if self._pointer:
            llama_cpp.llama_free(self._pointer)
            self._pointer = None


def check_decoded(code: int, rows: int, start: int) -> None:
    """
    Raises:
        ContextError: `code`, which `llama_decode` returned, is an error.
    """
    if code != 0:
        causes = {1: "no free cells in the KV cache", 2: "aborted", -1: "llama.cpp calls the batch invalid"}
        reason = causes.get(code, f"error {code}")
        raise ContextError(f"llama_decode failed on {rows} rows from position {start}: {reason}")


def float_view(address: int, rows: int, columns: int) -> NDArray[np.float32]:
    """A matrix (rows, columns) in llama.cpp's memory."""
    return np.ctypeslib.as_array((ctypes.c_float * (rows * columns)).from_address(address)).reshape(rows, columns)


class LayerInput:
    """The input of one layer in every row of a batch; that of the last layer is z."""

    def __init__(self, model: Model, layer: int) -> None:
        """
        Raises:
            GgufError: there is no such layer, or llama.cpp cannot show it.
        """
        if not 0 <= layer < model.layers:
            raise GgufError(f"{model.path}: its heads read layer {layer} of {model.layers} layers; convert it again")
        if model.header.architecture not in _MARKING:
            raise GgufError(
                f"{model.path}: llama.cpp does not show the input of a layer for {model.header.architecture}; "
                f"heads work with {', '.join(sorted(_MARKING))}"
            )
        self.size = model.hidden_size
        self._layer = layer
        self._show = _bind(_SHOW, None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool)
        self._shown = _bind(_SHOWN, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)

    def show(self, context: Any, shown: bool) -> None:
        """Switch it on or off for later batches; off costs nothing."""
        self._show(context, self._layer, shown)

    def address(self, context: Any) -> int:
        """Address of a float32 matrix (rows, size), valid until the next batch.

        The last batch must have shown its input; otherwise llama.cpp aborts the process.
        """
        address = self._shown(context, self._layer)
        if not address:
            raise ContextError("llama.cpp did not keep the layer's input of the last batch")
        return int(address)


class NextNState:
    """h, the hidden state that a NextN block reads, as the model or the block itself hands it on."""

    def __init__(self, model: Model, *, masked: bool = False) -> None:
        """Args: `masked`: only of rows that have logits."""
        self.size, self._masked = model.hidden_size, masked
        self._show = _bind(_SHOW_NEXTN, None, ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool)
        self._shown = _bind(_SHOWN_NEXTN, ctypes.c_void_p, ctypes.c_void_p)

    def show(self, context: Any, shown: bool) -> None:
        """See `LayerInput`."""
        self._show(context, shown, self._masked)

    def address(self, context: Any) -> int:
        """Address of a float32 matrix (rows, size), valid until the next batch."""
        address = self._shown(context)
        if not address:
            raise ContextError("llama.cpp did not keep the hidden states of the last batch")
        return int(address)


def _bind(names: tuple[str, ...], result: Any, *arguments: Any) -> Any:
    for name in names:
        if hasattr(LIBRARY, name):
            return ctypes.CFUNCTYPE(result, *arguments)((name, LIBRARY))
    raise GgufError(
        "this build of llama.cpp does not show the input of a layer, which heads need; "
        "install the llama-cpp-python that constraints.txt names"
    )
