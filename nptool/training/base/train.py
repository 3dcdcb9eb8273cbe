"""Training on the autoregressive loss: from files to a Hugging Face checkpoint in a run directory.

In order: split the data, tokenizer, token sequences, model, a plan of all batches, training, held-out loss. An
interrupted call can be repeated at any point; finished parts are not done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from nptool.checkpoints import check_checkpoint, load_config, load_model, load_tokenizer, save_model, save_tokenizer
from nptool.errors import ContextError, DataError, UsageError
from nptool.heads import NEXTN, read_heads_info
from nptool.processes import is_main_process, main_process_first
from nptool.progress import Progress, silent
from nptool.runs import Run
from nptool.training.arguments import training_arguments
from nptool.training.base.config import BYTES, SMALLEST_VOCABULARY, BaseConfig
from nptool.training.base.corpus import Corpus, load_corpus
from nptool.training.base.evaluation import Evaluation, evaluate, target_bytes
from nptool.training.base.model import new_llama
from nptool.training.base.tokenizer import train_tokenizer
from nptool.training.batches import Rows, plan_steps
from nptool.training.continuation import TrainingResult, finish_run, open_run, read_result
from nptool.training.heads.batching import heads_batch
from nptool.training.heads.checkpoint import load_heads, save_heads
from nptool.training.heads.evaluation import evaluate_heads
from nptool.training.heads.model import MultiHead, move_layers
from nptool.training.heads.trainer import HeadsTrainer
from nptool.training.muon import optimizers
from nptool.training.sequences import Sequences, make_sequences
from nptool.training.trainer import BatchList, PlannedTrainer, pad_id, run_trainer, state_dict_of
from nptool.training.units import Unit, unit_texts, write_heldout


@dataclass(frozen=True, kw_only=True)
class BaseResult(TrainingResult):
    """Held-out figures are None without held-out data."""

    skipped_records: int
    heldout_tokens: int | None = None
    heldout_loss: float | None = None
    """Nats per token; of head 1."""
    perplexity: float | None = None
    bits_per_byte: float | None = None
    heads: int = 1
    """n, including head 1."""
    head_loss: tuple[float, ...] | None = None
    """Held-out loss of each head, nats per token; None without extra heads."""
    top1: tuple[float, ...] | None = None
    top5: tuple[float, ...] | None = None
    """Share of held-out tokens that are each head's first choice, or among its first five."""


def train_base(config: BaseConfig, progress: Progress = silent, run: Run | None = None) -> BaseResult:
    """Train or resume `run`, by default `runs/<config.run_name>`; a finished run's result is returned as it is.

    Raises:
        NptoolError: data, model or options cannot be used, or the run directory holds another configuration.
        KeyboardInterrupt: Ctrl-C; the message says how to resume.
    """
    set_seed(config.seed)
    progress = progress if is_main_process() else silent
    if config.model is not None:
        check_checkpoint(config.model)
        check_context(config, load_config(config.model))
    heads = count_heads(config)
    corpus = load_corpus(config)
    run, finished = open_run(config, corpus.train_digest, run)
    if finished:
        return read_result(run, BaseResult)
    tokenizer = _tokenizer(config, corpus, run, progress)
    options: dict[str, Any] = {
        "context": config.context,
        "loss": config.loss,
        "max_bad_share": config.max_bad_share,
    }
    train = make_sequences(corpus.train, tokenizer, prompt_share=config.prompt_share, progress=progress, **options)
    if not train.targets:
        raise DataError(
            f"nothing to train on: all {train.skipped} records are empty or longer than {config.context} tokens; "
            "raise --context"
        )
    heldout = make_sequences(corpus.heldout, tokenizer, **options) if corpus.heldout else None
    if is_main_process() and corpus.heldout:
        write_heldout(corpus.heldout, run.heldout)
    model = _model(config, heads, tokenizer)
    parameters = sum(weight.numel() for weight in model.parameters())
    steps, plan = plan_steps(config, train.lengths)
    trainer = _trainer(config, model, train, plan, tokenizer, run, steps)
    seconds = run_trainer(trainer, run, progress, "training the base model")
    figures = _save_and_evaluate(config, trainer, heldout, tokenizer, run, progress)
    tokens = [int(train.lengths[rows].sum()) for rows in plan]
    result = BaseResult(
        parameters=parameters,
        skipped_records=train.skipped,
        heads=heads,
        **trainer.run_figures(run, tokens, seconds),
        **figures,
    )
    finish_run(run, config.KIND, result)
    return result


def count_heads(config: BaseConfig) -> int:
    """Heads that are trained, including head 1.

    Raises:
        UsageError: the model to start from has another number of heads, or a NextN block.
        CheckpointError: its heads do not fit it.
    """
    info = read_heads_info(Path(config.model)) if config.model is not None else None
    if config.model is None or config.heads == 1:
        return config.heads or 1
    if info is None:
        if config.heads is None:
            return 1
        raise UsageError(
            f"{config.model} has no extra heads; train some with `nptool train heads -m {config.model}`, or leave "
            "--heads out"
        )
    if info.kind == NEXTN:
        raise UsageError(
            f"{config.model} has a NextN block, which is not trained with its model; give --heads 1 to go on without "
            "it, and train a new one afterwards"
        )
    if config.heads not in (None, info.count):
        raise UsageError(
            f"{config.model} has {info.count} heads, --heads is {config.heads}; give --heads {info.count}, or 1 to go "
            "on without them"
        )
    return info.count


def check_context(config: BaseConfig, described: PretrainedConfig) -> None:
    """Raise `ContextError` unless a finished model has positions for the configured context."""
    limit = getattr(described.get_text_config(), "max_position_embeddings", None)
    if limit is not None and config.context > limit:
        raise ContextError(f"--context is {config.context}; {config.model} has positions for {limit} tokens")


def tokenizer_source(config: BaseConfig) -> str | None:
    """Directory or Hub id of a finished tokenizer; None if one is made here."""
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
    if config.model is None:
        model = new_llama(config, tokenizer)
        return move_layers(model, heads) if heads > 1 else model
    return load_heads(Path(config.model)) if heads > 1 else load_model(config.model)


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
    return PlannedTrainer(model=model, args=arguments, train_dataset=batches, optimizers=optimizers(config, model))


def _save_and_evaluate(
    config: BaseConfig,
    trainer: PlannedTrainer,
    heldout: Sequences | None,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    progress: Progress,
) -> dict[str, Any]:
    """Write the checkpoint, in which extra heads are saved with their figures; returns the held-out figures."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    options: dict[str, Any] = {"batch_tokens": config.batch_tokens, "progress": progress}
    if heldout is not None and not heldout.targets:
        heldout = None
    if isinstance(model, MultiHead):
        of_heads = evaluate_heads(model, heldout, **options) if heldout is not None else None
        if is_main_process():
            save_heads(model, tokenizer, run.model, of_heads.accuracy[1:] if of_heads else ())
        if of_heads is None or heldout is None:
            return {}
        head_1 = Evaluation(of_heads.tokens[0], of_heads.loss[0], sum(target_bytes(heldout, tokenizer)))
        return _figures(head_1) | {"head_loss": of_heads.loss, "top1": of_heads.top(1), "top5": of_heads.top(5)}
    weights = state_dict_of(trainer)
    if is_main_process():
        save_model(model, tokenizer, run.model, weights)
    return _figures(evaluate(trainer.model_wrapped, heldout, tokenizer, **options)) if heldout is not None else {}


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "heldout_tokens": evaluation.tokens,
        "heldout_loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
    }
