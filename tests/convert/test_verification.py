"""A conversion that went wrong is found, named, and leaves no file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

import nptool.convert.gguf_file as gguf_file
from nptool.convert.conversion import convert
from nptool.convert.layers.rope import Rope
from nptool.convert.vocabulary import TokenType, Vocabulary
from nptool.errors import GgufError

KEPT = "; no file was written; --no-verify writes it all the same"


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("Qwen2ForCausalLM", "qwen2")


def refused(directory: Path, **options: Any) -> str:
    out = directory / "out.gguf"
    with pytest.raises(GgufError) as caught:
        convert(directory, out, **({"type_name": "f32"} | options))
    assert not list(directory.glob("*out.gguf*"))
    return str(caught.value)


def part(message: str) -> str:
    """The part of the model that the message names."""
    assert message.startswith("the converted model differs from the checkpoint in ")
    assert message.endswith(KEPT)
    return message.removeprefix("the converted model differs from the checkpoint in ").partition(": logits differ by")[
        0
    ]


def change_rows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Write the tensor `name` with its values negated."""
    original = gguf_file.Tensor.chunks

    def chunks(self: Any) -> Iterator[Any]:
        for rows in original(self):
            yield -rows if self.name == name else rows

    monkeypatch.setattr(gguf_file.Tensor, "chunks", chunks)


ATTENTION = "the attention of layer 0: rotation, order or bias of queries and keys (blk.0.attn_q, attn_k, RoPE)"


@pytest.mark.parametrize("type_name", ["f32", "f16", "q8_0", "q4_0"])
def test_rows_that_are_not_permuted(type_name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nptool.convert.layers.rope.pair_order", lambda rows, head_dim: None)
    assert part(refused(checkpoint, type_name=type_name)) == ATTENTION


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", "the embedding (token_embd.weight)"),
        ("blk.1.attn_norm.weight", "the attention norm of layer 1 (blk.1.attn_norm.weight)"),
        ("blk.0.attn_k.bias", ATTENTION),
        (
            "blk.1.attn_v.weight",
            "the attention of layer 1: values or output projection (blk.1.attn_v, attn_output)",
        ),
        ("blk.0.ffn_norm.weight", "the feed-forward norm of layer 0 (blk.0.ffn_norm.weight)"),
        (
            "blk.1.ffn_gate.weight",
            "the feed-forward network of layer 1 (blk.1.ffn_gate, ffn_up, ffn_down)",
        ),
        ("output_norm.weight", "the last norm (output_norm.weight)"),
        ("output.weight", "the unembedding (output.weight)"),
    ],
)
def test_a_wrong_tensor_is_named(name: str, expected: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_rows(monkeypatch, name)
    assert part(refused(checkpoint)) == expected


def test_a_wrong_rope_scaling_is_found_far_away(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama 3.1's factors change the slow rotations only: 40 neighbouring tokens do not show it."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    rope["original_max_position_embeddings"] = 16384
    directory = make_checkpoint(rope_parameters=rope, head_dim=64, max_position_embeddings=131072)
    monkeypatch.setattr(Rope, "frequency_factors", lambda self, head_dim: None)
    assert part(refused(directory, type_name="f16")) == "RoPE scaling (tokens far apart differ, tokens nearby do not)"


def change_vocabulary(monkeypatch: pytest.MonkeyPatch, change: Callable[[Vocabulary], None]) -> None:
    """Write another vocabulary than the one that was read."""
    original = gguf_file._add_vocabulary

    def write(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
        change(vocabulary)
        original(writer, vocabulary)

    monkeypatch.setattr(gguf_file, "_add_vocabulary", write)


def test_missing_merges_are_named_by_text(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_vocabulary(monkeypatch, lambda vocabulary: (vocabulary.merges or []).__delitem__(slice(1, None)))
    message = refused(checkpoint)
    assert message.startswith("the text sample 'prose' ('The quick brown fox")
    assert " is tokenized differently from token " in message
    assert message.endswith(" (--pre chooses other splitting rules)" + KEPT)


def test_both_lists_of_ids_are_shown(checkpoint: Path) -> None:
    """GPT-2's rules instead of Qwen's: digits stay together."""
    message = refused(checkpoint, pre="gpt-2")
    ids, other = message.partition(": llama.cpp ")[2].partition(" (--pre")[0].split(", transformers ")
    assert json.loads(ids) != json.loads(other)
    assert len(json.loads(ids)) <= 12


def test_a_pre_tokenizer_llama_cpp_does_not_know(checkpoint: Path) -> None:
    message = refused(checkpoint, pre="gpt-17")
    assert message.startswith("llama.cpp cannot load the converted file: ")
    assert "unknown pre-tokenizer type: 'gpt-17'" in message


def test_token_types_are_noticed_by_spelling(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(vocabulary: Vocabulary) -> None:
        next(token for token in vocabulary.tokens.values() if token.text == "T").type = TokenType.UNUSED

    change_vocabulary(monkeypatch, forget)
    message = refused(checkpoint)
    assert message.startswith("the text sample 'prose' ('The quick brown fox")
    assert "is spelled b'he quick brown fox" in message


def test_end_tokens_are_compared(checkpoint: Path) -> None:
    added = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    ends = [ids[name] for name in ("<|im_end|>", "<|im_start|>", "<think>", "</think>")]
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert refused(checkpoint) == (
        "llama.cpp would not stop at '</think>', which ends a text of the checkpoint (a GGUF has room for eos_token "
        "and two more of eos_token_id in generation_config.json)" + KEPT
    )


def test_the_chat_template_is_compared(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_vocabulary(monkeypatch, lambda vocabulary: vocabulary.chat_templates.clear())
    assert refused(checkpoint) == "the chat template in the GGUF is not the checkpoint's" + KEPT


def test_without_verification_the_file_is_written(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_rows(monkeypatch, "output.weight")
    done = convert(checkpoint, checkpoint / "out.gguf", verified=False)
    assert done.verification is None
    assert done.path.is_file()


@pytest.mark.parametrize(
    ("tokenizer", "remarks"),
    [
        ("own", []),
        (
            "smollm",
            [
                "transformers' GPT2Tokenizer tokenizes digits after spaces, rare digits differently from "
                "tokenizer.json; llama.cpp follows tokenizer.json"
            ],
        ),
        (
            "metaspace+json",
            [
                "llama.cpp, like SentencePiece, puts a space before text that begins with a space or follows a special "
                "token; transformers' tokenizer does not (sample: space)"
            ],
        ),
    ],
)
def test_remarks(tokenizer: str, remarks: list[str], make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    done = convert(make_checkpoint(tokenizer=tokenizer), tmp_path / "model.gguf")
    assert done.verification is not None
    assert list(done.verification.remarks) == remarks


def test_remark_on_composed_accents(checkpoint: Path, tmp_path: Path) -> None:
    done = convert(checkpoint, tmp_path / "model.gguf")
    assert done.verification is not None
    assert done.verification.remarks == ("transformers composes accents (NFC) before it tokenizes, llama.cpp does not",)


def test_remark_on_tokens_that_swallow_spaces(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint()
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"][5]["rstrip"] = True
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = convert(directory, tmp_path / "model.gguf")
    assert done.verification is not None
    assert done.verification.remarks == (
        "these added tokens swallow spaces beside them, but not in llama.cpp: <|pad|>",
    )
