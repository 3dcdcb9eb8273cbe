"""`nptool collect`: a model's own responses with their Jacobi trajectories, for consistency training."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from nptool.cli.console import print_table, progress_bars
from nptool.cli.options import AsJson, RunOptions
from nptool.cli.signatures import Given, options
from nptool.collection.config import CollectConfig, run_defaults
from nptool.settings import resolve

if TYPE_CHECKING:
    from nptool.collection.collect import CollectResult


@options
def collect(given: Annotated[Given, CollectConfig], run: RunOptions, as_json: AsJson = False) -> None:
    """Collect a model's responses to prompts, with the states that Jacobi decoding passes through.

    DATA are JSONL, JSON or Parquet records (messages, prompt/completion, question/answer, text, ShareGPT, Alpaca), text
    and source files, or the prompts of an earlier collection. Run the same command again to resume an interrupted
    collection.
    """
    resolved = resolve(CollectConfig, run.config, given, run_defaults)
    if run.dry_run:
        from nptool.collection.dry_run import dry_run as estimate

        _print_estimate(estimate(resolved), as_json)
        return

    from nptool.collection.collect import collect as collect_all

    with progress_bars() as progress:
        result = collect_all(resolved, progress)
    _print_result(result, as_json)


def _print_estimate(estimate: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(estimate))
        return
    memory = estimate["memory"]
    print_table("configuration", estimate["config"])
    rows = {
        "device": estimate["device"],
        "parameters": f"{estimate['parameters']:,}",
        "prompts": f"{estimate['prompts']:,}, {estimate['prompt_tokens']:,} tokens",
        "left out": _reasons(estimate["left_out"]),
        "responses": f"at most {estimate['most_new_tokens']:,} tokens",
        "memory": ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in memory.items()),
    }
    print_table("estimate", rows)


def _print_result(result: CollectResult, as_json: bool) -> None:
    stats = result.stats
    if as_json:
        derived = {
            "tokens_per_forward": stats.tokens_per_forward,
            "steps_to_fixed_point": stats.steps_to_fixed_point,
            "mean_response_tokens": stats.mean_response_tokens,
        }
        print(json.dumps({**asdict(result), **derived, "path": str(result.path)}))
        return
    dropped = sum(result.dropped.values())
    earlier = f" ({result.done_before:,} prompts were already done)" if result.done_before else ""
    rows = {
        "file": result.path,
        "kept": f"{result.rows:,} of {result.prompts:,} responses",
        "dropped": f"{dropped:,} ({_reasons(result.dropped)})" if dropped else "0",
        "left out": _reasons(result.left_out),
        "mean response": f"{stats.mean_response_tokens:.1f} tokens",
        "Jacobi TPF": f"{stats.tokens_per_forward:.2f} tokens per forward pass",
        "steps to the fixed point": f"{stats.steps_to_fixed_point:.2f} per block",
        "fast-forwarded": f"{stats.fast_forwarded:,} tokens",
        "stationary": f"{stats.stationary:,} tokens",
        "time": f"{result.seconds:.1f} s{earlier}",
    }
    print_table("collected", rows)


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items()) or "-"
