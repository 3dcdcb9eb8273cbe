"""The policy against brute force, and what it makes of scripted costs and acceptances, changing ones too."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import astuple, replace
from math import inf, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.decoding.adaptive.calibration import Calibration
from nptool.decoding.adaptive.experience import Experience
from nptool.decoding.adaptive.learnt import Learnt
from nptool.decoding.adaptive.memory import Memory, Shown
from nptool.decoding.adaptive.plan import plan_text
from nptool.decoding.adaptive.policy import (
    GUESSED,
    MEASURED,
    PLAIN_BATCHES,
    Evidence,
    Prior,
    Prospect,
    best_prospect,
    bound_margin,
    choose,
    expected_tokens,
    exponent,
    foresee,
    may_be_faster,
)
from nptool.decoding.adaptive.widths import AdaptiveWidth
from nptool.decoding.loop.steps import Drafts, Step

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
# t(w) / t(1) of 110M parameters on two cores (DESIGN section 3), and of a processor to which 64 rows are like one.
F32 = dict(zip(WIDTHS, (1, 1.17, 1.48, 1.92, 3.03, 4.63, 8.3), strict=True))
F16 = dict(zip(WIDTHS, (1, 1.2, 1.78, 2.27, 3.66, 6.37, 10.7), strict=True))
Q4_K_M = dict(zip(WIDTHS, (1, 1.78, 2.68, 6.0, 6.4, 12.4, 18.9), strict=True))
FLAT = dict(zip(WIDTHS, (1, 1.005, 1.01, 1.02, 1.03, 1.05, 1.08), strict=True))
TEXT = 100


@given(
    st.lists(st.floats(0.5, 20), min_size=len(WIDTHS), max_size=len(WIDTHS)),
    st.lists(st.floats(0, 1), min_size=len(WIDTHS), max_size=len(WIDTHS)),
    st.floats(0, 1),
)
@settings(deadline=None, max_examples=100)
def test_what_is_well_known_is_decided_like_brute_force(times: list[float], shares: list[float], prior: float) -> None:
    seconds = dict(zip(WIDTHS, times, strict=True))
    tokens = {width: 1 + share * (width - 1) for width, share in zip(WIDTHS, shares, strict=True)}
    evidence = {width: Evidence(1e9, 1e9 * value) for width, value in tokens.items()}
    chosen = choose(seconds, evidence, current=0, prior=Prior(prior))
    best = max(tokens[width] / seconds[width] for width in WIDTHS)
    assert tokens[chosen.width] / seconds[chosen.width] == pytest.approx(best, rel=1e-6)
    assert chosen.best_rate == pytest.approx(best, rel=1e-6)
    assert not chosen.trial


def test_without_evidence_the_prior_decides() -> None:
    assert choose(F32, {}, current=1, prior=Prior(0.0)).width == 1
    assert choose(F32, {}, current=1, prior=Prior(0.5)).width == 8
    assert choose(Q4_K_M, {}, current=1, prior=Prior(0.5)).width == 1
    assert choose(FLAT, {}, current=1, prior=Prior(0.5)).width == 64


def test_the_width_in_use_is_kept_at_a_tie() -> None:
    even = {1: 1.0, 2: 2.0**0.5}
    for current in (1, 2):
        assert choose(even, {}, current=current, prior=Prior(0.5)).width == current


def test_the_exponent_is_that_of_the_evidence() -> None:
    assert exponent({}, Prior(0.3)) == pytest.approx((0.3, 0.5))
    seen = {width: Evidence(1e6, 1e6 * width**0.4) for width in (4, 16)}
    found, doubt = exponent(seen, Prior(0.1))
    assert found == pytest.approx(0.4, abs=1e-4)
    assert doubt < 1e-3
    assert exponent({1: Evidence(1e6, 1e6)}, Prior(0.3)) == exponent({}, Prior(0.3))


def test_a_trial_costs_no_more_than_is_allowed() -> None:
    assert not choose(F32, {}, current=1, prior=Prior(0.1), allowance=0.5).trial
    cheap = choose(F32, {}, current=1, prior=Prior(0.1), allowance=3 * 0.18)
    assert (cheap.width, cheap.trial, cheap.best_rate) == (2, True, 1.0)
    assert choose(F32, {}, current=1, prior=Prior(0.1), allowance=inf).width > 2


def test_what_was_seen_to_be_bad_is_not_tried() -> None:
    seen = {2: Evidence(24, 24.5), 8: Evidence(24, 25)}
    assert choose(F32, seen, current=1, prior=Prior(0.1), allowance=inf).width == 1


def test_what_may_have_become_cheaper_is_tried_again() -> None:
    seconds, seen = {1: 2.0, 8: 2.2}, {8: Evidence(50, 60.0)}
    assert choose(seconds, seen, current=8, prior=Prior(0.05), allowance=inf).width == 8
    cheaper = choose(seconds, seen, current=8, prior=Prior(0.05), allowance=inf, hopeful_seconds={1: 1.0, 8: 2.2})
    assert (cheaper.width, cheaper.trial) == (1, True)


CLASSES = ((1,), (2, 4, 8, 16, 32), (64,))


def prospects(costs: dict[int, float], prior: Prior, seen: dict[int, Evidence] | None = None) -> list[Prospect]:
    return [foresee({width: costs[width] for width in members}, seen or {}, prior=prior) for members in CLASSES]


def best_class(costs: dict[int, float], prior: Prior, seen: dict[int, Evidence] | None = None) -> tuple[int, ...]:
    index, trial = best_prospect(prospects(costs, prior, seen))
    assert trial is None, "no trial is allowed"
    return CLASSES[index]


def test_the_class_with_the_best_width_is_taken() -> None:
    assert best_class(F32, Prior(0.5)) == CLASSES[1]
    assert best_class(F32, Prior(0.1)) == (1,)
    assert best_class(FLAT, Prior(0.5)) == (64,)


def test_a_memory_loses_a_share_with_every_step() -> None:
    """Together or one by one; a narrower width would have brought what it has rows for."""
    steps = [Shown((4, 8), True, 5), Shown((), False, 0), Shown((8,), True, 0)]
    memory = Memory(0.5, 0.9, {8: Evidence(1.0, 3.0)})
    assert memory.add(reversed(steps)) == pytest.approx(0.5 * 0.9 * 0.5)
    assert memory.evidence == {
        8: Evidence(pytest.approx(0.225 + 0.45 + 1), pytest.approx(3 * 0.225 + 6 * 0.45 + 1)),
        4: Evidence(pytest.approx(0.45), pytest.approx(4 * 0.45)),
    }
    single = Memory(0.5, 0.9, {8: Evidence(1.0, 3.0)})
    for step in steps:
        single.add([step])
    assert {width: astuple(shown) for width, shown in single.evidence.items()} == {
        width: pytest.approx(astuple(shown)) for width, shown in memory.evidence.items()
    }
    memory.limit(0.9)
    assert memory.evidence[8] == Evidence(0.9, pytest.approx(0.9 * (3 * 0.225 + 6 * 0.45 + 1) / 1.675))
    assert memory.evidence[4].steps == pytest.approx(0.45)


def test_wide_windows_bring_ever_less_more() -> None:
    """Windows of the embedded default: 3.91, 5.71, 6.51 and 6.85 tokens with 8, 16, 24 and 32 rows."""
    a = log(5.71) / log(16)
    unseen = expected_tokens((1, 2, 8, 16, 24, 32), {}, a)
    assert unseen == pytest.approx({1: 1.0, 2: 2**a, 8: 8**a, 16: 5.71, 24: 6.38, 32: 6.77}, abs=0.01)
    # 16 rows that brought a token more carry it on.
    seen = expected_tokens((32, 64), {16: Evidence(1e6, 6.71e6)}, a)
    assert seen == pytest.approx({16: 6.71, 32: 32 / (1 + 31 * (16 / 6.71 - 1) / 15), 64: 9.39}, abs=0.01)
    # And wide steps that brought little keep wider ones from being promised more.
    assert expected_tokens((64,), {16: Evidence(9, 54), 32: Evidence(9, 54)}, a)[64] < 7.0


def test_a_class_of_wide_steps_alone_is_not_taken_for_what_narrow_ones_bring() -> None:
    """Times and tokens of an easy text of the embedded default, which had been put to steps of 64 rows."""
    costs = dict(zip(WIDTHS, (1.23, 1.72, 2.19, 2.95, 4.45, 7.45, 11.84), strict=True))
    assert best_class(costs, Prior(0.716, 4.8), {16: Evidence(8.0, 8 * 7.1)}) == CLASSES[1]


def test_a_class_without_width_1_must_promise_more_the_less_is_known() -> None:
    """Two rows promise 7 % more than one: too little for a guess, enough for what was measured or seen."""
    a = 0.33
    assert max(width**a / cost for width, cost in F32.items()) == 2**a / F32[2] == pytest.approx(1.074, abs=0.001)
    assert best_class(F32, Prior(a)) == (1,)
    assert best_class(F32, Prior(a, MEASURED)) == CLASSES[1]
    assert best_class(F32, Prior(a), {8: Evidence(8, 8 * 8**a)}) == CLASSES[1]
    # And 1.6 % are never enough, since a step is not quite what was calibrated.
    assert best_class(F32, Prior(0.25, MEASURED)) == (1,)


def test_the_margin_follows_the_doubt() -> None:
    assert bound_margin(0.0) == pytest.approx(1.02)
    assert bound_margin(0.25) == pytest.approx(1.06)
    assert bound_margin(0.5) == bound_margin(9.0) == pytest.approx(1.1)
    assert [prospect.margin for prospect in prospects(F32, Prior(0.5))] == [1.0, *[pytest.approx(1.1)] * 2]


def test_what_was_measured_weighs_more_than_a_guess_and_is_still_outvoted() -> None:
    steps = {8: Evidence(8.0, 8.0)}
    assert exponent(steps, Prior(0.5))[0] == pytest.approx(0.5 * GUESSED / (GUESSED + 8))
    assert exponent(steps, Prior(0.5, MEASURED))[0] == pytest.approx(0.25)
    assert exponent({}, Prior(0.5, MEASURED))[1] < 0.1 < exponent({}, Prior(0.5))[1]


def test_a_class_is_tried_where_it_is_hoped_to_be_better_and_may_lose_what_it_can() -> None:
    found = prospects(F32, Prior(0.1))
    most = 64 * (F32[2] - 1.0)
    assert best_prospect(found, most - 0.1) == (0, None)
    assert best_prospect(found, most + 0.1) == (1, 1.0)
    hopeless = prospects(F32, Prior(0.1), {width: Evidence(200, 205) for width in (2, 8, 32)})
    assert best_prospect(hopeless, inf) == (0, None)


def test_width_1_alone_is_tried_where_both_are_nearly_as_fast() -> None:
    """What such a text may lose is little there, and the first one may lose more."""
    times, hopeful = {1: 1.0, 8: 1.5}, {1: 0.6, 8: 1.5}
    evidence = {8: Evidence(50.0, 80.0)}
    plain, wide = (
        foresee({width: times[width]}, evidence, prior=Prior(0.2), hopeful_seconds={width: hopeful[width]})
        for width in (1, 8)
    )
    assert 1.0 < wide.rate < 1.1
    loss = 64 * (1.0 - 1 / wide.rate)
    assert best_prospect([plain, wide], loss + 0.01) == (0, wide.rate)
    assert best_prospect([plain, wide], loss - 0.01) == (1, None)
    assert best_prospect([plain, wide], loss - 0.01, loss + 0.01) == (0, wide.rate)
    assert not may_be_faster(plain, wide.rate, inf)


def test_width_1_alone_is_timed_where_a_text_of_it_would_lose_more() -> None:
    plain = foresee({1: 1.0}, {}, prior=Prior(0.5), hopeful_seconds={1: 0.2})
    assert may_be_faster(plain, 2.0, PLAIN_BATCHES * 0.2 + 0.01)
    assert not may_be_faster(plain, 2.0, PLAIN_BATCHES * 0.2 - 0.01)
    assert not may_be_faster(plain, 6.0, inf)


class World:
    """A machine and a model: a step of w rows takes `costs` and brings tokens with mean w**a, a window warmed up.

    Up to 16 rows; behind them it bends as the embedded default's does: 1.2 and 1.3 times as much with 32 and 64.
    """

    def __init__(
        self, costs: Callable[[int], dict[int, float]], a: Callable[[int], float], calibrated: dict[int, float]
    ) -> None:
        """Args: `costs` and `a` are functions of the tokens made so far."""
        self._costs = costs
        self._a = a
        times = tuple(calibrated[width] for width in WIDTHS)
        self.calibration = Calibration((128,), WIDTHS, (times,), ((1,), (2, 4, 8, 16, 32), (64,)))
        self.random = random.Random(0)
        self._warm = 1
        self.tokens = 0
        self.used: list[int] = []

    def step(self, width: int, most: int) -> tuple[int, float]:
        """Tokens and seconds of a step."""
        seconds = self._costs(self.tokens)[width] * (1 + 0.1 * self.random.random())
        # A guess that was iterated once is right about half as far as its window could be.
        self._warm = max(1, min(width, 2 * self._warm))
        mean = min(self._warm, 16) ** self._a(self.tokens)
        if self._warm > 16:
            mean = self._warm / (1 + (self._warm - 1) * (16 / mean - 1) / 15)
        count = 1
        while count < min(width, most) and self.random.random() < 1 - 1 / mean:
            count += 1
        self.tokens += count
        self.used.append(width)
        return count, seconds

    def text(self, widths: AdaptiveWidth, drafting: float = 0.0) -> float:
        """Speed-up over autoregressive decoding on one text.

        Args:
            drafting: what a draft takes.
        """
        length, spent, single = 0, 0.0, 0.0
        if widths.wants_plain_time:
            widths.time_plain(TEXT, self._costs(self.tokens)[1] * 1.05)
        while length < TEXT:
            room = TEXT - length - 1
            rows = widths.choose(TEXT + length, room)
            single_cost = self._costs(self.tokens)[1] * 1.05
            count, seconds = self.step(rows, room + 1)
            drafted = drafting if rows > 1 else 0.0
            seconds += drafted
            widths.observe(TEXT + length, rows, min(rows - 1, room), count - 1, seconds, drafted)
            length, spent, single = length + count, spent + seconds, single + count * single_cost
        widths.finish()
        return single / spent


def adaptive(experience: Experience, *, exact: bool) -> AdaptiveWidth:
    return AdaptiveWidth(experience, plan_text([experience], TEXT, exact=exact), exact=exact)


def speedups(world: World, prior: float, texts: int = 12, *, exact: bool = False) -> list[float]:
    """One for each text; in between what was seen is kept."""
    experience = Experience(world.calibration, 64, Prior(prior), drafts=Drafts.ITERATED)
    return [world.text(adaptive(experience, exact=exact)) for _ in range(texts)]


def one_by_one(world: World, prior: Prior, processes: int, *, exact: bool = True) -> list[float]:
    """One for each process, which makes a single text and hands on what it has learnt, in JSON."""
    learnt, found = None, []
    for _ in range(processes):
        experience = Experience(world.calibration, 64, prior, drafts=Drafts.ITERATED, learnt=learnt)
        found.append(world.text(adaptive(experience, exact=exact)))
        learnt = Learnt.from_json(json.loads(json.dumps(experience.learnt().to_json())))
    return found


def fixed(costs: dict[int, float], a: float, width: int) -> float:
    """Speed-up of one width, by itself."""
    world, spent = World(lambda _: costs, lambda _: a, costs), 0.0
    while world.tokens < 3000:
        spent += world.step(width, width)[1]
    return world.tokens * 1.05 / spent


def test_a_row_that_was_timed_wrongly_is_timed_again_and_no_text_is_tried_for_it() -> None:
    """Something else ran when it was: wide steps seemed to pay. As soon as it is timed again, texts are plain."""
    world = World(lambda _: F32, lambda _: 0.1, F32)
    experience = Experience(world.calibration, 64, Prior(0.1), drafts=Drafts.ITERATED)
    experience.time_plain(TEXT, 3.0)
    timed = []
    for number in range(60):
        widths = adaptive(experience, exact=True)
        if widths.members == (1,):
            break
        timed += [number] if widths.wants_plain_time else []
        world.text(widths)
    assert timed == [number - 1]
    assert 1 not in world.used


def test_a_wide_step_is_slowed_as_one_row_was_since_it_was_timed() -> None:
    """The machine gets slower while texts are plain: the time of two rows, of a better hour, must not make them pay."""
    world = World(lambda _: F32, lambda _: 0.1, F32)
    experience = Experience(world.calibration, 64, Prior(0.1), drafts=Drafts.ITERATED)
    experience.learn([Step(TEXT, 1, 0, 0, F32[1])] * 5, None)
    experience.learn([Step(TEXT, 2, 1, 0, F32[2])] * 5, None)
    before = experience.seconds((1, 2), TEXT)
    experience.learn([Step(TEXT, 1, 0, 0, 1.5 * F32[1])] * 5, None)
    assert experience.seconds((1, 2), TEXT) == pytest.approx({width: 1.5 * time for width, time in before.items()})


def test_a_slowdown_during_wide_steps_is_not_counted_twice() -> None:
    """One row was timed before it, the wide width during it: its own time holds it already."""
    world = World(lambda _: F32, lambda _: 0.55, F32)
    experience = Experience(world.calibration, 64, Prior(0.55), drafts=Drafts.ITERATED)
    experience.learn([Step(TEXT, 1, 0, 0, F32[1])] * 5, None)
    experience.learn([Step(TEXT, 8, 7, 2, 1.5 * F32[8])] * 5, None)
    experience.learn([Step(TEXT, 1, 0, 0, 1.5 * F32[1])] * 5, None)
    expected = {width: 1.5 * F32[width] for width in (1, 8)}
    assert experience.seconds((1, 8), TEXT) == pytest.approx(expected)


def mean(values: list[float]) -> float:
    """Of speed-ups over equally long texts: harmonic."""
    return len(values) / sum(1 / value for value in values)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("prior", [0.1, 0.45])
@pytest.mark.parametrize("costs", [F32, F16, Q4_K_M])
def test_an_untrained_model_is_hardly_slower_than_autoregressive_decoding(
    costs: dict[int, float], prior: float, exact: bool
) -> None:
    """Whatever was expected of it. In exact mode the first text pays for a wrong expectation, later ones do not."""
    found = speedups(World(lambda _: costs, lambda _: 0.02, costs), prior, exact=exact)
    assert mean(found[1:]) > 0.97
    assert mean(found) > 0.94


@pytest.mark.parametrize(("costs", "a"), [(F32, 0.5), (F32, 0.7), (F16, 0.7), (FLAT, 0.1), (FLAT, 0.5)])
def test_a_model_that_pays_is_decoded_nearly_as_fast_as_by_the_best_fixed_width(
    costs: dict[int, float], a: float
) -> None:
    best = max(fixed(costs, a, width) for width in WIDTHS)
    for exact in (False, True):
        found = mean(speedups(World(lambda _: costs, lambda _: a, costs), 0.45, exact=exact))
        assert found > 1 + 0.6 * (best - 1)


def test_it_notices_that_drafts_begin_to_be_right() -> None:
    world = World(lambda _: F32, lambda tokens: 0.02 if tokens < 10 * TEXT else 0.7, F32)
    found = speedups(world, 0.1, 20)
    assert mean(found[:10]) > 0.97
    assert mean(found[12:]) > 1.5


def test_it_notices_that_drafts_cease_to_be_right() -> None:
    world = World(lambda _: F32, lambda tokens: 0.7 if tokens < 10 * TEXT else 0.02, F32)
    found = speedups(world, 0.45, 20)
    assert mean(found[:10]) > 1.5
    assert found[10] > 0.7
    assert mean(found[11:]) > 0.97


def test_it_follows_costs_that_change_half_way() -> None:
    dear = {width: cost * (1 if width < 4 else 4) for width, cost in F32.items()}
    world = World(lambda tokens: F32 if tokens < 10 * TEXT else dear, lambda _: 0.5, F32)
    found = speedups(world, 0.45, 20)
    assert mean(found[:10]) > 1.2
    assert mean(found[11:]) > 0.97
    # But for a trial of three steps.
    assert sum(width <= 2 for width in world.used[-50:]) >= 47


def test_costs_that_were_calibrated_wrongly_are_corrected() -> None:
    """Measured while something else ran: wide steps seem three times as dear as they are."""
    wrong = {width: cost * (1 if width == 1 else 3) for width, cost in FLAT.items()}
    assert mean(speedups(World(lambda _: FLAT, lambda _: 0.5, wrong), 0.45, 20)) > 2.0


@pytest.mark.parametrize("wrong", [1.2, 3.0])
@pytest.mark.parametrize("exact", [False, True])
def test_autoregressive_decoding_that_was_calibrated_wrongly_is_corrected(exact: bool, wrong: float) -> None:
    """One row seemed dearer than it is, so that two seemed to pay; no step of an exact text says otherwise."""
    calibrated = {width: cost * (wrong if width == 1 else 1) for width, cost in F32.items()}
    world = World(lambda _: F32, lambda _: 0.1, calibrated)
    found = speedups(world, 0.2, 30, exact=exact)
    assert mean(found[1:]) > 0.97


def test_one_row_is_timed_once_and_only_where_no_step_shows_it() -> None:
    world = World(lambda _: F32, lambda _: 0.7, F32)
    experience = Experience(world.calibration, 64, Prior(0.7), drafts=Drafts.ITERATED)
    assert not adaptive(experience, exact=False).wants_plain_time
    first = adaptive(experience, exact=True)
    assert first.wants_plain_time
    first.time_plain(TEXT, 2.5)
    assert experience.seconds([1], TEXT) == {1: 2.5}
    assert not adaptive(experience, exact=True).wants_plain_time

    plain, other = (Experience(world.calibration, 64, Prior(a), drafts=Drafts.ITERATED) for a in (0.1, 0.9))
    plan = plan_text([plain, other], TEXT, exact=True)
    widths = AdaptiveWidth(other, plan, exact=True, plain=plain)
    assert plan.method == 1
    assert widths.wants_plain_time
    widths.time_plain(TEXT, 2.5)
    assert plain.seconds([1], TEXT) == {1: 2.5}
    assert plain.pace is None
    assert plain.seconds([8], TEXT) == {8: F32[8]}
    plain.learn([Step(TEXT, 1, 0, 0, 1.0)], None)
    assert plain.plain_timed

    shown = Experience(world.calibration, 64, Prior(0.7), drafts=Drafts.ITERATED)
    shown.learn([Step(TEXT, 1, 0, 0, 1.0)], None)
    assert not adaptive(shown, exact=True).wants_plain_time


def test_a_machine_that_is_slower_as_a_whole_changes_nothing() -> None:
    slow = {width: 5 * cost for width, cost in F32.items()}
    assert mean(speedups(World(lambda _: slow, lambda _: 0.7, F32), 0.45)) > 1.5


def test_a_wide_step_of_independent_drafts_tells_of_narrow_ones() -> None:
    """Heads: of four tokens the first two are always right, so two rows less cost nothing."""
    costs = {1: 1.0, 2: 1.2, 3: 1.3, 4: 1.6}
    calibration = Calibration((128,), tuple(costs), (tuple(costs.values()),), (tuple(costs),))
    experience = Experience(calibration, 4, Prior(0.9), drafts=Drafts.INDEPENDENT)
    widths, used = adaptive(experience, exact=True), []
    for step in range(40):
        rows = widths.choose(TEXT + step, 99)
        widths.observe(TEXT + step, rows, rows - 1, min(rows - 1, 2), costs[rows], 0.0)
        used.append(rows)
    assert used[0] == 4
    assert set(used[-20:]) == {3}


def test_the_time_of_a_draft_counts_where_one_is_made() -> None:
    """Heads that are always right but take as long as three passes of the model, and later hardly any time."""
    costs = {1: 1.0, 2: 1.2, 4: 1.5}
    calibration = Calibration((128,), tuple(costs), (tuple(costs.values()),), (tuple(costs),))
    experience = Experience(calibration, 4, Prior(0.9), drafts=Drafts.INDEPENDENT)
    widths, used = adaptive(experience, exact=True), []
    for step in range(1500):
        rows = widths.choose(TEXT + step, 99)
        drafting = 0.0 if rows == 1 else 4.0 if step < 100 else 0.1
        widths.observe(TEXT + step, rows, rows - 1, rows - 1, costs[rows] + drafting, drafting)
        used.append(rows)
    assert used[0] == 4
    assert set(used[50:100]) == {1}
    assert set(used[-20:]) == {4}


def test_reading_the_prompt_before_the_first_draft_counts_for_the_text() -> None:
    seconds, prior = {1: 1.0, 4: 1.5}, Prior(1.0, 1e9)
    assert foresee(seconds, {}, prior=prior).rate == pytest.approx(4 / 1.5)
    # 64 tokens are expected of a text: 24 seconds of steps, and the start. Plain decoding needs none of it.
    assert foresee(seconds, {}, prior=prior, start=8.0).rate == pytest.approx(64 / (24 + 8))
    assert foresee(seconds, {}, prior=prior, start=1e6).rate == 1.0

    calibration = Calibration((0,), (1, 4), ((1.0, 1.5),), ((1, 4),))
    experience = Experience(calibration, 4, prior, drafts=Drafts.INDEPENDENT)
    (before,) = experience.prospects(0, exact=True)
    experience.learn([Step(10, 1, 0, 0, 9.0, drafting=8.0), Step(11, 4, 3, 3, 1.5), Step(15, 4, 3, 3, 1.5)], None)
    (after,) = experience.prospects(0, exact=True)
    assert (before.rate, after.rate) == pytest.approx((4 / 1.5, 64 / (24 + 8)))


STEPS = st.builds(
    lambda rows, share, seconds, drafts: Step(
        10, rows, rows - 1 if drafts else 0, round(share * (rows - 1)) if drafts else 0, seconds
    ),
    st.sampled_from(WIDTHS),
    st.floats(0, 1),
    st.floats(0.1, 9),
    st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(STEPS, min_size=1, max_size=20), st.sampled_from(Drafts))
def test_steps_teach_the_same_together_and_one_by_one(steps: list[Step], drafts: Drafts) -> None:
    calibration = Calibration((0,), WIDTHS, (tuple(F32.values()),), (WIDTHS,))
    together, single = (Experience(calibration, 64, Prior(0.4), drafts=drafts) for _ in range(2))
    together.learn(steps, 0.5)
    for step in steps:
        single.learn([step], 0.5)
    one, other = together.learnt(), single.learnt()
    for shown, expected in ((one.recent, other.recent), (one.long, other.long)):
        assert shown.keys() == expected.keys()
        for width, steps in expected.items():
            assert astuple(shown[width]) == pytest.approx(astuple(steps))
    assert (one.ratios, one.plain_ratios) == (other.ratios, other.plain_ratios)
    assert one.newest_ratio == other.newest_ratio
    assert one.saved == pytest.approx(other.saved)


def test_one_long_text_does_not_fall_back_on_a_wrong_expectation() -> None:
    """What it saw of wide steps gets old while it makes none; what it learnt of them stays."""
    world = World(lambda _: F32, lambda _: 0.02, F32)
    experience = Experience(world.calibration, 64, Prior(0.5, MEASURED), drafts=Drafts.ITERATED)
    widths = adaptive(experience, exact=False)
    for length in range(1500):
        rows = widths.choose(TEXT + length, 999)
        count, seconds = world.step(rows, 999)
        widths.observe(TEXT + length, rows, rows - 1, count - 1, seconds, 0.0)
    assert world.used[-1000:].count(1) > 900


class Method:
    """One way to decode, with an acceptance and a world of its own."""

    def __init__(self, a: float, prior: Prior, drafting: float = 0.0) -> None:
        self.world = World(lambda _: F32, lambda _: a, F32)
        self.drafting = drafting
        self.experience = Experience(
            self.world.calibration, 64, prior, drafts=Drafts.ITERATED, drafting=drafting or None
        )


def choices(methods: list[Method], texts: int, *, exact: bool = True) -> tuple[list[int], list[float]]:
    """Which method each text was decoded by, and its speed-up."""
    chosen, found = [], []
    for _ in range(texts):
        plan = plan_text([method.experience for method in methods], TEXT, exact=exact)
        method = methods[plan.method]
        widths = AdaptiveWidth(method.experience, plan, exact=exact)
        found.append(method.world.text(widths, method.drafting))
        chosen.append(plan.method)
    return chosen, found


class TestMethods:
    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("best", [0, 1, 2])
    def test_the_one_that_promises_most_is_used(self, best: int, exact: bool) -> None:
        methods = [Method(0.7 if number == best else 0.4, Prior(0.7 if number == best else 0.4)) for number in range(3)]
        chosen, found = choices(methods, 10, exact=exact)
        assert set(chosen) == {best}
        assert mean(found) > 1.5

    def test_the_first_one_in_doubt(self) -> None:
        """A guess of 3 % more is no reason to leave the usual method; one of much more is."""
        usual, slightly = Prior(0.6, MEASURED), 0.615
        assert 8**slightly / 8**0.6 == pytest.approx(1.032, abs=0.001)
        assert choices([Method(0.6, usual), Method(slightly, Prior(slightly))], 1)[0] == [0]
        assert choices([Method(0.6, usual), Method(0.8, Prior(0.8))], 1)[0] == [1]

    def test_a_machine_slower_than_calibrated_is_no_reason_to_change(self) -> None:
        """All that is known of the second one is the calibration, which is as wrong for it as for the first."""
        methods = [Method(0.7, Prior(0.7)), Method(0.5, Prior(0.5))]
        for method in methods:
            method.world = World(lambda _: {width: 2 * cost for width, cost in F32.items()}, lambda _: 0.7, F32)
        assert set(choices(methods, 5)[0]) == {0}

    def test_the_time_of_a_draft_counts(self) -> None:
        """The second one is right more often, but its drafts take as long as eight passes."""
        methods = [Method(0.6, Prior(0.6)), Method(0.7, Prior(0.7), drafting=8.0)]
        assert set(choices(methods, 5)[0]) == {0}

    @pytest.mark.parametrize("exact", [False, True])
    def test_a_promise_that_is_not_kept_is_left(self, exact: bool) -> None:
        methods = [Method(0.6, Prior(0.6)), Method(0.1, Prior(0.8, MEASURED))]
        chosen, found = choices(methods, 20, exact=exact)
        assert chosen[0] == 1
        assert chosen[3:].count(0) >= 16
        assert mean(found[3:]) > 1.3

    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("priors", [(0.1, 0.1, 0.1), (0.45, 0.6, 0.6)])
    def test_where_none_pays_all_together_lose_little(self, priors: tuple[float, ...], exact: bool) -> None:
        chosen, found = choices([Method(0.02, Prior(prior)) for prior in priors], 40, exact=exact)
        assert mean(found[3:]) > 0.97
        assert mean(found) > 0.94
        assert chosen[-10:].count(0) >= 8


class TestFromProcessToProcess:
    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("a", [0.02, 0.4, 0.7])
    def test_the_next_one_begins_where_the_first_ended(self, a: float, exact: bool) -> None:
        world = World(lambda _: F32, lambda _: a, F32)
        first = Experience(world.calibration, 64, Prior(0.45), drafts=Drafts.ITERATED)
        for _ in range(3):
            world.text(adaptive(first, exact=exact))
        learnt = Learnt.from_json(json.loads(json.dumps(first.learnt().to_json())))
        # Whatever the model's file says, it is not looked at.
        second = Experience(world.calibration, 64, Prior(0.9), drafts=Drafts.ITERATED, learnt=learnt)
        assert second.seconds(WIDTHS, TEXT) == pytest.approx(first.seconds(WIDTHS, TEXT))
        assert second.learnt() == learnt
        assert plan_text([second], TEXT, exact=exact) == plan_text([first], TEXT, exact=exact)
        for width in WIDTHS:
            assert second.choose(WIDTHS, TEXT, width) == first.choose(WIDTHS, TEXT, width)

    def test_one_row_that_was_only_timed_is_still_to_be_stepped(self) -> None:
        """The first plain text may lose more than others, in whichever process it is."""
        calibration = World(lambda _: F32, lambda _: 0.7, F32).calibration
        first = Experience(calibration, 64, Prior(0.45), drafts=Drafts.ITERATED)
        start = first.plain_start
        assert start > 0
        first.time_plain(0, F32[1])
        second = Experience(calibration, 64, Prior(0.45), drafts=Drafts.ITERATED, learnt=first.learnt())
        assert second.plain_start == start
        second.learn([Step(0, 1, 0, 0, F32[1])], None)
        third = Experience(calibration, 64, Prior(0.45), drafts=Drafts.ITERATED, learnt=second.learnt())
        assert third.plain_start == 0

    def test_multiples_of_another_calibration_s_times_are_not_taken_over(self) -> None:
        """What was accepted is: it does not depend on times."""
        world = World(lambda _: {width: 0.3 * time for width, time in F32.items()}, lambda _: 0.7, F32)
        first = Experience(world.calibration, 64, Prior(0.45), drafts=Drafts.ITERATED)
        for _ in range(3):
            world.text(adaptive(first, exact=False))
        assert first.pace == pytest.approx(0.3, abs=0.1)
        anew = replace(world.calibration, seconds=((*(0.3 * time for time in F32.values()),),))
        second = Experience(anew, 64, Prior(0.45), drafts=Drafts.ITERATED, learnt=first.learnt())
        assert second.pace is None
        assert second.seconds(WIDTHS, TEXT) == {width: pytest.approx(0.3 * time) for width, time in F32.items()}
        assert second.learnt().long == first.learnt().long

    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("prior", [Prior(0.1), Prior(0.45), Prior(0.48, MEASURED)])
    @pytest.mark.parametrize("costs", [F32, F16, Q4_K_M])
    def test_all_together_are_hardly_slower_than_autoregressive_decoding(
        self, costs: dict[int, float], prior: Prior, exact: bool
    ) -> None:
        """Where nothing pays. What trials may lose is counted over all of them, not anew in each."""
        found = one_by_one(World(lambda _: costs, lambda _: 0.02, costs), prior, 30, exact=exact)
        assert mean(found[1:]) > 0.97
        assert mean(found) > 0.95

    def test_stored_figures_make_the_first_texts_fast(self) -> None:
        """Four rows promise 1.08 times as much, where a guess must promise 1.1 and what was measured less.

        Where that little is promised, the very first text is plain and shows what one row takes.
        """
        a = 0.34
        guessed, measured = (
            one_by_one(World(lambda _: F32, lambda _: 0.7, F32), prior, 2)[1]
            for prior in (Prior(a), Prior(a, MEASURED))
        )
        assert guessed == pytest.approx(1.0, abs=0.05)
        assert measured > 1.08

    def test_a_modest_gain_is_not_lost_by_chance(self) -> None:
        """What a step brings varies as much as its mean: a few unlucky ones are no reason for plain texts."""
        costs = dict(zip(WIDTHS, (1, 1.47, 1.94, 2.71, 4.09, 7.06, 11.5), strict=True))
        found = []
        for seed in range(6):
            world = World(lambda _: costs, lambda _: 0.6, costs)
            world.random = random.Random(seed)
            found += one_by_one(world, Prior(0.6, MEASURED), 60)
        assert mean(found) > 1.07

    def test_another_kind_of_text_is_learnt_in_a_few_texts(self) -> None:
        world = World(lambda _: F32, lambda tokens: 0.7 if tokens < 10 * TEXT else 0.02, F32)
        found = one_by_one(world, Prior(0.45), 20)
        assert mean(found[:10]) > 1.5
        assert found[10] > 0.65
        assert mean(found[11:]) > 0.96

    def test_drafts_that_begin_to_be_right_are_found_out(self) -> None:
        world = World(lambda _: F32, lambda tokens: 0.02 if tokens < 20 * TEXT else 0.7, F32)
        found = one_by_one(world, Prior(0.1), 60)
        assert mean(found[:20]) > 0.97
        assert mean(found[-20:]) > 1.5

    def test_one_that_was_disturbed_does_not_decide_for_all(self) -> None:
        """Its wide steps took ten times as long; later ones find out that they do not."""
        world = World(
            lambda tokens: {w: c * (1 if w == 1 or tokens > TEXT else 10) for w, c in F32.items()}, lambda _: 0.7, F32
        )
        found = one_by_one(world, Prior(0.5, MEASURED), 60)
        assert mean(found[-20:]) > 1.5
