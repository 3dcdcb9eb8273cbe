"""Tokens in llama.cpp are transformers' tokens, for any text; special tokens keep their meaning."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nptool.checkpoints import load_tokenizer
from nptool.convert.conversion import convert
from nptool.convert.pretokenizers import PRE_TOKENIZERS, detect_pre_tokenizer
from nptool.convert.tokenizer_files import read_tokenizer_files
from nptool.convert.vocabulary import Token, TokenType, Vocabulary, read_vocabulary
from nptool.errors import CheckpointError
from nptool.llama.model import Model

BYTE_LEVEL = (
    "gpt-2",
    "smollm",
    "llama-bpe",
    "smaug-bpe",
    "qwen2",
    "tekken",
    "deepseek-coder",
    "deepseek-llm",
    "deepseek-v3",
    "own",
)
SENTENCE_PIECE = ("prepend+both", "prepend+json", "prepend+model", "metaspace+json")
ROWS = 544

# Words, code, whitespace, digits, marks that the tokenizers treat each in their own way.
WORDS = ["the cat", "it's", "WE'LL", "großes Haus", "привет", "你好世界", "def f(x):", "x=y;", "</div>", "õ", "ÿ"]
SPACES = [" ", "  ", "    ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u3000"]
MARKS = [" 1", "1234", "3.14", "😀", "👩\u200d👧", "→", "!?", " —"]
FRAGMENTS = st.sampled_from([*WORDS, *SPACES, *MARKS])
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(max_size=4)), max_size=8).map("".join)
FEW = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def loaded(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Model, Any]]:
    """A converted checkpoint with a tokenizer of the kind, loaded in llama.cpp, and the tokenizer in transformers."""
    made: dict[str, tuple[Model, Any]] = {}

    def load(kind: str) -> tuple[Model, Any]:
        if kind not in made:
            architecture = "Qwen2ForCausalLM" if kind == "qwen2" else "LlamaForCausalLM"
            directory = make_checkpoint(architecture, kind, vocab_size=ROWS)
            done = convert(directory, tmp_path_factory.mktemp("gguf") / "model.gguf", verified=False)
            made[kind] = Model.load(done.path), load_tokenizer(directory)
        return made[kind]

    return load


def read(directory: Path, pre: str | None = None, size: int = ROWS) -> Vocabulary:
    return read_vocabulary(read_tokenizer_files(directory, {}), size, pre)


def rows(vocabulary: Vocabulary) -> list[Token]:
    """The tokens in the order of their ids."""
    return [vocabulary.tokens[number] for number in range(len(vocabulary.tokens))]


def tokens(model: Model, text: str) -> list[int]:
    return [int(token) for token in model.tokenize(text, parse_special=True)]


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_any_text_has_the_same_tokens(kind: str, loaded: Callable[[str], tuple[Model, Any]]) -> None:
    model, tokenizer = loaded(kind)
    if kind == "smollm":
        # transformers 5 forgets the digits' rule of this tokenizer.json (class GPT2Tokenizer); the file is right.
        from tokenizers import Tokenizer

        backend: Any = Tokenizer.from_file(str(Path(tokenizer.name_or_path) / "tokenizer.json"))
    else:
        backend = tokenizer.backend_tokenizer

    @FEW
    @given(TEXTS)
    def same(text: str) -> None:
        # llama.cpp does not compose accents, Qwen's tokenizer does.
        text = unicodedata.normalize("NFC", text)
        if kind == "deepseek-llm":
            # Full-width punctuation to this tokenizer, a space to llama.cpp, which splits it off differently.
            text = text.replace("\u3000", "")
        if kind == "tekken":
            # llama.cpp knows upper case in ASCII only, and takes combining marks for punctuation.
            unmarked = (letter for letter in text if not unicodedata.category(letter).startswith("M"))
            text = "".join(letter if letter.isascii() else letter.lower()[0] for letter in unmarked)
        expected = backend.encode(text, add_special_tokens=False).ids
        assert tokens(model, text) == expected
        assert model.detokenize(expected, special=True).decode() == text

    same()


@pytest.mark.parametrize("kind", SENTENCE_PIECE)
def test_any_text_has_sentence_piece_tokens(
    kind: str, loaded: Callable[[str], tuple[Model, Any]], tokenizer_files: Callable[[str], Path]
) -> None:
    import sentencepiece

    original = sentencepiece.SentencePieceProcessor(
        model_file=str(tokenizer_files("prepend+model") / "tokenizer.model")
    )
    model, tokenizer = loaded(kind)

    @FEW
    @given(TEXTS)
    def same(text: str) -> None:
        # SentencePiece writes a space as U+2581 and so takes the character for one; llama.cpp does not always.
        text = text.replace("\u2581", "")
        found = tokens(model, text)
        assert found == original.encode(text)
        if not text.startswith(" "):
            assert found == tokenizer.encode(text, add_special_tokens=False)
        assert model.detokenize(found, special=True).decode().removeprefix(" ") == text

    same()


def test_scores_from_merges_order_tokens_like_the_original(tokenizer_files: Callable[[str], Path]) -> None:
    scored, ranked = (rows(read(tokenizer_files(kind))) for kind in ("prepend+both", "prepend+json"))
    assert [(token.text, token.type) for token in ranked] == [(token.text, token.type) for token in scored]
    # Tokens that merging makes: the same ones come first.
    merged = [number for number, token in enumerate(scored) if len(token.text) > 1 and token.type == TokenType.NORMAL]
    by_score = sorted(merged, key=lambda number: -scored[number].score)
    by_rank = sorted(merged, key=lambda number: -ranked[number].score)
    assert by_rank == by_score


def test_tokenizer_json_goes_before_an_older_tokenizer_model(
    tokenizer_files: Callable[[str], Path], tmp_path: Path
) -> None:
    for file in tokenizer_files("prepend+both").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    scored, original = (rows(read(folder, size=460)) for folder in (tmp_path, tokenizer_files("prepend+model")))
    # The first three are special.
    assert [token.score for token in scored[3:]] == [token.score for token in original[3:]]
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["<new>"] = 460
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read(tmp_path).tokens[460].text == "<new>"


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *SENTENCE_PIECE])
def test_special_tokens_in_text(kind: str, loaded: Callable[[str], tuple[Model, Any]]) -> None:
    model, tokenizer = loaded(kind)
    for number, token in tokenizer.added_tokens_decoder.items():
        assert tokens(model, f"{token.content}{token.content}") == [number, number]
        assert number in tokens(model, f"a{token.content}b {token.content}")
    assert tokenizer.eos_token_id in model.end_tokens
    assert model.eos == tokenizer.eos_token_id
    assert model.chat_template == tokenizer.chat_template


def test_every_known_pre_tokenizer_is_detected(tokenizer_files: Callable[[str], Path]) -> None:
    names = set(PRE_TOKENIZERS.values())
    for name in names:
        assert detect_pre_tokenizer(json.loads((tokenizer_files(name) / "tokenizer.json").read_text()), "x") == name
    assert names == set(BYTE_LEVEL) - {"own"}
    assert read(tokenizer_files("own")).pre == "gpt-2"


def test_unknown_splitting_rules_are_shown(tokenizer_files: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizer = json.loads((tokenizer_files("gpt-2") / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"String": "-"}, "behavior": "Isolated", "invert": False},
            {"type": "Whitespace"},
        ],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_bytes((tokenizer_files("gpt-2") / "tokenizer_config.json").read_bytes())
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no pre-tokenizer of llama.cpp is known to split like this tokenizer ('Split' '-' > "
        "'Whitespace'); if one does, name it with --pre (known: deepseek-coder, deepseek-llm, deepseek-v3, gpt-2, "
        "llama-bpe, qwen2, smaug-bpe, smollm, tekken)"
    )
    assert read(tmp_path, pre="gpt-2").pre == "gpt-2"


def test_byte_level_vocabulary(tokenizer_files: Callable[[str], Path]) -> None:
    directory = tokenizer_files("qwen2")
    vocabulary, tokenizer = read(directory), load_tokenizer(directory)
    count, texts = len(tokenizer), [token.text for token in rows(vocabulary)]
    assert texts[:count] == tokenizer.convert_ids_to_tokens(list(range(count)))
    assert texts[count:] == [f"[PAD{number}]" for number in range(count, ROWS)]
    assert {token.type for token in rows(vocabulary)[count:]} == {TokenType.UNUSED}
    ids = tokenizer.get_vocab()
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        assert vocabulary.tokens[ids[special]].type == TokenType.CONTROL
    for added in ("<think>", "</think>"):
        assert vocabulary.tokens[ids[added]].type == TokenType.USER_DEFINED
    assert vocabulary.special_ids == {
        "bos": ids["<|im_end|>"],
        "eos": ids["<|im_end|>"],
        "pad": ids["<|endoftext|>"],
        "eot": ids["<|im_end|>"],
    }
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.space_prefix) == (False, False, None)
    assert vocabulary.merges == [
        " ".join(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ]


def test_sentence_piece_vocabulary(tokenizer_files: Callable[[str], Path]) -> None:
    vocabulary = read(tokenizer_files("prepend+model"), size=470)
    types = [token.type for token in rows(vocabulary)]
    assert [token.text for token in rows(vocabulary)][:5] == ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>"]
    assert types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert types.count(TokenType.BYTE) == 256
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unk": 0, "eot": 2}
    assert types.count(TokenType.UNUSED) == 10
    assert (vocabulary.add_bos, vocabulary.space_prefix) == (True, True)


def test_bos_from_the_post_processor(tokenizer_files: Callable[[str], Path]) -> None:
    assert read(tokenizer_files("llama-bpe")).add_bos
    assert not read(tokenizer_files("smaug-bpe")).add_bos


def test_end_tokens_of_the_generation_configuration(tokenizer_files: Callable[[str], Path], tmp_path: Path) -> None:
    for file in tokenizer_files("llama-bpe").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ids = load_tokenizer(tmp_path).get_vocab()
    ends = ["<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>"]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids[end] for end in ends]}))
    special = read(tmp_path).special_ids
    assert [special[role] for role in ("eos", "eot", "eom")] == [ids["<|eot_id|>"], ids[ends[0]], ids[ends[1]]]


def test_chat_template_files(tokenizer_files: Callable[[str], Path], tmp_path: Path) -> None:
    for file in tokenizer_files("qwen2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    assert read(tmp_path).chat_templates == {"default": "{{ messages }}", "tools": "{{ tools }}"}


def test_a_tokenizer_of_single_bytes(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint(vocab_size=300)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    alphabet = [text for text in tokenizer["model"]["vocab"] if len(text) == 1]
    tokenizer["model"] |= {"vocab": {text: number for number, text in enumerate(alphabet)}, "merges": []}
    for number, token in enumerate(tokenizer["added_tokens"]):
        token["id"] = 256 + number
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = convert(directory, tmp_path / "model.gguf")
    assert done.verification is not None
    with Model.load(done.path) as model:
        assert len(tokens(model, "häh")) == 4
