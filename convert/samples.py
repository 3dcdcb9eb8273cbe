"""What a converted model is tried on: texts that tokenizers trip over, and token ids.

All text is composed Unicode (NFC): llama.cpp does not normalize, some tokenizers do, and `DECOMPOSED` shows which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TEXTS = {
    "prose": "The quick brown fox can't jump over 13 lazy dogs; it's 'we'll' and \"they'RE\", isn't it? (Yes!)",
    "code": (
        "def fib(n: int) -> int:\n    if n < 2:\n        return n\n\treturn fib(n-1) + fib(n - 2)  # O(2**n)\n\n\n"
        'for(i=0;i<10;++i){a[i]+=b->c*0x1F;}\n<div class="x">&amp;</div>\nSELECT COUNT(*) FROM t WHERE a >= 3.14;\n'
    ),
    "accents": "Ça coûte 5 € à Zürich, señor; Ångström naïveté, Øresund, Łódź, smörgåsbord.",
    "scripts": "Привет, мир! Γειά σου Κόσμε. 你好，世界。こんにちは 안녕하세요 שלום مرحبا नमस्ते",  # noqa: RUF001  # meant
    "emoji": "ok 😀👍🏽 👩‍👩‍👧‍👦 🇩🇪🏳️‍🌈 ✓ → ½ ™ … — “quoted” ‘so’",  # noqa: RUF001  # meant
    "digits": "1 12 123 1234 12345 1234567890 3.14159 1,000,000 2024-02-29 007 v1.2.3",
    "whitespace": "a  b   c    d\te\t\tf \tg  \n  h\n\n\ni \n\n j\r\nk\r\n\r\nl   ",
    "line ends": "\n",
    "space": " x",
    "spaces only": "     ",
    "empty": "",
}
EDGE_TEXTS = {"digits after spaces": "a  4\n    12", "rare digits": "x² ２３ ⅷ"}  # noqa: RUF001  # meant
"""Texts that some of transformers' tokenizer classes tokenize differently from the tokenizer.json they load."""
DECOMPOSED = "e\u0301"
SPECIAL_TOKENS_TRIED = 24
SEED = 20240304
NEAR_TOKENS, FAR_TOKENS = 40, 12
FAR_POSITION = 1024
"""Far enough that a wrong RoPE scaling shows."""


@dataclass(frozen=True)
class Sample:
    """Token ids with a gap in their positions; `far` attends to `near`, the filler and itself."""

    filler: int
    """At the last position of the gap, the only one that is filled; `near` does not attend to it."""
    near: list[int]
    """At positions 0, 1, ..."""
    far: list[int]
    """At `distance`, `distance` + 1, ..."""
    distance: int


def draw_sample(vocabulary: int, context: int) -> Sample:
    """Random token ids below `vocabulary`, at positions below `context`."""
    ids = np.random.default_rng(SEED).integers(0, vocabulary, 1 + NEAR_TOKENS + FAR_TOKENS).tolist()
    distance = max(min(FAR_POSITION, context - FAR_TOKENS), 1)
    return Sample(ids[0], ids[1 : 1 + NEAR_TOKENS], ids[1 + NEAR_TOKENS :], distance)


def special_texts(tokens: Sequence[str]) -> dict[str, str]:
    """A text for some of the added tokens, each between words and alone."""
    step = max(1, len(tokens) // SPECIAL_TOKENS_TRIED)
    return {f"special token {token}": f"one{token}two {token} three{token}" for token in tokens[::step]}
