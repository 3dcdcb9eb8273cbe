"""Compares a converted model in llama.cpp with the checkpoint in transformers.

Tokens of sample texts must be equal, logits of sample tokens equal up to the type's rounding, end tokens and chat
template the same. A difference is an error that names the text or the part of the model. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nptool.convert.file_types import FileType
from nptool.convert.model_spec import ModelSpec
from nptool.convert.samples import DECOMPOSED, EDGE_TEXTS, TEXTS, far_position, sample_ids, special_texts
from nptool.convert.vocabulary import Vocabulary
from nptool.errors import GgufError

if TYPE_CHECKING:
    from nptool.convert.reference import Reference
    from nptool.llama.model import Model

SHOWN_IDS = 6
"""Token ids shown on each side of the first difference."""
TINY = 1e-12
NOTHING_KEPT = "no file was written; --no-verify writes it all the same"


@dataclass(frozen=True)
class LogitComparison:
    """How far llama.cpp's logits are from transformers'."""

    largest: float
    """Largest absolute difference of any logit."""
    spread: float
    """Standard deviation of transformers' logits."""
    same_choice: float
    """Share of the tokens after which both give the highest logit to the same token."""
    tokens: int

    @classmethod
    def of(cls, found: NDArray[np.float32], expected: NDArray[np.float32]) -> LogitComparison:
        """Compare llama.cpp's logits (T, V) with transformers'."""
        return cls(
            # The largest of values that are no numbers is none either.
            largest=float(np.abs(found - expected).max()),
            spread=float(expected.std()),
            same_choice=float((found.argmax(-1) == expected.argmax(-1)).mean()),
            tokens=len(found),
        )

    @property
    def relative(self) -> float:
        """Largest difference in units of the spread."""
        return self.largest / max(self.spread, TINY)


@dataclass(frozen=True)
class Verification:
    """What was compared, and what is worth knowing although it is no error."""

    logits: LogitComparison
    texts: int
    remarks: tuple[str, ...] = ()


def verify(
    path: Path, reference: Reference, vocabulary: Vocabulary, spec: ModelSpec, file_type: FileType
) -> Verification:
    """Compare the GGUF at `path` with `reference`.

    Raises:
        GgufError: the file cannot be loaded, or differs; the message says in what.
    """
    with _loaded(path) as model:
        texts, remarks = compare_tokenizers(model, reference, vocabulary)
        logits = compare_logits(model, reference, spec.sizes.context)
        # Written so that a difference that is no number fails.
        if not logits.relative <= file_type.tolerance:
            if file_type.direct:
                raise GgufError(_difference(model, reference, spec, logits, file_type))
            remarks.append(
                f"logits differ by {logits.relative:.2g} of their spread, more than the {file_type.tolerance:g} that "
                f"{file_type.name} usually costs; a larger type may be worth its size"
            )
    return Verification(logits, texts, tuple(remarks))


def compare_logits(model: Model, reference: Reference, context: int) -> LogitComparison:
    """Compare the logits of the sample tokens.

    Args:
        context: the model's, in tokens.
    """
    from nptool.convert.graph_values import sample_logits

    filler, near, far = _samples(model, reference)
    distance = far_position(context)
    expected = reference.logits(filler, near, far, distance)
    return LogitComparison.of(sample_logits(model, filler, near, far, distance), expected)


def compare_tokenizers(model: Model, reference: Reference, vocabulary: Vocabulary) -> tuple[int, list[str]]:
    """Compare tokens, spelling, end tokens and chat template.

    Returns:
        Number of texts tried, and remarks on differences that llama.cpp cannot help.

    Raises:
        GgufError: at the first difference.
    """
    plain, stripping = reference.plain_added_tokens()
    texts = TEXTS | EDGE_TEXTS | special_texts(plain)
    odd = [label for label, text in texts.items() if not _same_tokens(model, reference, vocabulary, label, text)]
    if not odd:
        text = TEXTS["prose"]
        found, expected = _tokens(model, text, special=True), reference.encode(text, special=True)
        if found != expected:
            raise GgufError(_token_difference("prose with the tokens put around a text", text, found, expected))
    _check_spelling(model, vocabulary)
    _check_ends(model, reference)
    if reference.chat_template() != model.chat_template:
        raise GgufError(f"the chat template in the GGUF is not the checkpoint's; {NOTHING_KEPT}")
    return len(texts), list(_tokenizer_remarks(model, reference, odd, stripping))


def _tokenizer_remarks(model: Model, reference: Reference, odd: list[str], stripping: list[str]) -> Iterator[str]:
    if odd and odd[0] in EDGE_TEXTS:
        yield (
            f"transformers' {type(reference.tokenizer).__name__} tokenizes {', '.join(odd)} otherwise than "
            "tokenizer.json says; llama.cpp follows tokenizer.json"
        )
    elif odd:
        yield (
            "llama.cpp, like SentencePiece, puts a space before text that begins with a space or follows a special "
            f"token; transformers' tokenizer does not (sample: {odd[0]})"
        )
    if stripping:
        yield f"added tokens that swallow spaces beside them do not in llama.cpp: {', '.join(stripping)}"
    if _tokens(model, DECOMPOSED) != reference.encode(DECOMPOSED):
        yield "transformers composes accents (NFC) before it tokenizes, llama.cpp takes text as it is"


@contextmanager
def _loaded(path: Path) -> Iterator[Model]:
    from nptool.llama.model import Model

    try:
        model = Model.load(path)
    except GgufError as error:
        # The file is still under a temporary name.
        raise GgufError(str(error).replace(str(path), "the converted file")) from error
    with model:
        yield model


def _samples(model: Model, reference: Reference) -> tuple[int, list[int], list[int]]:
    return sample_ids(min(len(reference.tokenizer), model.vocabulary_size))


def _difference(
    model: Model, reference: Reference, spec: ModelSpec, logits: LogitComparison, file_type: FileType
) -> str:
    from nptool.convert.localization import differing_part

    _, near, _ = _samples(model, reference)
    part = differing_part(model, reference, spec, near, file_type.tolerance)
    return (
        f"the converted model differs from the checkpoint in {part}: logits differ by {logits.largest:.3g} at a spread "
        f"of {logits.spread:.3g} (at most {file_type.tolerance:g} of it is rounding in {file_type.name}); "
        f"{NOTHING_KEPT}"
    )


def _tokens(model: Model, text: str, *, special: bool = False) -> list[int]:
    return [int(token) for token in model.tokenize(text, add_special=special, parse_special=True)]


def _same_tokens(model: Model, reference: Reference, vocabulary: Vocabulary, label: str, text: str) -> bool:
    """Whether both tokenize alike; False where llama.cpp agrees with the source that transformers departs from."""
    found, expected = _tokens(model, text), reference.encode(text)
    if found == expected:
        return True
    if vocabulary.model == "llama":
        if found == reference.encode_like_sentence_piece(text, bool(vocabulary.space_prefix)):
            return False
    elif label in EDGE_TEXTS and found == reference.encode_by_file(text):
        return False
    raise GgufError(_token_difference(label, text, found, expected))


def _token_difference(label: str, text: str, found: list[int], expected: list[int]) -> str:
    pairs = enumerate(zip(found, expected, strict=False))
    first = next((number for number, (one, other) in pairs if one != other), min(len(found), len(expected)))
    around = slice(max(0, first - SHOWN_IDS), first + SHOWN_IDS)
    return (
        f"the text sample '{label}' ({text!r}) is tokenized differently from token {first} on: llama.cpp "
        f"{found[around]}, transformers {expected[around]} (--pre chooses other splitting rules); {NOTHING_KEPT}"
    )


def _check_spelling(model: Model, vocabulary: Vocabulary) -> None:
    """The tokens of a text, spelled out, must give the text again."""
    for label, text in TEXTS.items():
        spelled = model.detokenize(_tokens(model, text), special=True)
        if vocabulary.space_prefix:
            spelled = spelled.removeprefix(b" ")
        if spelled != text.encode():
            raise GgufError(
                f"the text sample '{label}' ({text!r}) is spelled {spelled!r} after llama.cpp tokenized it; "
                f"{NOTHING_KEPT}"
            )


def _check_ends(model: Model, reference: Reference) -> None:
    missed = sorted(reference.end_tokens() - model.end_tokens)
    if missed:
        names: Any = reference.tokenizer.convert_ids_to_tokens(missed)
        raise GgufError(
            f"llama.cpp would not stop at {', '.join(map(repr, names))}, which ends a text of the checkpoint (a GGUF "
            "has room for eos_token and two more of eos_token_id in generation_config.json); "
            f"{NOTHING_KEPT}"
        )
