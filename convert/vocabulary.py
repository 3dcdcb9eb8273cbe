"""A GGUF's tokenizer: tokens, their types, how text is split, which tokens are special.

Two kinds: byte-level BPE (`gpt2` in llama.cpp; Radford et al. 2019) and SentencePiece BPE (`llama`, read by
`sentence_pieces`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from nptool.convert.pretokenizers import detect_pre_tokenizer
from nptool.convert.tokenizer_files import SENTENCE_PIECE_MODEL, TokenizerFiles
from nptool.errors import CheckpointError

UNUSED_SCORE = -10000.0
ADDED_SCORE = -1000.0
# llama.cpp loads no byte-level vocabulary without merges; this one never applies, since text starts as single letters.
NO_MERGE = "[no] [merge]"


class TokenType(IntEnum):
    """llama.cpp's `llama_token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class Token:
    """One row of the embedding."""

    text: str
    type: TokenType
    score: float = 0.0
    """Of SentencePiece only."""


@dataclass
class Vocabulary:
    """The tokenizer of the GGUF."""

    model: str
    """`tokenizer.ggml.model`: gpt2 or llama."""
    tokens: dict[int, Token]
    """By id; one for every row of the embedding when it is complete."""
    merges: list[str] | None = None
    """Byte-level only."""
    pre: str | None = None
    """llama.cpp's name of the splitting rules (byte-level only)."""
    space_prefix: bool | None = None
    """A space is put before the text (SentencePiece only)."""
    special_ids: dict[str, int] = field(default_factory=dict)
    """By role: bos, eos, eot, eom, unk, pad."""
    add_bos: bool = False
    add_eos: bool = False
    chat_templates: dict[str, str] = field(default_factory=dict)


def read_vocabulary(files: TokenizerFiles, rows: int, pre: str | None = None) -> Vocabulary:
    """Build the GGUF's tokenizer.

    Args:
        rows: of the embedding.
        pre: llama.cpp's pre-tokenizer; None finds it from the splitting rules.

    Raises:
        CheckpointError: a tokenizer of another kind, more tokens than rows, no end token, unknown splitting rules.
    """
    source = str(files.directory)
    vocabulary = _read_kind(files, pre)
    _add(files, vocabulary)
    if (last := max(vocabulary.tokens)) >= rows:
        raise CheckpointError(
            f"{source}: the tokenizer has tokens up to id {last}, the embedding {rows} rows; "
            "they belong to different models"
        )
    special_ids = _special_ids(files, vocabulary.tokens, source)
    _fill(vocabulary.tokens, rows)
    _check_distinct(vocabulary.tokens, source)
    return replace(
        vocabulary,
        special_ids=special_ids,
        add_bos=files.adds("bos"),
        add_eos=files.adds("eos"),
        chat_templates=files.chat_templates(),
    )


def _read_kind(files: TokenizerFiles, pre: str | None) -> Vocabulary:
    """Tokens and splitting rules, without added tokens."""
    from nptool.convert.sentence_pieces import read_piece_model, read_pieces

    if files.tokenizer is None:
        return read_piece_model(files)
    model = files.tokenizer.get("model") or {}
    # transformers 4 wrote no type into some of them.
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise CheckpointError(
            f"{files.directory}: the tokenizer is a {model.get('type', 'nameless')} model; "
            "nptool converts byte-level and SentencePiece BPE"
        )
    if not model.get("byte_fallback"):
        return _read_byte_level(files.tokenizer, pre, str(files.directory))
    if (files.directory / SENTENCE_PIECE_MODEL).is_file():
        scored = read_piece_model(files)
        # The original scores, unless tokenizer.json, which transformers reads, has other tokens.
        if {token.text: number for number, token in scored.tokens.items()} == model["vocab"]:
            return scored
    return read_pieces(files)


def _read_byte_level(tokenizer: dict[str, Any], pre: str | None, source: str) -> Vocabulary:
    """tokenizer.json spells bytes as printable letters, as llama.cpp does, so tokens and merges stay as they are."""
    model = tokenizer["model"]
    pre = pre or detect_pre_tokenizer(tokenizer, source)
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise CheckpointError(
                f"{source}: the tokenizer uses {option}, which llama.cpp does not; nptool converts byte-level BPE"
            )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]] or [NO_MERGE]
    tokens = {number: Token(text, TokenType.NORMAL) for text, number in model["vocab"].items()}
    return Vocabulary("gpt2", tokens, merges=merges, pre=pre)


def _add(files: TokenizerFiles, vocabulary: Vocabulary) -> None:
    """Enter the added tokens, replacing others of their ids."""
    for number, (text, special) in files.added_tokens().items():
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        known = vocabulary.tokens.get(number)
        if known is not None and known.type == TokenType.UNKNOWN:
            kind = TokenType.UNKNOWN
        if not special and vocabulary.model == "llama":
            # SentencePiece spells the space as U+2581; added tokens match text as it is.
            text = text.replace("▁", " ")
        vocabulary.tokens[number] = Token(text, kind, ADDED_SCORE)


def _special_ids(files: TokenizerFiles, tokens: dict[int, Token], source: str) -> dict[str, int]:
    """Ids of the special tokens; llama.cpp must end on every id that the model's configuration ends on."""
    numbers = {token.text: number for number, token in tokens.items()}
    found: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        text = files.special_text(role)
        if text is None:
            continue
        if text not in numbers:
            raise CheckpointError(f"{source}: {role}_token is {text!r}, which is not in the vocabulary")
        found[role] = numbers[text]
    ends = [number for number in files.end_ids() if number in tokens]
    if "eos" not in found:
        if not ends:
            raise CheckpointError(f"{source}: the tokenizer has no eos_token; generation would never end")
        found["eos"] = ends[0]
    if "bos" not in found:
        configured: Any = files.config.get("bos_token_id")
        # llama.cpp's default is token 11.
        found["bos"] = configured if configured in tokens else found["eos"]
    others = [number for number in ends if number != found["eos"]]
    # Always set: llama.cpp would otherwise take any token that looks like an end of turn.
    found["eot"] = others[0] if others else found["eos"]
    if len(others) > 1:
        found["eom"] = others[1]
    for role in ("bos", "eos", "eot", "eom"):
        if role in found and tokens[found[role]].type != TokenType.UNKNOWN:
            tokens[found[role]].type = TokenType.CONTROL
    return found


def _fill(tokens: dict[int, Token], rows: int) -> None:
    """Name every row without a token."""
    taken = {token.text for token in tokens.values()}
    for number in set(range(rows)).difference(tokens):
        name = f"[PAD{number}]"
        while name in taken:
            name += "_"
        tokens[number] = Token(name, TokenType.UNUSED, UNUSED_SCORE)


def _check_distinct(tokens: dict[int, Token], source: str) -> None:
    """llama.cpp aborts the process on a vocabulary that has a token twice."""
    text, count = Counter(token.text for token in tokens.values()).most_common(1)[0]
    if count > 1:
        numbers = [number for number, token in sorted(tokens.items()) if token.text == text]
        raise CheckpointError(f"{source}: tokens {numbers} are all {text!r}; llama.cpp needs every token once")
