"""Loading, vocabulary and metadata of a GGUF through llama.cpp."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import CHAT_TEMPLATE, SPECIAL_TOKENS, Shape, byte_level_vocabulary
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nptool.errors import GgufError
from nptool.llama.context import Context
from nptool.llama.gguf_check import read_header
from nptool.llama.gguf_parts import Part, part_start
from nptool.llama.loading import LoadOptions
from nptool.llama.model import Model


@pytest.fixture(scope="module")
def model(tiny_gguf: Callable[..., Path]) -> Iterator[Model]:
    with Model.load(tiny_gguf("f16", metadata={"nptool.block_size": 16})) as model:
        yield model


@pytest.mark.parametrize(("layers", "given"), [(0, [None]), (-1, None), (3, None)])
def test_without_layers_on_a_gpu_llama_cpp_is_given_no_device(
    layers: int, given: list[None] | None, tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = llama_cpp.llama_model_load_from_file
    lists: list[list[int | None] | None] = []

    def spy(path: bytes, parameters: Any) -> Any:
        devices = parameters.devices
        # A list of devices ends with a NULL; none at all leaves the choice to llama.cpp.
        lists.append(ctypes.cast(devices, ctypes.POINTER(ctypes.c_void_p))[:1] if devices else None)
        return load(path, parameters)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", spy)
    Model.load(tiny_gguf("f16"), LoadOptions(gpu_layers=layers)).close()
    assert lists == [given]


def test_what_the_file_says(model: Model) -> None:
    assert model.vocabulary_size == 320
    assert model.context_length == 1024
    assert re.fullmatch(r"llama 0\.\d+M F16", model.description)
    assert model.header.metadata["nptool.block_size"] == 16
    assert model.chat_template == CHAT_TEMPLATE
    assert (model.bos, model.eos, model.adds_bos) == (0, 1, False)
    assert model.end_tokens == {1}
    assert [model.token_text(token) for token in range(6)] == list(SPECIAL_TOKENS)


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=60)
def test_every_text_comes_back(model: Model, text: str) -> None:
    ids = model.tokenize(text)
    assert ids.dtype == np.int32
    assert model.detokenize(ids) == text.encode()


def test_tokenization_is_that_of_tokenizers(model: Model) -> None:
    tokens, merges = byte_level_vocabulary(320)
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    reference = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    for text in ("a cab and a bad idea", "naïve café\n\tdéjà vu 漢字 😀", "x = [1, 22, 333]\n", "  a  b   c"):
        assert model.tokenize(text).tolist() == reference.encode(text).ids


def test_special_tokens_are_read_only_on_request(model: Model) -> None:
    assert model.tokenize("<|user|>a<|end|>", parse_special=True).tolist() == [2, model.tokenize("a")[0], 1]
    assert model.detokenize(model.tokenize("<|end|>")) == b"<|end|>"
    assert model.piece(1) == b""
    assert model.piece(1, special=True) == b"<|end|>"
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.piece(320)


def test_a_file_that_llama_cpp_refuses_is_named_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(path, "abacus")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match=r"cannot load .*strange\.gguf: .*unknown model architecture: 'abacus'"):
        Model.load(path)


@pytest.mark.parametrize(
    ("vocabulary", "left_out", "reason"),
    [
        (330, "", r"'token_embd\.weight' has wrong shape; expected +64, +330, got +64, +320"),
        (320, "ffn_up", r"'blk\.0\.ffn_up\.weight' not found"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, vocabulary: int, left_out: str, reason: str) -> None:
    """A tokenizer larger than the embedding, and a missing tensor."""
    shape = Shape()
    writer = gguf.GGUFWriter(tmp_path / "misfit.gguf", "llama")
    random_model._add_sizes(writer, shape)
    random_model._add_tokenizer(writer, vocabulary, None, False)
    for name, tensor in random_model._tensors(shape, np.random.default_rng(0), 1.0):
        if not left_out or left_out not in name:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match=rf"cannot load .*misfit\.gguf: .*{reason}"):
        Model.load(tmp_path / "misfit.gguf")


def test_closing_twice_is_harmless_and_use_after_it_is_an_error(tiny_gguf: Callable[..., Path]) -> None:
    model = Model.load(tiny_gguf())
    model.close()
    model.close()
    for use in (lambda: model.pointer, lambda: model.tokenize("a"), lambda: model.piece(9), lambda: model.end_tokens):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_closing_a_model_closes_its_contexts(tiny_gguf: Callable[..., Path]) -> None:
    model = Model.load(tiny_gguf())
    context = Context(model, 64, threads=1)
    model.close()
    with pytest.raises(ValueError, match="closed"):
        context.clear()


def test_nothing_is_printed(tiny_gguf: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    Model.load(tiny_gguf()).close()
    assert capfd.readouterr() == ("", "")


def test_a_model_after_another_one(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    """A model loaded from inside a file has the same logits as one loaded from its own file."""
    first, second = tiny_gguf(seed=1), tiny_gguf(seed=2)
    path = tmp_path / "two.gguf"
    content = first.read_bytes()
    content += bytes(part_start(len(content)) - len(content))
    path.write_bytes(content + second.read_bytes())
    header = read_header(path, len(content))
    assert header.metadata == read_header(second).metadata
    part = Part(header.offset, header.data_end - header.offset, header)
    ids = np.arange(20, dtype=np.int32)
    with Model.load(second) as model, Context(model, 64) as context:
        expected = context.evaluate(ids, 0).copy()
    with Model.load_part(part.header) as model, Context(model, 64) as context:
        assert np.array_equal(context.evaluate(ids, 0), expected)
    with Model.load(path) as model, Context(model, 64) as context:
        assert not np.array_equal(context.evaluate(ids, 0), expected)


def test_a_part_that_llama_cpp_refuses(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "two.gguf"
    content = tiny_gguf().read_bytes()
    content += bytes(part_start(len(content)) - len(content))
    path.write_bytes(content + tiny_gguf().read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_up.wrong_"))
    header = read_header(path, len(content))
    with pytest.raises(GgufError, match=rf"cannot load the head at byte {len(content)} of .*two\.gguf: .*ffn_up"):
        Model.load_part(header)
    path.unlink()
    with pytest.raises(GgufError, match=r"cannot read .*two\.gguf: No such file"):
        Model.load_part(header)
