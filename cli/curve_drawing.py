"""What `--plot` and `--plot-file` do with a training's curves, be it just done or long since."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nptool.cli.curve_output import print_curves
from nptool.cli.curve_picture import picture
from nptool.errors import UsageError
from nptool.files import atomic_file
from nptool.pipeline.rounds_config import finished_rounds
from nptool.training.cllm.curve import Curve, read_curve


def draw(curves: Sequence[Curve | None], run: str, path: Path | None, *, bars: bool) -> None:
    """Draw the curves of all rounds.

    Args:
        curves: of each round, None where nothing was measured.
        run: what the picture is called after.
        path: of the picture; None writes none.
        bars: draw in the terminal.

    Raises:
        UsageError: nothing was measured.
    """
    drawn = [curve for curve in curves if curve is not None and curve.points]
    if not drawn:
        raise _nothing_to_draw(run)
    if bars:
        print_curves(curves)
    if path is not None:
        with atomic_file(path, "w") as stream:
            stream.write(picture(drawn, f"{run}: held-out tokens per forward"))


def _nothing_to_draw(run: str) -> UsageError:
    return UsageError(f"{run} was trained without --curve, so there is nothing to draw; train under another --name")


def draw_finished(name: str | None, rounds: int, path: Path | None, as_json: bool) -> bool:
    """Draw the curves of a run that is finished; says whether there was one.

    Args:
        name: of the run; None is the newest.
        rounds: so many rounds must be done, or there is something left to train.

    Raises:
        UsageError: the run that is named was trained without a curve.
    """
    runs = finished_rounds(name, rounds)
    curves = [read_curve(run.curve) for run in runs]
    if not any(curves):
        if name is not None and runs:
            raise _nothing_to_draw(str(runs[-1].path))
        return False
    if as_json:
        named = zip(runs, curves, strict=True)
        print(json.dumps({"rounds": [{"run": str(run.path), "curve": asdict(one)} for run, one in named if one]}))
    draw(curves, str(runs[-1].path), path, bars=not as_json)
    return True
