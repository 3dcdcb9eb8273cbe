"""Small checkpoints of every family and tokenizer kind, made on the spot.

Tokenizers are trained on a few hundred lines with the splitting rules of the real tokenizer.json of their family;
models have two layers and random weights, biases and norms included.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
V3_REGEX = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅ"
    "Ａ-Ｚａ-ｚ"  # noqa: RUF001
)


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = byte_level(use_regex=False)
CJK = split("[一-龥ࠀ-一가-퟿]+")
# Splitting steps, `ignore_merges`, normaliser.
SPLITTING: dict[str, tuple[list[dict[str, Any]], bool, dict[str, Any] | None]] = {
    "gpt-2": ([byte_level(use_regex=True)], False, None),
    "smollm": ([DIGITS, byte_level(use_regex=True)], False, None),
    "llama-bpe": ([split(LLAMA3_REGEX), BYTES], True, None),
    "smaug-bpe": ([split(LLAMA3_REGEX), BYTES], False, None),
    "qwen2": ([split(QWEN2_REGEX), BYTES], False, {"type": "NFC"}),
    "tekken": ([split(TEKKEN_REGEX), BYTES], True, None),
    "deepseek-coder": (
        [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), CJK, DIGITS, BYTES],
        False,
        {"type": "Sequence", "normalizers": []},
    ),
    "deepseek-llm": (
        [
            split("[\r\n]"),
            split(rf"\s?[{CASED_LETTERS}]+"),
            split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),  # noqa: RUF001
            split(r"\s+$"),
            CJK,
            DIGITS,
            BYTES,
        ],
        False,
        {"type": "Sequence", "normalizers": []},
    ),
    "deepseek-v3": (
        [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(V3_REGEX), BYTES],  # noqa: RUF001
        False,
        {"type": "Sequence", "normalizers": []},
    ),
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} "
    "[/INST]{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Special tokens, other added tokens, tokenizer_config.json.
CHATML_KIND: tuple[list[str], list[str], dict[str, Any]] = (
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    ["<think>", "</think>"],
    {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHATML,
    },
)
LLAMA3_KIND: tuple[list[str], list[str], dict[str, Any]] = (
    ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>"],
    [],
    {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}",
    },
)
DEEPSEEK_KIND: tuple[list[str], list[str], dict[str, Any]] = (
    ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|EOT|>"],  # noqa: RUF001
    ["õ", "÷", "<｜fim▁hole｜>"],  # noqa: RUF001
    {
        "tokenizer_class": "LlamaTokenizerFast",
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<｜begin▁of▁sentence｜>"},  # noqa: RUF001
        "eos_token": {"__type": "AddedToken", "content": "<|EOT|>"},
    },
)
GPT2_KIND: tuple[list[str], list[str], dict[str, Any]] = (
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    [],
    {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "chat_template": CHATML,
    },
)
TEKKEN_KIND: tuple[list[str], list[str], dict[str, Any]] = (
    ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
    [],
    {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    },
)
KINDS = {
    "gpt-2": GPT2_KIND,
    "smollm": GPT2_KIND,
    "llama-bpe": LLAMA3_KIND,
    "smaug-bpe": LLAMA3_KIND,
    "qwen2": CHATML_KIND,
    "tekken": TEKKEN_KIND,
    "deepseek-coder": DEEPSEEK_KIND,
    "deepseek-llm": DEEPSEEK_KIND,
    "deepseek-v3": DEEPSEEK_KIND,
}
SENTENCE_PIECE_SPECIAL = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
}


def corpus() -> list[str]:
    """A few hundred lines in which every kind of character occurs, and some words often."""
    choose = random.Random(7).choice
    things = ["the cat", "großes Haus", "une café", "привет мир", "你好世界", "it's", "they'll", "SELECT name"]
    code = [
        "def f(x):\n    return x + 1\n",
        "for (i = 0; i < 10; ++i) { a[i] = b; }\n",
        "\tprint('hi')\r\n",
        "x = y  # z\n",
    ]
    marks = ["!", "...", " 😀", " → ok", "\n\n", "  ", " 1234", " 3.14", "?!", " —"]
    return [f"{choose(things)} {choose(things)}{choose(marks)}{choose(code)}{choose(marks)}" for _ in range(400)]


def write_byte_level(directory: Path, name: str) -> None:
    """A byte-level BPE tokenizer with the rules called `name` in llama.cpp."""
    from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

    steps, ignore_merges, normalizer = SPLITTING[name]
    special, other, settings = KINDS[name]
    empty: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": {**byte_level(use_regex=True), "trim_offsets": False},
        "decoder": byte_level(use_regex=True),
        "model": {"type": "BPE", "ignore_merges": ignore_merges, "vocab": {}, "merges": []},
    }
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    if name.startswith("deepseek"):
        # These bytes occur in no UTF-8 text; the real vocabulary has them only as added tokens.
        trained = json.loads(tokenizer.to_str())
        vocabulary = [text for text in trained["model"]["vocab"] if text not in other]
        trained["model"]["vocab"] = {text: number for number, text in enumerate(vocabulary)}
        tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=text.isalpha()) for text in other])
    if name == "llama-bpe":
        _add_template(tokenizer, "<|begin_of_text|>")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def _add_template(tokenizer: Any, bos: str) -> None:
    from tokenizers import processors

    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])


def write_sentence_piece(directory: Path, layout: str, files: str) -> None:
    """A SentencePiece BPE tokenizer as Llama 2 trained its own.

    Args:
        layout: of tokenizer.json: `prepend` (Llama 2, TinyLlama, Mistral 0.1) or `metaspace` (Mistral 0.3).
        files: `model`, `json` or `both`.
    """
    import sentencepiece
    from transformers import LlamaTokenizer

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.strip() for text in corpus() for line in text.splitlines()),
        model_writer=written,
        vocab_size=460,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.995,
        minloglevel=3,
    )
    (directory / "tokenizer.model").write_bytes(written.getvalue())
    template = {"chat_template": LLAMA2_TEMPLATE, "legacy": layout == "prepend"}
    (directory / "tokenizer_config.json").write_text(json.dumps(SENTENCE_PIECE_SPECIAL | template))
    if files == "model":
        return
    tokenizer = json.loads(LlamaTokenizer.from_pretrained(directory).backend_tokenizer.to_str())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if layout == "prepend":
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
        tokenizer["pre_tokenizer"] = None
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    if files == "json":
        (directory / "tokenizer.model").unlink()


def write_model(directory: Path, architecture: str, settings: dict[str, Any], *, shards: int = 1) -> None:
    """A two-layer model with random weights; `settings` go over the small sizes of its configuration.

    Setting `dtype` stores the weights in that type; `shards` spreads them over files with an index.
    """
    import transformers

    sizes = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    dtype = settings.pop("dtype", torch.float32)
    config = getattr(transformers, architecture.replace("ForCausalLM", "Config"))(**(sizes | settings))
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = getattr(transformers, architecture)(config)
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.2)
    model.to(dtype).save_pretrained(directory, max_shard_size=10**9)
    if shards > 1:
        _shard(directory, shards)


def _shard(directory: Path, count: int) -> None:
    from safetensors.torch import load_file

    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = {name: f"model-{1 + number % count:05}-of-{count:05}.safetensors" for number, name in enumerate(weights)}
    for file in set(names.values()):
        part = {name: weights[name] for name in weights if names[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def write_heads(directory: Path, count: int, accuracy: tuple[tuple[float, ...], ...] = ()) -> Path:
    """Heads 2..count with random weights for the checkpoint in `directory`, in its own type."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from nptool.heads import HEADS_WEIGHTS, HeadsInfo, head_tensor, trunk_digest, write_heads_info

    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    layer, config = model.model.layers[-1], model.config
    stored = load_file(next(iter(sorted(directory.glob("model*.safetensors")))))
    dtype = next(iter(stored.values())).dtype
    weights: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng():
        torch.manual_seed(12)
        for number in range(2, count + 1):
            for name, weight in layer.state_dict().items():
                drawn = torch.empty_like(weight).normal_(float("norm" in name), 0.2)
                weights[head_tensor(number, name)] = drawn.to(dtype)
    save_file(weights, directory / HEADS_WEIGHTS)
    info = HeadsInfo(
        count=count,
        trunk_layer=config.num_hidden_layers - 1,
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        trunk_digest=trunk_digest(directory),
        accuracy=accuracy,
    )
    write_heads_info(directory, info)
    return directory


@pytest.fixture(scope="session")
def add_heads() -> Callable[..., Path]:
    """Put heads beside a checkpoint: `add_heads(directory, count, accuracy=())`; gives the directory back."""
    return write_heads


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory with the files of a tokenizer kind: a key of SPLITTING, `own`, or LAYOUT+FILES of SentencePiece."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            directory = tmp_path_factory.mktemp("tokenizer")
            if kind == "own":
                from nptool.training.base.tokenizer import train_tokenizer

                train_tokenizer(corpus(), 480).save_pretrained(directory)
            elif "+" in kind:
                write_sentence_piece(directory, *kind.split("+"))
            else:
                write_byte_level(directory, kind)
            made[kind] = directory
        return made[kind]

    return make


@pytest.fixture(scope="session")
def make_checkpoint(
    tokenizer_files: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Make a checkpoint in a directory of its own: `make(architecture, tokenizer, shards=1, **settings)`."""

    def make(
        architecture: str = "LlamaForCausalLM", tokenizer: str = "own", *, shards: int = 1, **settings: Any
    ) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        write_model(directory, architecture, settings, shards=shards)
        for file in tokenizer_files(tokenizer).iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        return directory

    return make
