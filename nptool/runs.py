"""Run directories: where a training run keeps its configuration, log, data, checkpoints and GGUF.

DESIGN section 6. Knows names of files, not what is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nptool.errors import DataError, UsageError
from nptool.files import atomic_file, disk_errors, read_json

ROOT = Path("runs")
LATEST = "latest"
CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class Run:
    """One run directory and the places of its files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / CONFIG_NAME

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def collected(self) -> Path:
        return self.path / "collected.parquet"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def gguf(self) -> Path:
        return self.path / "model.gguf"

    @property
    def heldout(self) -> Path:
        return self.path / "heldout.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def curve(self) -> Path:
        return self.path / "curve.json"

    @classmethod
    def create(cls, name: str, root: Path = ROOT) -> Run:
        """Make the directory; an existing one is continued.

        Raises:
            UsageError, DiskFullError: it cannot be made.
        """
        run = cls(root / name)
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        return run

    def publish(self) -> None:
        """Let `runs/latest` name it: its model is finished, an interrupted run before it has none to convert."""
        with atomic_file(self.path.parent / LATEST, "w") as stream:
            stream.write(self.path.name + "\n")


def check_name(name: str | None) -> None:
    """Check the name of a run that is to be made.

    Raises:
        UsageError: a directory in runs/ cannot have it.
    """
    if name is not None and (Path(name).name != name or name == ".."):
        raise UsageError(f"--name is {name!r}; it must be the name of a directory in runs/, without slashes")
    if name == LATEST:
        raise UsageError(f"--name is {name!r}, by which runs/ knows its newest run; choose another")


def latest_run(root: Path = ROOT) -> Run:
    """The newest run.

    Raises:
        DataError: there is none yet.
    """
    marker = root / LATEST
    if not marker.is_file():
        raise DataError(f"no run in {root}/ yet; make one with `nptool train`, or name a model with -m")
    run = Run(root / marker.read_text(encoding="utf-8").strip())
    if not run.path.is_dir():
        raise DataError(f"{marker} names {run.path}, which is gone; run `nptool train`, or name a model with -m")
    return run


def run_of(path: str | Path) -> Run | None:
    """The run that a model directory or GGUF file lies in, if it lies in one."""
    run = Run(Path(path).resolve().parent)
    if not run.config.is_file():
        return None
    try:
        config = read_json(run.config)
    except DataError:
        # Somebody else's: a run's is written whole or not at all.
        return None
    # A checkpoint of a Trainer lies in a directory with another config.json, which is a model's.
    return run if isinstance(config, dict) and "model_type" not in config else None
