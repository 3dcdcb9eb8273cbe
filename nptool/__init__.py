"""nptool, the next-n-token toolkit: several tokens per forward pass, trained in PyTorch, run in llama.cpp.

Importing this package loads neither torch nor llama_cpp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "BaseConfig",
    "CllmConfig",
    "CollectConfig",
    "HeadsConfig",
    "Sampling",
    "TextModel",
    "collect",
    "convert_checkpoint",
    "load",
    "train",
]

if TYPE_CHECKING:
    from nptool.collection.collect import collect
    from nptool.collection.config import CollectConfig
    from nptool.decoding.answer import Answer
    from nptool.decoding.loop.sampling import Sampling
    from nptool.decoding.text_model import TextModel, load
    from nptool.pipeline.library import convert_checkpoint, train
    from nptool.training.base.config import BaseConfig
    from nptool.training.cllm.config import CllmConfig
    from nptool.training.heads.config import HeadsConfig

_PLACES = {
    "Answer": "nptool.decoding.answer",
    "BaseConfig": "nptool.training.base.config",
    "CllmConfig": "nptool.training.cllm.config",
    "CollectConfig": "nptool.collection.config",
    "HeadsConfig": "nptool.training.heads.config",
    "Sampling": "nptool.decoding.loop.sampling",
    "TextModel": "nptool.decoding.text_model",
    "collect": "nptool.collection.collect",
    "convert_checkpoint": "nptool.pipeline.library",
    "load": "nptool.decoding.text_model",
    "train": "nptool.pipeline.library",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'nptool' has no attribute {name!r}")
