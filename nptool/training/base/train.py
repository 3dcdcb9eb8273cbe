"""Training on the plain autoregressive loss: from files to a Hugging Face checkpoint in a run directory.

The order of work: split the data, tokenizer, token sequences, model, a plan of all batches, training, held-out loss.
Interrupted anywhere, the same call goes on; what is finished is not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from nptool.checkpoints import (
    check_checkpoint,
    load_config,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from nptool.errors import ContextError, DataError
from nptool.files import read_json, write_json
from nptool.processes import is_main_process, main_process_first, process_count
from nptool.progress import Progress, silent
from nptool.provenance import provenance
from nptool.runs import Run
from nptool.training.arguments import count_steps, training_arguments
from nptool.training.base.config import BYTES, FREE_FIELDS, SMALLEST_VOCABULARY, BaseConfig
from nptool.training.base.corpus import Corpus, Unit, load_corpus, unit_texts, write_heldout
from nptool.training.base.evaluation import Evaluation, evaluate
from nptool.training.base.model import new_llama
from nptool.training.base.multi_head import count_heads, head_1, start_multi_head
from nptool.training.base.sequences import Sequences, make_sequences
from nptool.training.base.tokenizer import train_tokenizer
from nptool.training.batches import Rows, batches_in_pass, plan_batches
from nptool.training.continuation import open_run
from nptool.training.heads.batching import heads_batch
from nptool.training.heads.checkpoint import save_heads
from nptool.training.heads.evaluation import HeadsEvaluation, evaluate_heads
from nptool.training.heads.model import MultiHead
from nptool.training.heads.trainer import HeadsTrainer
from nptool.training.trainer import BatchList, PlannedTrainer, remove_checkpoints, run_trainer, state_dict_of

logger = logging.getLogger(__name__)

KIND = "base"


@dataclass(frozen=True)
class BaseResult:
    """What a training gave; saved as the run's results."""

    run: str
    model: str
    parameters: int
    steps: int
    tokens: int
    """Input tokens seen in all steps, padding not counted."""
    skipped_records: int
    heldout_tokens: int | None
    heldout_loss: float | None
    """Nats per token."""
    perplexity: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    """Of the training itself, in the process that finished it."""
    seconds: float
    """Of the training itself, in the process that finished it."""
    heads: int = 1
    """n, head 1 included; `heldout_loss` is head 1's."""
    head_loss: tuple[float, ...] | None = None
    """Held out, of each head, nats per token; None without extra heads or held-out data."""
    top1: tuple[float, ...] | None = None
    top5: tuple[float, ...] | None = None
    """Share of tokens among each head's first choice, and its first five."""


def train_base(config: BaseConfig, progress: Progress = silent, run: Run | None = None) -> BaseResult:
    """Train, or go on with, the run that `config` describes; a finished run's result is returned as it is.

    Args:
        run: where to work instead of `runs/<config.run_name>`.

    Raises:
        DataError: the data cannot be used.
        CheckpointError: the model or tokenizer to go on from cannot be used.
        UsageError: the run directory holds another configuration.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    set_seed(config.seed)
    progress = progress if is_main_process() else silent
    if config.model is not None:
        check_checkpoint(config.model)
        check_context(config, load_config(config.model))
    heads = count_heads(config)
    corpus = load_corpus(config)
    run, finished = open_run(config, KIND, data_digest=corpus.train_digest, free=FREE_FIELDS, run=run)
    if finished:
        logger.info("%s is finished already", run.path)
        return _read_result(run)
    tokenizer = _tokenizer(config, corpus, run, progress)
    train, heldout = _sequences(config, corpus, tokenizer, progress)
    if is_main_process() and corpus.heldout:
        write_heldout(corpus.heldout, run.heldout)
    model = _model(config, heads, tokenizer)
    parameters = sum(weight.numel() for weight in model.parameters())
    steps, plan = plan_steps(config, train)
    trainer = _trainer(config, model, train, plan, tokenizer, run, steps)
    seconds = run_trainer(trainer, run, progress, "training the base model").metrics["train_runtime"]
    figures = _save_and_evaluate(config, trainer, heldout, tokenizer, run, progress)
    done = trainer.state.global_step - trainer.first_step
    result = BaseResult(
        run=str(run.path),
        model=str(run.model),
        parameters=parameters,
        steps=steps,
        tokens=_tokens(train, plan),
        skipped_records=train.skipped,
        tokens_per_second=_tokens(train, plan[len(plan) - done * len(plan) // steps :]) / seconds if done else None,
        seconds=seconds,
        heads=heads,
        **figures,
    )
    _finish(result, run)
    return result


def plan_steps(config: BaseConfig, train: Sequences) -> tuple[int, list[Rows]]:
    """Number of optimizer steps, and the batches of all of them and all processes.

    Raises:
        DataError: there is nothing to train on.
    """
    if not train.targets:
        raise DataError(
            f"nothing to train on: all {train.skipped} records are empty or longer than {config.context} tokens; "
            "raise --context"
        )
    steps = count_steps(config, batches_in_pass(train.lengths, config.batch_tokens))
    count = steps * config.accumulation * process_count()
    return steps, plan_batches(train.lengths, config.batch_tokens, count, config.seed)


def check_context(config: BaseConfig, described: PretrainedConfig) -> None:
    """Check that a finished model has positions for the wanted context.

    Raises:
        ContextError: it has not.
    """
    limit = getattr(described.get_text_config(), "max_position_embeddings", None)
    if limit is not None and config.context > limit:
        raise ContextError(f"--context is {config.context}; {config.model} has positions for {limit} tokens")


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id serves: pads are neither seen nor trained."""
    return int(tokenizer.pad_token_id or 0)


def _sequences(
    config: BaseConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> tuple[Sequences, Sequences | None]:
    options: dict[str, Any] = {"context": config.context, "loss": config.loss}
    train = make_sequences(corpus.train, tokenizer, prompt_share=config.prompt_share, progress=progress, **options)
    return train, make_sequences(corpus.heldout, tokenizer, **options) if corpus.heldout else None


def tokenizer_source(config: BaseConfig) -> str | None:
    """Where a finished tokenizer is; None where one is made here."""
    return config.model or (None if config.tokenizer == BYTES else config.tokenizer)


def new_tokenizer(config: BaseConfig, units: Sequence[Unit], *, chat: bool) -> PreTrainedTokenizerBase:
    """A tokenizer trained on `units`, or one of single bytes."""
    size = SMALLEST_VOCABULARY if config.tokenizer == BYTES else config.vocab_size
    texts = (text for unit in units for text in unit_texts(unit))
    return train_tokenizer(texts, size, chat=chat, digits=config.digits)


def _tokenizer(config: BaseConfig, corpus: Corpus, run: Run, progress: Progress) -> PreTrainedTokenizerBase:
    if (source := tokenizer_source(config)) is not None:
        return load_tokenizer(source)
    path = run.checkpoints / "tokenizer"
    with main_process_first():
        if not path.is_dir():
            progress("training the tokenizer", 0, 1)
            trained = new_tokenizer(config, corpus.train, chat=corpus.has_conversations)
            save_tokenizer(trained, path)
            progress("training the tokenizer", 1, 1, f"{len(trained)} tokens")
        return load_tokenizer(path)


def _model(config: BaseConfig, heads: int, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | MultiHead:
    if heads > 1:
        return start_multi_head(config, heads, tokenizer)
    return new_llama(config, tokenizer) if config.model is None else load_model(config.model)


def _trainer(
    config: BaseConfig,
    model: PreTrainedModel | MultiHead,
    train: Sequences,
    plan: list[Rows],
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    steps: int,
) -> PlannedTrainer:
    arguments, pad = training_arguments(config, run, steps), pad_id(tokenizer)
    if isinstance(model, MultiHead):
        batches = BatchList(len(plan), lambda index: heads_batch(train, plan[index], pad, model.count))
        return HeadsTrainer(model, args=arguments, train_dataset=batches)
    batches = BatchList(len(plan), lambda index: train.batch(plan[index], pad))
    return PlannedTrainer(model=model, args=arguments, train_dataset=batches)


def _save_and_evaluate(
    config: BaseConfig,
    trainer: PlannedTrainer,
    heldout: Sequences | None,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    progress: Progress,
) -> dict[str, Any]:
    """Write the checkpoint; returns the held-out figures. Those of extra heads belong into the checkpoint."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    options: dict[str, Any] = {"batch_tokens": config.batch_tokens, "progress": progress}
    if heldout is not None and not heldout.targets:
        heldout = None
    if isinstance(model, MultiHead):
        of_heads = evaluate_heads(model, heldout, **options) if heldout is not None else None
        if is_main_process():
            save_heads(model, tokenizer, run.model, of_heads.accuracy[1:] if of_heads else ())
        evaluation = head_1(of_heads, heldout, tokenizer) if of_heads and heldout else None
        return _figures(evaluation) | _figures_of_heads(of_heads)
    weights = state_dict_of(trainer)
    if is_main_process():
        save_model(model, tokenizer, run.model, weights)
    if heldout is None:
        return _figures(None)
    return _figures(evaluate(trainer.model_wrapped, heldout, tokenizer, **options))


def _figures(evaluation: Evaluation | None) -> dict[str, Any]:
    if evaluation is None:
        return {"heldout_tokens": None, "heldout_loss": None, "perplexity": None, "bits_per_byte": None}
    return {
        "heldout_tokens": evaluation.tokens,
        "heldout_loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
    }


def _figures_of_heads(evaluation: HeadsEvaluation | None) -> dict[str, Any]:
    if evaluation is None:
        return {}
    return {"head_loss": evaluation.loss, "top1": evaluation.top(1), "top5": evaluation.top(5)}


def _tokens(train: Sequences, plan: list[Rows]) -> int:
    lengths = train.lengths
    return sum(int(lengths[rows].sum()) for rows in plan)


def _finish(result: BaseResult, run: Run) -> None:
    if is_main_process():
        write_json(run.results, {"kind": KIND, **asdict(result), "provenance": provenance()})
        run.publish()
    remove_checkpoints(run)


def _read_result(run: Run) -> BaseResult:
    saved = read_json(run.results)
    # Runs from before there were heads have no figures of them.
    values = {name: saved[name] for name in BaseResult.__dataclass_fields__ if name in saved}
    of_heads = {name: tuple(values[name]) for name in ("head_loss", "top1", "top5") if values.get(name) is not None}
    return BaseResult(**values | of_heads)
