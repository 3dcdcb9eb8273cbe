"""How the training commands print an estimate and a result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nptool.cli.console import print_table

if TYPE_CHECKING:
    from nptool.training.cllm.curve import Curve


def print_estimates(estimates: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print the resolved configuration, sizes and memory of each round; most commands have one."""
    if as_json:
        print(json.dumps(estimates[0] if len(estimates) == 1 else {"rounds": estimates}))
        return
    for number, estimate in enumerate(estimates, start=1):
        if len(estimates) > 1:
            print(f"round {number}")
        memory = estimate["memory"]
        parts = ", ".join(f"{name} {_bytes(size)}" for name, size in memory.items() if name != "total")
        print_table("configuration", estimate["config"])
        rows = {
            "run": f"runs/{estimate['run']}",
            "parameters": f"{estimate['parameters']:,}",
            "data": f"{estimate['data_tokens']:,} tokens in one pass",
            "steps": f"{estimate['steps']:,} of {estimate['tokens_per_step']:,} tokens",
            "memory": f"{_bytes(memory['total'])} ({parts})",
        }
        print_table("estimate", rows)


def print_base_result(result: dict[str, Any], as_json: bool) -> None:
    """Print the result of `nptool train base`."""
    if as_json:
        print(json.dumps(result))
        return
    rows = {"model": result["model"], "parameters": f"{result['parameters']:,}", "trained": _trained(result)}
    if result["skipped_records"]:
        rows["left out"] = f"{result['skipped_records']:,} records (longer than the context, or empty)"
    if result["heldout_loss"] is not None:
        rows["held-out loss"] = f"{result['heldout_loss']:.4f} nats per token"
        rows["perplexity"] = f"{result['perplexity']:.3f}"
        if result["bits_per_byte"] is not None:
            rows["bits per byte"] = f"{result['bits_per_byte']:.4f}"
    print_table("result", rows | _speed(result))
    if result["head_loss"] is not None:
        _print_heads(result["head_loss"], result["top1"], result["top5"])


def print_heads_result(result: dict[str, Any], as_json: bool) -> None:
    """Print the result of `nptool train heads`."""
    if as_json:
        print(json.dumps(result))
        return
    rows = {
        "model": result["model"],
        "parameters": f"{result['trained_parameters']:,} trained, {result['parameters']:,} of the plain model",
        "trajectories": f"{result['trajectories']:,} and {result['heldout']:,} held out{_left_out(result)}",
        "trained": _trained(result),
        **_speed(result),
    }
    if result["loss_before"] is not None:
        rows["head 1 before"] = f"loss {result['loss_before']:.4f}"
    if result["tokens_per_forward"] is not None:
        accepted = ", ".join(f"{share:.0%}" for share in result["acceptance"])
        rows["drafts, held out"] = f"{result['tokens_per_forward']:.2f} tokens per forward; accepted: {accepted}"
    print_table("result", rows)
    if result["loss"] is not None:
        _print_heads(result["loss"], result["top1"], result["top5"])


def print_cllm_results(results: Sequence[dict[str, Any]], curves: Sequence[Curve | None], as_json: bool) -> None:
    """Print the result of each round of `nptool train cllm`.

    Args:
        curves: of each round, None where nothing was measured.
    """
    if as_json:
        pairs = zip(results, curves, strict=True)
        rounds = [result if curve is None else {**result, "curve": asdict(curve)} for result, curve in pairs]
        print(json.dumps(rounds[0] if len(rounds) == 1 else {"rounds": rounds}))
        return
    for number, result in enumerate(results, start=1):
        consistency = f"{result['consistency_first']:.4f} -> {result['consistency_last']:.4f}"
        rows = {
            "model": result["model"],
            "parameters": f"{result['trained_parameters']:,} trained of {result['parameters']:,}",
            "block length": f"{result['block_size']} tokens",
            "trajectories": f"{result['trajectories']:,}{_left_out(result)}",
            "trained": _trained(result),
            "consistency loss": f"{consistency} nats per noisy row",
            "next-token loss": f"{result['ar_first']:.4f} -> {result['ar_last']:.4f} nats per token",
            "noisy rows right": f"{result['right_first']:.1%} -> {result['right_last']:.1%}",
            **_speed(result),
        }
        print_table("result" if len(results) == 1 else f"round {number}", rows)


def _trained(result: dict[str, Any]) -> str:
    return f"{result['steps']:,} steps, {result['tokens']:,} tokens"


def _left_out(result: dict[str, Any]) -> str:
    return f", {result['left_out']:,} left out as too long" if result["left_out"] else ""


def _speed(result: dict[str, Any]) -> dict[str, str]:
    speed = result["tokens_per_second"]
    return {"speed": "-" if speed is None else f"{speed:,.0f} tokens/s", "time": f"{result['seconds']:.1f} s"}


def _print_heads(losses: Iterable[float], top1: Iterable[float], top5: Iterable[float]) -> None:
    """Print held-out loss and accuracy of heads 1..n."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held out", title_justify="left")
    for column in ("head", "loss", "top-1", "top-5"):
        table.add_column(column, justify="right")
    for head, (loss, first, five) in enumerate(zip(losses, top1, top5, strict=True), start=1):
        table.add_row(str(head), f"{loss:.4f}", f"{first:.1%}", f"{five:.1%}")
    Console().print(table, markup=False, highlight=False)


def _bytes(size: float) -> str:
    """Bytes with a unit, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
