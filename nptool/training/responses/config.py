"""What every training on the model's own responses lets the user choose about them. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nptool.errors import UsageError
from nptool.runs import check_name, latest_run, run_of
from nptool.settings import check_range, digest, to_json
from nptool.training.config import TrainingConfig

BLOCK_SIZE = 16
"""Block length of a collection made here; n = 16 in CLLM and in Jacobi Forcing's first round."""

# What only a collection made here reads.
COLLECT_FIELDS = ("max_new_tokens", "collect_batch_size", "limit", "prompt_field", "response_field")


@dataclass(frozen=True, kw_only=True)
class ResponsesConfig(TrainingConfig):
    """Training of a finished model, on collected trajectories or on prompts to collect from first."""

    FREE_FIELDS: ClassVar[tuple[str, ...]] = ("name", "save_every", "log_every")
    """What does not change the result, and may change when a run is continued."""

    data: tuple[Path, ...]
    """One file of `nptool collect`, or files of prompts."""
    model: str | None = None
    """Hugging Face directory or Hub id; None is the model that the trajectories were collected from."""
    n: int | None = None
    """Block length in tokens; None is the collection's, or 16 for one made here."""
    max_length: int | None = None
    """Leave out trajectories of more tokens (prompt and response); None is the model's context."""
    heldout: float = 0.05
    """Share of prompts kept for testing, where neither the model's run nor the collection's names any."""
    max_new_tokens: int = 512
    """Longest response in a collection made here."""
    collect_batch_size: int = 32
    """Sequences in flight in a collection made here."""
    limit: int | None = None
    """Collect from the first so many records only."""
    prompt_field: str | None = None
    response_field: str | None = None
    """Fields of records whose shape is not recognized."""
    name: str | None = None
    """Run directory under runs/; None makes one of the data's name and a digest of this configuration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UsageError("--data is missing; name a file of `nptool collect`, or files of prompts")
        if self.n is not None and self.n < 2:
            raise UsageError(f"-n is {self.n}; a block has at least 2 tokens")
        check_range(self, ("max_new_tokens", "collect_batch_size", "limit"), low=1)
        check_range(self, ("max_length",), low=2)
        check_range(self, ("heldout",), low=0, high=1, open_high=True)
        check_name(self.name)

    def name_of_run(self, kind: str) -> str:
        """Name of the run directory: the same for the same configuration, so that a repeated command continues."""
        if self.name is not None:
            return self.name
        values = {name: value for name, value in to_json(self).items() if name not in self.FREE_FIELDS}
        return f"{kind}-{self.origin}-{digest(values)}"

    @property
    def origin(self) -> str:
        """What the run is named after: the run its trajectories lie in, or their file."""
        run = run_of(self.data[0])
        return run.path.name if run else self.data[0].resolve().stem


def run_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Where no data are given: the trajectories in the model's run, without a model in the newest run.

    Raises:
        DataError: there is no run.
        UsageError: it holds no trajectories.
    """
    if "data" in given:
        return {}
    run = run_of(given["model"]) if "model" in given else latest_run()
    if run is None or not run.collected.is_file():
        place = f"{run.path} holds no {run.collected.name}" if run is not None else "--data is missing"
        raise UsageError(f"{place}; make trajectories with `nptool collect`, or name files of prompts with --data")
    return {"data": (run.collected,)}
