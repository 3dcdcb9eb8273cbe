"""`nptool collect`: a model's responses to a data set's prompts, with their Jacobi trajectories, in one Parquet file.

Reads, renders, runs the batched Jacobi iteration, drops degenerate responses, and keeps what is done in parts, so that
an interrupted collection goes on where it stopped. Knows no command line.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from nptool.checkpoints import check_checkpoint, load_config, load_model, load_tokenizer
from nptool.collection.config import CollectConfig
from nptool.collection.jacobi import JacobiRun, JacobiSettings, Prompt, jacobi_trajectories
from nptool.collection.journal import Journal, discard
from nptool.collection.prompts import CollectionPrompt, PromptSet, load_prompts
from nptool.collection.store import FORMAT_VERSION, SAMPLED_VERSION, CollectionMetadata, Trajectory
from nptool.collection.trajectories import TrajectoryStats, count, flaw, to_trajectory
from nptool.data.rendering import end_token_ids, tokenizer_digest
from nptool.errors import DataError, UsageError
from nptool.processes import best_device
from nptool.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STEP = "collecting trajectories"
PART_PROMPTS = 64
KEEP_SECONDS = 300.0
"""Where a part takes longer than this, what came in is kept before it is full."""
# Weights sampled of each tensor for the model's digest: enough to tell any further training.
DIGEST_SAMPLES = 1024


@dataclass(frozen=True)
class CollectResult:
    """What a collection gave, what was done before it was interrupted included."""

    path: Path
    prompts: int
    rows: int
    """Responses kept."""
    dropped: dict[str, int]
    """Responses dropped, by reason."""
    left_out: dict[str, int]
    """Records that gave no prompt, by reason."""
    stats: TrajectoryStats
    """Of the responses kept."""
    done_before: int
    """Prompts that an earlier call had done."""
    seconds: float
    """Of this call."""


def collect(config: CollectConfig, progress: Progress = silent) -> CollectResult:
    """Collect, or go on with the same collection, into `config.output`.

    Raises:
        DataError: the data is missing, malformed or empty, or no response could be kept.
        CheckpointError: the model cannot be used.
        ContextError: a prompt does not fit the model's context.
        UsageError: the output holds another collection; the message names the setting that differs.
        KeyboardInterrupt: with a message that says what is kept; finished parts are.
    """
    started = monotonic()
    check_checkpoint(config.model)
    tokenizer = load_tokenizer(config.model)
    prompts = load_prompts(config, tokenizer, context_of(config.model))
    model = load_model(config.model, precision_of(config))
    model.to(device_of(config))  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    metadata = _metadata(config, tokenizer, model, prompts)
    if config.overwrite:
        discard(config.output)
    journal = Journal(config.output, metadata, prompts)
    before = journal.totals().prompts
    if not journal.complete:
        session = _Session(config, metadata, prompts, tokenizer, journal, progress)
        try:
            session.run(model)
        except KeyboardInterrupt:
            session.keep()
            done = journal.totals().prompts
            # Repeated with it, the command would begin anew.
            same = "the same command without --overwrite" if config.overwrite else "the same command"
            raise KeyboardInterrupt(
                f"interrupted with {done} of {len(prompts.prompts)} prompts done; {same} goes on from there"
            ) from None
        _check_kept(journal, config.output)
        journal.merge()
    totals = journal.totals()
    return CollectResult(
        path=config.output,
        prompts=totals.prompts,
        rows=totals.rows,
        dropped=totals.dropped,
        left_out=dict(prompts.left_out),
        stats=totals.stats,
        done_before=before,
        seconds=monotonic() - started,
    )


@dataclass(frozen=True)
class _Response:
    """What a prompt led to."""

    trajectory: Trajectory | None
    """None where it was dropped."""
    reason: str | None
    """Why it was dropped."""
    stats: TrajectoryStats


@dataclass
class _OpenPart:
    """A stretch of prompts whose responses are coming in."""

    missing: int
    """Prompts without a response."""
    responses: dict[int, _Response] = field(default_factory=dict)
    """Those that are not in the journal, by the prompt's key."""


class _Session:
    """One call's work: the prompts that are missing, through the model, into the journal."""

    def __init__(
        self,
        config: CollectConfig,
        metadata: CollectionMetadata,
        prompts: PromptSet,
        tokenizer: PreTrainedTokenizerBase,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._config = config
        self._metadata = metadata
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._journal = journal
        self._progress = progress
        self._parts: dict[int, _OpenPart] = {}
        self._kept_at = monotonic()

    def run(self, model: PreTrainedModel) -> None:
        """Respond to every missing prompt."""
        config = self._config
        settings = JacobiSettings(
            n=config.n,
            max_new_tokens=config.max_new_tokens,
            end_token_ids=frozenset(self._metadata.end_token_ids),
            batch_size=config.batch_size,
            seed=config.seed,
            temperature=config.temperature,
        )
        total = len(self._prompts.prompts)
        finished = self._journal.totals().prompts
        counted = TrajectoryStats()
        started = monotonic()
        self._progress(STEP, finished, total)
        for run in jacobi_trajectories(model, self._waiting(), settings):
            self._file(run)
            finished += 1
            counted += count(run)
            speed = counted.tokens / max(monotonic() - started, 1e-9)
            note = f"{speed:,.0f} tokens/s, TPF {counted.tokens_per_forward:.2f}"
            self._progress(STEP, finished, total, note)

    def _waiting(self) -> Iterator[Prompt]:
        """The missing prompts, by length within a part, up and down, so that neighbours in the batch are alike."""
        for number, stretch in enumerate(self._journal.missing(PART_PROMPTS)):
            part = _OpenPart(len(stretch))
            self._parts.update(dict.fromkeys(stretch, part))
            for key in sorted(stretch, key=lambda key: len(self._prompt(key).ids), reverse=number % 2 == 1):
                prompt = self._prompt(key)
                yield Prompt(key, prompt.ids.tolist(), prompt.limit)

    def _prompt(self, key: int) -> CollectionPrompt:
        return self._prompts.prompts[key]

    def _file(self, run: JacobiRun) -> None:
        """Judge a response and put it into its part, which goes into the journal when it is full or takes long."""
        key = run.prompt.key
        part, prompt = self._parts[key], self._prompt(key)
        text = str(self._tokenizer.decode(run.response_ids, skip_special_tokens=True))
        reason = flaw(run, text, open_ended=prompt.open_ended)
        if reason is not None and not self._config.keep_degenerate:
            part.responses[key] = _Response(None, reason, TrajectoryStats())
        else:
            reference = None if prompt.reference_ids is None else prompt.reference_ids.tolist()
            trajectory = to_trajectory(run, reference, self._config.seed if self._config.augment else None)
            part.responses[key] = _Response(trajectory, None, count(run))
        part.missing -= 1
        if not part.missing:
            self._keep(part)
        elif monotonic() - self._kept_at > KEEP_SECONDS:
            self.keep()

    def keep(self) -> None:
        """Put what came in into the journal, although its parts are not full."""
        for part in {id(part): part for part in self._parts.values()}.values():
            self._keep(part)

    def _keep(self, part: _OpenPart) -> None:
        for stretch in _stretches(sorted(part.responses)):
            responses = [part.responses[key] for key in stretch]
            rows = [one.trajectory for one in responses if one.trajectory is not None]
            dropped = Counter(one.reason for one in responses if one.reason is not None)
            self._journal.add(stretch, rows, dropped, sum((one.stats for one in responses), TrajectoryStats()))
            for key in stretch:
                del part.responses[key], self._parts[key]
        self._kept_at = monotonic()


def _stretches(keys: Sequence[int]) -> list[range]:
    """Ascending keys as runs without a gap: in one, a key and its place differ by the same."""
    runs = (list(run) for _, run in groupby(enumerate(keys), lambda pair: pair[1] - pair[0]))
    return [range(run[0][1], run[-1][1] + 1) for run in runs]


def context_of(ref: str) -> int | None:
    """The model's context in tokens, None if its configuration names none."""
    context = getattr(load_config(ref).get_text_config(), "max_position_embeddings", None)
    return None if context is None else int(context)


def device_of(config: CollectConfig) -> torch.device:
    """The device the configuration asks for.

    Raises:
        UsageError: it asks for CUDA and there is none.
    """
    best = best_device()
    if config.device == "cuda" and best.type != "cuda":
        raise UsageError("--device is cuda, and no CUDA GPU can be used here; take cpu or auto")
    return torch.device("cpu") if config.device == "cpu" else best


def precision_of(config: CollectConfig) -> torch.dtype:
    """The type of weights and cache."""
    half = device_of(config).type == "cuda" if config.precision == "auto" else config.precision == "bfloat16"
    return torch.bfloat16 if half else torch.float32


def model_digest(model: PreTrainedModel) -> str:
    """Tells a model from itself before training: a hash of weights sampled evenly from every tensor."""
    digest = blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        values = tensor.detach().flatten()
        sample = values[:: max(1, values.numel() // DIGEST_SAMPLES)].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(tensor.shape)).encode() + sample.tobytes())
    return digest.hexdigest()


def _metadata(
    config: CollectConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prompts: PromptSet
) -> CollectionMetadata:
    ends = end_token_ids(tokenizer, model)
    if not ends:
        logger.warning("neither the tokenizer nor the model names an end token: no response can end")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    template = tokenizer.chat_template if config.chat else None
    return CollectionMetadata(
        n=config.n,
        model=config.model,
        model_digest=model_digest(model),
        tokenizer_digest=tokenizer_digest(tokenizer),
        vocab_size=int(model.config.get_text_config().vocab_size),
        template=None if template is None else str(template),
        seed=config.seed,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        end_token_ids=tuple(sorted(ends)),
        pad_token_id=int(pad),
        augmented=config.augment,
        keep_degenerate=config.keep_degenerate,
        max_prompt_tokens=config.max_prompt_tokens,
        text_prompt_tokens=config.text_prompt_tokens if prompts.has_text else 0,
        version=SAMPLED_VERSION if config.temperature else FORMAT_VERSION,
    )


def _check_kept(journal: Journal, output: Path) -> None:
    totals = journal.totals()
    if not totals.rows:
        # Nothing worth keeping, and the next attempt will have other settings.
        discard(output)
        reasons = ", ".join(f"{number} {reason}" for reason, number in totals.dropped.items())
        raise DataError(
            f"no response could be kept of {totals.prompts}: {reasons}; raise --max-new-tokens, take a model trained "
            "on such prompts, or keep them with `nptool collect --keep-degenerate`"
        )
