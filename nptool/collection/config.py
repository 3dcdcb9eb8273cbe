"""Configuration of `nptool collect`, and its defaults from a run directory. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nptool.data.options import ResponseOptions
from nptool.errors import UsageError
from nptool.files import read_json
from nptool.options import AT_LEAST_1, NOT_NEGATIVE, described, option
from nptool.runs import Run, latest_run, run_of
from nptool.settings import PRECISION, Precision, check_fields


@dataclass(frozen=True, kw_only=True)
class CollectConfig(ResponseOptions):
    """Collection of a model's responses to the prompts of a data set, with their Jacobi trajectories."""

    model: str = field(
        metadata=described("Hugging Face directory or Hub id", "-m", metavar="DIR|ID", shown="newest run")
    )
    output: Path = option(
        Path("collected.parquet"), "file to write", "-o", metavar="PARQUET", shown="collected.parquet, or the run's"
    )
    n: int = option(16, "block length in tokens", "-n", "--block-length")
    batch_size: int = option(32, "sequences in a batch", within=AT_LEAST_1)
    seed: int = option(
        0,
        "seed of everything random; the i-th prompt kept, from 0, is sampled as by `generate --seed SEED+i` "
        "without filters (--top-k 0 --top-p 1 --min-p 0)",
        within=NOT_NEGATIVE,
    )
    temperature: float = option(
        0.0, "sampling temperature; 0 is greedy", "--temperature", "--temp", within=NOT_NEGATIVE
    )
    augment: bool = option(False, "copy correct tokens into states at random")
    """CLLM's `use_aug`."""
    keep_degenerate: bool = option(
        False, "responses that repeat themselves or do not end", "--keep-degenerate/--drop-degenerate", shown="drop"
    )
    chat: bool = option(True, "use the model's chat template, if it has one")
    max_prompt_tokens: int | None = option(None, "skip longer prompts", within=AT_LEAST_1)
    """Without it, a prompt that does not fit the context is an error."""
    text_prompt_tokens: int = option(128, "length of prompts cut from plain text", within=AT_LEAST_1)
    """The text after each one is its reference."""
    exclude: tuple[Path, ...] | None = option(None, "skip the prompts of this file", shown="the run's held-out ones")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "device the model runs on")
    precision: Precision = field(default="auto", metadata=PRECISION)
    overwrite: bool = option(False, "start over if the output exists", "--overwrite")

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("--data is missing; name the files that hold the prompts")
        if self.n < 2:
            raise UsageError(f"-n is {self.n}; a block has at least 2 tokens")
        check_fields(self)


def run_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Model, data, names of the data's fields and output, as far as not `given`, from the model's or the newest run.

    Raises:
        DataError: no model is given and there is no run.
        UsageError: no data is given and the run names none.
    """
    run: Run | None = run_of(given["model"]) if "model" in given else latest_run()
    if run is None:
        return {}
    defaults: dict[str, Any] = {"model": str(run.model), "output": run.collected}
    if "data" not in given:
        saved = read_json(run.config).get("config", {}) if run.config.is_file() else {}
        if not saved.get("data"):
            raise UsageError(f"{run.path} does not say what it was trained on; name the prompts with --data")
        data = saved["data"] if isinstance(saved["data"], list) else [saved["data"]]
        defaults["data"] = tuple(map(Path, data))
        defaults |= {name: saved.get(name) for name in ("prompt_field", "response_field")}
    return {name: value for name, value in defaults.items() if name not in given and value is not None}
