"""How `nptool train cllm` prints what it would do and what it did, round by round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nptool.cli.training_output import print_estimate, print_table
from nptool.training.cllm.curve import Curve


def print_estimates(estimates: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print what `--dry-run` found; of several rounds one after the other."""
    if len(estimates) == 1:
        print_estimate(estimates[0], as_json)
    elif as_json:
        print(json.dumps({"rounds": estimates}))
    else:
        for number, estimate in enumerate(estimates, start=1):
            print(f"round {number}")
            print_estimate(estimate, as_json)


def print_results(results: Sequence[dict[str, Any]], curves: Sequence[Curve | None], as_json: bool) -> None:
    """Print what every round gave.

    Args:
        curves: of each round, None where nothing was measured.
    """
    if as_json:
        rounds = [
            result if curve is None else {**result, "curve": asdict(curve)}
            for result, curve in zip(results, curves, strict=True)
        ]
        print(json.dumps(rounds[0] if len(rounds) == 1 else {"rounds": rounds}))
        return
    for number, result in enumerate(results, start=1):
        print_table("result" if len(results) == 1 else f"round {number}", _rows(result))


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    speed = result["tokens_per_second"]
    left_out = f", {result['left_out']:,} left out as too long" if result["left_out"] else ""
    return [
        ("model", result["model"]),
        ("parameters", f"{result['trained_parameters']:,} trained of {result['parameters']:,}"),
        ("block length", f"{result['block_size']} tokens"),
        ("trajectories", f"{result['trajectories']:,}{left_out}"),
        ("trained", f"{result['steps']:,} steps, {result['tokens']:,} tokens"),
        (
            "consistency loss",
            f"{result['consistency_first']:.4f} -> {result['consistency_last']:.4f} nats per noisy row",
        ),
        ("next-token loss", f"{result['ar_first']:.4f} -> {result['ar_last']:.4f} nats per token"),
        ("noisy rows right", f"{result['right_first']:.1%} -> {result['right_last']:.1%}"),
        ("speed", "-" if speed is None else f"{speed:,.0f} tokens/s"),
        ("time", f"{result['seconds']:.1f} s"),
    ]
