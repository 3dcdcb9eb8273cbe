"""Low-rank adapters through peft: put on before training, merged into the weights after it.

Knows no data and no loss. The paper of LoRA is arXiv 2106.09685.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

from transformers import PreTrainedModel

from nptool.errors import UsageError

# Every linear layer of the transformer blocks, not the unembedding.
TARGETS = "all-linear"


def add_adapters(model: PreTrainedModel, rank: int, alpha: float | None = None, dropout: float = 0.0) -> Any:
    """Freeze the model and put adapters on all linear layers of its blocks.

    Args:
        rank: of the update of each matrix.
        alpha: the update is scaled by `alpha / rank`; None is twice the rank.

    Returns:
        The peft model, to be trained in place of `model`.

    Raises:
        UsageError: the rank is larger than the smallest matrix allows.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    limit = model.config.hidden_size
    if not 0 < rank <= limit:
        raise UsageError(f"--lora-rank is {rank}; it must be above 0 and at most {limit}, the model's hidden size")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha if alpha is not None else 2 * rank,
        lora_dropout=dropout,
        target_modules=TARGETS,
        task_type=TaskType.CAUSAL_LM,
    )
    # The embeddings' output must carry a gradient, or checkpointed blocks pass none to the adapters.
    model.enable_input_require_grads()  # type: ignore[no-untyped-call]  # untyped in transformers
    with warnings.catch_warnings():
        # peft still asks transformers by names that transformers has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def merge_adapters(model: Any) -> PreTrainedModel:
    """The plain model with the adapters added to its weights; a model without adapters as it is."""
    if not hasattr(model, "merge_and_unload"):
        return cast("PreTrainedModel", model)
    merged = model.merge_and_unload()
    merged.disable_input_require_grads()
    return cast("PreTrainedModel", merged)
