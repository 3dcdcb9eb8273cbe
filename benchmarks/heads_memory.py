"""Peak memory and time of a training step with 1, 2, 4 and 8 heads: all logits at once against one head at a time.

    python benchmarks/heads_memory.py              # V = 32,000, D = 512, from scratch: layers move to the heads
    python benchmarks/heads_memory.py --frozen     # heads added to a frozen model

Each row is a process of its own: on a CPU the growth of its peak resident memory from before the model was made, on a
GPU (--cuda) the peak that torch allocated. Both include weights, gradients and AdamW's averages.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from nptool.provenance import machine
from nptool.training.heads.losses import IGNORE, heads_loss
from nptool.training.heads.model import MultiHead, add_heads, move_layers

MEBIBYTE = 2**20
IMPLEMENTATIONS = ("plain", "ours")


def main() -> None:
    """Measure and print."""
    options = parse()
    rows = []
    for implementation in IMPLEMENTATIONS:
        first = len(rows)
        for heads in map(int, options.heads.split(",")):
            rows.append(in_process(options, implementation, heads))
            if not options.json:
                show(rows[-1], rows[first])
    if options.json:
        print(json.dumps({"machine": machine(), "options": vars(options), "rows": rows}, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="1,2,4,8", help="[%(default)s]")
    parser.add_argument("--frozen", action="store_true", help="extra heads on a frozen trunk (2 heads or more)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="[%(default)s]")
    parser.add_argument("--hidden", type=int, default=512, help="[%(default)s]")
    parser.add_argument("--layers", type=int, default=10, help="[%(default)s]")
    parser.add_argument("--tokens", type=int, default=1024, help="in a batch [%(default)s]")
    parser.add_argument("--steps", type=int, default=3, help="timed, after one more [%(default)s]")
    parser.add_argument("--cuda", action="store_true", help="on the GPU")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.frozen:
        options.heads = ",".join(heads for heads in options.heads.split(",") if heads != "1")
    return options


def in_process(options: argparse.Namespace, implementation: str, heads: int) -> dict[str, Any]:
    """Measure in a new process, because peak memory never falls."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure, (options, implementation, heads))


def measure(options: argparse.Namespace, implementation: str, heads: int) -> dict[str, Any]:
    """Peak memory and time of a training step, in a process of its own."""
    device = "cuda" if options.cuda else "cpu"
    before = peak(options.cuda)
    model = build(options, heads).to(device)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    batch = make_batch(options, heads, device)
    times = []
    for _ in range(options.steps + 1):
        started = perf_counter()
        step(model, batch, implementation)
        optimizer.step()
        optimizer.zero_grad()
        if options.cuda:
            torch.cuda.synchronize()
        times.append(perf_counter() - started)
    return {
        "implementation": implementation,
        "heads": heads,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trained_parameters": sum(weight.numel() for weight in trained),
        "peak_bytes": peak(options.cuda) - before,
        "seconds_per_step": median(times[1:]),
    }


def build(options: argparse.Namespace, heads: int) -> MultiHead:
    """A random Llama with `heads` heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    base = LlamaForCausalLM(config)
    if not options.frozen:
        return move_layers(base, heads)
    model = add_heads(base, heads)
    model.freeze_trunk()
    return model


def make_batch(options: argparse.Namespace, heads: int, device: str) -> dict[str, torch.Tensor]:
    """Rows of 256 random tokens, with labels at every position."""
    ids_BT = torch.randint(options.vocabulary, (options.tokens // 256, 256), device=device)
    count = ids_BT.numel()
    return {
        "input_ids": ids_BT,
        "positions_N": torch.arange(count, device=device),
        "labels_NK": torch.randint(options.vocabulary, (count, heads), device=device),
    }


def step(model: MultiHead, batch: dict[str, torch.Tensor], implementation: str) -> None:
    """Forward and backward pass of one batch."""
    if implementation == "plain":
        plain_loss(model, **batch).backward()
    else:
        count, heads = batch["labels_NK"].shape
        counts_K = torch.full((heads,), count, device=batch["labels_NK"].device)
        heads_loss(model, **batch, counts_K=counts_K).loss.backward()


def plain_loss(model: MultiHead, input_ids: Tensor, positions_N: Tensor, labels_NK: Tensor) -> Tensor:
    """Sum over the heads of the mean cross-entropy, all logits at once."""
    trunk, losses = model.run_trunk(input_ids), []
    for head, labels_N in enumerate(labels_NK.T):
        logits_NV = F.linear(model.hidden_states(head, trunk, positions_N), model.unembedding_VD)
        exact_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        losses.append(F.cross_entropy(exact_NV, labels_N, ignore_index=IGNORE))
    return torch.stack(losses).sum()


def peak(cuda: bool) -> int:
    """Peak memory in bytes."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(row: dict[str, Any], first: dict[str, Any]) -> None:
    """Print one row, relative to the first of its implementation."""
    print(
        f"{row['implementation']:>6} {row['heads']} heads: {row['peak_bytes'] / MEBIBYTE:7.0f} MiB "
        f"({row['peak_bytes'] / first['peak_bytes']:.2f} of the first), "
        f"{row['trained_parameters'] / 1e6:.1f}M trained, "
        f"{row['seconds_per_step']:.2f} s per step ({row['seconds_per_step'] / first['seconds_per_step']:.2f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
