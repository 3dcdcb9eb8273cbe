"""The files that describe a tokenizer in a Hugging Face directory, in the spellings of transformers 4 and 5.

tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json and the chat
template.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nptool.errors import CheckpointError, DataError
from nptool.files import read_json

TOKENIZER_JSON = "tokenizer.json"
SENTENCE_PIECE_MODEL = "tokenizer.model"
DEFAULT_TEMPLATE = "default"


@dataclass(frozen=True)
class TokenizerFiles:
    """A directory's files, parsed."""

    directory: Path
    tokenizer: dict[str, Any] | None
    """tokenizer.json, if there is one."""
    settings: dict[str, Any]
    """tokenizer_config.json over special_tokens_map.json."""
    config: dict[str, Any]
    """config.json."""
    generation: dict[str, Any]
    """generation_config.json."""

    def added_tokens(self) -> dict[int, tuple[str, bool]]:
        """Tokens that are cut out of a text before it is split, by id: the token, and whether it is special."""
        listed = _read_object(self.directory / "added_tokens.json")
        added = {int(number): (content, False) for content, number in listed.items()}
        entries = dict(self.settings.get("added_tokens_decoder") or {})
        entries |= {entry["id"]: entry for entry in (self.tokenizer or {}).get("added_tokens") or []}
        return added | {int(key): (entry["content"], bool(entry.get("special"))) for key, entry in entries.items()}

    def special_text(self, role: str) -> str | None:
        """The token for a role (`bos`, `eos`, `pad`, `unk`), as text."""
        value = self.settings.get(f"{role}_token")
        return value.get("content") if isinstance(value, dict) else value

    def end_ids(self) -> list[int]:
        """Ids that end a generation by the model's own configuration."""
        ids: dict[int, None] = {}
        for settings in (self.generation, self.config):
            value = settings.get("eos_token_id")
            ids |= dict.fromkeys(value if isinstance(value, list) else [] if value is None else [value])
        return list(ids)

    def adds(self, role: str) -> bool:
        """Whether encoding puts the `bos` token before, or the `eos` token after, every text."""
        if self.tokenizer is None:
            return bool(self.settings.get(f"add_{role}_token"))
        # transformers 5 follows the rule in tokenizer.json, not the flags.
        template = _single_template(self.tokenizer.get("post_processor"))
        return template is not None and "SpecialToken" in template[0 if role == "bos" else -1]

    def chat_templates(self) -> dict[str, str]:
        """Jinja templates by name; `default` is the one used if none is named."""
        value = self.settings.get("chat_template")
        templates: dict[str, str] = {}
        if isinstance(value, str):
            templates[DEFAULT_TEMPLATE] = value
        elif isinstance(value, list):
            templates = {entry["name"]: entry["template"] for entry in value}
        for path in sorted((self.directory / "additional_chat_templates").glob("*.jinja")):
            templates[path.stem] = path.read_text(encoding="utf-8")
        file = self.directory / "chat_template.jinja"
        if file.is_file():
            templates[DEFAULT_TEMPLATE] = file.read_text(encoding="utf-8")
        return templates


def read_tokenizer_files(directory: Path, config: dict[str, Any]) -> TokenizerFiles:
    """Read the files that exist.

    Raises:
        CheckpointError: there is no tokenizer that nptool reads, or a file is damaged.
    """
    has_json = (directory / TOKENIZER_JSON).is_file()
    if not has_json and not (directory / SENTENCE_PIECE_MODEL).is_file():
        hint = "expected the tokenizer of a Hugging Face checkpoint"
        if (directory / "vocab.json").is_file():
            hint = "load and save it once with transformers' AutoTokenizer, which writes tokenizer.json"
        raise CheckpointError(f"{directory} has neither {TOKENIZER_JSON} nor {SENTENCE_PIECE_MODEL}; {hint}")
    special = _read_object(directory / "special_tokens_map.json")
    return TokenizerFiles(
        directory=directory,
        tokenizer=_read_object(directory / TOKENIZER_JSON) if has_json else None,
        settings=special | _read_object(directory / "tokenizer_config.json"),
        config=config,
        generation=_read_object(directory / "generation_config.json"),
    )


def _single_template(processor: dict[str, Any] | None) -> list[dict[str, Any]] | None:
    """The `single` rule of a post-processor, if it has one that is not empty."""
    if processor is None:
        return None
    if processor.get("type") == "Sequence":
        rules = (_single_template(part) for part in processor["processors"])
        return next((rule for rule in rules if rule), None)
    return (processor.get("single") or None) if processor.get("type") == "TemplateProcessing" else None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; the checkpoint is damaged")
    return value
