"""Options of every kind of training: optimizer, schedule, precision, checkpoints. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from nptool.errors import UsageError
from nptool.options import option
from nptool.runs import check_name
from nptool.settings import PRECISION, Precision, check_choices, check_range, digest, to_json

LossTokens = Literal["all", "response"]
"""Tokens of a prompt/response record that are trained."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimizer (AdamW), schedule (warm-up, then cosine to a floor), precision, checkpoints."""

    KIND: ClassVar[str]
    """Kind of training, saved with the run."""
    DEFAULT_PASSES: ClassVar[float] = 1.0
    FREE_FIELDS: ClassVar[tuple[str, ...]] = ("name", "save_every", "log_every")
    OLDER: ClassVar[dict[str, Any]] = {}
    """Values of fields that runs of older versions do not have, where they are not the defaults."""
    """Fields that do not change the result, so they may differ when a run is resumed."""

    steps: int | None = option(None, "optimizer steps")
    epochs: float | None = option(None, "passes over the data", shown="{config.DEFAULT_PASSES:g}")
    lr: float | None = option(None, "peak learning rate")
    """None is the default of the kind of training."""
    min_lr_ratio: float = 0.03
    """Final learning rate, as a share of the peak (2404.19737: cosine to 3 %)."""
    warmup: float = 0.03
    """Linear warm-up, as a share of all steps."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    """Weight decay of matrices; norms and biases have none."""
    clip: float = 1.0
    """Maximum norm of the gradient; 0 does not clip."""
    batch_tokens: int = option(8192, "tokens in a batch")
    """In one forward pass on one device, including padding."""
    accumulation: int = option(1, "batches in a step")
    gradient_checkpointing: bool = option(False, "less memory for a third more time")
    """Recompute activations in the backward pass."""
    precision: Precision = field(default="auto", metadata=PRECISION)
    seed: int = option(0, "random seed")
    save_every: int = option(200, "steps between checkpoints")
    log_every: int = 10
    """Steps between lines of the TensorBoard log."""
    name: str | None = option(None, "directory in runs/", metavar="RUN", shown="a new one")
    """None combines kind, origin of the data and a digest of this configuration."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UsageError("--steps and --epochs exclude each other; give one of them")
        positive = ("steps", "epochs", "lr", "batch_tokens", "accumulation", "save_every", "log_every")
        check_range(self, positive, low=0, open_low=True)
        check_range(self, ("clip", "weight_decay"), low=0)
        check_range(self, ("seed",), low=0, high=(1 << 32) - 1)
        check_range(self, ("min_lr_ratio", "warmup"), low=0, high=1)
        check_range(self, ("beta1", "beta2"), low=0, high=1, open_high=True)
        check_choices(self)
        check_name(self.name)

    @property
    def learning_rate(self) -> float:
        return self.lr if self.lr is not None else 2e-5

    @property
    def origin(self) -> str:
        """What an unnamed run is named after."""
        raise NotImplementedError

    @property
    def run_name(self) -> str:
        """Name of the run directory. It depends on the configuration only, so the same command resumes the run."""
        if self.name is not None:
            return self.name
        values = {name: value for name, value in to_json(self).items() if name not in self.FREE_FIELDS}
        return f"{self.KIND}-{self.origin}-{digest(values)}"
