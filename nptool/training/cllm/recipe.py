"""What consistency training teaches. CLLM (arXiv 2403.00835) and Jacobi Forcing (arXiv 2512.14681) are two recipes.

Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nptool.errors import UsageError
from nptool.settings import check_choice, check_range
from nptool.training.cllm.divergences import DIVERGENCES

Schedule = Literal["progressive", "uniform", "random", "reverse"]
Context = Literal["noisy", "window", "clean"]
Consistency = Literal["global", "local"]
ArTarget = Literal["response", "reference"]


@dataclass(frozen=True)
class Recipe:
    """Which states are taught, in which context, towards which target."""

    schedule: Schedule = "progressive"
    """How the shown state of each block is chosen: see `nptool.training.cllm.schedule`."""
    window: int = 8
    """Blocks from `min_noise` to `max_noise` in the schedule; 8 is the best in Jacobi Forcing's ablation."""
    random_phase: bool = True
    """Start a response of fewer blocks than the window at a random point of the schedule."""
    min_noise: float = 0.0
    """Smallest noise level of the schedule, a share of a block's tokens (0 to 1)."""
    max_noise: float = 1.0
    """Largest noise level of the schedule, a share of a block's tokens (0 to 1)."""
    augment: bool = False
    """Correct a random half of a shown state's wrong tokens, never the first (CLLM, section 3.2.1)."""
    decay: float = 1.0
    """Factor on a taught row's weight for each token between it and its block's first wrong token (above 0, at most 1).
    Near rows are accepted first: Medusa (arXiv 2401.10774, section 2.2.1) weighs its k-th head by 0.8^k. 1 is CLLM."""
    draws: int = 1
    """States of each block in one packed sequence, all after the same clean tokens."""
    context: Context = "noisy"
    """What a noisy block attends to before it: noisy blocks, noisy blocks of its window only, or clean blocks."""
    consistency: Consistency = "global"
    """The teacher: `global` is the fixed point, `local` the next state of the trajectory."""
    divergence: str = "forward-kl"
    """Divergence of student from teacher rows, one of `nptool.training.cllm.divergences`."""
    ar_target: ArTarget = "response"
    """Sequence of the autoregressive term: the model's own response, or the data set's answer."""
    ar_weight: float = 10.0
    """Weight of the autoregressive term (10 in both papers); that of the consistency term is 1."""
    label_smoothing: float = 0.0
    """Share of the autoregressive target spread over the vocabulary (0 to 1, 1 excluded); CLLM's trainer used 0.1."""

    def __post_init__(self) -> None:
        choices = {"schedule": Schedule, "context": Context, "consistency": Consistency, "ar_target": ArTarget}
        for name, kind in choices.items():
            check_choice(self, name, get_args(kind))
        check_choice(self, "divergence", tuple(DIVERGENCES))
        check_range(self, ("window", "draws"), low=1)
        check_range(self, ("min_noise", "max_noise"), low=0, high=1)
        check_range(self, ("ar_weight",), low=0)
        check_range(self, ("decay",), low=0, high=1, open_low=True)
        check_range(self, ("label_smoothing",), low=0, high=1, open_high=True)
        if self.min_noise > self.max_noise:
            raise UsageError(f"--min-noise {self.min_noise} is above --max-noise {self.max_noise}")
        if self.schedule in ("progressive", "reverse") and self.draws > self.window:
            raise UsageError(f"--draws {self.draws} of --window {self.window} levels show states twice; lower --draws")
        if self.consistency == "local" and self.divergence == "fixed-point":
            raise UsageError("--consistency local has no fixed-point target; choose another --divergence")
