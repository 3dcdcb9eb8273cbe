"""nptool, the next-n-token toolkit: several tokens per forward pass, trained in PyTorch, run in llama.cpp.

Importing this package loads neither torch nor llama_cpp; the names below are looked up on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nptool.decoding.text_model import load as load

_LAZY = {"load": "nptool.decoding.text_model"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nptool' has no attribute {name!r}")
