"""Memory of each extra head of a GGUF while llama.cpp decodes.

    python benchmarks/heads_decoding_memory.py model.gguf

Each row is a process of its own that answers one prompt with 1 (plain decoding), 2, ... n heads. Measured is its
resident memory after the answer, which includes the mapped pages of the file. The peak would be misleading: llama.cpp
maps the whole file for each part before it unmaps the rest. Also printed are the known parts: the head in the file, its
unembedding and its KV cache. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import nptool
from nptool.decoding.answer import DecodeConfig
from nptool.llama.gguf_parts import Part, require_heads
from nptool.llama.gguf_summary import summarize
from nptool.provenance import machine

MEBIBYTE = 2**20
UNEMBEDDING = "token_embd.weight"
CACHE_BYTES = 2
"""Bytes of a value in the KV cache, F16."""


def main() -> None:
    """Measure and print."""
    options = parse()
    with nptool.load(options.gguf, threads=1) as model:
        heads = require_heads(model.contexts.parts)
    resident = [measure(options, 1 + extra) for extra in range(len(heads) + 1)]
    found = {
        "model": str(options.gguf),
        "context_length": options.context,
        "resident_mib": resident,
        "each_head_mib": (resident[-1] - resident[0]) / len(heads),
        "head_in_file_mib": heads[0].size / MEBIBYTE,
        "unembedding_mib": unembedding(options.gguf) / MEBIBYTE,
        "cache_mib": cache(heads[0], options.context) / MEBIBYTE,
    }
    if options.json:
        print(json.dumps({"machine": machine(), **found}, indent=2))
    else:
        show(found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("-c", "--context", type=int, default=1024, help="tokens [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each row, median [%(default)s]")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure(options: argparse.Namespace, heads: int) -> float:
    """Median over processes, MiB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        tasks = [(str(options.gguf), options.context, heads)] * options.rounds
        return median(pool.starmap(answer, tasks, chunksize=1)) / MEBIBYTE


def answer(path: str, context_length: int, heads: int) -> int:
    """Resident bytes of this process after an answer with `heads` heads, in steps of as many rows."""
    with nptool.load(path, context_length=context_length, threads=1) as model:
        config = DecodeConfig("heads" if heads > 1 else "ar", max(2, heads), exact=True, max_tokens=32)
        for _ in model.answer(model.encode("once upon a time", raw=True), config):
            pass
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def unembedding(path: Path) -> int:
    """Bytes of the unembedding inside head 2."""
    return next(tensor.bytes for tensor in summarize(path).parts[1].tensors if tensor.name == UNEMBEDDING)


def cache(head: Part, context_length: int) -> int:
    """Bytes of the keys and values of one head's only layer."""
    return 2 * CACHE_BYTES * context_length * prod(head.header.tensors["blk.0.attn_k.weight"][0][1:])


def show(found: dict[str, Any]) -> None:
    print(f"{found['model']}, a context of {found['context_length']} tokens; resident memory")
    first = found["resident_mib"][0]
    for extra, mib in enumerate(found["resident_mib"]):
        print(f"{extra} extra heads: {mib:8.1f} MiB  (+{mib - first:.1f})")
    print(
        f"each head: {found['each_head_mib']:.1f} MiB; in the file {found['head_in_file_mib']:.1f}, its "
        f"unembedding {found['unembedding_mib']:.1f}; its KV cache {found['cache_mib']:.2f}"
    )


if __name__ == "__main__":
    main()
