"""SentencePiece BPE with byte fallback, as in Llama 1 and 2, TinyLlama and Mistral. arXiv 1808.06226.

tokenizer.model scores its tokens, and llama.cpp joins the pair whose joint token scores highest. A tokenizer.json alone
ranks its merges: a token's score is then the negated rank of the first merge that makes it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nptool.convert.tokenizer_files import SENTENCE_PIECE_MODEL, TOKENIZER_JSON, TokenizerFiles
from nptool.convert.vocabulary import Token, TokenType, Vocabulary
from nptool.errors import CheckpointError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
BYTES = 256
BPE_MODEL = 2
"""`trainer_spec.model_type` of BPE; 1 is Unigram."""


def read_piece_model(files: TokenizerFiles) -> Vocabulary:
    """The tokens of tokenizer.model, without added tokens; CheckpointError if it is no BPE with byte fallback."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types
    from sentencepiece import sentencepiece_model_pb2

    path = files.directory / SENTENCE_PIECE_MODEL
    proto: Any = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{path} is no SentencePiece model; copy it again") from error
    if proto.trainer_spec.model_type != BPE_MODEL:
        raise CheckpointError(f"{path} is a Unigram model; nptool converts byte-level and SentencePiece BPE")
    # SentencePiece numbers its piece types as llama.cpp does.
    pieces = ((piece.piece, TokenType(piece.type), float(piece.score)) for piece in proto.pieces)
    tokens = {number: Token(*piece) for number, piece in enumerate(pieces)}
    _check_bytes(tokens, path)
    prefix = bool(proto.normalizer_spec.add_dummy_prefix) if files.tokenizer is None else _has_space_prefix(files)
    return Vocabulary("llama", tokens, space_prefix=prefix)


def read_pieces(files: TokenizerFiles) -> Vocabulary:
    """The same from a tokenizer.json of type BPE with `byte_fallback`."""
    assert files.tokenizer is not None
    model = files.tokenizer["model"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    unknown = model.get("unk_token") or files.special_text("unk")
    # Tokens that no merge makes come last.
    last = len(model["merges"])
    tokens = {
        number: Token(text, _type(text, unknown), -float(ranks.get(text, last)))
        for text, number in model["vocab"].items()
    }
    _check_bytes(tokens, files.directory / TOKENIZER_JSON)
    return Vocabulary("llama", tokens, space_prefix=_has_space_prefix(files))


def _type(text: str, unknown: str | None) -> TokenType:
    if text == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL


def _has_space_prefix(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json puts a space before the text: by a normalizer (older files) or by Metaspace."""
    assert files.tokenizer is not None
    if files.settings.get("add_prefix_space") is False:
        return False
    normalizer = files.tokenizer.get("normalizer") or {}
    pre_tokenizer = files.tokenizer.get("pre_tokenizer") or {}
    parts = [*normalizer.get("normalizers", [normalizer]), *pre_tokenizer.get("pretokenizers", [pre_tokenizer])]
    return any(part.get("type") == "Prepend" or _is_prepending_metaspace(part) for part in parts)


def _is_prepending_metaspace(part: dict[str, Any]) -> bool:
    older = "always" if part.get("add_prefix_space", True) else "never"
    return part.get("type") == "Metaspace" and part.get("prepend_scheme", older) != "never"


def _check_bytes(tokens: dict[int, Token], source: Path) -> None:
    """llama.cpp aborts the process on a character that it can spell neither as a token nor in bytes."""
    found = sum(token.type == TokenType.BYTE for token in tokens.values())
    if found != BYTES:
        raise CheckpointError(
            f"{source} has {found} of the {BYTES} byte tokens (<0x00> to <0xFF>); llama.cpp needs them all"
        )
