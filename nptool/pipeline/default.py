"""`nptool train` without arguments: a CLLM for text-to-SQL, from nothing.

Five steps, each done once: examples, base model, its scores and trajectories, consistency training, its scores. All of
it lies in two run directories, so an interrupted call goes on where it stopped, and the base model stays usable by
itself. The stages' own code does the work; here is only their order and their settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nptool.errors import UsageError
from nptool.files import atomic_file, read_json, write_json
from nptool.method_note import Measured, note_measured
from nptool.progress import Progress, silent
from nptool.provenance import provenance
from nptool.runs import ROOT, Run
from nptool.text_to_sql import Example, generate_examples

if TYPE_CHECKING:
    from nptool.pipeline.evaluation import Scores
    from nptool.settings import Precision

NAME = "text-to-sql"
BASE_NAME = "text-to-sql-base"
TRAIN_FILE = "train.jsonl"
PROMPTS_FILE = "prompts.jsonl"
EXAMPLES_FILE = "examples-heldout.jsonl"
SETTINGS_FILE = "settings.json"
SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class DefaultConfig:
    """Sizes of the embedded default: 21 minutes on 2 cores of an AMD Zen 3 in float32.

    Of that time nearly half is consistency training. With the 6 layers that it had before (see `base`), 2,350 steps on
    2,200 prompts instead of 1,750 on 1,800, the base on 13,000 examples, gave 4.64 tokens per forward in blocks and
    90.3 % right answers instead of 4.46 and 82.7 %, and took 27.2 minutes instead of 23. Still earlier, a second round
    (`nptool train cllm --rounds 2`) inside the same time, 700 steps and 420 on new trajectories, ended lower than one:
    3.59 tokens per forward in blocks instead of 3.77.
    """

    train_examples: int = 11_500
    """Examples the base model is trained on, each seen once."""
    collect_prompts: int = 1_800
    """Prompts whose trajectories are collected: of the training split, but not seen by the base model."""
    heldout_examples: int = 300
    """Examples that scores are measured on."""
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
            "batch_tokens": 1024,
            "lr": 1.2e-3,
        }
    )
    """Further settings of `nptool train base`. Few layers with wide feed-forwards: of as many parameters more are in
    matrices then, of which a batch of 16 rows reads as much as one row, and less time goes to attention, which costs
    every row the same. A pass of 16 rows takes 4.53 ms with these 4 layers, 4.97 with 5 of 976 and 5.26 with 6 of 768,
    which the default had before; one row 1.30, 1.39 and 1.46 (`benchmarks/shapes.py`). 400 steps took the three 144,
    141 and 159 s and led to held-out losses of 0.90, 0.98 and 0.92; the whole training led to 66 % right answers of the
    base model and 89 % of the CLLM with 4 layers, and to 60 and 83 % with 6, in two minutes more. The models by turns,
    three times: t(16)/t(1) 2.91, 2.99 and 2.80 with 4 layers, 3.20, 3.17 and 3.51 with 6.

    At equal time, with earlier settings of consistency training, 3 layers of 512 (10.2M parameters) ended at 2.6 tokens
    per forward in blocks where 6 of 256 ended at 3.8, and were slower for it, although their weights lie beyond the
    processor's cache and a wide batch costs them less (DESIGN section 3).

    With 6 layers, after 400 steps, the held-out loss was 0.96; with lr 8e-4 1.04, with 2e-3 1.37, with 8 attention
    heads 0.99."""
    collect: dict[str, Any] = field(default_factory=lambda: {"batch_size": 96})
    """Further settings of `nptool collect`. 192 prompts took 15.0 s, 18.4 and 19.2 with 32 sequences in flight."""
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
    """Further settings of `nptool train cllm`. Clean context is what decoding shows the model: one noisy window behind
    a clean text. How noise-conditioned context does on such short answers was not measured under equal conditions.

    Trials of four minutes from one base model, 100 held-out questions of another seed, tokens per forward in blocks:
    4 draws and 1,792 tokens a step 2.71, 8 draws 2.49, 2 draws 2.87; 2 draws and 896 tokens 2.98, 512 tokens 2.87,
    1 draw 2.85, augmented states 2.67; 2 draws, 896 tokens, `ar_weight` 4 instead of 10 3.26. Of the 100 answers 65 to
    82 were right, in another order.

    500 steps from the base model as it is now, 150 held-out questions of another seed, tokens per forward of a window
    of 8, 16 and 24, and right answers: `ar_weight` 5 2.98, 3.61, 3.67 and 107; with 3 3.07, 3.82, 3.97 and 100. With 5,
    lr 2e-3 2.80, 3.26, 3.36; decay 0.8 2.85, 3.50, 3.63; cross-entropy on the fixed point 2.95, 3.59, 3.66."""


@dataclass(frozen=True)
class DefaultResult:
    """Scores before and after, and where the model lies."""

    run: str
    model: str
    before: Scores
    after: Scores
    seconds: float
    """Training, collection and scoring together, over all calls it took."""


def train_default(progress: Progress = silent, config: DefaultConfig | None = None, root: Path = ROOT) -> DefaultResult:
    """Train the embedded default, or go on with it.

    Raises:
        UsageError: `runs/text-to-sql` holds a run with other settings.
        KeyboardInterrupt: Ctrl-C; done steps are kept.
    """
    from time import monotonic

    config = config or DefaultConfig()
    started = monotonic()
    base, run = Run(root / BASE_NAME), Run(root / NAME)
    _check_settings(base, config)
    try:
        heldout = _write_examples(base, config)
        _train_base(base, heldout, config, progress)
        before = _scores(base, heldout, config, progress, "scoring the base model")
        _collect(base, config, progress)
        _train_cllm(base, run, config, progress)
        after = _scores(run, heldout, config, progress, "scoring the CLLM")
    finally:
        # Interrupted calls count too.
        seconds = _add_time(base, monotonic() - started)
    # For `nptool convert`: decoding then knows from its first step on what this model is good for.
    note_measured(run.model, Measured(after.tokens_per_forward, config.block_size))
    run.publish()
    result = DefaultResult(str(run.path), str(run.model), before, after, seconds)
    write_json(run.path / "default.json", {**asdict(result), "provenance": provenance()})
    return result


def native_precision() -> Precision:
    """bfloat16 where this processor multiplies it natively, float32 elsewhere.

    With AVX512-BF16 a training step of the default model took 0.4 times as long as in float32; without it, bfloat16 is
    emulated and slower.
    """
    import torch

    native = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


def _check_settings(base: Run, config: DefaultConfig) -> None:
    path = base.path / SETTINGS_FILE
    settings = json.loads(json.dumps(asdict(config)))
    if not path.is_file():
        write_json(path, settings)
    elif read_json(path) != settings:
        raise UsageError(
            f"{base.path} holds the default of another version of nptool; remove {base.path} and "
            f"{base.path.parent / NAME}, then run again"
        )


def _write_examples(base: Run, config: DefaultConfig) -> list[Example]:
    """Write the files of examples if they are not there; returns the held-out ones."""
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
    # With the schemas, which general code does not know: `nptool bench` executes the answers.
    _write(base.heldout, heldout)


def _collect(base: Run, config: DefaultConfig, progress: Progress) -> None:
    from nptool.collection.collect import collect
    from nptool.collection.config import CollectConfig

    if base.collected.is_file():
        return
    settings = CollectConfig(
        model=str(base.model),
        data=(base.path / PROMPTS_FILE,),
        output=base.collected,
        n=config.block_size,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        precision=native_precision(),
        **config.collect,
    )
    collect(settings, progress)


def _train_cllm(base: Run, run: Run, config: DefaultConfig, progress: Progress) -> None:
    from nptool.training.cllm.config import CllmConfig
    from nptool.training.cllm.train import train_cllm

    settings = CllmConfig(
        data=(base.collected,),
        model=str(base.model),
        steps=config.cllm_steps,
        precision=native_precision(),
        seed=config.seed,
        name=NAME,
        **config.cllm,
    )
    train_cllm(settings, progress, run)


def _scores(run: Run, heldout: list[Example], config: DefaultConfig, progress: Progress, step: str) -> Scores:
    from nptool.pipeline.evaluation import Scores, score

    path = run.path / SCORES_FILE
    if not path.is_file():
        scores = score(
            run.model, heldout, config.block_size, max_new_tokens=config.max_new_tokens, progress=progress, step=step
        )
        write_json(path, {**asdict(scores), "provenance": provenance()})
    saved = read_json(path)
    return Scores(**{name: saved[name] for name in Scores.__dataclass_fields__})


def _add_time(base: Run, seconds: float) -> float:
    """Time over all calls; a call that finds everything done adds next to nothing."""
    path = base.path / "seconds.json"
    total = seconds + (read_json(path)["seconds"] if path.is_file() else 0.0)
    write_json(path, {"seconds": total})
    return float(total)
