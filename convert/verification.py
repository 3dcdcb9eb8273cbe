"""Compares a converted model in llama.cpp with the checkpoint in transformers.

Tokens of sample texts, end tokens and chat template must be equal, and logits of sample tokens equal up to the type's
rounding. A difference is an error that names the text or the part of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nptool.convert.file_types import FileType
from nptool.convert.layers.model_spec import ModelSpec
from nptool.convert.samples import DECOMPOSED, EDGE_TEXTS, TEXTS, Sample, draw_sample, special_texts
from nptool.convert.tokenizer_files import DEFAULT_TEMPLATE
from nptool.convert.vocabulary import Vocabulary
from nptool.data.rendering import end_token_ids
from nptool.errors import GgufError
from nptool.heads import SHARED
from nptool.llama.gguf_parts import find_parts

if TYPE_CHECKING:
    from nptool.convert.reference import Reference
    from nptool.llama.model import Model

SHOWN_IDS = 6
"""Token ids shown on each side of the first difference."""
F32_HEAD_TOLERANCE = 1e-3
"""Of the spread. Tighter than a model's: one layer from an exact input accumulates little rounding."""
NOTHING_KEPT = "no file was written; --no-verify writes it all the same"


@dataclass(frozen=True)
class LogitComparison:
    """How far llama.cpp's logits are from transformers'."""

    largest: float
    """Largest absolute difference of any logit; NaN if any is NaN."""
    spread: float
    """Standard deviation of transformers' logits."""
    same_choice: float
    """Share of the tokens after which both give the highest logit to the same token."""
    tokens: int

    @classmethod
    def of(cls, found: NDArray[np.float32], expected: NDArray[np.float32]) -> LogitComparison:
        """Compare llama.cpp's logits (T, V) with transformers'."""
        return cls(
            largest=float(np.abs(found - expected).max()),
            spread=float(expected.std()),
            same_choice=float((found.argmax(-1) == expected.argmax(-1)).mean()),
            tokens=len(found),
        )

    @property
    def relative(self) -> float:
        """Largest difference in units of the spread."""
        return self.largest / max(self.spread, 1e-12)

    def within(self, tolerance: float) -> bool:
        """Whether the relative difference is at most `tolerance`; False for NaN."""
        return self.relative <= tolerance


@dataclass(frozen=True)
class Verification:
    """What was compared, and remarks that are no errors."""

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
    from nptool.convert.graph_values import sample_logits
    from nptool.llama.model import Model

    try:
        loaded = Model.load(path)
    except GgufError as error:
        # The file still has a temporary name.
        raise GgufError(str(error).replace(str(path), "the converted file")) from error
    with loaded as model:
        texts, remarks = _compare_tokenizers(model, reference, vocabulary)
        sample = _sample(model, reference, spec.sizes.context)
        logits = LogitComparison.of(sample_logits(model, sample), reference.logits(sample))
        if not logits.within(file_type.tolerance):
            if file_type.direct:
                from nptool.convert.localization import differing_part

                part = differing_part(model, reference, spec, sample.near, file_type.tolerance)
                what = f"the converted model differs from the checkpoint in {part}"
                raise _difference(what, logits, file_type.tolerance, file_type)
            remarks.append(
                f"logits differ by {logits.relative:.2g} of their spread, more than the {file_type.tolerance:g} that "
                f"{file_type.name} usually costs; a larger type may be worth its size"
            )
    return Verification(logits, texts, tuple(remarks))


def verify_heads(path: Path, reference: Reference, context: int, file_type: FileType) -> tuple[LogitComparison, ...]:
    """Compare the heads' layers of the GGUF at `path` with `reference`, both on transformers' trunk output.

    Raises:
        GgufError: a head cannot be loaded, or differs.
    """
    from nptool.convert.graph_values import sample_logits
    from nptool.llama.model import Model

    compared = []
    tolerance = F32_HEAD_TOLERANCE if file_type.name == "f32" else file_type.tolerance
    parts = find_parts(path)
    for number, part in enumerate(parts.heads, start=2):
        with Model.load_part(part.header) as head:
            sample = _sample(head, reference, context)
            found = sample_logits(head, sample, reference.trunk_output(sample))
        with reference.head(None if parts.kind == SHARED else number):
            logits = LogitComparison.of(found, reference.logits(sample))
        if not logits.within(tolerance):
            name = "the layer of the heads" if parts.kind == SHARED else f"head {number}"
            what = f"{name} of the converted model differs from the checkpoint"
            raise _difference(what, logits, tolerance, file_type)
        compared.append(logits)
    return tuple(compared)


def verify_nextn(path: Path, reference: Reference, file_type: FileType) -> LogitComparison:
    """Compare the NextN block of the GGUF at `path` with `reference`, both on transformers' hidden states.

    Raises:
        GgufError: the block cannot be loaded, or differs by more than a type written directly explains.
    """
    from nptool.convert.graph_values import nextn_logits
    from nptool.llama.model import Model

    with Model.load(path) as model:
        ids = draw_sample(min(len(reference.tokenizer), model.vocabulary_size), model.context_length).near
        hidden_TD, expected_TV = reference.nextn(ids)
        logits = LogitComparison.of(nextn_logits(model, ids, hidden_TD), expected_TV)
    if file_type.direct and not logits.within(file_type.tolerance):
        raise _difference(
            "the NextN block of the converted model differs from the checkpoint", logits, file_type.tolerance, file_type
        )
    return logits


def _sample(model: Model, reference: Reference, context: int) -> Sample:
    return draw_sample(min(len(reference.tokenizer), model.vocabulary_size), context)


def _difference(what: str, logits: LogitComparison, tolerance: float, file_type: FileType) -> GgufError:
    return GgufError(
        f"{what}: logits differ by {logits.largest:.3g} at a spread of {logits.spread:.3g} (at most "
        f"{tolerance:g} of it is rounding in {file_type.name}); {NOTHING_KEPT}"
    )


def _compare_tokenizers(model: Model, reference: Reference, vocabulary: Vocabulary) -> tuple[int, list[str]]:
    """Compare tokens, spelling, end tokens and chat template; returns the number of texts, and remarks."""
    plain, stripping = reference.plain_added_tokens()
    texts = TEXTS | EDGE_TEXTS | special_texts(plain)
    odd = [label for label, text in texts.items() if not _same_tokens(model, reference, vocabulary, label, text)]
    if not odd:
        text = TEXTS["prose"]
        found, expected = _tokens(model, text, special=True), reference.encode(text, special=True)
        if found != expected:
            raise _token_difference("prose with the tokens put around a text", text, found, expected)
    _check_spelling(model, vocabulary)
    _check_ends(model, reference)
    template: Any = reference.tokenizer.chat_template
    if (template.get(DEFAULT_TEMPLATE) if isinstance(template, dict) else template) != model.chat_template:
        raise GgufError(f"the chat template in the GGUF is not the checkpoint's; {NOTHING_KEPT}")
    return len(texts), list(_tokenizer_remarks(model, reference, odd, stripping))


def _tokenizer_remarks(model: Model, reference: Reference, odd: list[str], stripping: list[str]) -> Iterator[str]:
    if odd and odd[0] in EDGE_TEXTS:
        yield (
            f"transformers' {type(reference.tokenizer).__name__} tokenizes {', '.join(odd)} differently from "
            "tokenizer.json; llama.cpp follows tokenizer.json"
        )
    elif odd:
        yield (
            "llama.cpp, like SentencePiece, puts a space before text that begins with a space or follows a special "
            f"token; transformers' tokenizer does not (sample: {odd[0]})"
        )
    if stripping:
        yield f"these added tokens swallow spaces beside them, but not in llama.cpp: {', '.join(stripping)}"
    if _tokens(model, DECOMPOSED) != reference.encode(DECOMPOSED):
        yield "transformers composes accents (NFC) before it tokenizes, llama.cpp does not"


def _tokens(model: Model, text: str, *, special: bool = False) -> list[int]:
    return [int(token) for token in model.tokenize(text, add_special=special, parse_special=True)]


def _same_tokens(model: Model, reference: Reference, vocabulary: Vocabulary, label: str, text: str) -> bool:
    """Whether both tokenize alike; False where only transformers departs from the tokenizer's own definition."""
    found, expected = _tokens(model, text), reference.encode(text)
    if found == expected:
        return True
    if vocabulary.model == "llama":
        if found == reference.encode_like_sentence_piece(text, bool(vocabulary.space_prefix)):
            return False
    elif label in EDGE_TEXTS and found == reference.encode_by_file(text):
        return False
    raise _token_difference(label, text, found, expected)


def _token_difference(label: str, text: str, found: list[int], expected: list[int]) -> GgufError:
    pairs = enumerate(zip(found, expected, strict=False))
    first = next((number for number, (one, other) in pairs if one != other), min(len(found), len(expected)))
    around = slice(max(0, first - SHOWN_IDS), first + SHOWN_IDS)
    return GgufError(
        f"the text sample '{label}' ({text!r}) is tokenized differently from token {first} on: llama.cpp "
        f"{found[around]}, transformers {expected[around]} (--pre chooses other splitting rules); {NOTHING_KEPT}"
    )


def _check_spelling(model: Model, vocabulary: Vocabulary) -> None:
    """Detokenizing the tokens of a text must give the text."""
    for label, text in TEXTS.items():
        spelled = model.detokenize(_tokens(model, text), special=True)
        if vocabulary.space_prefix:
            spelled = spelled.removeprefix(b" ")
        if spelled != text.encode():
            what = f"the text sample '{label}' ({text!r}) is spelled {spelled!r} after llama.cpp tokenized it"
            raise GgufError(f"{what}; {NOTHING_KEPT}")


def _check_ends(model: Model, reference: Reference) -> None:
    if missed := sorted(end_token_ids(reference.tokenizer, reference.model) - model.end_tokens):
        names: Any = reference.tokenizer.convert_ids_to_tokens(missed)
        raise GgufError(
            f"llama.cpp would not stop at {', '.join(map(repr, names))}, which ends a text of the checkpoint (a GGUF "
            f"has room for eos_token and two more of eos_token_id in generation_config.json); {NOTHING_KEPT}"
        )
