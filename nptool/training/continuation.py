"""Run directories that are opened a second time: the same training goes on, another one is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from nptool.errors import UsageError
from nptool.files import read_json, write_json
from nptool.processes import is_main_process, main_process_first
from nptool.provenance import provenance
from nptool.runs import ROOT, Run
from nptool.settings import flag, to_json


def open_run(
    config: Any, kind: str, *, data_digest: str, free: tuple[str, ...] = (), run: Run | None = None
) -> tuple[Run, bool]:
    """Open the run directory of a training, made at first, and write its configuration with provenance.

    Args:
        config: a configuration dataclass with a `run_name`.
        kind: of training, "base" or "cllm".
        data_digest: tells one set of training data from another.
        free: fields that may differ when a run is continued.
        run: the directory to use instead of `runs/<config.run_name>`.

    Returns:
        The run, and whether it is finished (its results are there).

    Raises:
        UsageError: the directory holds another kind, configuration or data set.
    """
    with main_process_first():
        if run is None:
            run = Run.create(config.run_name) if is_main_process() else Run(ROOT / config.run_name)
        described = {"kind": kind, "config": to_json(config), "data_digest": data_digest, "provenance": provenance()}
        if run.config.is_file():
            try:
                _check_same(read_json(run.config), config, kind, data_digest, free, run.path)
            except UsageError:
                if not (is_main_process() and _untouched(run)):
                    raise
                # Nothing came of the other one; what it held out is of its own data.
                run.heldout.unlink(missing_ok=True)
                write_json(run.config, described)
        elif is_main_process():
            write_json(run.config, described)
    return run, run.results.is_file()


def _untouched(run: Run) -> bool:
    """Whether a training that began here failed before it did anything: its data were of no use."""
    return {entry.name for entry in run.path.iterdir()} <= {run.config.name, run.heldout.name, run.log.name}


def _check_same(
    saved: dict[str, Any], config: Any, kind: str, data_digest: str, free: tuple[str, ...], path: Path
) -> None:
    remedy = "choose another --name, or remove that directory"
    if saved.get("kind") != kind:
        raise UsageError(f"{path} holds a run of kind {saved.get('kind')!r}, not {kind!r}; {remedy}")
    # What the nptool that began the run did not know yet was as it is by default.
    defaults = {field.name: field.default for field in fields(config)}
    before, now = defaults | saved.get("config", {}), to_json(config)
    for name in now:
        if name not in free and before.get(name) != now[name]:
            raise UsageError(
                f"{path} holds a run with {flag(name)} {before.get(name)}, now it is {now[name]}; "
                f"give the same to go on, or {remedy}"
            )
    if saved.get("data_digest") != data_digest:
        raise UsageError(f"{path} holds a run on other data than {flag('data')} now has; {remedy}")
