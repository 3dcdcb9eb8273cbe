"""Mistral, with and without a sliding window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nptool.convert.conversion import Conversion

WINDOW_REMARK = (
    "the model attends to the last 2048 tokens; llama.cpp's graph attends to the whole context, so beyond that length "
    "it differs"
)
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "mistral 0.1": ("prepend+both", {"sliding_window": 2048}, (WINDOW_REMARK,)),
    "window as long as the context": ("prepend+both", {"sliding_window": 4096}, ()),
    "mistral 0.3": ("metaspace+json", {"sliding_window": None}, ()),
    "mistral nemo": ("tekken", {"sliding_window": None, "head_dim": 8}, ()),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_transformers(case: str, convert_equal: Callable[..., Conversion]) -> None:
    tokenizer, settings, remarks = CASES[case]
    done = convert_equal("MistralForCausalLM", tokenizer, **settings)
    assert (done.architecture, done.remarks) == ("llama", remarks)
