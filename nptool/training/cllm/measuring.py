"""Measures held-out tokens per forward while a CLLM is trained, with the Jacobi decoder that collects trajectories.

A measurement changes neither the model nor any random state, so the trained weights are the same without it. Its time
is not counted as training time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainerCallback, TrainerState

from nptool.collection.config import CollectConfig
from nptool.collection.jacobi import JacobiSettings, Prompt, jacobi_trajectories
from nptool.collection.prompts import load_prompts
from nptool.collection.store import CollectionMetadata
from nptool.collection.trajectories import TrajectoryStats, count
from nptool.errors import UsageError
from nptool.processes import process_count
from nptool.progress import Progress
from nptool.runs import Run
from nptool.settings import digest
from nptool.training.cllm.config import CllmConfig
from nptool.training.cllm.curve import Curve, CurvePoint, read_checkpoints, read_curve, write_curve

STEP = "held-out tokens per forward"
PROMPTS = 32
"""Maximum prompts of a measurement; they are decoded in one batch."""
MEASUREMENTS = 20
"""Measurements in a training with `--curve 0`."""


def heldout_file(config: CllmConfig, run: Run) -> Path:
    """File of prompts to measure on.

    Raises:
        UsageError: there is none, or there are several processes.
    """
    if process_count() > 1:
        raise UsageError("--curve measures in one process; leave it out with several")
    path = config.curve_data or run.heldout
    if config.curve_data is None and not (path.is_file() and path.stat().st_size):
        raise UsageError(f"--curve needs held-out prompts, and {run.path} has none; name some with --curve-data")
    return path


def heldout_prompts(
    path: Path,
    config: CllmConfig,
    metadata: CollectionMetadata,
    described: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Prompt]:
    """At most `PROMPTS` prompts, evenly spread over the file, with the template and limits of the collection.

    Raises:
        DataError: the file is missing, malformed or empty, or no prompt leaves room for a block.
    """
    context = getattr(described.get_text_config(), "max_position_embeddings", None)
    given = config.curve_data is not None
    collection = CollectConfig(
        model=metadata.model,
        data=(path,),
        n=metadata.n,
        max_new_tokens=metadata.max_new_tokens,
        chat=metadata.template is not None,
        prompt_field=config.prompt_field if given else None,
        response_field=config.response_field if given else None,
        max_prompt_tokens=None if context is None else max(1, context - metadata.n),
        exclude=(),
    )
    prompts = load_prompts(collection, tokenizer, context).prompts
    sample = prompts[:: -(-len(prompts) // PROMPTS)]
    return [Prompt(key, one.ids.tolist(), one.limit) for key, one in enumerate(sample)]


def tokens_per_forward(model: Any, prompts: Sequence[Prompt], settings: JacobiSettings) -> float:
    """Tokens per forward of greedy Jacobi decoding, over all prompts together."""
    waiting = sorted(prompts, key=lambda prompt: len(prompt.ids))
    runs = jacobi_trajectories(model, waiting, settings)
    return sum(map(count, runs), TrajectoryStats()).tokens_per_forward


class CurveMeter(TrainerCallback):
    """Measures before the first step, every `every` steps, and after the last; writes the curve to `path`.

    Raises:
        UsageError: the curve at `path` was measured on other prompts.
    """

    def __init__(
        self, prompts: list[Prompt], metadata: CollectionMetadata, every: int, path: Path, progress: Progress
    ) -> None:
        self._prompts = prompts
        self._settings = JacobiSettings(
            n=metadata.n,
            max_new_tokens=metadata.max_new_tokens,
            end_token_ids=frozenset(metadata.end_token_ids),
            batch_size=len(prompts),
        )
        self._every = every
        self._path = path
        self._progress = progress
        prompts_digest = digest({"ids": [prompt.ids for prompt in prompts]})
        self._curve = read_curve(path) or Curve(metadata.n, len(prompts), prompts_digest=prompts_digest)
        if self._curve.prompts_digest != prompts_digest:
            raise UsageError(
                f"{path} was measured on other prompts; go on with the same --curve-data, or remove that file to begin "
                "a new curve"
            )
        self._checkpoints = read_checkpoints(path)
        self._started = self._before = 0.0
        self.spent = 0.0
        """Seconds of measuring in this process."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Drop measurements after the checkpoint that the training resumes from."""
        kept = tuple(point for point in self._curve.points if point.step <= state.global_step)
        self._curve = replace(self._curve, points=kept)
        last = kept[-1].seconds if kept else 0.0
        self._before = self._checkpoints.get(state.global_step, last)
        self._started = monotonic()
        if not kept:
            self._measure(state, kwargs["model"])

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        every = self._every or max(1, state.max_steps // MEASUREMENTS)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            self._measure(state, kwargs["model"])

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._checkpoints[state.global_step] = self._seconds()
        write_curve(self._path, self._curve, self._checkpoints)

    def _seconds(self) -> float:
        return self._before + monotonic() - self._started - self.spent

    def _measure(self, state: TrainerState, model: Any) -> None:
        seconds, started = self._seconds(), monotonic()
        # peft wraps the model; the adapters are inside it.
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        found = tokens_per_forward(plain, self._prompts, self._settings)
        points = (*self._curve.points, CurvePoint(state.global_step, seconds, found))
        self._curve = replace(self._curve, points=points)
        write_curve(self._path, self._curve, self._checkpoints)
        self._progress(STEP, state.global_step, state.max_steps, f"{found:.2f}")
        self.spent += monotonic() - started
