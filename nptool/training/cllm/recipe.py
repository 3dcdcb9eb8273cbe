"""What consistency training teaches, as one frozen description.

CLLM (arXiv 2403.00835) and Jacobi Forcing (arXiv 2512.14681) are two settings of it. It knows no model, no file and no
tensor, so the command line can read the defaults without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nptool.errors import UsageError
from nptool.settings import check_choice, check_range

Schedule = Literal["progressive", "uniform", "random", "reverse"]
Context = Literal["noisy", "window", "clean"]
Consistency = Literal["global", "local"]
Divergence = Literal["forward-kl", "reverse-kl", "jensen-shannon", "fixed-point"]
ArTarget = Literal["response", "reference"]

AR_WEIGHT = 10.0
"""Weight of the autoregressive term: CLLM's released trainer and Jacobi Forcing's paper both multiply it by 10."""

WINDOW = 8
"""Blocks in a window of the progressive schedule; Jacobi Forcing's second round (n = 32; its first has n = 16 and 16
blocks), the best of its ablation."""


@dataclass(frozen=True)
class Recipe:
    """Which states are taught, in which context, towards which target."""

    schedule: Schedule = "progressive"
    """Which state of its trajectory a block shows: see `nptool.training.cllm.schedule`."""
    window: int = WINDOW
    """Blocks over which the progressive schedule goes once from `min_noise` to `max_noise`."""
    random_phase: bool = True
    """Start a response of fewer blocks than the window at a random point of the schedule."""
    min_noise: float = 0.0
    """Smallest noise level of the schedule, a share of a block's tokens (0 to 1)."""
    max_noise: float = 1.0
    """Largest noise level of the schedule, a share of a block's tokens (0 to 1)."""
    augment: bool = False
    """Copy the right token into a random half of a shown state's wrong places, never the first (CLLM, section 3.2.1: an
    untrained model's states hardly ever have a right token behind a wrong one)."""
    decay: float = 1.0
    """Weight of a taught row for each token that it lies behind its block's first wrong one (above 0, at most 1): the
    near ones are accepted first. Medusa (arXiv 2401.10774, section 2.2.1) weighs its k-th head by 0.8^k; 1 is CLLM."""
    draws: int = 1
    """States of each block that one sequence shows, all behind the same clean tokens: most of a sequence is these."""
    context: Context = "noisy"
    """What a noisy block sees before it: noisy blocks, noisy blocks of its window only, or clean blocks."""
    consistency: Consistency = "global"
    """`global` teaches a state the fixed point's rows, `local` those of the next state of the trajectory."""
    divergence: Divergence = "forward-kl"
    """Distance between teacher and student rows; `fixed-point` is cross-entropy on the fixed point's tokens."""
    ar_target: ArTarget = "response"
    """Text of the autoregressive term: the model's own response, or the data set's answer."""
    ar_weight: float = AR_WEIGHT
    """Weight of the autoregressive term beside the consistency term's 1."""
    label_smoothing: float = 0.0
    """Share of the autoregressive target spread over the vocabulary (0 to 1, 1 excluded); CLLM's trainer used 0.1."""

    def __post_init__(self) -> None:
        choices = {
            "schedule": Schedule,
            "context": Context,
            "consistency": Consistency,
            "divergence": Divergence,
            "ar_target": ArTarget,
        }
        for name, kind in choices.items():
            check_choice(self, name, get_args(kind))
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
