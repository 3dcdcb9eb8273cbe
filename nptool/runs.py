"""Run directories: configuration, log, data, checkpoints and GGUF of a training run."""

from __future__ import annotations

from pathlib import Path

from nptool.errors import DataError, UsageError
from nptool.files import atomic_file, disk_errors, read_json

ROOT = Path("runs")
LATEST = "latest"


class Run:
    """The paths of one run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.log = path / "log"
        self.checkpoints = path / "checkpoints"
        self.collected = path / "collected.parquet"
        self.model = path / "model"
        self.gguf = path / "model.gguf"
        self.heldout = path / "heldout.jsonl"
        self.results = path / "results.json"
        self.curve = path / "curve.json"

    @classmethod
    def create(cls, name: str, root: Path = ROOT) -> Run:
        """Create the directory, or continue in an existing one.

        Raises:
            UsageError, DiskFullError: it cannot be created.
        """
        run = cls(root / name)
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        return run

    def publish(self) -> None:
        """Point `runs/latest` to this run, whose model is finished."""
        with atomic_file(self.path.parent / LATEST, "w") as stream:
            stream.write(self.path.name + "\n")


def check_name(name: str | None) -> None:
    """Check the name of a new run.

    Raises:
        UsageError: a directory in runs/ cannot have this name.
    """
    if name is not None and (Path(name).name != name or name == ".."):
        raise UsageError(f"--name is {name!r}; it must be the name of a directory in runs/, without slashes")
    if name == LATEST:
        raise UsageError(f"--name is {name!r}, which is reserved for the newest run; choose another")


def latest_run(root: Path = ROOT) -> Run:
    """The newest finished run.

    Raises:
        DataError: there is none.
    """
    marker = root / LATEST
    if not marker.is_file():
        raise DataError(f"no run in {root}/ yet; make one with `nptool train`, or name a model with -m")
    run = Run(root / marker.read_text(encoding="utf-8").strip())
    if not run.path.is_dir():
        raise DataError(f"{marker} names {run.path}, which is gone; run `nptool train`, or name a model with -m")
    return run


def run_of(path: str | Path) -> Run | None:
    """The run that contains a model directory or GGUF file, or None."""
    run = Run(Path(path).resolve().parent)
    if not run.config.is_file():
        return None
    try:
        config = read_json(run.config)
    except DataError:
        # Not ours: a run's configuration is written atomically.
        return None
    # A Trainer puts checkpoints beside the config.json of a model.
    return run if isinstance(config, dict) and "model_type" not in config else None
