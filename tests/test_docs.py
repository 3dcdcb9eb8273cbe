"""The examples of the documents run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nptool

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def test_the_python_examples_run(tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    load = nptool.load
    opened = []

    def small(path: str) -> Any:
        assert path == "runs/text-to-sql/model.gguf"
        opened.append(load(tiny_gguf("f16"), threads=1))
        return opened[-1]

    monkeypatch.setattr(nptool, "load", small, raising=False)
    texts = [page.read_text() for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))]
    blocks = [found for text in texts if (found := re.findall(r"```python\n(.*?)```", text, re.S))]
    assert [len(found) for found in blocks] == [1, 9]
    for found in blocks:
        names: dict[str, Any] = {}
        for block in found:
            exec(block, names)
        opened[-1].close()


def test_the_rows_of_the_table_run(tiny_gguf: Callable[..., Path]) -> None:
    rows = re.findall(r"^\| \w.*? \| `(.*)` \|$", (DOCS / "python.md").read_text(), re.M)
    assert len(rows) == 10
    with nptool.load(tiny_gguf("f16"), threads=1) as model:
        names = {"model": model, "nptool": nptool, "messages": [{"role": "user", "content": "x"}], "ids": [5, 6, 7]}
        for row in rows:
            if row.startswith("nptool.load"):
                assert re.fullmatch(r'nptool\.load\("m\.gguf", gpu_layers=-1\)', row)
            elif row.startswith("for "):
                exec(f"{row}:\n    break", names)
            else:
                eval(row, names)
