"""SentencePiece BPE with byte fallback: Llama 1 and 2, TinyLlama, Mistral.

From the original tokenizer.model, or from a tokenizer.json where that is all there is. The first scores its tokens,
and llama.cpp joins the pair whose joint token scores highest; the second ranks its merges, so a token's score is the
rank of the first merge that makes it, negated. Kudo and Richardson 2018, arXiv 1808.06226.
"""

from __future__ import annotations

import re
from typing import Any

from nptool.convert.tokenizer_files import TokenizerFiles
from nptool.convert.vocabulary import TokenTable, TokenType
from nptool.errors import CheckpointError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
BYTES = 256
BPE_MODEL = 2
"""`trainer_spec.model_type` of a SentencePiece model that merges; 1 is Unigram."""


def read_piece_model(files: TokenizerFiles) -> TokenTable:
    """Tokens, types and scores of tokenizer.model, without added tokens.

    Raises:
        CheckpointError: the file is no SentencePiece BPE model with byte fallback.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types
    from sentencepiece import sentencepiece_model_pb2

    path = files.directory / "tokenizer.model"
    proto: Any = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{path} is no SentencePiece model; copy it again") from error
    if proto.trainer_spec.model_type != BPE_MODEL:
        raise CheckpointError(f"{path} is a Unigram model; nptool converts byte-level and SentencePiece BPE")
    # SentencePiece numbers its piece types as llama.cpp does.
    types = {number: TokenType(piece.type) for number, piece in enumerate(proto.pieces)}
    texts = {number: piece.piece for number, piece in enumerate(proto.pieces)}
    scores = {number: float(piece.score) for number, piece in enumerate(proto.pieces)}
    _check_bytes(types, str(path))
    prefix = bool(proto.normalizer_spec.add_dummy_prefix) if files.tokenizer is None else _has_space_prefix(files)
    return TokenTable("llama", texts, types, scores=scores, space_prefix=prefix)


def read_pieces(files: TokenizerFiles) -> TokenTable:
    """The same from a tokenizer.json of the kind `BPE` with `byte_fallback`.

    Raises:
        CheckpointError: byte tokens are missing.
    """
    assert files.tokenizer is not None
    model = files.tokenizer["model"]
    vocabulary: dict[str, int] = model["vocab"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    # A token that no merge makes comes last.
    scores = {number: -float(ranks.get(text, len(model["merges"]))) for text, number in vocabulary.items()}
    unknown = model.get("unk_token") or files.special_text("unk")
    types = {number: _type(text, unknown) for text, number in vocabulary.items()}
    _check_bytes(types, str(files.directory / "tokenizer.json"))
    texts = {number: text for text, number in vocabulary.items()}
    return TokenTable("llama", texts, types, scores=scores, space_prefix=_has_space_prefix(files))


def _type(text: str, unknown: str | None) -> TokenType:
    if text == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL


def _has_space_prefix(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json puts a space before the text: by a normaliser (older files) or by Metaspace."""
    assert files.tokenizer is not None
    if files.settings.get("add_prefix_space") is False:
        return False
    normalizer = files.tokenizer.get("normalizer") or {}
    parts = [*normalizer.get("normalizers", [normalizer])]
    pre_tokenizer = files.tokenizer.get("pre_tokenizer") or {}
    parts += [*pre_tokenizer.get("pretokenizers", [pre_tokenizer])]
    return any(
        part.get("type") == "Prepend"
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme", _older_scheme(part)) != "never")
        for part in parts
    )


def _older_scheme(metaspace: dict[str, Any]) -> str:
    return "always" if metaspace.get("add_prefix_space", True) else "never"


def _check_bytes(types: dict[int, TokenType], source: str) -> None:
    """llama.cpp stops the whole process on a character it can spell neither as a token nor in bytes."""
    found = sum(kind == TokenType.BYTE for kind in types.values())
    if found != BYTES:
        raise CheckpointError(
            f"{source} has {found} of the {BYTES} byte tokens (<0x00> to <0xFF>); llama.cpp needs them all"
        )
