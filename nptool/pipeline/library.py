"""`nptool.train` and `nptool.convert_checkpoint`: the commands as functions, each in one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nptool.convert.file_types import DEFAULT_TYPE
from nptool.pipeline.rounds_config import RoundsConfig
from nptool.progress import Progress, silent
from nptool.training.base.config import BaseConfig
from nptool.training.cllm.config import CllmConfig
from nptool.training.heads.config import HeadsConfig

if TYPE_CHECKING:
    from nptool.convert.conversion import Conversion
    from nptool.heads_sample import HeadsScore
    from nptool.pipeline.default import DefaultResult
    from nptool.training.continuation import TrainingResult

TrainConfig = BaseConfig | CllmConfig | HeadsConfig


def train(config: TrainConfig | None = None, progress: Progress = silent) -> TrainingResult | DefaultResult:
    """Train what the configuration describes, or go on with its run; without one, the embedded default.

    Returns:
        The result of the training, of the last round if there are several.

    Raises:
        NptoolError: data, model or options cannot be used.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    if config is None:
        from nptool.pipeline.default import train_default

        return train_default(progress)
    if isinstance(config, BaseConfig):
        from nptool.training.base.train import train_base

        return train_base(config, progress)
    if isinstance(config, HeadsConfig):
        from nptool.training.heads.train import train_heads

        return train_heads(config, progress)
    if isinstance(config, RoundsConfig):
        from nptool.pipeline.rounds import train_rounds

        return train_rounds(config, progress)[-1]
    from nptool.training.cllm.train import train_cllm

    return train_cllm(config, progress)


def convert_checkpoint(
    checkpoint: str | Path,
    output: Path | None = None,
    *,
    type_name: str = DEFAULT_TYPE,
    heads_type_name: str | None = None,
    verified: bool = True,
    pre: str | None = None,
    nextn: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Convert a checkpoint as `nptool convert` does, see `nptool.convert.conversion.convert`; heads are scored."""
    from nptool.convert.conversion import convert

    def score(path: Path, directory: Path) -> HeadsScore:
        # Loads llama.cpp, which a model without heads does not need.
        from nptool.pipeline.heads_score import score_heads

        return score_heads(path, directory)

    return convert(
        checkpoint,
        output,
        type_name=type_name,
        heads_type_name=heads_type_name,
        verified=verified,
        pre=pre,
        nextn=nextn,
        score=score,
        progress=progress,
    )
