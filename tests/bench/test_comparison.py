"""The measurement on a scripted engine whose clock only its batches move."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nptool.bench.aggregation import summarize
from nptool.bench.comparison import Comparison, compare, in_turn
from nptool.bench.cost import StepCosts
from nptool.bench.report import MethodReport
from nptool.bench.variants import Variant
from nptool.decoding.answer import Answer, DecodeConfig
from nptool.decoding.decoder import Decoder
from nptool.decoding.headed import Opened
from nptool.decoding.loop.sampling import Sampling
from nptool.decoding.loop.sequence import Sequence

END = 15
ANSWER = (5, 6, 7, 8, 9, 10, 11, 12, 13, END)
PROMPT = np.array([1, 2, 3, 4, 1], dtype=np.int32)
PREFILL_SECONDS = 0.5
AR = Variant("ar", 1)
JACOBI = Variant("jacobi", 4)


class ScriptedEngine:
    """Answers `ANSWER` after a prompt of five tokens; a batch of w rows takes 1 + (w - 1) / 4 seconds.

    At `tie`, an index of the answer, a batch of one row says 14 instead, by 0.25.
    """

    capacity = 64
    width = 8
    batch_limit = 16
    vocabulary_size = 16

    def __init__(self, tie: int | None = None) -> None:
        self.seconds = 0.0
        self.widths: list[int] = []
        self._tie = tie
        self._cached = 0

    def clock(self) -> float:
        return self.seconds

    def evaluate(self, tokens: NDArray[np.int32], start: int, *, outputs: bool = True) -> NDArray[np.float32]:
        assert start == self._cached
        rows = len(tokens)
        self._cached += rows
        self.seconds += 1 + (rows - 1) / 4 if outputs else PREFILL_SECONDS
        if not outputs:
            return np.empty((0, self.vocabulary_size), dtype=np.float32)
        self.widths.append(rows)
        return np.stack([self._row(start + row + 1 - len(PROMPT), rows) for row in range(rows)])

    def rollback(self, position: int) -> None:
        self._cached = min(self._cached, position)

    def _row(self, index: int, rows: int) -> NDArray[np.float32]:
        logits = np.zeros(self.vocabulary_size, dtype=np.float32)
        logits[ANSWER[index] if 0 <= index < len(ANSWER) else 0] = 1.0
        if index == self._tie and rows == 1:
            logits[14] = 1.25
        return logits


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    scripted = ScriptedEngine()
    run_by(scripted, monkeypatch)
    return scripted


def run_by(scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine's clock time the loop and the prefill."""
    for module in ("loop.loop", "answer"):
        monkeypatch.setattr(f"nptool.decoding.{module}.perf_counter", scripted.clock)


class Contexts:
    """The scripted engine for every width."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._opened = Opened(engine, Sequence(engine), None)

    def open(self, width: int, heads: int | None = None) -> Opened:
        return self._opened

    def trunk(self, width: int) -> Any:
        return self._opened.engine

    scratch = trunk


class Vocabulary:
    end_tokens = frozenset({END})

    def piece(self, token: int) -> bytes:
        return b""


COMMON = DecodeConfig(max_tokens=20)


def decoder_of(engine: ScriptedEngine, kind: type[Decoder] = Decoder) -> Decoder:
    contexts: Any = Contexts(engine)
    store: Any = None
    return kind(Vocabulary(), contexts, store, block_size=16)


def read(decoder: Decoder, config: DecodeConfig) -> Answer:
    answer = decoder.answer(PROMPT, config)
    for _ in answer:
        pass
    return answer


def report_of(comparison: Comparison, variant: Variant) -> MethodReport:
    answers = {kind: [item for item in comparison.measurements if item.variant == kind] for kind in (AR, variant)}
    return summarize(
        answers[variant],
        answers[AR],
        references=comparison.references,
        margins=comparison.margins,
        costs=comparison.costs.seconds(),
        sources=["one"],
        accuracy=None,
    )


def test_jacobi_against_the_baseline_to_the_digit(engine: ScriptedEngine) -> None:
    """Its passes alternate between one right token (nothing known) and four (all picks of the pass before)."""
    report = report_of(compare(decoder_of(engine), [PROMPT], [AR, JACOBI], rounds=2, common=COMMON), JACOBI)
    assert report.tokens_per_forward == 2.5
    assert report.tokens_per_second == 10 / (4 * 1.75)
    assert report.tokens_per_second_with_prefill == 10 / (4 * 1.75 + PREFILL_SECONDS)
    assert report.speedup == pytest.approx(10 / 7)
    assert report.speedup_with_prefill == pytest.approx(10.5 / 7.5)
    assert report.cost_ratio == 1.75
    assert report.predicted_speedup == pytest.approx(report.speedup)
    assert report.acceptance_by_position == [0.5, 0.5, 0.5]
    assert report.first_token_ms == 2250.0
    assert (report.identical_equal_width, report.identical_width_1) == (1.0, 1.0)


def test_a_near_tie_of_width_1_is_reported_with_its_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = ScriptedEngine(tie=3)
    run_by(scripted, monkeypatch)
    comparison = compare(decoder_of(scripted), [PROMPT], [AR, JACOBI], rounds=2, common=COMMON)
    report = report_of(comparison, JACOBI)
    assert comparison.references[4] == [ANSWER]
    assert comparison.references[1] == [(*ANSWER[:3], 14, *ANSWER[4:])]
    assert (report.identical_equal_width, report.identical_width_1) == (1.0, 0.0)
    assert [(tie.source, tie.position, tie.margin) for tie in report.differences] == [("one", 3, 0.25)]
    assert report_of(comparison, AR).identical_width_1 == 1.0


def test_autoregressive_references_have_the_width_of_the_method(engine: ScriptedEngine) -> None:
    answer = read(decoder_of(engine), Variant("ar", 4).config(COMMON))
    assert tuple(answer.tokens) == ANSWER
    assert engine.widths == [4] * 10
    assert answer.tally.prefilled_tokens == 4


def test_every_answer_prefills_its_whole_prompt(engine: ScriptedEngine) -> None:
    decoder = decoder_of(engine)
    prefilled = [read(decoder, variant.config(COMMON)).tally.prefilled_tokens for variant in (AR, JACOBI, AR)]
    assert prefilled == [4, 4, 4]


def test_a_shorter_limit_ends_an_answer(engine: ScriptedEngine) -> None:
    answer = read(decoder_of(engine), JACOBI.config(DecodeConfig(max_tokens=3)))
    assert tuple(answer.tokens) == ANSWER[:3]


def test_methods_take_turns_and_nobody_is_always_first(engine: ScriptedEngine) -> None:
    asked: list[Variant] = []

    class Recording(Decoder):
        def answer(self, prompt: NDArray[np.int32], config: DecodeConfig, **options: Any) -> Answer:
            asked.append(Variant(config.method, config.n or 0))
            return super().answer(prompt, config, **options)

    variants = [AR, JACOBI, Variant("jacobi", 8)]
    steps: dict[str, tuple[float, float]] = {}
    compare(
        decoder_of(engine, Recording),
        [PROMPT, PROMPT],
        variants,
        rounds=3,
        common=COMMON,
        progress=lambda step, done, total, note="": steps.update({step: (done, total)}),
    )
    warm_up, references, turns = asked[:3], asked[3:9], asked[9:]
    assert warm_up == variants
    assert references == [Variant("ar", width) for width in (1, 4, 8)] * 2
    assert [set(turns[start : start + 3]) for start in range(0, 18, 3)] == [set(variants)] * 6
    assert {turns[start] for start in range(0, 18, 3)} == set(variants)
    assert steps == {"AR at equal width": (6, 6), "methods in turns": (18, 18)}


@pytest.mark.parametrize("count", range(2, 9))
def test_each_method_follows_each_other_one_equally_often(count: int) -> None:
    variants = [Variant("jacobi", n) for n in range(count)]
    turns = count if count % 2 == 0 else 2 * count
    orders = [in_turn(variants, turn) for turn in range(turns)]
    neighbours = Counter(pair for order in orders for pair in pairwise(order))
    assert set(neighbours) == {(one, other) for one in variants for other in variants if one != other}
    assert len(set(neighbours.values())) == 1
    places = Counter((variant, place) for order in orders for place, variant in enumerate(order))
    assert len(places) == count * count
    assert len(set(places.values())) == 1


def test_one_method_is_its_own_order() -> None:
    assert in_turn([JACOBI], 3) == [JACOBI]


def test_costs_are_measured_after_the_whole_context(engine: ScriptedEngine) -> None:
    context = np.ones(40, dtype=np.int32)
    costs = StepCosts(engine, context, [1, 8])
    costs.measure(repeats=3)
    assert costs.context_length == 40
    assert costs.seconds() == {1: 1.0, 8: 2.75}
    assert engine.widths == [1, 1, 8, 8] * 3, "each is timed after one of its own width"


def test_sampled_answers_are_compared_at_the_same_seed(engine: ScriptedEngine) -> None:
    sampling = Sampling(temperature=2.0, seed=3)
    decoder, common = decoder_of(engine), DecodeConfig(max_tokens=20, sampling=sampling)
    report = report_of(compare(decoder, [PROMPT], [AR, JACOBI], rounds=1, common=common), JACOBI)
    assert report.identical_equal_width == 1.0
    assert tuple(read(decoder, AR.config(common)).tokens) != ANSWER
