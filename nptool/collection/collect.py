"""`nptool collect`: a model's responses to the prompts of a data set with their Jacobi trajectories, in a Parquet file.

Responses are kept in parts as they finish, so an interrupted collection continues where it stopped.
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
from nptool.collection.prompts import PromptSet, load_prompts
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
# A part that takes longer than this is written before it is full.
KEEP_SECONDS = 300.0
# Weights sampled from each tensor for the model's digest: enough to detect any further training.
DIGEST_SAMPLES = 1024


@dataclass(frozen=True)
class CollectResult:
    """Counts over all calls of a collection; `done_before` and `seconds` tell this call from earlier ones."""

    path: Path
    prompts: int
    rows: int
    dropped: dict[str, int]
    """Responses that are not in `rows`, by reason."""
    left_out: dict[str, int]
    """Records that gave no prompt, by reason."""
    stats: TrajectoryStats
    done_before: int
    seconds: float


def collect(config: CollectConfig, progress: Progress = silent) -> CollectResult:
    """Collect into `config.output`, or continue an interrupted collection there.

    Raises:
        DataError: the data is missing, malformed or empty, or no response could be kept.
        CheckpointError: the model cannot be used.
        ContextError: a prompt does not fit the model's context.
        UsageError: the output holds another collection; the message names the setting that differs.
        KeyboardInterrupt: interrupted, after the finished responses were written.
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
        session = _Session(config, prompts, tokenizer, journal, progress)
        try:
            session.run(model, frozenset(metadata.end_token_ids))
        except KeyboardInterrupt:
            session.keep()
            done = journal.totals().prompts
            same = "the same command without --overwrite" if config.overwrite else "the same command"
            raise KeyboardInterrupt(
                f"interrupted with {done} of {len(prompts.prompts)} prompts done; {same} continues from there"
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


@dataclass
class _Session:
    """The work of one call: runs the missing prompts through the model, and writes the responses into the journal."""

    config: CollectConfig
    prompts: PromptSet
    tokenizer: PreTrainedTokenizerBase
    journal: Journal
    progress: Progress
    waiting: dict[int, range] = field(default_factory=dict)
    """Keys of the prompts without a response, and the part that each belongs to."""
    responses: dict[int, tuple[Trajectory, TrajectoryStats] | str] = field(default_factory=dict)
    """Responses that are not in the journal, by key; of a dropped one, the reason."""
    kept_at: float = field(default_factory=monotonic)

    def run(self, model: PreTrainedModel, ends: frozenset[int]) -> None:
        """Respond to every missing prompt."""
        config = self.config
        settings = JacobiSettings(
            config.n, config.max_new_tokens, ends, config.batch_size, config.seed, config.temperature
        )
        total = len(self.prompts.prompts)
        finished = self.journal.totals().prompts
        counted = TrajectoryStats()
        started = monotonic()
        self.progress(STEP, finished, total)
        for run in jacobi_trajectories(model, self._missing(), settings):
            self._add(run)
            finished += 1
            counted += count(run)
            speed = counted.tokens / max(monotonic() - started, 1e-9)
            self.progress(STEP, finished, total, f"{speed:,.0f} tokens/s, TPF {counted.tokens_per_forward:.2f}")

    def keep(self) -> None:
        """Write all responses into the journal, although their parts are not complete."""
        self._write(sorted(self.responses))

    def _missing(self) -> Iterator[Prompt]:
        """The missing prompts, sorted by length up and down in turns, so that a batch has similar lengths."""
        for number, part in enumerate(self.journal.missing(PART_PROMPTS)):
            self.waiting.update(dict.fromkeys(part, part))
            prompts = [(key, self.prompts.prompts[key]) for key in part]
            for key, prompt in sorted(prompts, key=lambda pair: len(pair[1].ids), reverse=number % 2 == 1):
                yield Prompt(key, prompt.ids.tolist(), prompt.limit)

    def _add(self, run: JacobiRun) -> None:
        """Take a response, and write its part when it is complete."""
        key, config = run.prompt.key, self.config
        prompt = self.prompts.prompts[key]
        text = str(self.tokenizer.decode(run.response_ids, skip_special_tokens=True))
        reason = flaw(run, text, open_ended=prompt.open_ended)
        if reason is not None and not config.keep_degenerate:
            self.responses[key] = reason
        else:
            trajectory = to_trajectory(run, prompt.reference_ids, config.seed if config.augment else None)
            self.responses[key] = (trajectory, count(run))
        part = self.waiting.pop(key)
        if not any(other in self.waiting for other in part):
            self._write([other for other in part if other in self.responses])
        elif monotonic() - self.kept_at > KEEP_SECONDS:
            self.keep()

    def _write(self, keys: Sequence[int]) -> None:
        """Write the responses to some prompts, one part for each range of ascending keys without a gap."""
        for _, run in groupby(enumerate(keys), lambda pair: pair[1] - pair[0]):
            stretch = [key for _, key in run]
            responses = [self.responses[key] for key in stretch]
            kept = [response for response in responses if not isinstance(response, str)]
            dropped = Counter(response for response in responses if isinstance(response, str))
            stats = sum((stats for _, stats in kept), TrajectoryStats())
            rows = [trajectory for trajectory, _ in kept]
            self.journal.add(range(stretch[0], stretch[-1] + 1), rows, dropped, stats)
            # Only now: an interruption must not lose them.
            for key in stretch:
                del self.responses[key]
        self.kept_at = monotonic()


def context_of(ref: str) -> int | None:
    """The model's context in tokens, None if the configuration has none."""
    context = getattr(load_config(ref).get_text_config(), "max_position_embeddings", None)
    return None if context is None else int(context)


def device_of(config: CollectConfig) -> torch.device:
    """The device to run the model on; UsageError if `config` asks for CUDA and there is none."""
    best = best_device()
    if config.device == "cuda" and best.type != "cuda":
        raise UsageError("--device is cuda, and no CUDA GPU can be used here; take cpu or auto")
    return torch.device("cpu") if config.device == "cpu" else best


def precision_of(config: CollectConfig) -> torch.dtype:
    """The type of weights and cache."""
    half = device_of(config).type == "cuda" if config.precision == "auto" else config.precision == "bfloat16"
    return torch.bfloat16 if half else torch.float32


def model_digest(model: PreTrainedModel) -> str:
    """Hash of weights sampled evenly from every tensor, which any training changes."""
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
    has_text = any(prompt.open_ended for prompt in prompts.prompts)
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
        text_prompt_tokens=config.text_prompt_tokens if has_text else 0,
        version=SAMPLED_VERSION if config.temperature else FORMAT_VERSION,
    )


def _check_kept(journal: Journal, output: Path) -> None:
    totals = journal.totals()
    if totals.rows:
        return
    # Other settings must not be refused because of these parts.
    discard(output)
    reasons = ", ".join(f"{number} {reason}" for reason, number in totals.dropped.items())
    raise DataError(
        f"no response could be kept of {totals.prompts}: {reasons}; raise --max-new-tokens, take a model trained "
        "on such prompts, or keep them with `nptool collect --keep-degenerate`"
    )
