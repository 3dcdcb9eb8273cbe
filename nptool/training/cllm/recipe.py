"""What consistency training teaches. CLLM (arXiv 2403.00835) and Jacobi Forcing (arXiv 2512.14681) are two recipes.

Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nptool.errors import UsageError
from nptool.options import AT_LEAST_1, BELOW_1, NOT_NEGATIVE, SHARE, Range, option
from nptool.settings import check_choice, check_fields
from nptool.training.cllm.divergences import DIVERGENCES


@dataclass(frozen=True)
class Recipe:
    """Which states are taught, in which context, towards which target."""

    schedule: Literal["progressive", "uniform", "random", "reverse"] = option(
        "progressive", "which state of its trajectory a block shows"
    )
    """See `nptool.training.cllm.schedule`."""
    window: int = option(8, "blocks in a window of the schedule", within=AT_LEAST_1)
    """From `min_noise` to `max_noise`; 8 is the best in Jacobi Forcing's ablation."""
    random_phase: bool = option(True, "start short responses anywhere in the window")
    min_noise: float = option(0.0, "smallest noise level of the schedule", within=SHARE)
    """A share of a block's tokens (0 to 1)."""
    max_noise: float = option(1.0, "largest noise level of the schedule", within=SHARE)
    """A share of a block's tokens (0 to 1)."""
    augment: bool = option(False, "correct half of a shown state's wrong tokens, at random")
    """Never the first (CLLM, section 3.2.1)."""
    decay: float = option(
        1.0, "weight per token of distance after a block's first wrong token", within=Range(0, 1, open_low=True)
    )
    """Above 0, at most 1, which is CLLM. Near rows are accepted first: Medusa (arXiv 2401.10774, section 2.2.1) weighs
    its k-th head by 0.8^k."""
    draws: int = option(1, "states of each block in a sequence", within=AT_LEAST_1)
    """All after the same clean tokens."""
    context: Literal["noisy", "window", "clean"] = option("noisy", "what a block sees of the blocks before it")
    """A noisy block attends to noisy blocks, noisy blocks of its window only, or clean blocks."""
    consistency: Literal["global", "local"] = option("global", "target: the fixed point, or the next state")
    divergence: str = option("forward-kl", "distance from teacher to student", metavar="|".join(DIVERGENCES))
    ar_target: Literal["response", "reference"] = option(
        "response", "text of the next-token term: the model's, or the data's"
    )
    ar_weight: float = option(10.0, "weight of the next-token term", within=NOT_NEGATIVE)
    """10 in both papers; that of the consistency term is 1."""
    label_smoothing: float = option(0.0, "of the next-token term", within=BELOW_1)
    """Share of its target spread over the vocabulary (0 to 1, 1 excluded); CLLM's trainer used 0.1."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice(self, "divergence", tuple(DIVERGENCES))
        if self.min_noise > self.max_noise:
            raise UsageError(f"--min-noise {self.min_noise} is above --max-noise {self.max_noise}")
        if self.schedule in ("progressive", "reverse") and self.draws > self.window:
            raise UsageError(f"--draws {self.draws} of --window {self.window} levels show states twice; lower --draws")
        if self.consistency == "local" and self.divergence == "fixed-point":
            raise UsageError("--consistency local has no fixed-point target; choose another --divergence")
