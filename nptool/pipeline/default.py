"""`nptool train` without arguments: a CLLM for text-to-SQL with extra heads, trained from scratch.

The steps: examples, base model, its scores, its trajectories, consistency training, the CLLM's own answers, heads,
scores again. Each result is saved in one of three run directories and not computed again, so an interrupted call can be
continued. The finished model is in `runs/text-to-sql`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from nptool.errors import UsageError
from nptool.files import atomic_file, read_json, write_json
from nptool.heads_sample import HeadsFigures
from nptool.method_note import Measured, note_measured
from nptool.progress import Progress, silent
from nptool.provenance import provenance
from nptool.runs import ROOT, Run
from nptool.text_to_sql import Example, generate_examples

if TYPE_CHECKING:
    from nptool.pipeline.evaluation import Scores
    from nptool.settings import Precision

NAME = "text-to-sql"
BASE_NAME, CLLM_NAME = "text-to-sql-base", "text-to-sql-cllm"
TRAIN_FILE = "train.jsonl"
PROMPTS_FILE = "prompts.jsonl"
EXAMPLES_FILE = "examples-heldout.jsonl"
SETTINGS_FILE = "settings.json"
SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class DefaultConfig:
    """Settings of the embedded default. The trials they rest on are in `benchmarks/results/embedded_default.md`."""

    train_examples: int = 11_500
    """Examples that the base model is trained on, each seen once."""
    collect_prompts: int = 1_800
    """Prompts whose trajectories are collected, and which the CLLM answers again for the heads: of the training split,
    but not seen by the base model."""
    heldout_examples: int = 300
    """Examples that the scores are measured on."""
    cllm_steps: int = 1_950
    block_size: int = 16
    max_new_tokens: int = 128
    """Longest answer; the longest gold one has about 90 tokens."""
    seed: int = 0
    base: dict[str, Any] = field(
        default_factory=lambda: {
            "vocab_size": 1024,
            "hidden_size": 256,
            "layers": 4,
            "attention_heads": 4,
            "intermediate_size": 1280,
            "context": 1024,
            "loss": "all",
            "prompt_share": 0.3,
            "optimizer": "muon",
            "batch_tokens": 1024,
            "lr": 2.5e-3,
        }
    )
    """Further settings of `nptool train base`. Few layers with wide feed-forwards make wide batches cheap: a larger
    share of the parameters is in matrices, which a batch reads once, and less time goes to attention, whose cost grows
    with every row."""
    collect: dict[str, Any] = field(default_factory=lambda: {"batch_size": 96})
    """Further settings of `nptool collect`, the same for both models."""
    cllm: dict[str, Any] = field(
        default_factory=lambda: {
            "schedule": "uniform",
            "context": "clean",
            "draws": 2,
            "decay": 0.7,
            "ar_target": "reference",
            "ar_weight": 3.0,
            "batch_tokens": 896,
            "lr": 1.0e-3,
        }
    )
    """Further settings of `nptool train cllm`. Clean context is what the model sees in decoding: one noisy window after
    a clean prefix."""
    heads: dict[str, Any] = field(
        default_factory=lambda: {"kind": "shared", "heads": 8, "steps": 400, "batch_tokens": 2048}
    )
    """Further settings of `nptool train heads`."""


@dataclass(frozen=True)
class DefaultResult:
    """Scores before and after consistency training and heads, and the place of the model."""

    run: str
    model: str
    before: Scores
    after: Scores
    seconds: float
    """Wall time of all calls together."""


def train_default(progress: Progress = silent, config: DefaultConfig | None = None, root: Path = ROOT) -> DefaultResult:
    """Train the embedded default, or continue an interrupted call.

    Raises:
        UsageError: `runs/text-to-sql-base` has other settings.
        KeyboardInterrupt: Ctrl-C; finished steps are kept.
    """
    config = config or DefaultConfig()
    started = monotonic()
    base, cllm, run = (Run(root / name) for name in (BASE_NAME, CLLM_NAME, NAME))
    _check_settings(base, config)
    try:
        heldout = _write_examples(base, config)
        _train_base(base, heldout, config, progress)
        before = _scores(base, heldout, config, progress, "scoring the base model")
        _collect(base, base, config, progress)
        _train_cllm(base, cllm, config, progress)
        # Heads learn to draft what the model itself writes.
        _collect(base, cllm, config, progress)
        _train_heads(cllm, run, config, progress)
        after = _scores(run, heldout, config, progress, "scoring the CLLM")
    finally:
        seconds = _add_time(base, monotonic() - started)
    # `nptool convert` copies it into the GGUF, where adaptive decoding starts from it.
    note_measured(run.model, Measured(after.tokens_per_forward, config.block_size))
    run.publish()
    result = DefaultResult(str(run.path), str(run.model), before, after, seconds)
    write_json(run.path / "default.json", {**asdict(result), "provenance": provenance()})
    return result


def native_precision() -> Precision:
    """bfloat16 where it is native, float32 elsewhere."""
    from nptool.training.arguments import native_bfloat16

    return "bfloat16" if native_bfloat16() else "float32"


def _check_settings(base: Run, config: DefaultConfig) -> None:
    path = base.path / SETTINGS_FILE
    settings = json.loads(json.dumps(asdict(config)))
    if not path.is_file():
        write_json(path, settings)
    elif read_json(path) != settings:
        raise UsageError(
            f"{base.path} holds the default of another version of nptool; remove it and, where they exist, "
            f"{base.path.parent / CLLM_NAME} and {base.path.parent / NAME}, then run again"
        )


def _write_examples(base: Run, config: DefaultConfig) -> list[Example]:
    """Write the files of examples unless they exist; returns the held-out ones."""
    heldout = generate_examples("heldout", config.heldout_examples, config.seed)
    if not (base.path / TRAIN_FILE).is_file():
        train = generate_examples("train", config.train_examples + config.collect_prompts, config.seed)
        _write(base.path / EXAMPLES_FILE, heldout)
        _write(base.path / PROMPTS_FILE, train[config.train_examples :])
        _write(base.path / TRAIN_FILE, train[: config.train_examples])
    return heldout


def _write(path: Path, examples: Sequence[Example]) -> None:
    with atomic_file(path, "w") as stream:
        for example in examples:
            stream.write(json.dumps(example.to_record()) + "\n")


def _train_base(base: Run, heldout: list[Example], config: DefaultConfig, progress: Progress) -> None:
    from nptool.training.base.config import BaseConfig
    from nptool.training.base.train import train_base

    settings = BaseConfig(
        data=(base.path / TRAIN_FILE,),
        heldout_data=base.path / EXAMPLES_FILE,
        epochs=1,
        precision=native_precision(),
        seed=config.seed,
        name=BASE_NAME,
        **config.base,
    )
    train_base(settings, progress, base)
    # With the schemas, for `nptool bench`, which executes the answers.
    _write(base.heldout, heldout)


def _collect(base: Run, run: Run, config: DefaultConfig, progress: Progress) -> None:
    """Let the model of `run` answer the prompts of `base`."""
    from nptool.collection.collect import collect
    from nptool.collection.config import CollectConfig

    if run.collected.is_file():
        return
    settings = CollectConfig(
        model=str(run.model),
        data=(base.path / PROMPTS_FILE,),
        output=run.collected,
        n=config.block_size,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        precision=native_precision(),
        **config.collect,
    )
    collect(settings, progress)


def _train_cllm(base: Run, cllm: Run, config: DefaultConfig, progress: Progress) -> None:
    from nptool.training.cllm.config import CllmConfig
    from nptool.training.cllm.train import train_cllm

    settings = CllmConfig(
        data=(base.collected,),
        model=str(base.model),
        steps=config.cllm_steps,
        precision=native_precision(),
        seed=config.seed,
        name=CLLM_NAME,
        **config.cllm,
    )
    train_cllm(settings, progress, cllm)


def _train_heads(cllm: Run, run: Run, config: DefaultConfig, progress: Progress) -> None:
    """Heads on the frozen CLLM, whose weights `run` then has too."""
    from nptool.training.heads.config import HeadsConfig
    from nptool.training.heads.train import train_heads

    settings = HeadsConfig(
        data=(cllm.collected,),
        model=str(cllm.model),
        precision=native_precision(),
        seed=config.seed,
        name=NAME,
        **config.heads,
    )
    train_heads(settings, progress, run)


def _scores(run: Run, heldout: list[Example], config: DefaultConfig, progress: Progress, step: str) -> Scores:
    from nptool.pipeline.evaluation import Scores, score

    path = run.path / SCORES_FILE
    if not path.is_file():
        scores = score(
            run.model, heldout, config.block_size, max_new_tokens=config.max_new_tokens, progress=progress, step=step
        )
        write_json(path, {**asdict(scores), "provenance": provenance()})
    saved = read_json(path)
    heads = saved["heads"] and HeadsFigures(saved["heads"]["tokens_per_forward"], tuple(saved["heads"]["acceptance"]))
    return Scores(**{name: saved[name] for name in Scores.__dataclass_fields__} | {"heads": heads})


def _add_time(base: Run, seconds: float) -> float:
    """Add to the saved time of earlier calls; returns the sum."""
    path = base.path / "seconds.json"
    total = seconds + (float(read_json(path)["seconds"]) if path.is_file() else 0.0)
    write_json(path, {"seconds": total})
    return total
