"""Figures from scripted measurements."""

import pytest

from nptool.bench.aggregation import (
    Measurement,
    by_round,
    decoding,
    differences,
    first_difference,
    identical_share,
    mean_step,
    rate,
    speedups,
    summarize,
    total,
    whole,
)
from nptool.bench.report import Difference
from nptool.bench.variants import Variant, variants_of
from nptool.decoding.loop.tally import Tally
from nptool.errors import UsageError

AR = Variant("ar", 1)
JACOBI = Variant("jacobi", 4)


def measured(
    variant: Variant,
    prompt: int,
    number: int,
    tokens: tuple[int, ...],
    seconds: float,
    passes: int,
    prefill: float = 1.0,
) -> Measurement:
    tally = Tally(width=variant.n, tokens=len(tokens), passes=passes, prefill_seconds=prefill, decode_seconds=seconds)
    tally.widths = {variant.n: passes}
    tally.first_step_seconds = prefill + seconds / passes
    return Measurement(variant, prompt, number, tokens, tally, variant.n, variant.method)


# Two prompts, three rounds; in round 1 the machine is four times slower.
BASELINE = [
    measured(AR, prompt, number, (1, 2, 3, 4), 4.0 * slow, 4)
    for prompt in (0, 1)
    for number, slow in enumerate((1, 4, 1))
]
FAST = [
    measured(JACOBI, prompt, number, (1, 2, 3, 4), seconds * slow, 2)
    for prompt, seconds in ((0, 2.0), (1, 1.0))
    for number, slow in enumerate((1, 4, 1))
]


def test_a_rate_is_the_median_of_whole_rounds() -> None:
    assert rate(BASELINE, decoding) == 8 / 8
    assert rate(FAST, decoding) == 8 / 3
    assert rate(FAST, whole) == 8 / 5


def test_speedups_are_paired_so_a_slow_round_weighs_on_both_sides() -> None:
    ratios = speedups(FAST, BASELINE, decoding)
    assert ratios == {(number, prompt): 2.0 if prompt == 0 else 4.0 for number in range(3) for prompt in (0, 1)}
    assert by_round(ratios) == [3.0, 3.0, 3.0]


def test_speedups_with_prefill_count_it_on_both_sides() -> None:
    assert speedups(FAST[:1], BASELINE[:1], whole) == {(0, 0): pytest.approx(5 / 3)}


def test_total_adds_passes_and_drafts() -> None:
    one, other = Tally(width=4, tokens=3, passes=2), Tally(width=4, tokens=5, passes=2)
    one.passes_by_draft[:], one.passes_by_accepted[:] = (0, 0, 0, 2, 0), (1, 1, 0, 0, 0)
    other.passes_by_draft[:], other.passes_by_accepted[:] = (0, 0, 1, 1, 0), (0, 1, 1, 0, 0)
    assert (one.drafted.tolist(), one.accepted.tolist()) == ([2, 2, 2, 0], [1, 0, 0, 0])
    assert (other.drafted.tolist(), other.accepted.tolist()) == ([2, 2, 1, 0], [2, 1, 0, 0])
    summed = total([Measurement(JACOBI, 0, 0, (), one, 4, "jacobi"), Measurement(JACOBI, 1, 0, (), other, 4, "jacobi")])
    assert summed.tokens_per_forward == 2.0
    assert summed.acceptance == [0.75, 0.25, 0.0]


@pytest.mark.parametrize(
    ("tokens", "reference", "expected"),
    [((1, 2), (1, 2), None), ((1, 3), (1, 2), 1), ((1, 2), (1, 2, 3), 2), ((1, 2, 3), (1, 2), 2), ((), (), None)],
)
def test_first_difference(tokens: tuple[int, ...], reference: tuple[int, ...], expected: int | None) -> None:
    assert first_difference(tokens, reference) == expected


def test_shares_and_differences_are_taken_prompt_by_prompt() -> None:
    references = [(1, 2, 3, 4), (1, 2, 9, 4)]
    assert identical_share(FAST, references) == 0.5
    found = differences(FAST, references, {(1, 2): 0.01}, ["a:1", "a:2"])
    assert found == [Difference("a:2", 2, 0.01)]


def test_summary_of_one_variant() -> None:
    report = summarize(
        FAST,
        BASELINE,
        references={1: [(9, 2, 3, 4), (1, 2, 3, 9)], 4: [(1, 2, 3, 4), (1, 2, 3, 4)]},
        margins={(0, 0): 0.5, (1, 3): 0.25},
        costs={1: 1.0, 4: 1.6},
        sources=["a:1", "a:2"],
        accuracy=0.75,
    )
    assert (report.name, report.n) == ("jacobi", 4)
    assert report.speedup == 3.0
    assert report.tokens_per_forward == 2.0
    assert report.predicted_speedup == pytest.approx(1.25)
    assert (report.identical_equal_width, report.identical_width_1) == (1.0, 0.0)
    assert [tie.margin for tie in report.differences] == [0.5, 0.25]
    assert (report.margin_median, report.margin_worst) == (0.375, 0.5)
    # Prefill 1 s, and 2 passes of 1 s and 0.5 s in the quick rounds, of 4 s and 2 s in the slow one.
    assert report.first_token_ms == 2000.0
    assert (report.tokens, report.forward_passes, report.accuracy) == (24, 12, 0.75)


def test_the_baseline_against_itself_is_one() -> None:
    report = summarize(
        BASELINE,
        BASELINE,
        references={1: [(1, 2, 3, 4)] * 2},
        margins={},
        costs={1: 1.0},
        sources=["", ""],
        accuracy=None,
    )
    assert (report.speedup, report.speedup_with_prefill, report.tokens_per_forward) == (1.0, 1.0, 1.0)
    assert (report.differences, report.margin_median, report.margin_worst) == ([], None, None)


def test_variants_are_the_baseline_and_every_parallel_method_at_every_length() -> None:
    found = variants_of(["jacobi", "ar", "jacobi-block", "jacobi"], [8, 4, 8])
    names = [(variant.method, variant.n) for variant in found]
    assert names == [("ar", 1), ("jacobi", 8), ("jacobi", 4), ("jacobi-block", 8), ("jacobi-block", 4)]
    with pytest.raises(UsageError, match=r"unknown method 'warp'; known are ar, jacobi, jacobi-block, heads, "):
        variants_of(["warp"], [4])


def test_methods_that_choose_their_width_are_measured_once_up_to_the_widest() -> None:
    found = variants_of(["jacobi-auto", "jacobi-free", "jacobi", "heads-auto"], [4, 8], [2, 3], widest=32)
    assert [(variant.name, variant.n) for variant in found] == [
        ("ar", 1),
        ("jacobi-auto", 32),
        ("jacobi-free", 32),
        ("jacobi", 4),
        ("jacobi", 8),
        ("heads-auto", 3),
    ]
    with pytest.raises(UsageError, match="unknown method 'ar-auto'"):
        variants_of(["ar-auto"], [4])


def test_the_cost_of_a_step_is_the_mean_over_its_widths() -> None:
    assert mean_step({1: 3, 3: 1}, {1: 1.0, 2: 2.0, 4: 4.0}) == pytest.approx(1.5)
