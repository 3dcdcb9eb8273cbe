"""A GGUF's tokenizer: tokens, their types, how text is split, which tokens are special.

Two kinds: byte-level BPE (`gpt2` in llama.cpp; Radford et al. 2019) and SentencePiece BPE (`llama`, read by
`sentence_pieces`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from nptool.convert.pretokenizers import detect_pre_tokenizer
from nptool.convert.tokenizer_files import SENTENCE_PIECE_MODEL, AddedToken, TokenizerFiles
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
class TokenTable:
    """Tokens by id."""

    model: str
    """`tokenizer.ggml.model`: gpt2 or llama."""
    texts: dict[int, str]
    types: dict[int, TokenType]
    scores: dict[int, float] | None = None
    """SentencePiece only."""
    merges: list[str] | None = None
    """Byte-level only."""
    pre: str | None = None
    """llama.cpp's name of the splitting rules (byte-level only)."""
    space_prefix: bool | None = None
    """A space is put before the text (SentencePiece only)."""

    def add(self, added: dict[int, AddedToken]) -> None:
        """Enter the added tokens, replacing others of their ids."""
        for number, token in added.items():
            # Only SentencePiece spells the space as U+2581; added tokens match text as it is.
            text = token.content if token.special or self.model == "gpt2" else token.content.replace("▁", " ")
            self.texts[number] = text
            if self.types.get(number) != TokenType.UNKNOWN:
                self.types[number] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
            if self.scores is not None:
                self.scores[number] = ADDED_SCORE


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of the GGUF."""

    model: str
    pre: str | None
    texts: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special_ids: dict[str, int]
    """By role: bos, eos, eot, eom, unk, pad."""
    add_bos: bool
    add_eos: bool
    space_prefix: bool | None
    chat_templates: dict[str, str] = field(default_factory=dict)
    padded: int = 0
    """Rows of the embedding without a token."""


def read_vocabulary(files: TokenizerFiles, rows: int, pre: str | None = None) -> Vocabulary:
    """Build the GGUF's tokenizer.

    Args:
        rows: of the embedding.
        pre: llama.cpp's pre-tokenizer; None finds it from the splitting rules.

    Raises:
        CheckpointError: a tokenizer of another kind, more tokens than rows, no end token, unknown splitting rules.
    """
    source = str(files.directory)
    table = _read_table(files, pre)
    table.add(files.added_tokens())
    if max(table.texts) >= rows:
        raise CheckpointError(
            f"{source}: the tokenizer has tokens up to id {max(table.texts)}, the embedding {rows} rows; "
            "they belong to different models"
        )
    special_ids = _special_ids(files, table, source)
    padded = _fill(table, rows)
    _check_distinct(table, source)
    return Vocabulary(
        model=table.model,
        pre=table.pre,
        texts=[table.texts[number] for number in range(rows)],
        types=[int(table.types[number]) for number in range(rows)],
        scores=None if table.scores is None else [table.scores[number] for number in range(rows)],
        merges=table.merges,
        special_ids=special_ids,
        add_bos=files.adds("bos"),
        add_eos=files.adds("eos"),
        space_prefix=table.space_prefix,
        chat_templates=files.chat_templates(),
        padded=padded,
    )


def _read_table(files: TokenizerFiles, pre: str | None) -> TokenTable:
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
        table = read_piece_model(files)
        # The original scores, unless tokenizer.json, which transformers reads, has other tokens.
        if table.texts == {number: text for text, number in model["vocab"].items()}:
            return table
    return read_pieces(files)


def _read_byte_level(tokenizer: dict[str, Any], pre: str | None, source: str) -> TokenTable:
    """tokenizer.json spells bytes as printable letters, as llama.cpp does, so tokens and merges stay as they are."""
    model = tokenizer["model"]
    pre = pre or detect_pre_tokenizer(tokenizer, source)
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise CheckpointError(
                f"{source}: the tokenizer uses {option}, which llama.cpp does not; nptool converts byte-level BPE"
            )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]] or [NO_MERGE]
    texts = {number: text for text, number in model["vocab"].items()}
    return TokenTable("gpt2", texts, dict.fromkeys(texts, TokenType.NORMAL), merges=merges, pre=pre)


def _special_ids(files: TokenizerFiles, table: TokenTable, source: str) -> dict[str, int]:
    """Ids of the special tokens; llama.cpp must end on every id that the model's configuration ends on."""
    numbers = {text: number for number, text in table.texts.items()}
    found: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        text = files.special_text(role)
        if text is None:
            continue
        if text not in numbers:
            raise CheckpointError(f"{source}: {role}_token is {text!r}, which is not in the vocabulary")
        found[role] = numbers[text]
    ends = [number for number in files.end_ids() if number in table.texts]
    if "eos" not in found:
        if not ends:
            raise CheckpointError(f"{source}: the tokenizer has no eos_token; generation would never end")
        found["eos"] = ends[0]
    if "bos" not in found:
        configured: Any = files.config.get("bos_token_id")
        # llama.cpp's default is token 11.
        found["bos"] = configured if configured in table.texts else found["eos"]
    others = [number for number in ends if number != found["eos"]]
    # Always set: llama.cpp would otherwise take any token that looks like an end of turn.
    found["eot"] = others[0] if others else found["eos"]
    if len(others) > 1:
        found["eom"] = others[1]
    for role in ("bos", "eos", "eot", "eom"):
        if role in found and table.types[found[role]] != TokenType.UNKNOWN:
            table.types[found[role]] = TokenType.CONTROL
    return found


def _fill(table: TokenTable, rows: int) -> int:
    """Name every row without a token; returns how many there are."""
    free = [number for number in range(rows) if number not in table.texts]
    taken = set(table.texts.values())
    for number in free:
        name = f"[PAD{number}]"
        while name in taken:
            name += "_"
        taken.add(name)
        table.texts[number] = name
        table.types[number] = TokenType.UNUSED
        if table.scores is not None:
            table.scores[number] = UNUSED_SCORE
    return len(free)


def _check_distinct(table: TokenTable, source: str) -> None:
    """llama.cpp aborts the process on a vocabulary that has a token twice."""
    counts = Counter(table.texts.values())
    if len(counts) < len(table.texts):
        text, _ = counts.most_common(1)[0]
        numbers = [number for number, other in sorted(table.texts.items()) if other == text]
        raise CheckpointError(f"{source}: tokens {numbers} are all {text!r}; llama.cpp needs every token once")
