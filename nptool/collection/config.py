"""Configuration of `nptool collect`, and its defaults from a run directory. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nptool.errors import UsageError
from nptool.files import read_json
from nptool.runs import Run, latest_run, run_of
from nptool.settings import Precision, check_choice, check_range

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Collection of a model's responses to the prompts of a data set, with their Jacobi trajectories."""

    model: str
    """Hugging Face directory or Hub id."""
    data: tuple[Path, ...]
    """JSONL, JSON, Parquet, text or source files, or directories of them."""
    output: Path = Path("collected.parquet")
    n: int = 16
    """Block length in tokens."""
    max_new_tokens: int = 512
    """Longer responses are cut, and dropped as unfinished."""
    batch_size: int = 32
    """Sequences in flight."""
    seed: int = 0
    """Of guesses, sampling and augmentation. Prompt i is sampled as decoding does with seed + i and no filters."""
    temperature: float = 0.0
    """0 is greedy."""
    limit: int | None = None
    """Read only this many records."""
    augment: bool = False
    """Copy right tokens into the states at random (CLLM's `use_aug`)."""
    keep_degenerate: bool = False
    """Keep responses that loop or do not end."""
    chat: bool = True
    """Use the model's chat template, if it has one."""
    prompt_field: str | None = None
    response_field: str | None = None
    """Fields of records whose shape is not recognized."""
    max_prompt_tokens: int | None = None
    """Leave out longer prompts. Without it, a prompt that does not fit the context is an error."""
    text_prompt_tokens: int = 128
    """Plain text is cut into prompts of this length; the text after each one is its reference."""
    exclude: tuple[Path, ...] | None = None
    """Records whose prompts are left out. None: the held-out records of the model's run."""
    device: Device = "auto"
    """auto: a CUDA GPU if there is one."""
    precision: Precision = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    overwrite: bool = False
    """Discard an existing output and start over."""

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("--data is missing; name the files that hold the prompts")
        if self.n < 2:
            raise UsageError(f"-n is {self.n}; a block has at least 2 tokens")
        check_range(self, ("max_new_tokens", "batch_size", "limit", "max_prompt_tokens", "text_prompt_tokens"), low=1)
        check_range(self, ("seed", "temperature"), low=0)
        check_choice(self, "device", get_args(Device))
        check_choice(self, "precision", get_args(Precision))


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
