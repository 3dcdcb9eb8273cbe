"""Configuration of `nptool train heads`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nptool.errors import UsageError
from nptool.files import read_json
from nptool.heads import read_heads_info
from nptool.runs import Run, latest_run, run_of
from nptool.settings import check_range
from nptool.training.responses.config import COLLECT_FIELDS, ResponsesConfig, run_defaults

KIND = "heads"
# Kinds of training on trajectories, whose configuration names them.
_ON_RESPONSES = (KIND, "cllm")

HEADS = 4
"""n: best of 1 to 8 at a vocabulary of 32,000 (2404.19737, table 1)."""

HEADS_LR = 1e-3
"""Highest learning rate of heads on a frozen trunk: Medusa-1's. On the embedded default's CLLM one pass of 60 steps
gave heads 2 to 4 held-out losses of 0.68, 1.14 and 1.38; with 3e-4, the paper's from scratch, 1.22, 1.91 and 2.22."""

HEADS_BATCH_TOKENS = 2048
"""Small batches: a collection of a thousand short responses has some hundred thousand tokens."""

JOINT_LR = 2e-5
"""Highest learning rate of the joint stage; the paper fine-tunes with 3e-5 to 5e-5 and no guard."""

GUARD = 1.0
"""Weight of the divergence from the original model in the joint stage."""

SMALLEST_HEADS = 2


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(ResponsesConfig):
    """Extra heads for a finished model, trained on its own responses."""

    DEFAULT_PASSES: ClassVar[float] = 3.0

    batch_tokens: int = HEADS_BATCH_TOKENS
    """Tokens in one forward pass on one device, padding counted."""
    heads: int = HEADS
    """n: heads in all, the model's own last layer included."""
    joint: bool = False
    """Train trunk and heads together afterwards, at a low rate, head 1 held near the original model."""
    joint_lr: float = JOINT_LR
    """Highest learning rate of the joint stage."""
    guard: float = GUARD
    """Weight of KL(original model || head 1) in the joint stage."""
    answer_anew: bool = False
    """Let the model answer the prompts of trajectories itself, as it does where the data are prompts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.heads)
        check_range(self, ("joint_lr",), low=0, open_low=True)
        check_range(self, ("guard",), low=0)
        if not self.joint:
            for name, default in (("joint_lr", JOINT_LR), ("guard", GUARD)):
                if getattr(self, name) != default:
                    raise UsageError(f"--{name.replace('_', '-')} belongs to the joint stage; add --joint")

    @property
    def learning_rate(self) -> float:
        """The highest learning rate: 1e-3 unless given, in the joint stage its own."""
        if self.joint:
            return self.joint_lr
        return self.lr if self.lr is not None else HEADS_LR

    @property
    def run_name(self) -> str:
        """Name of the run directory: the same for the same configuration, so that a repeated command continues."""
        return self.name_of_run(KIND)

    @property
    def origin(self) -> str:
        """What the run is named after: the model's run, or else the data's."""
        run = run_of(self.model) if self.model is not None else None
        return run.path.name if run is not None else super().origin


def check_heads(heads: int) -> None:
    """Check a number of heads.

    Raises:
        UsageError: fewer than two.
    """
    if heads < SMALLEST_HEADS:
        raise UsageError(
            f"--heads is {heads}; the model's own last layer is head 1, so a multi-head model has at least "
            f"{SMALLEST_HEADS}"
        )


def heads_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """What is not given: as many heads as the model has already, if it has some, and `_sources`.

    Raises:
        DataError: there is no run.
        UsageError: it has no trajectories.
        CheckpointError: the model's heads are damaged.
    """
    found = _sources(given)
    model = given.get("model", found.get("model"))
    info = read_heads_info(Path(model)) if model is not None and "heads" not in given else None
    return found | ({} if info is None else {"heads": info.count})


def _sources(given: dict[str, Any]) -> dict[str, Any]:
    """Where no data are given: model and trajectories of the newest run, or of the run of the model that is given.

    A CLLM's run may have been trained on another model's trajectories: the CLLM answers their prompts anew, since heads
    are to foresee what it will say itself. A run of heads names the model and data it was trained on, so that a
    repeated command finds that run again.

    Raises:
        DataError: there is no run.
        UsageError: it has no trajectories.
    """
    if "data" in given:
        return {}
    run = run_of(given["model"]) if "model" in given else latest_run()
    if run is None or not run.config.is_file():
        return run_defaults(given)
    saved = read_json(run.config)
    kind, config = saved["kind"], saved["config"]
    if kind == KIND:
        names = ("model", "answer_anew", *COLLECT_FIELDS)
        found = {name: config[name] for name in names if config.get(name) is not None}
        return found | {"data": tuple(Path(path) for path in config["data"])}
    if run.collected.is_file():
        data: tuple[Path, ...] = (run.collected,)
    elif kind in _ON_RESPONSES:
        data = tuple(Path(path) for path in config["data"])
    else:
        return run_defaults(given)
    found = {"data": data, "model": str(run.model)}
    # What a CLLM was trained on are answers of the model it was before, collected in its run or elsewhere.
    foreign = kind in _ON_RESPONSES and not _answered_by(run, data[0])
    return found | ({"answer_anew": True} if foreign else {})


def _answered_by(run: Run, data: Path) -> bool:
    """Whether data are trajectories of a run's own model."""
    # It loads numpy, which `nptool --help` does without.
    from nptool.collection.store import is_collected, read_collected

    return is_collected(data) and Path(read_collected(data).metadata.model).resolve() == run.model.resolve()
