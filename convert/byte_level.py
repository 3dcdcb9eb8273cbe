"""Byte-level BPE: GPT-2, Llama 3, Qwen, DeepSeek, and the tokenizers nptool trains.

A tokenizer.json of this kind spells bytes as printable letters, as llama.cpp does, so tokens and merges are taken over
as they stand. Radford et al. 2019.
"""

from __future__ import annotations

from typing import Any

from nptool.convert.pretokenizers import detect_pre_tokenizer
from nptool.convert.vocabulary import TokenTable, TokenType
from nptool.errors import CheckpointError

# llama.cpp loads no vocabulary without merges; this one never applies, since text starts as single letters.
NO_MERGE = "[no] [merge]"


def read_byte_level(tokenizer: dict[str, Any], pre: str | None, source: str) -> TokenTable:
    """Tokens, types and merges of a byte-level tokenizer.json, without its added tokens.

    Args:
        pre: llama.cpp's pre-tokenizer, or None to find it.

    Raises:
        CheckpointError: unknown splitting rules, or a BPE that is not byte-level.
    """
    model = tokenizer["model"]
    pre = pre or detect_pre_tokenizer(tokenizer, source)
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise CheckpointError(
                f"{source}: the tokenizer uses {option}, which llama.cpp does not know; nptool converts byte-level BPE"
            )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]] or [NO_MERGE]
    texts = {number: text for text, number in model["vocab"].items()}
    return TokenTable("gpt2", texts, dict.fromkeys(texts, TokenType.NORMAL), merges=merges, pre=pre)
