"""Where llama.cpp puts a model's layers: this machine's GPUs, RPC servers, or the processor alone."""

from __future__ import annotations

import ctypes
import logging
import socket
from functools import cache
from typing import Any

import llama_cpp

from nptool.errors import UsageError
from nptool.llama.library import LIBRARY, initialize, supports_gpu
from nptool.llama.loading import LoadOptions

logger = logging.getLogger(__name__)

# An empty list of devices for llama.cpp: the first pointer is NULL.
_NO_DEVICES = (ctypes.c_void_p * 1)(None)
# llama.cpp's most devices.
_MOST_DEVICES = int(llama_cpp.llama_max_devices())
_ANSWER_SECONDS = 3.0
_SPLIT_MODES = {
    "none": llama_cpp.LLAMA_SPLIT_MODE_NONE,
    "layer": llama_cpp.LLAMA_SPLIT_MODE_LAYER,
    "row": llama_cpp.LLAMA_SPLIT_MODE_ROW,
}


def model_parameters(options: LoadOptions) -> Any:
    """llama.cpp's parameters of a model.

    Raises:
        UsageError: more shares than llama.cpp has devices, or see `add_rpc_servers`.
    """
    initialize()
    add_rpc_servers(options.rpc)
    if options.gpu_layers and not supports_gpu():
        logger.warning("this build of llama.cpp has no GPU support: -ngl has no effect")
    if len(options.tensor_split) > _MOST_DEVICES:
        raise UsageError(
            f"--tensor-split has {len(options.tensor_split)} shares; llama.cpp has {_MOST_DEVICES} devices"
        )
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = options.gpu_layers
    parameters.split_mode, parameters.main_gpu = _SPLIT_MODES[options.split_mode], options.main_gpu
    if options.tensor_split:
        shares = (ctypes.c_float * _MOST_DEVICES)(*options.tensor_split)
        parameters.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
    if not options.gpu_layers:
        # With 0 layers on the GPU, llama.cpp would still use a GPU that it finds, which changes the logits.
        parameters.devices = ctypes.cast(_NO_DEVICES, ctypes.c_void_p)
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
    return parameters


def add_rpc_servers(servers: tuple[str, ...]) -> None:
    """Make the devices of llama.cpp's RPC servers available until the process ends.

    Raises:
        UsageError: llama.cpp was built without RPC, or a server does not answer.
    """
    if servers and not llama_cpp.llama_supports_rpc():
        raise UsageError(
            "this build of llama.cpp has no RPC, so --rpc cannot work; rebuild it with "
            'CMAKE_ARGS="-DGGML_RPC=on" pip install --force-reinstall --no-binary :all: llama-cpp-python'
        )
    for server in servers:
        _add_rpc_server(server)


@cache
def _add_rpc_server(server: str) -> None:
    host, _, port = server.rpartition(":")
    try:
        # llama.cpp ends the process where no server answers.
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"no RPC server of llama.cpp answers at {server!r} ({error}); expected HOST:PORT of a running rpc-server"
        ) from error
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    by_name = ctypes.CFUNCTYPE(pointer, text)(("ggml_backend_reg_by_name", LIBRARY))
    address_of = ctypes.CFUNCTYPE(pointer, pointer, text)(("ggml_backend_reg_get_proc_address", LIBRARY))
    register = ctypes.CFUNCTYPE(None, pointer)(("ggml_backend_register", LIBRARY))
    add = ctypes.CFUNCTYPE(pointer, text)(address_of(by_name(b"RPC"), b"ggml_backend_rpc_add_server"))
    register(add(server.encode()))
