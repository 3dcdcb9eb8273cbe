"""Advice by invented costs, and what files say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from random_model import Shape, write_random_model

from nptool.bench.advice import CLLM_REACHED, HEADS_REACHED, Advice, advise, draft_share
from nptool.bench.calibrate import run_calibration
from nptool.bench.prediction import Prediction, plain, predict
from nptool.decoding.adaptive.cost import Calibration
from nptool.decoding.text_model import TextModel
from nptool.llama.gguf_summary import PartSummary, TensorSummary, summarize
from nptool.llama.loading import LoadOptions
from nptool.method_note import BLOCK_SIZE_KEY, METHOD_KEY, Measured, MethodNote

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
FLAT = {width: 1.0 + 0.01 * width for width in WIDTHS}
STEEP = {width: float(width) for width in WIDTHS}


def part(layers: int = 30, kind: str = "F16") -> PartSummary:
    """A model whose draft costs a tenth of a step, if it has 30 layers."""
    tensors = [TensorSummary(f"blk.{number}.ffn_up.weight", (10, 10), kind, 1) for number in range(layers)]
    tensors += [
        TensorSummary("token_embd.weight", (10, 99), kind, 1),
        TensorSummary("output.weight", (10, 25), kind, 1),
        TensorSummary("output_norm.weight", (10,), "F32", 1),
    ]
    return PartSummary("model", 0, 1, None, "llama", layers, 1, {kind: 1}, tuple(tensors))


def test_what_is_needed_and_possible() -> None:
    found = {width.width: width for width in advise(FLAT, part()).widths}
    assert list(found) == [2, 4, 8, 16, 32, 64]
    share = (100 + 250) / (3000 + 250)
    assert draft_share(part()) == pytest.approx(share)
    for width, advice in found.items():
        assert advice.cllm.needed == pytest.approx(FLAT[width] / FLAT[1])
        assert advice.cllm.most == (width + 1) / 2
        assert 1.0 <= advice.cllm.low <= advice.cllm.high <= advice.cllm.most
        if width in CLLM_REACHED:
            assert (advice.cllm.low, advice.cllm.high) == pytest.approx(CLLM_REACHED[width])
        if width > 16:
            assert advice.heads is None
            continue
        assert advice.heads is not None
        assert advice.heads.needed == pytest.approx(advice.cllm.needed * (1 + share))
        assert advice.heads.high <= advice.heads.most == width
        if width in HEADS_REACHED:
            assert (advice.heads.low, advice.heads.high) == pytest.approx(HEADS_REACHED[width])


def test_an_unembedding_that_is_the_embedding_counts_once() -> None:
    whole = part()
    tied = PartSummary(**vars(whole) | {"tensors": tuple(t for t in whole.tensors if t.name != "output.weight")})
    assert draft_share(tied) == pytest.approx((100 + 990) / (3000 + 990))


@pytest.mark.parametrize(
    ("seconds", "kind", "on_gpu", "beginning", "end"),
    [
        (FLAT, "F16", False, "worth it: at 16 rows a model with shared heads needs 1.3 tokens per forward, of at", ""),
        (
            STEEP,
            "Q4_K",
            False,
            "not on this machine in this type: at 2 rows a model with shared heads needs 2.2 tokens per forward, of at "
            "most 2.0, and trained ones reach 1.6 to 1.9: 0.73 to 0.84 times autoregressive decoding; a CLLM, at 2 "
            "rows, 0.71 to 0.73 times; ",
            "try F16",
        ),
        (STEEP, "F16", False, "not on this machine in this type: ", "try a GPU (-ngl -1) or more cores"),
        (STEEP, "F32", True, "not on this machine in this type: ", "try a larger model"),
        ({1: 1.0, 4: 2.6}, "BF16", False, "perhaps: at 4 rows a model with shared heads needs 2.9", "more cores"),
        ({1: 1.0}, "F16", False, "no advice: the time for measuring sufficed for one row only", ""),
    ],
)
def test_the_sentence(seconds: dict[int, float], kind: str, on_gpu: bool, beginning: str, end: str) -> None:
    sentence = advise(seconds, part(kind=kind), on_gpu=on_gpu).sentence
    assert sentence.startswith(beginning)
    assert sentence.endswith(end)


def test_what_the_file_measured_comes_first() -> None:
    slow = Prediction("jacobi", 4, 2.2, 4.0, measured=True)
    assert advise(STEEP, part(kind="Q8_0"), (slow,)).sentence == (
        "not on this machine in this type: at 4 rows this file needs 4.0 tokens per forward and has 2.2 by its own "
        "measurement (jacobi): 0.55 times autoregressive decoding; try F16"
    )
    fast = Prediction("heads", 8, 5.9, 2.0, measured=True)
    assert advise(FLAT, part(), (fast, slow)).sentence.startswith("worth it: at 8 rows this file needs 2.0 tokens")


CALIBRATION = Calibration((128,), (1, 4, 16), ((1.0, 1.5, 2.0),), ((1, 4, 16),))


def test_a_plain_file_predicts_nothing(tiny_gguf: Callable[..., Path]) -> None:
    with TextModel(tiny_gguf()) as model:
        assert predict(model, CALIBRATION) == []
    assert plain(CALIBRATION).rate == 1.0


def test_a_file_with_a_measurement(tmp_path: Path) -> None:
    note = MethodNote("cllm", 16, Measured(4.0, 16))
    path = write_random_model(tmp_path / "m.gguf", Shape(), metadata=note.metadata())
    with TextModel(path) as model:
        (found,) = predict(model, CALIBRATION)
    # A window gains 1.36 times what a block of 16 gains.
    assert (found.method, found.width, found.measured) == ("jacobi", 16, True)
    assert found.tokens == pytest.approx(1 + 1.36 * 3)
    assert found.rate == pytest.approx(found.tokens / 2.0)


def test_a_cllm_without_one_and_heads(tmp_path: Path) -> None:
    cllm = {METHOD_KEY: "cllm", BLOCK_SIZE_KEY: 16}
    path = write_random_model(tmp_path / "m.gguf", Shape(), metadata=cllm, heads=4, counting=3.0)
    with TextModel(path) as model:
        found = {prediction.method: prediction for prediction in predict(model, CALIBRATION)}
    assert set(found) == {"jacobi", "heads"}
    assert not any(prediction.measured for prediction in found.values())
    assert found["jacobi"].tokens == pytest.approx(4.0)
    assert found["heads"].width == 4
    assert found["heads"].seconds > 1.5


def test_a_calibration_has_advice_that_json_can_hold(tiny_gguf: Callable[..., Path]) -> None:
    report = run_calibration(tiny_gguf(), LoadOptions(threads=1))
    assert isinstance(report.advice, Advice)
    assert (
        report.advice.widths
        == advise(
            {width: report.cost_ratio(width) for width in report.calibration.widths},
            summarize(tiny_gguf()).parts[0],
        ).widths
    )
    assert json.loads(json.dumps(report.to_json()))["advice"]["sentence"] == report.advice.sentence
