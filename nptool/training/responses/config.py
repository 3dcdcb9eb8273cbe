"""Options of every training on the model's own responses. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nptool.data.options import ResponseOptions
from nptool.errors import UsageError
from nptool.options import AT_LEAST_1, BELOW_1, Range, limited, option
from nptool.runs import latest_run, run_of
from nptool.training.config import TrainingConfig

BLOCK_SIZE = 16
"""Block length of a collection made here; n = 16 in CLLM and in Jacobi Forcing's first round."""

# Fields that only matter when the training collects trajectories itself.
COLLECT_FIELDS = ("max_new_tokens", "collect_batch_size", "limit", "prompt_field", "response_field", "max_bad_share")


@dataclass(frozen=True, kw_only=True)
class ResponsesConfig(ResponseOptions, TrainingConfig):
    """Training of a finished model on collected trajectories, or on prompts to collect from first."""

    model: str | None = option(None, "finished model", "-m", metavar="DIR|ID", shown="that of the trajectories")
    n: int | None = option(
        None, "block length in tokens", "-n", "--block-length", shown=f"the collection's, or {BLOCK_SIZE}"
    )
    max_length: int | None = option(None, "skip longer trajectories", shown="the model's context", within=Range(2))
    """In tokens, prompt and response."""
    heldout: float = option(0.05, "share of the prompts kept for testing", within=BELOW_1)
    """Unless the run of the model or of the collection has held-out prompts."""
    collect_batch_size: int = limited(32, AT_LEAST_1)
    """Sequences decoded at once in a collection made here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UsageError("--data is missing; name a file of `nptool collect`, or files of prompts")
        if self.n is not None and self.n < 2:
            raise UsageError(f"-n is {self.n}; a block has at least 2 tokens")

    @property
    def origin(self) -> str:
        run = run_of(self.data[0])
        return run.path.name if run else self.data[0].resolve().stem


def run_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Default for missing `data`: the trajectories in the model's run, or in the newest run if no model is given.

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
