"""Configuration of `nptool train heads`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from nptool.errors import UsageError
from nptool.files import read_json
from nptool.heads import NEXTN, SEPARATE, SHARED, SHARED_LIMIT, read_heads_info
from nptool.options import CONFIG_FILE_ONLY, NOT_NEGATIVE, POSITIVE, flag, option
from nptool.runs import Run, latest_run, run_of
from nptool.training.cllm.config import CllmConfig
from nptool.training.responses.config import COLLECT_FIELDS, ResponsesConfig, run_defaults

HEADS_LR = {SHARED: 2e-3, SEPARATE: 1e-3, NEXTN: 2e-3}
"""Peak learning rate on a frozen trunk; of separate heads Medusa-1's (arXiv 2401.10774)."""

COUNT = {SHARED: 8, SEPARATE: 4, NEXTN: 4}
"""n: of separate heads the best of 1 to 8 in 2404.19737, table 1."""


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(ResponsesConfig):
    """Extra heads for a finished model, trained on its own responses."""

    KIND: ClassVar[str] = "heads"
    DEFAULT_PASSES: ClassVar[float] = 3.0
    OLDER: ClassVar[dict[str, Any]] = {"kind": SEPARATE}

    n: int | None = field(default=None, metadata=CONFIG_FILE_ONLY)
    """Block length of a collection made here."""
    optimizer: Literal["adamw", "muon"] = field(default="adamw", metadata=CONFIG_FILE_ONLY)
    batch_tokens: int = 2048
    """Small, since collections are small."""
    kind: Literal["shared", "separate", "nextn"] = option(
        SHARED, "one layer for all extra heads, a layer for each, or a block that llama.cpp itself drafts with"
    )
    heads: int | None = option(
        None,
        "number of heads, including the model's own last layer",
        shown=", ".join(f"{kind} {count}" for kind, count in COUNT.items()),
    )
    rank: int = option(32, "rank of what tells the depths of a shared layer apart", within=NOT_NEGATIVE)
    joint: bool = option(False, "then train trunk and heads together")
    joint_lr: float = option(2e-5, "peak learning rate of the joint stage", within=POSITIVE)
    """Medusa fine-tunes with 3e-5 to 5e-5."""
    guard: float = option(1.0, "weight that keeps head 1 near the original in the joint stage", within=NOT_NEGATIVE)
    """Of KL(original model || head 1)."""
    answer_anew: bool = option(
        False, "let the model answer the trajectories' prompts itself", shown="only another model's, without --data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 2:
            raise UsageError(
                f"--heads is {self.heads}; the model's own last layer is head 1, so a multi-head model has at least 2"
            )
        if self.optimizer == "muon":
            raise UsageError("--optimizer muon is for a model without extra heads; heads are trained by adamw")
        if self.kind == SHARED and self.count > SHARED_LIMIT:
            raise UsageError(f"--heads is {self.heads}; one shared layer has at most {SHARED_LIMIT} heads")
        if self.kind != SHARED and self.rank != HeadsConfig.rank:
            raise UsageError("--rank belongs to shared heads; add --kind shared")
        if self.kind == NEXTN and self.joint:
            raise UsageError("--joint trains the model with its heads, and a NextN block leaves it as it is; omit one")
        if not self.joint:
            for name in ("joint_lr", "guard"):
                if getattr(self, name) != getattr(HeadsConfig, name):
                    raise UsageError(f"{flag(self, name)} belongs to the joint stage; add --joint")

    @property
    def count(self) -> int:
        """n."""
        return COUNT[self.kind] if self.heads is None else self.heads

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: that of the kind unless given; `joint_lr` in the joint stage."""
        if self.joint:
            return self.joint_lr
        return self.lr if self.lr is not None else HEADS_LR[self.kind]

    @property
    def origin(self) -> str:
        run = run_of(self.model) if self.model is not None else None
        return run.path.name if run is not None else super().origin


def heads_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Defaults for what is not given: data and model (see `_sources`), and the heads that the model has already.

    Raises:
        DataError: there is no run.
        UsageError: it has no trajectories.
        CheckpointError: the model's heads are damaged.
    """
    found = _sources(given)
    model = given.get("model", found.get("model"))
    info = read_heads_info(Path(model)) if model is not None else None
    if info is None or given.get("kind", info.kind) != info.kind:
        return found
    return found | {"heads": info.count, "kind": info.kind} | ({"rank": info.rank} if info.kind == SHARED else {})


def _sources(given: dict[str, Any]) -> dict[str, Any]:
    """Without data: model and trajectories of the newest run, or of the run of the given model.

    A CLLM may have been trained on another model's trajectories. It then answers their prompts itself, since heads are
    trained on the model's own responses. For a run of heads, its own model and data are the defaults, so a repeated
    command finds that run again.
    """
    if "data" in given:
        return {}
    run = run_of(given["model"]) if "model" in given else latest_run()
    if run is None or not run.config.is_file():
        return run_defaults(given)
    saved = read_json(run.config)
    kind, config = saved["kind"], saved["config"]
    if kind == HeadsConfig.KIND:
        names = ("model", "answer_anew", *COLLECT_FIELDS)
        found = {name: config[name] for name in names if config.get(name) is not None}
        return found | {"data": tuple(Path(path) for path in config["data"])}
    if run.collected.is_file():
        data: tuple[Path, ...] = (run.collected,)
    elif kind == CllmConfig.KIND:
        data = tuple(Path(path) for path in config["data"])
    else:
        return run_defaults(given)
    found = {"data": data, "model": str(run.model)}
    # A CLLM's training data are usually responses of the model that it was trained from.
    foreign = kind == CllmConfig.KIND and not _answered_by(run, data[0])
    return found | ({"answer_anew": True} if foreign else {})


def _answered_by(run: Run, data: Path) -> bool:
    """Whether data are trajectories of a run's own model."""
    # Loads numpy, which `nptool --help` must not.
    from nptool.collection.store import is_collected, read_collected

    return is_collected(data) and Path(read_collected(data).metadata.model).resolve() == run.model.resolve()
