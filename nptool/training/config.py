"""What every training stage lets the user choose: optimizer, schedule, precision, checkpoints.

Each stage's own configuration inherits from `TrainingConfig`. Loads no torch, so that the command line can show
defaults.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from nptool.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16"]
DIGEST_BYTES = 4


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


def check_range(
    config: Any,
    names: tuple[str, ...],
    *,
    low: float,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Check the fields `names` of `config` that are not None; an open end does not belong to the range.

    Raises:
        UsageError: one is outside.
    """
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        above = value > low if open_low else value >= low
        below = high is None or (value < high if open_high else value <= high)
        if not (above and below):
            lower = f"above {low:.10g}" if open_low else f"at least {low:.10g}"
            upper = "" if high is None else f" and {'below' if open_high else 'at most'} {high:.10g}"
            raise UsageError(f"{flag(name)} is {value}; it must be {lower}{upper}")


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Check that a field has one of its values.

    Raises:
        UsageError: it has not.
    """
    value = getattr(config, name)
    if value not in choices:
        raise UsageError(f"{flag(name)} is {value!r}; expected one of {', '.join(choices)}")


def flag(name: str) -> str:
    """The option of a field: `min_lr_ratio` -> `--min-lr-ratio`."""
    return "--" + name.replace("_", "-")


def to_json(config: Any) -> dict[str, Any]:
    """The configuration as JSON values: paths as text, tuples as lists."""
    fields = dataclasses.asdict(config)
    return {name: _plain(value) for name, value in fields.items()}


def digest(values: dict[str, Any]) -> str:
    """Eight hexadecimal digits that tell one configuration from another."""
    text = json.dumps(values, sort_keys=True)
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
