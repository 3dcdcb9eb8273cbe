"""Chat templates that are chosen when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import nptool
from nptool.errors import DataError, GgufError, UsageError

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße?"}]
CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGrüße?<|im_end|>\n<|im_start|>assistant\n"
JINJA = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}>"


def test_a_name_that_llama_cpp_knows(tiny_gguf: Callable[..., Path]) -> None:
    with nptool.load(tiny_gguf(), chat_template="chatml") as model:
        assert model.encode(MESSAGES).tolist() == model.encode(CHATML, raw=True).tolist()
        assert model.encode("x" * 3000).size > 3000


def test_jinja_as_text_and_in_a_file(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(JINJA, encoding="utf-8")
    for options in ({"chat_template": JINJA}, {"chat_template_file": file}):
        with nptool.load(tiny_gguf(), **options) as model:  # type: ignore[arg-type]  # one of two keywords
            expected = model.encode("[system] Be brief. [user] Grüße? >", raw=True)
            assert model.encode(MESSAGES).tolist() == expected.tolist()


def test_mistakes(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    with (
        nptool.load(tiny_gguf(), chat_template="chatty") as model,
        pytest.raises(UsageError, match=r"--chat-template is 'chatty'; expected Jinja, or one of llama.cpp's .*chatml"),
    ):
        model.encode("x")
    with (
        nptool.load(tiny_gguf(), chat_template_file=file) as model,
        pytest.raises(DataError, match=r"cannot read the chat template .*template.jinja: .*No such file"),
    ):
        model.encode("x")
    file.write_text("{% for %}", encoding="utf-8")
    with (
        nptool.load(tiny_gguf(), chat_template_file=file) as model,
        pytest.raises(GgufError, match=r"the chat template of .*template.jinja is not valid"),
    ):
        model.encode("x")
