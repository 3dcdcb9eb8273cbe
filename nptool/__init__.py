"""nptool, the next-n-token toolkit: several tokens per forward pass, trained in PyTorch, run in llama.cpp.

Importing this package loads neither torch nor llama_cpp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Answer", "Sampling", "TextModel", "load"]

if TYPE_CHECKING:
    from nptool.decoding.answer import Answer
    from nptool.decoding.loop.sampling import Sampling
    from nptool.decoding.text_model import TextModel, load

_PLACES = {
    "Answer": "nptool.decoding.answer",
    "Sampling": "nptool.decoding.loop.sampling",
    "TextModel": "nptool.decoding.text_model",
    "load": "nptool.decoding.text_model",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'nptool' has no attribute {name!r}")
