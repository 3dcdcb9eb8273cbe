"""Random small configurations: checkpoint -> GGUF -> the logits of every head, and of the model, are the checkpoint's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nptool.convert.conversion import convert
from nptool.llama.gguf_parts import find_parts, require_heads

EXAMPLES = int(os.environ.get("NPTOOL_HEADS_EXAMPLES", "20"))
"""More than CI's by hand: NPTOOL_HEADS_EXAMPLES=500."""
F32_TOLERANCE = 1e-3
"""Of the logits' spread, for a head. A model adds up the rounding of its layers: 5e-3."""


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, int, dict[str, Any]]:
    """Architecture, heads in all, sizes."""
    architecture = draw(st.sampled_from(["Llama", "Mistral", "Qwen2", "Qwen3"]))
    key_value_heads = draw(st.integers(1, 3))
    heads = key_value_heads * draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([8, 16, 32]))
    sizes = {
        "hidden_size": heads * head_dim,
        "head_dim": head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(2, 40)) * 4,
        "vocab_size": draw(st.integers(490, 700)),
        "tie_word_embeddings": draw(st.booleans()),
        "max_position_embeddings": draw(st.sampled_from([128, 2048])),
    }
    return f"{architecture}ForCausalLM", draw(st.integers(2, 5)), sizes


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=configurations())
def test_random_configurations(
    drawn: tuple[str, int, dict[str, Any]], make_checkpoint: Callable[..., Path], add_heads: Callable[..., Path]
) -> None:
    architecture, count, sizes = drawn
    directory = add_heads(make_checkpoint(architecture, **dict(sizes)), count)
    with tempfile.TemporaryDirectory() as folder:
        done = convert(directory, Path(folder) / "model.gguf", type_name="f32")
        heads = require_heads(find_parts(done.path), count)
    assert done.verification is not None
    assert done.heads is not None
    assert done.heads.logits is not None
    assert len(heads) == len(done.heads.logits) == count - 1
    assert max(logits.relative for logits in done.heads.logits) < F32_TOLERANCE
    assert done.verification.logits.relative < 5 * F32_TOLERANCE
