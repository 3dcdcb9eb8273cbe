"""How `nptool train cllm` draws held-out tokens per forward against training time: as bars, or as an SVG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nptool.cli.console import bar
from nptool.cli.line_chart import Chart, svg
from nptool.errors import UsageError
from nptool.files import atomic_file
from nptool.pipeline.rounds_config import finished_rounds
from nptool.training.cllm.curve import LAST_SHARE, Curve, CurvePoint, read_curve

MOST_BARS = 24
"""Bars of one round."""


def check_picture(path: Path) -> None:
    """Check the name of the picture, before hours of training.

    Raises:
        UsageError: it does not end in .svg.
    """
    if path.suffix.lower() != ".svg":
        raise UsageError(f"--plot-file is {path}; the picture is an SVG, so its name must end in .svg")


def draw(curves: Sequence[Curve | None], run: str, path: Path | None, *, bars: bool) -> None:
    """Draw the curves of all rounds.

    Args:
        curves: of each round, None where nothing was measured.
        run: title of the picture.
        path: of the picture; None writes none.
        bars: draw in the terminal too.

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


def draw_finished(name: str | None, rounds: int, path: Path | None, as_json: bool) -> bool:
    """Draw the curves of a finished run; False if there is no such run.

    Args:
        name: of the run; None is the newest.
        rounds: a run with fewer rounds is not finished.

    Raises:
        UsageError: the named run was trained without a curve.
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


def _nothing_to_draw(run: str) -> UsageError:
    return UsageError(f"{run} was trained without --curve, so there is nothing to draw; train under another --name")


def print_curves(curves: Sequence[Curve | None]) -> None:
    """Print the curve of every round that has one as bars, all on the same scale."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    drawn = [(number, curve) for number, curve in enumerate(curves, start=1) if curve is not None and curve.points]
    highest = max((point.tokens_per_forward for _, curve in drawn for point in curve.points), default=1.0)
    for number, curve in drawn:
        name = f"round {number}: " if len(curves) > 1 else ""
        console.print(
            f"\n{name}held-out tokens per forward, blocks of {curve.block_size}, {curve.prompts} prompts", style="bold"
        )
        console.print(f"{'step':>7} {'training':>10}")
        for point in _thinned(curve.points):
            console.print(f"{point.step:>7} {duration(point.seconds):>10} {bar(point.tokens_per_forward, highest)}")
        console.print(_gain(curve))


def picture(curves: Sequence[Curve], title: str) -> str:
    """An SVG of all rounds, one after the other on the same axis of training time.

    Args:
        curves: of each round, each with at least one point.
    """
    unit, unit_name = _time_unit(sum(curve.points[-1].seconds for curve in curves))
    series, start = {}, 0.0
    for number, curve in enumerate(curves, start=1):
        points = [((start + point.seconds) / unit, point.tokens_per_forward) for point in curve.points]
        series[f"round {number}, n = {curve.block_size}"] = points
        start += curve.points[-1].seconds
    x_title = f"training time without measuring, {unit_name}"
    return svg(Chart(title, x_title, "tokens per forward", series, note=_gain(curves[-1])))


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, whichever reads best."""
    unit, name = _time_unit(seconds)
    return f"{seconds / unit:.1f} {name}"


def _time_unit(seconds: float) -> tuple[int, str]:
    if seconds < 120:
        return 1, "s"
    return (60, "min") if seconds < 7200 else (3600, "h")


def _gain(curve: Curve) -> str:
    gain = curve.last_gain
    if gain is None:
        return "too few measurements to say whether more training helps; give a smaller --curve"
    before = curve.points[-1].tokens_per_forward - gain
    return f"the last {LAST_SHARE:.0%} of the time brought {gain:+.2f} tokens per forward ({gain / before:+.1%})"


def _thinned(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """At most `MOST_BARS` points, evenly spread, including the first and the last."""
    if len(points) <= MOST_BARS:
        return list(points)
    last = len(points) - 1
    return [points[round(place * last / (MOST_BARS - 1))] for place in range(MOST_BARS)]
