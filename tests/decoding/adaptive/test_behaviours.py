"""What automatic widths make of scripted costs and acceptances, changing ones too."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from nptool.decoding.adaptive.chooser import Chooser
from nptool.decoding.adaptive.cost import Calibration
from nptool.decoding.adaptive.gains import SHORT, TRIAL_STEPS, Gains
from nptool.decoding.adaptive.widths import AdaptiveWidth
from nptool.decoding.loop.steps import Step

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
# t(w) / t(1) of 110M parameters on two cores, and of a processor to which 64 rows are like one.
F32 = dict(zip(WIDTHS, (1, 1.17, 1.48, 1.92, 3.03, 4.63, 8.3), strict=True))
F16 = dict(zip(WIDTHS, (1, 1.2, 1.78, 2.27, 3.66, 6.37, 10.7), strict=True))
Q4_K_M = dict(zip(WIDTHS, (1, 1.78, 2.68, 6.0, 6.4, 12.4, 18.9), strict=True))
FLAT = dict(zip(WIDTHS, (1, 1.005, 1.01, 1.02, 1.03, 1.05, 1.08), strict=True))
TEXT = 100
MEASURED = SHORT / 2
"""Weight of an exponent that was measured in training."""


class World:
    """A machine and a model: a step of w rows takes `costs` and brings tokens with mean w**a, a window warmed up.

    Up to 16 rows; beyond them it bends as the embedded default's does: 1.2 and 1.3 times as much with 32 and 64.
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
            widths.observe(Step(TEXT + length, rows, min(rows - 1, room), count - 1, seconds, drafted))
            length, spent, single = length + count, spent + seconds, single + count * single_cost
        widths.finish()
        return single / spent


class Prior(NamedTuple):
    exponent: float
    weight: float = TRIAL_STEPS


def chooser_of(calibration: Calibration, *priors: Prior, independent: bool = False, learnt: object = None) -> Chooser:
    """A chooser among as many methods as there are priors."""
    found = Chooser(calibration, learnt)
    for number, prior in enumerate(priors):
        found.add(str(number), Gains(*prior, independent=independent))
    return found


def adaptive(chooser: Chooser, *, exact: bool, length: int = TEXT, widest: int = 64) -> AdaptiveWidth:
    plan = chooser.plan(dict.fromkeys(chooser.gains, widest), length, exact=exact)
    return AdaptiveWidth(chooser, plan, exact=exact)


def speedups(world: World, prior: float, texts: int = 12, *, exact: bool = False) -> list[float]:
    """One for each text; in between what was seen is kept."""
    chooser = chooser_of(world.calibration, Prior(prior))
    return [world.text(adaptive(chooser, exact=exact)) for _ in range(texts)]


def handed_on(chooser: Chooser, calibration: Calibration, *priors: Prior) -> Chooser:
    """The chooser of the next process, which begins with what this one has learnt, in JSON."""
    return chooser_of(calibration, *priors, learnt=json.loads(json.dumps(chooser.to_json())))


def one_by_one(world: World, prior: Prior, processes: int, *, exact: bool = True) -> list[float]:
    """One for each process, which makes a single text and passes on what it has learnt."""
    chooser, found = chooser_of(world.calibration, prior), []
    for _ in range(processes):
        found.append(world.text(adaptive(chooser, exact=exact)))
        chooser = handed_on(chooser, world.calibration, prior)
    return found


def fixed(costs: dict[int, float], a: float, width: int) -> float:
    """Speed-up of one width, by itself."""
    world, spent = World(lambda _: costs, lambda _: a, costs), 0.0
    while world.tokens < 3000:
        spent += world.step(width, width)[1]
    return world.tokens * 1.05 / spent


def test_one_row_that_was_timed_in_a_bad_moment_is_timed_again_and_no_text_is_tried_for_it() -> None:
    """Wide steps seem to pay until then, and no text is plain before; afterwards all are."""
    world = World(lambda _: F32, lambda _: 0.1, F32)
    chooser = chooser_of(world.calibration, Prior(0.1))
    chooser.costs.learn(2, TEXT, F32[2])
    chooser.costs.learn(1, TEXT, 3.0)
    plain, timed = [], []
    for _ in range(60):
        widths = adaptive(chooser, exact=True)
        plain.append(widths.members == (1,))
        timed.append(widths.wants_plain_time)
        world.text(widths)
    assert timed.index(True) < plain.index(True)
    assert plain[-20:].count(True) >= 18


@pytest.mark.parametrize("slow", [2.0, 4.0, 20.0])
def test_one_row_that_was_calibrated_and_timed_in_a_bad_moment_is_timed_again(slow: float) -> None:
    world = World(lambda _: F32, lambda _: 0.02, F32 | {1: slow})
    chooser = chooser_of(world.calibration, Prior(0.0))
    chooser.costs.learn(2, TEXT, F32[2])
    chooser.costs.learn(1, TEXT, slow)
    found = [world.text(adaptive(chooser, exact=True)) for _ in range(60)]
    assert mean(found[40:]) > 0.96


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
    found = []
    for seed in range(20):
        world = World(lambda _: F32, lambda tokens: 0.7 if tokens < 10 * TEXT else 0.02, F32)
        world.random = random.Random(seed)
        found.append(speedups(world, 0.45, 20))
    while_right, first, later = zip(*((mean(one[:10]), one[10], mean(one[11:])) for one in found), strict=True)
    assert mean([*while_right]) > 1.8
    assert mean([*first]) > 0.6
    assert mean([*later]) > 0.97


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


def test_a_machine_that_is_slower_as_a_whole_changes_nothing() -> None:
    slow = {width: 5 * cost for width, cost in F32.items()}
    assert mean(speedups(World(lambda _: slow, lambda _: 0.7, F32), 0.45)) > 1.5


def test_a_wide_step_of_independent_drafts_tells_of_narrow_ones() -> None:
    """Heads: of four tokens the first two are always right, so two rows less cost nothing."""
    costs = {1: 1.0, 2: 1.2, 3: 1.3, 4: 1.6}
    calibration = Calibration((128,), tuple(costs), (tuple(costs.values()),), (tuple(costs),))
    chooser = chooser_of(calibration, Prior(0.9), independent=True)
    widths, used = adaptive(chooser, exact=True, widest=4), []
    for step in range(40):
        rows = widths.choose(TEXT + step, 99)
        widths.observe(Step(TEXT + step, rows, rows - 1, min(rows - 1, 2), costs[rows], 0.0))
        used.append(rows)
    assert used[0] == 4
    assert set(used[-20:]) == {3}


def test_the_time_of_a_draft_counts_where_one_is_made() -> None:
    """Heads that are always right but take as long as three passes of the model, and later hardly any time."""
    costs = {1: 1.0, 2: 1.2, 4: 1.5}
    calibration = Calibration((128,), tuple(costs), (tuple(costs.values()),), (tuple(costs),))
    chooser = chooser_of(calibration, Prior(0.9), independent=True)
    widths, used = adaptive(chooser, exact=True, widest=4), []
    for step in range(1500):
        rows = widths.choose(TEXT + step, 99)
        drafting = 0.0 if rows == 1 else 4.0 if step < 100 else 0.1
        widths.observe(Step(TEXT + step, rows, rows - 1, rows - 1, costs[rows] + drafting, drafting))
        used.append(rows)
    assert used[0] == 4
    assert set(used[50:100]) == {1}
    assert set(used[-20:]) == {4}


def test_one_long_text_does_not_fall_back_on_a_wrong_expectation() -> None:
    """What it saw of wide steps gets old while it makes none; what it learnt of them stays."""
    world = World(lambda _: F32, lambda _: 0.02, F32)
    widths = adaptive(chooser_of(world.calibration, Prior(0.5, MEASURED)), exact=False)
    for length in range(1500):
        rows = widths.choose(TEXT + length, 999)
        count, seconds = world.step(rows, 999)
        widths.observe(Step(TEXT + length, rows, rows - 1, count - 1, seconds, 0.0))
    assert world.used[-1000:].count(1) > 900


class Method:
    """One way to decode, with an acceptance and a world of its own."""

    def __init__(self, a: float, prior: Prior, drafting: float = 0.0) -> None:
        self.world = World(lambda _: F32, lambda _: a, F32)
        self.prior = prior
        self.drafting = drafting


def choices(methods: list[Method], texts: int, *, exact: bool = True) -> tuple[list[int], list[float]]:
    """Which method each text was decoded by, and its speed-up."""
    chooser = chooser_of(methods[0].world.calibration, *(method.prior for method in methods))
    chooser.drafting = {str(number): (method.drafting, 0.0) for number, method in enumerate(methods)}
    chosen, found = [], []
    for _ in range(texts):
        plan = chooser.plan(dict.fromkeys(chooser.gains, 64), TEXT, exact=exact)
        method = methods[int(plan.method)]
        found.append(method.world.text(AdaptiveWidth(chooser, plan, exact=exact), method.drafting))
        chosen.append(int(plan.method))
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
        first = chooser_of(world.calibration, Prior(0.45))
        for _ in range(3):
            world.text(adaptive(first, exact=exact))
        # Whatever the model's file says, it is not looked at.
        second = handed_on(first, world.calibration, Prior(0.9))
        assert second.to_json() == first.to_json()
        plans = [chooser.plan({"0": 64}, TEXT, exact=exact) for chooser in (first, second)]
        assert plans[0] == plans[1]
        for width in WIDTHS:
            assert first.choose("0", WIDTHS, TEXT, width) == second.choose("0", WIDTHS, TEXT, width)

    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("prior", [Prior(0.1), Prior(0.45), Prior(0.48, MEASURED)])
    @pytest.mark.parametrize("costs", [F32, F16, Q4_K_M])
    def test_all_together_are_hardly_slower_than_autoregressive_decoding(
        self, costs: dict[int, float], prior: Prior, exact: bool
    ) -> None:
        """Where nothing pays. What trials may lose is counted over all of them, not again in each."""
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
