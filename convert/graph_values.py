"""Logits and intermediate values of a GGUF in llama.cpp, for comparison.

In llama.cpp's most exact arithmetic: no flash attention (its CPU kernel works in F16) and an F32 KV cache. The sample's
positions have a gap, so the contexts of `nptool.llama` do not serve here. Shapes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._ggml import libggml
from numpy.typing import NDArray

from nptool.convert.samples import Sample
from nptool.errors import GgufError
from nptool.llama.library import cause, error_lines
from nptool.llama.model import Model
from nptool.resources import usable_cores

CELLS = 256
"""Context of the comparison, in tokens."""
SMALL = 10**9
"""Models with fewer parameters run on one thread."""
Rows = Sequence[int] | NDArray[np.float32]
"""What a batch evaluates: token ids, or vectors (T, D) in place of the embedding's."""
NEAR, FAR = 0, 1
"""Sequences of the tokens before and after the gap."""


def sample_logits(model: Model, sample: Sample, z_TD: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Logits (T, V) of the near, then the far tokens.

    llama.cpp refuses gaps in a sequence: `far` continues the filler's sequence, which is given near's cells too.

    Args:
        z_TD: the input of a head for the filler, the near and the far tokens, in place of their ids.
    """
    rows: Rows = [sample.filler, *sample.near, *sample.far] if z_TD is None else z_TD
    far = 1 + len(sample.near)
    with open_context(model) as context:
        decode(model, context, rows[:1], sample.distance - 1, FAR)
        near_TV = decode(model, context, rows[1:far], 0, NEAR)
        llama_cpp.llama_memory_seq_cp(llama_cpp.llama_get_memory(context), NEAR, FAR, -1, -1)
        return np.concatenate([near_TV, decode(model, context, rows[far:], sample.distance, FAR)])


def nextn_logits(model: Model, ids: Sequence[int], hidden_TD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (T, V) of the NextN block, whose row t reads token t and hidden state t."""
    with open_context(model, nextn=True) as block:
        return decode(model, block, hidden_TD, 0, NEAR, ids)


def intermediates(model: Model, ids: Sequence[int], wanted: Callable[[str], bool]) -> dict[str, NDArray[np.float32]]:
    """Values of the graph's named tensors for the token ids, each (T, rest) with the rest flattened."""
    found: dict[str, NDArray[np.float32]] = {}

    def look(tensor: int, asked: bool, _: Any) -> bool:
        name = libggml.ggml_get_name(ctypes.c_void_p(tensor)).decode()
        if asked:
            return wanted(name)
        found[name] = _tensor_values(tensor).reshape(len(ids), -1)
        return True

    with open_context(model, look) as context:
        decode(model, context, ids, 0, NEAR)
    return found


@contextmanager
def open_context(
    model: Model, look: Callable[[int, bool, Any], bool] | None = None, *, nextn: bool = False
) -> Iterator[Any]:
    """A context of `CELLS` tokens, of the model or of its NextN block."""
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = CELLS
    parameters.n_seq_max = 2
    parameters.ctx_type = llama_cpp.LLAMA_CONTEXT_TYPE_MTP if nextn else llama_cpp.LLAMA_CONTEXT_TYPE_DEFAULT
    parameters.kv_unified = True
    threads = 1 if llama_cpp.llama_model_n_params(model.pointer) < SMALL else usable_cores()
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
    callback = llama_cpp.ggml_backend_sched_eval_callback(look) if look is not None else None
    if callback is not None:
        parameters.cb_eval = callback
    with error_lines() as lines:
        context = llama_cpp.llama_init_from_model(model.pointer, parameters)
    if not context:
        raise GgufError(f"llama.cpp cannot run the converted model: {cause(lines)}")
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)


def decode(
    model: Model, context: Any, rows: Rows, start: int, sequence: int, ids: Sequence[int] = ()
) -> NDArray[np.float32]:
    """Logits (T, V) of `rows` at positions `start`, `start` + 1, ...

    Args:
        ids: tokens that a NextN block reads together with the vectors `rows`.
    """
    width = rows.shape[1] if isinstance(rows, np.ndarray) else 0
    batch = llama_cpp.llama_batch_init(len(rows), width, 1)
    tokens = (ctypes.c_int32 * len(ids))(*ids)
    try:
        batch.n_tokens = len(rows)
        values = batch.embd if width else batch.token
        np.ctypeslib.as_array(values, (len(rows) * max(width, 1),))[:] = np.ravel(rows)
        if ids:
            batch.token = tokens
        for row in range(len(rows)):
            batch.pos[row] = start + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = 1
        status = llama_cpp.llama_decode(context, batch)
    finally:
        if ids:
            batch.token = None  # not llama.cpp's to free
        llama_cpp.llama_batch_free(batch)
    if status:
        raise GgufError(f"llama.cpp cannot evaluate the converted model (llama_decode returned {status})")
    logits = llama_cpp.llama_get_logits(context)
    return np.ctypeslib.as_array(logits, (len(rows), model.vocabulary_size)).copy()


def _tensor_values(tensor: int) -> NDArray[np.float32]:
    """Copy an F32 tensor from any backend's memory."""
    pointer = ctypes.c_void_p(tensor)
    values = np.empty(libggml.ggml_nelements(pointer), np.float32)
    size = ctypes.c_size_t(values.nbytes)
    libggml.ggml_backend_tensor_get(pointer, values.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(0), size)
    return values


libggml.ggml_get_name.restype = ctypes.c_char_p
libggml.ggml_nelements.restype = ctypes.c_int64
libggml.ggml_backend_tensor_get.restype = None
