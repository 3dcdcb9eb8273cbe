"""Which of llama.cpp's pre-tokenizers splits text the way a tokenizer.json says.

llama.cpp has its splitting rules compiled in and picks one by a name in the GGUF (`tokenizer.ggml.pre`); a wrong name
tokenizes differently without a warning. The name is found from the tokenizer's splitting steps alone.
"""

from __future__ import annotations

from typing import Any

from nptool.errors import CheckpointError

Step = tuple[Any, ...]

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_REGEX = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2_REGEX = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_REGEX = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"
_CJK_V3 = "[一-龥぀-ゟ゠-ヿ]+"  # noqa: RUF001  # the tokenizers' own spelling
_WORDS_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
# DeepSeek-LLM lists every cased letter, a class of 600 characters; its beginning identifies it.
_CASED_LETTERS_START = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿ"
_CASED_LETTERS = r"\s?[cased letters]+"
_WIDE_MARKS = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"  # noqa: RUF001  # the tokenizers' own spelling


def _split(regex: str) -> Step:
    return ("Split", regex, "Isolated", False)


_DIGIT: Step = ("Digits", True)
_BYTES: Step = ("ByteLevel", False, False)
_GPT2_WORDS: Step = ("ByteLevel", False, True)
_LINE_ENDS = _split("[\r\n]")

# By splitting steps and the model's `ignore_merges` (a whole piece that is a token is taken without merging).
PRE_TOKENIZERS: dict[tuple[tuple[Step, ...], bool], str] = {
    ((_GPT2_WORDS,), False): "gpt-2",
    ((_DIGIT, _GPT2_WORDS), False): "smollm",
    ((_split(_LLAMA3_REGEX), _BYTES), True): "llama-bpe",
    ((_split(_LLAMA3_REGEX), _BYTES), False): "smaug-bpe",
    ((_split(_QWEN2_REGEX), _BYTES), False): "qwen2",
    ((_split(_TEKKEN_REGEX), _BYTES), True): "tekken",
    ((_LINE_ENDS, _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _split(_CJK), _DIGIT, _BYTES), False): "deepseek-coder",
    (
        (_LINE_ENDS, _split(_CASED_LETTERS), _split(_WIDE_MARKS), _split(r"\s+$"), _split(_CJK), _DIGIT, _BYTES),
        False,
    ): "deepseek-llm",
    ((_split(r"\p{N}{1,3}"), _split(_CJK_V3), _split(_WORDS_V3), _BYTES), False): "deepseek-v3",
}


def detect_pre_tokenizer(tokenizer: dict[str, Any], source: str) -> str:
    """llama.cpp's name for the splitting rules of a parsed byte-level tokenizer.json.

    Raises:
        CheckpointError: unknown rules; the message shows them.
    """
    steps = splitting_steps(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    if name := PRE_TOKENIZERS.get((steps, ignore_merges)):
        return name
    shown = " > ".join(" ".join(map(repr, step[:2])) for step in steps) or "none"
    if ignore_merges:
        shown += " with ignore_merges"
    raise CheckpointError(
        f"{source}: no pre-tokenizer of llama.cpp is known to split like this tokenizer ({shown}); "
        f"if one does, name it with --pre (known: {', '.join(sorted(PRE_TOKENIZERS.values()))})"
    )


def splitting_steps(pre_tokenizer: dict[str, Any] | None) -> tuple[Step, ...]:
    """The steps of a tokenizer.json's `pre_tokenizer` with their options, nested sequences flattened."""
    if pre_tokenizer is None:
        return ()
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return tuple(step for part in pre_tokenizer["pretokenizers"] for step in splitting_steps(part))
    if kind == "Split":
        regex = pre_tokenizer["pattern"].get("Regex", pre_tokenizer["pattern"].get("String"))
        if regex.startswith(_CASED_LETTERS_START):
            regex = _CASED_LETTERS
        return ((kind, regex, pre_tokenizer["behavior"], pre_tokenizer["invert"]),)
    if kind == "Digits":
        return ((kind, bool(pre_tokenizer.get("individual_digits"))),)
    if kind == "ByteLevel":
        return ((kind, bool(pre_tokenizer.get("add_prefix_space")), bool(pre_tokenizer.get("use_regex", True))),)
    return ((str(kind),),)
