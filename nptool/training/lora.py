"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: added before training, merged into the weights after it."""

from __future__ import annotations

import warnings
from typing import Any, cast

from transformers import PreTrainedModel

from nptool.errors import UsageError


def add_adapters(model: PreTrainedModel, rank: int) -> Any:
    """Freeze the model and add adapters, scaled by 2, to all linear layers of its blocks.

    Returns:
        The peft model, to be trained instead of `model`.

    Raises:
        UsageError: the rank is not between 1 and the hidden size.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    limit = model.config.hidden_size
    if not 0 < rank <= limit:
        raise UsageError(f"--lora-rank is {rank}; it must be above 0 and at most {limit}, the model's hidden size")
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type=TaskType.CAUSAL_LM
    )
    # Without a gradient at the embeddings' output, checkpointed blocks would pass none to the adapters.
    model.enable_input_require_grads()  # type: ignore[no-untyped-call]  # untyped in transformers
    with warnings.catch_warnings():
        # peft still uses names that transformers has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def merge_adapters(model: Any) -> PreTrainedModel:
    """The plain model with the adapters added to its weights."""
    merged = model.merge_and_unload()
    merged.disable_input_require_grads()
    return cast("PreTrainedModel", merged)
