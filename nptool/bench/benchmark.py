"""`run_bench`: decoding methods of one GGUF against its autoregressive decoding, on the same prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from statistics import median

import numpy as np
from numpy.typing import NDArray

from nptool.bench.aggregation import Measurement, summarize
from nptool.bench.comparison import Comparison, compare
from nptool.bench.config import LENGTHS, BenchConfig
from nptool.bench.prompts import Prompt, find_prompts, read_prompts
from nptool.bench.report import BenchReport, MethodReport
from nptool.bench.variants import ANY, Variant, split_name, variants_of
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.text_model import TextModel
from nptool.errors import ContextError, DataError
from nptool.llama.loading import DEFAULT_WIDTH
from nptool.llama.model import Model
from nptool.progress import Progress, silent
from nptool.provenance import machine, provenance
from nptool.runs import latest_run
from nptool.text_to_sql import execution_match


def run_bench(config: BenchConfig, progress: Progress = silent) -> BenchReport:
    """Measure what `config` names.

    Raises:
        GgufError: the model cannot be used.
        DataError: no run, no held-out split, or a missing, empty or malformed data file.
        ContextError: a prompt does not fit the context, or n the batch.
        UsageError: more heads than the model has.
    """
    path = latest_run().gguf if config.model is None else config.model
    with TextModel(path, config.load) as model:
        file = find_prompts(path) if config.prompts is None else config.prompts
        prompts = read_prompts(file, config.count)
        variants = _variants(config, model)
        engine = model.contexts.trunk(max(variant.n for variant in variants))
        ids = [_encode(model, prompt, engine.capacity) for prompt in prompts]
        common = DecodeConfig(sampling=config.sampling, max_tokens=config.max_tokens)
        comparison = compare(model.decoder, ids, variants, config.rounds, common, progress)
        return BenchReport(
            model=str(path),
            model_description=model.model.description,
            model_bytes=path.stat().st_size,
            machine=machine(),
            threads=engine.threads,
            gpu_layers=config.load.gpu_layers,
            flash_attention=engine.settings.flash_attention,
            rounds=config.rounds,
            prompts=len(prompts),
            prompts_file=str(file),
            prompt_tokens_median=median(len(tokens) for tokens in ids),
            max_tokens=config.max_tokens,
            sampling=asdict(config.sampling),
            step_ms={str(rows): 1e3 * seconds for rows, seconds in comparison.costs.seconds().items()},
            step_context=comparison.costs.context_length,
            peak_memory_bytes=_peak_memory(),
            methods=_figures(comparison, variants, prompts, model.model),
            provenance=provenance(),
        )


def _variants(config: BenchConfig, model: TextModel) -> tuple[Variant, ...]:
    heads = None
    methods = [split_name(name) for name in config.methods]
    if any(method.heads for method, _ in methods):
        # Only the smallest n must fit: longer blocks are for the other methods.
        count = model.contexts.count_heads(None if config.n is None else min(config.n))
        heads = [n for n in config.n or (count,) if n <= model.contexts.count_heads()]
    elif ANY in config.methods and model.contexts.parts.usable:
        heads = [model.contexts.count_heads()]
    widest = DEFAULT_WIDTH
    if any(adapt for _, adapt in methods):
        widest = min(max(config.n or (DEFAULT_WIDTH,)), model.calibration.widths[-1])
    return variants_of(config.methods, config.n or LENGTHS, heads, widest)


def _encode(model: TextModel, prompt: Prompt, capacity: int) -> NDArray[np.int32]:
    """Token ids of a prompt. Checks that it fits, so that a long comparison does not fail halfway."""
    ids = model.encode(prompt.turns, raw=prompt.raw)
    if not ids.size:
        raise DataError(f"{prompt.source}: the prompt is empty; there is no token to continue from")
    if ids.size >= capacity:
        raise ContextError(
            f"{prompt.source}: the prompt has {ids.size} tokens and the context holds {capacity}; "
            "shorten it or raise -c"
        )
    return ids


def _figures(
    comparison: Comparison, variants: Sequence[Variant], prompts: Sequence[Prompt], model: Model
) -> list[MethodReport]:
    examples = {index: prompt.example for index, prompt in enumerate(prompts) if prompt.example is not None}

    @cache
    def is_right(prompt: int, tokens: tuple[int, ...]) -> bool:
        return execution_match(examples[prompt], model.detokenize(tokens).decode("utf-8", errors="replace"))

    def accuracy(measurements: Iterable[Measurement]) -> float | None:
        scores = [is_right(item.prompt, item.tokens) for item in measurements if item.prompt in examples]
        return sum(scores) / len(scores) if scores else None

    answers = {variant: [item for item in comparison.measurements if item.variant == variant] for variant in variants}
    return [
        summarize(
            answers[variant],
            answers[variants[0]],
            references=comparison.references,
            margins=comparison.margins,
            costs=comparison.costs.seconds(),
            sources=[prompt.source for prompt in prompts],
            accuracy=accuracy(answers[variant]),
        )
        for variant in variants
    ]


def _peak_memory() -> int | None:
    """Largest resident memory of this process so far, in bytes; None if the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
