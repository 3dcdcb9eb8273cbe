"""Hugging Face `TrainingArguments` from a `TrainingConfig`, for every kind of training."""

from __future__ import annotations

import logging

import torch
from transformers import PretrainedConfig, TrainingArguments

from nptool.runs import Run
from nptool.settings import Precision
from nptool.training.config import TrainingConfig

logger = logging.getLogger(__name__)

# A crash may truncate the newest checkpoint; the one before it is complete.
CHECKPOINTS_KEPT = 2


def training_arguments(config: TrainingConfig, run: Run, steps: int) -> TrainingArguments:
    """The Trainer's arguments for `steps` optimizer steps in all.

    The batch size is 1, because each item of the data set is a whole batch (see `nptool.training.trainer`).
    """
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.min_lr_ratio},
        warmup_steps=round(config.warmup * steps),
        optim="adamw_torch_fused",
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        bf16=uses_bfloat16(config.precision),
        use_cpu=not cuda and not torch.backends.mps.is_available(),
        seed=config.seed,
        save_steps=config.save_every,
        save_total_limit=CHECKPOINTS_KEPT,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="all",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        log_level="error",
        activation_checkpointing=config.gradient_checkpointing,
    )
    if arguments.n_gpu > 1:
        # The Trainer would split every batch with DataParallel, but a packed batch cannot be split.
        logger.warning("one of %d GPUs is used; `accelerate launch -m nptool ...` uses them all", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


def uses_bfloat16(precision: Precision) -> bool:
    """Whether forward and backward passes run in bfloat16 (autocast; trained weights stay float32)."""
    if precision != "auto":
        return precision == "bfloat16"
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def native_bfloat16() -> bool:
    """Whether there is a GPU, or a CPU with AVX512-BF16. On others bfloat16 is emulated and slow."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


def frozen_type(precision: Precision, described: PretrainedConfig) -> torch.dtype:
    """The type that weights which are not trained are kept in.

    bfloat16 where passes run in bfloat16 and the checkpoint itself stores half precision, float32 otherwise.
    """
    stored_half = described.dtype in (torch.bfloat16, torch.float16)
    return torch.bfloat16 if stored_half and uses_bfloat16(precision) else torch.float32
