"""Run directories of trainings: opened or resumed, finished, read again."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from nptool.errors import UsageError
from nptool.files import read_json, write_json
from nptool.options import flag
from nptool.processes import is_main_process, main_process_first
from nptool.provenance import provenance
from nptool.runs import ROOT, Run
from nptool.settings import to_json
from nptool.training.config import TrainingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What every training returns; saved as the run's results."""

    run: str
    model: str
    parameters: int
    steps: int
    tokens: int
    """Tokens of all steps, without padding."""
    tokens_per_second: float | None
    """Training speed in the process that finished the run; None if it had no step left to train."""
    seconds: float
    """Training time in the process that finished the run."""


Result = TypeVar("Result", bound=TrainingResult)


def open_run(config: TrainingConfig, data_digest: str, run: Run | None = None) -> tuple[Run, bool]:
    """Open or make the run directory of a training, and write its configuration with provenance.

    Args:
        data_digest: identifies the training data.
        run: the directory to use instead of `runs/<config.run_name>`.

    Returns:
        The run, and whether it is finished (its results are there).

    Raises:
        UsageError: the directory holds another kind, configuration or data set.
    """
    with main_process_first():
        if run is None:
            run = Run.create(config.run_name) if is_main_process() else Run(ROOT / config.run_name)
        described = {"kind": config.KIND, "config": to_json(config), "data_digest": data_digest}
        described |= {"provenance": provenance()}
        if run.config.is_file():
            try:
                _check_same(read_json(run.config), config, data_digest, run.path)
            except UsageError:
                if not (is_main_process() and _untouched(run)):
                    raise
                # Held-out prompts of the failed training belong to its data.
                run.heldout.unlink(missing_ok=True)
                write_json(run.config, described)
        elif is_main_process():
            write_json(run.config, described)
    finished = run.results.is_file()
    if finished:
        logger.info("%s is finished already", run.path)
    return run, finished


def finish_run(run: Run, kind: str, result: TrainingResult, *, publish: bool = True) -> None:
    """Write the results with provenance, let `runs/latest` name the run, and remove its checkpoints."""
    if not is_main_process():
        return
    write_json(run.results, {"kind": kind, **asdict(result), "provenance": provenance()})
    if publish:
        run.publish()
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def read_result(run: Run, cls: type[Result]) -> Result:
    """The saved result of a finished run. Fields with a default may be missing in results of older versions."""
    saved = read_json(run.results)
    values: dict[str, Any] = {}
    for name in {field.name for field in fields(cls)} & saved.keys():
        values[name] = tuple(saved[name]) if isinstance(saved[name], list) else saved[name]
    return cls(**values)


def _untouched(run: Run) -> bool:
    """Whether a training that began here failed before its first step, because its data could not be used."""
    return {entry.name for entry in run.path.iterdir()} <= {run.config.name, run.heldout.name, run.log.name}


def _check_same(saved: dict[str, Any], config: TrainingConfig, data_digest: str, path: Path) -> None:
    remedy = "choose another --name, or remove that directory"
    if saved.get("kind") != config.KIND:
        raise UsageError(f"{path} holds a run of kind {saved.get('kind')!r}, not {config.KIND!r}; {remedy}")
    # Options that older versions did not have count as what those did.
    defaults = {field.name: field.default for field in fields(config)} | config.OLDER
    before, now = defaults | saved.get("config", {}), to_json(config)
    for name in now:
        if name not in config.FREE_FIELDS and before.get(name) != now[name]:
            raise UsageError(
                f"{path} holds a run with {flag(config, name)} {before.get(name)}, now it is {now[name]}; "
                f"give the same to go on, or {remedy}"
            )
    if saved.get("data_digest") != data_digest:
        raise UsageError(f"{path} holds a run on other data than --data now has; {remedy}")
