"""Options of every command that reads a data set of prompts. Loads no numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nptool.data.tolerance import MAX_BAD_SHARE
from nptool.options import AT_LEAST_1, SHARE, described, option


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The files, and fields of records whose shape is not recognized."""

    data: tuple[Path, ...] = field(metadata=described("data file or directory; several may follow", rest=True))
    prompt_field: str | None = option(None, "field with the prompt, if it is not recognized")
    response_field: str | None = option(None, "field with the response, if it is not recognized")
    max_bad_share: float = option(
        MAX_BAD_SHARE, "share of records that may be unusable; they are skipped and counted", within=SHARE
    )


@dataclass(frozen=True, kw_only=True)
class ResponseOptions(DataOptions):
    """Of a model's own responses to the prompts."""

    max_new_tokens: int = option(512, "longest response to collect, in tokens", within=AT_LEAST_1)
    """Longer ones are cut, and dropped as unfinished."""
    limit: int | None = option(None, "collect from the first N records only", within=AT_LEAST_1)
