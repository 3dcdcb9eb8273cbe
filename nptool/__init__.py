"""nptool, the next-n-token toolkit: several tokens per forward pass, trained in PyTorch, run in llama.cpp.

Importing this package loads neither torch nor llama_cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nptool.decoding.text_model import load as load


def __getattr__(name: str) -> Any:
    if name == "load":
        from nptool.decoding.text_model import load

        return load
    raise AttributeError(f"module 'nptool' has no attribute {name!r}")
