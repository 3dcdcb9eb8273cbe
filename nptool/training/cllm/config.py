"""Configuration of `nptool train cllm`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nptool.options import AT_LEAST_1, NOT_NEGATIVE, option
from nptool.training.cllm.recipe import Recipe
from nptool.training.responses.config import ResponsesConfig

LORA_LR = 2e-4
"""LoRA's learning rate (arXiv 2106.09685, table 11: 2e-4 for GPT-2)."""


@dataclass(frozen=True, kw_only=True)
class CllmConfig(Recipe, ResponsesConfig):
    """Consistency training of a finished model, on collected trajectories or on prompts to collect from first."""

    KIND: ClassVar[str] = "cllm"
    FREE_FIELDS: ClassVar[tuple[str, ...]] = (*ResponsesConfig.FREE_FIELDS, "curve", "curve_data")

    weight_decay: float = 0.0
    """Weight decay of matrices; the scripts of both papers have none."""
    lora_rank: int | None = option(None, "train adapters of this rank", shown="the whole model", within=AT_LEAST_1)
    """They are merged at the end."""
    curve: int | None = option(
        None, "measure held-out tokens per forward every N steps; 0: 20 times", shown="never", within=NOT_NEGATIVE
    )
    curve_data: Path | None = option(None, "prompts to measure on", shown="the run's held-out ones")

    def __post_init__(self) -> None:
        ResponsesConfig.__post_init__(self)
        Recipe.__post_init__(self)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: CLLM's 2e-5, with LoRA 2e-4, unless given."""
        return LORA_LR if self.lr is None and self.lora_rank is not None else super().learning_rate
