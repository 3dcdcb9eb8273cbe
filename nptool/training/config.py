"""What every training stage lets the user choose: optimizer, schedule, precision, checkpoints.

Each stage's own configuration inherits from `TrainingConfig`. Loads no torch, so that the command line can show
defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from nptool.errors import UsageError
from nptool.settings import Precision, check_choice, check_range


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimizer (AdamW), schedule (warm-up, then cosine to a floor), precision, checkpoints."""

    DEFAULT_PASSES: ClassVar[float] = 1.0

    steps: int | None = None
    """Optimizer steps; None leaves it to `epochs`."""
    epochs: float | None = None
    """Passes over the training data; None, with `steps` None too, is one pass, for heads three."""
    lr: float | None = None
    """Highest learning rate; None is the stage's own."""
    min_lr_ratio: float = 0.03
    """Learning rate at the end, as a share of the highest (2404.19737: cosine to 3 %)."""
    warmup: float = 0.03
    """Linear warm-up, as a share of all steps."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    """Of matrices; norms and biases have none."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    batch_tokens: int = 8192
    """Tokens in one forward pass on one device, padding counted."""
    accumulation: int = 1
    """Forward passes whose gradients make one optimizer step."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass: less memory, a third more time."""
    precision: Precision = "auto"
    """auto: bfloat16 where the GPU has it, else float32; bfloat16 on a CPU is autocast, fast with AVX512-BF16."""
    seed: int = 0
    save_every: int = 200
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between lines of the TensorBoard log."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UsageError("--steps and --epochs exclude each other; give one of them")
        positive = ("steps", "epochs", "lr", "batch_tokens", "accumulation", "save_every", "log_every")
        check_range(self, positive, low=0, open_low=True)
        check_range(self, ("clip", "weight_decay"), low=0)
        check_range(self, ("seed",), low=0, high=(1 << 32) - 1)
        check_range(self, ("min_lr_ratio", "warmup"), low=0, high=1)
        check_range(self, ("beta1", "beta2"), low=0, high=1, open_high=True)
        check_choice(self, "precision", get_args(Precision))

    @property
    def learning_rate(self) -> float:
        """The highest learning rate, resolved."""
        return self.lr if self.lr is not None else 2e-5
