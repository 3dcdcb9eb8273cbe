"""Which states are shown: exact choices, and the shares over many draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from nptool.collection.store import Trajectory
from nptool.errors import UsageError
from nptool.training.cllm.recipe import Recipe
from nptool.training.cllm.schedule import choose, generator, noise_levels, noise_shares

Make = Callable[..., Trajectory]
# One right token more in each state: shares of noise 1, 3/4, 1/2, 1/4, 0.
STAIRS = np.array([[9, 9, 9, 9], [1, 9, 9, 9], [1, 2, 9, 9], [1, 2, 3, 9], [1, 2, 3, 4]], dtype=np.int32)


def test_noise_is_the_share_from_the_first_wrong_token_on() -> None:
    states = np.array([[9, 2, 9, 4], [1, 9, 3, 4], [1, 2, 3, 9], [1, 2, 3, 4]], dtype=np.int32)
    assert noise_shares(states, 4).tolist() == [1.0, 0.75, 0.25, 0.0]


def test_tokens_after_the_end_token_are_no_noise() -> None:
    assert noise_shares(STAIRS, 2).tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_progressive_takes_the_nearest_state_and_starts_again_after_a_window() -> None:
    recipe = Recipe(window=3, random_phase=False)
    (choice,) = choose([STAIRS] * 5, 20, recipe, generator(0, 0, 0))
    assert choice.states == (4, 2, 0, 4, 2)
    assert choice.phase == 0


def test_the_paper_s_levels_never_reach_the_random_guess() -> None:
    recipe = Recipe(window=4, max_noise=3 / 4, random_phase=False)
    assert choose([STAIRS] * 4, 16, recipe, generator(0, 0, 0))[0].states == (4, 3, 2, 1)


def test_reverse_falls_from_the_most_noise() -> None:
    recipe = Recipe(schedule="reverse", window=3, random_phase=False)
    assert choose([STAIRS] * 4, 16, recipe, generator(0, 0, 0))[0].states == (0, 2, 4, 0)


def test_random_draws_every_level_alike() -> None:
    levels = noise_levels(3000, Recipe(schedule="random", window=3), 0, generator(0, 0, 0))
    assert Counter(levels.tolist()) == pytest.approx({0.0: 1000, 0.5: 1000, 1.0: 1000}, rel=0.1)


def test_uniform_draws_every_state_but_the_fixed_point_alike() -> None:
    recipe = Recipe(schedule="uniform")
    drawn = Counter(choose([STAIRS], 4, recipe, generator(0, 0, index))[0].states[0] for index in range(4000))
    assert drawn == pytest.approx(dict.fromkeys(range(4), 1000), rel=0.1)


def test_uniform_leaves_out_states_that_are_right_up_to_the_end_token() -> None:
    recipe = Recipe(schedule="uniform")
    drawn = {choose([STAIRS], 2, recipe, generator(0, 0, index))[0].states[0] for index in range(100)}
    assert drawn == {0, 1}


def test_a_block_that_was_right_from_the_start_shows_its_fixed_point() -> None:
    recipe = Recipe(schedule="uniform")
    right = np.array([[1, 2, 9, 9], [1, 2, 3, 4]], dtype=np.int32)
    assert choose([right], 2, recipe, generator(0, 0, 0))[0].states == (1,)


def test_short_responses_start_anywhere_in_the_window() -> None:
    """Otherwise a response of two blocks would never see more than the second level."""
    recipe = Recipe(window=5)
    choices = [choose([STAIRS] * 2, 8, recipe, generator(0, 0, index))[0] for index in range(2000)]
    assert Counter(one.phase for one in choices) == pytest.approx(dict.fromkeys(range(5), 400), rel=0.2)
    assert {one.phase: one.states for one in choices} == {0: (4, 3), 1: (3, 2), 2: (2, 1), 3: (1, 0), 4: (0, 4)}


def test_long_responses_start_at_the_window_s_beginning() -> None:
    recipe = Recipe(window=5)
    assert {choose([STAIRS] * 5, 20, recipe, generator(0, 0, index))[0].phase for index in range(50)} == {0}


def test_uniform_draws_show_different_states_of_a_block() -> None:
    recipe = Recipe(schedule="uniform", draws=3)
    for index in range(50):
        choices = choose([STAIRS, STAIRS[2:]], 8, recipe, generator(0, 0, index))
        assert len({choice.states[0] for choice in choices}) == 3
        # The second block has two states and the fixed point.
        assert sorted(choice.states[1] for choice in choices) == [0, 1, 2]


def test_progressive_draws_are_spread_over_the_window() -> None:
    recipe = Recipe(window=4, draws=2, random_phase=False)
    choices = choose([STAIRS] * 4, 16, recipe, generator(0, 0, 0))
    assert [choice.phase for choice in choices] == [0, 2]
    assert choices[1].states == choices[0].states[2:] + choices[0].states[:2]


def test_choices_depend_on_seed_pass_and_trajectory_only(make_trajectory: Make) -> None:
    recipe = Recipe(schedule="uniform")
    trajectory = make_trajectory(0, 5, 60, 8)

    def draw(*key: int) -> tuple[int, ...]:
        return choose(trajectory.states, 60, recipe, generator(*key))[0].states

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "--window is 0; it must be at least 1"),
        ({"min_noise": 0.5, "max_noise": 0.2}, "--min-noise 0.5 is above --max-noise 0.2"),
        ({"max_noise": 1.5}, "--max-noise is 1.5; it must be at least 0 and at most 1"),
        ({"ar_weight": -1.0}, "--ar-weight is -1.0; it must be at least 0"),
        ({"label_smoothing": 1.0}, "--label-smoothing is 1.0; it must be at least 0 and below 1"),
        ({"schedule": "linear"}, "--schedule is 'linear'; expected one of progressive, uniform, random, reverse"),
        (
            {"divergence": "l2"},
            "--divergence is 'l2'; expected one of forward-kl, reverse-kl, jensen-shannon, fixed-point",
        ),
        ({"draws": 0}, "--draws is 0; it must be at least 1"),
        ({"window": 3, "draws": 4}, "--draws 4 of --window 3 levels show states twice; lower --draws"),
        (
            {"consistency": "local", "divergence": "fixed-point"},
            "--consistency local has no fixed-point target; choose another --divergence",
        ),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(**options)
    assert str(caught.value) == message
