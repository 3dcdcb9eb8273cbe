"""Training on the plain autoregressive loss: from files to a Hugging Face checkpoint in a run directory.

The order of work: split the data, tokenizer, token sequences, model, a plan of all batches, training, held-out loss.
Interrupted anywhere, the same call goes on; what is finished is not done again.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from nptool.errors import ContextError, DataError
from nptool.files import read_json, write_json
from nptool.progress import Progress, silent
from nptool.provenance import provenance
from nptool.runs import Run
from nptool.training.arguments import count_steps, training_arguments
from nptool.training.base.config import FREE_FIELDS, BaseConfig
from nptool.training.base.corpus import Corpus, load_corpus, unit_texts, write_heldout
from nptool.training.base.evaluation import Evaluation, evaluate
from nptool.training.base.model import new_llama
from nptool.training.base.sequences import Sequences, make_sequences
from nptool.training.base.tokenizer import train_tokenizer
from nptool.training.batches import Rows, batches_in_pass, plan_batches
from nptool.training.checkpoints import (
    check_checkpoint,
    load_config,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from nptool.training.continuation import open_run
from nptool.training.processes import is_main_process, main_process_first, process_count
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
    corpus = load_corpus(config)
    run, finished = open_run(config, KIND, data_digest=corpus.train_digest, free=FREE_FIELDS, run=run)
    if finished:
        logger.info("%s is finished already", run.path)
        return _read_result(run)
    tokenizer = _tokenizer(config, corpus, run, progress)
    train, heldout = _sequences(config, corpus, tokenizer, progress)
    if is_main_process() and corpus.heldout:
        write_heldout(corpus.heldout, run.heldout)
    model = _model(config, tokenizer)
    parameters = model.num_parameters()
    steps, plan = plan_steps(config, train)
    trainer = PlannedTrainer(
        model=model,
        args=training_arguments(config, run, steps),
        train_dataset=BatchList(len(plan), lambda index: train.batch(plan[index], pad_id(tokenizer))),
    )
    seconds = run_trainer(trainer, run, progress, "training the base model").metrics["train_runtime"]
    _save(trainer, tokenizer, run)
    evaluation = (
        evaluate(trainer.model_wrapped, heldout, tokenizer, batch_tokens=config.batch_tokens, progress=progress)
        if heldout is not None and heldout.targets
        else None
    )
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
        **_figures(evaluation),
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


def _tokenizer(config: BaseConfig, corpus: Corpus, run: Run, progress: Progress) -> PreTrainedTokenizerBase:
    if (source := config.model or config.tokenizer) is not None:
        return load_tokenizer(source)
    path = run.checkpoints / "tokenizer"
    with main_process_first():
        if not path.is_dir():
            progress("training the tokenizer", 0, 1)
            texts = (text for unit in corpus.train for text in unit_texts(unit))
            trained = train_tokenizer(texts, config.vocab_size, chat=corpus.has_conversations, digits=config.digits)
            save_tokenizer(trained, path)
            progress("training the tokenizer", 1, 1, f"{len(trained)} tokens")
        return load_tokenizer(path)


def _sequences(
    config: BaseConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> tuple[Sequences, Sequences | None]:
    options: dict[str, Any] = {"context": config.context, "loss": config.loss}
    train = make_sequences(corpus.train, tokenizer, prompt_share=config.prompt_share, progress=progress, **options)
    return train, make_sequences(corpus.heldout, tokenizer, **options) if corpus.heldout else None


def _model(config: BaseConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if config.model is None:
        return new_llama(config, tokenizer)
    return load_model(config.model)


def _save(trainer: PlannedTrainer, tokenizer: PreTrainedTokenizerBase, run: Run) -> None:
    weights = state_dict_of(trainer)
    if is_main_process():
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        save_model(model, tokenizer, run.model, weights)


def _figures(evaluation: Evaluation | None) -> dict[str, Any]:
    if evaluation is None:
        return {"heldout_tokens": None, "heldout_loss": None, "perplexity": None, "bits_per_byte": None}
    return {
        "heldout_tokens": evaluation.tokens,
        "heldout_loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
    }


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
    return BaseResult(**{name: saved[name] for name in BaseResult.__dataclass_fields__})
