"""Options of every kind of training: optimizer, schedule, precision, checkpoints. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from nptool.errors import UsageError
from nptool.options import BELOW_1, NOT_NEGATIVE, POSITIVE, SHARE, Range, limited, option
from nptool.runs import check_name
from nptool.settings import PRECISION, Precision, check_fields, digest, to_json

LossTokens = Literal["all", "response"]
"""Tokens of a prompt/response record that are trained."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimizer, schedule (warm-up, then cosine to a floor), precision, checkpoints."""

    KIND: ClassVar[str]
    """Kind of training, saved with the run."""
    DEFAULT_PASSES: ClassVar[float] = 1.0
    FREE_FIELDS: ClassVar[tuple[str, ...]] = ("name", "save_every", "log_every")
    """Fields that do not change the result, so they may differ when a run is resumed."""
    OLDER: ClassVar[dict[str, Any]] = {}
    """Values of fields that runs of older versions do not have, where they are not the defaults."""

    steps: int | None = option(None, "optimizer steps", within=POSITIVE)
    epochs: float | None = option(None, "passes over the data", shown="{config.DEFAULT_PASSES:g}", within=POSITIVE)
    lr: float | None = option(None, "peak learning rate", within=POSITIVE)
    """None is the default of the kind of training."""
    optimizer: Literal["adamw", "muon"] = option("adamw", "muon learns in fewer steps, and a step takes longer")
    """See `nptool.training.muon`."""
    min_lr_ratio: float = limited(0.03, SHARE)
    """Final learning rate, as a share of the peak (2404.19737: cosine to 3 %)."""
    warmup: float = limited(0.03, SHARE)
    """Linear warm-up, as a share of all steps."""
    beta1: float = limited(0.9, BELOW_1)
    beta2: float = limited(0.95, BELOW_1)
    weight_decay: float = limited(0.1, NOT_NEGATIVE)
    """Weight decay of matrices; norms and biases have none."""
    clip: float = limited(1.0, NOT_NEGATIVE)
    """Maximum norm of the gradient; 0 does not clip."""
    batch_tokens: int = option(8192, "tokens in a batch", within=POSITIVE)
    """In one forward pass on one device, including padding."""
    accumulation: int = option(1, "batches in a step", within=POSITIVE)
    gradient_checkpointing: bool = option(False, "less memory for a third more time")
    """Recompute activations in the backward pass."""
    precision: Precision = field(default="auto", metadata=PRECISION)
    seed: int = option(0, "random seed", within=Range(0, (1 << 32) - 1))
    save_every: int = option(200, "steps between checkpoints", within=POSITIVE)
    log_every: int = limited(10, POSITIVE)
    """Steps between lines of the TensorBoard log."""
    name: str | None = option(None, "directory in runs/", metavar="RUN", shown="a new one")
    """None combines kind, origin of the data and a digest of this configuration."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UsageError("--steps and --epochs exclude each other; give one of them")
        check_fields(self)
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
