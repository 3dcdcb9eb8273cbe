"""Plans: every trajectory once in a pass, new states in each, nothing left to chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nptool.collection.store import Trajectory
from nptool.training.cllm.planning import Plan, augmented, draw, plan
from nptool.training.cllm.recipe import Recipe
from nptool.training.cllm.schedule import choose, generator

RECIPE = Recipe(schedule="uniform", context="clean")


@pytest.fixture(scope="module")
def trajectories(make_trajectory: Callable[..., Trajectory]) -> list[Trajectory]:
    return [make_trajectory(seed, 2 + seed % 7, 4 + seed % 23) for seed in range(40)]


def make(trajectories: list[Trajectory], seed: int = 0, passes: int = 2) -> Plan:
    return plan(trajectories, RECIPE, seed, 150, lambda batches: passes * batches)


def test_a_pass_takes_every_trajectory_once(trajectories: list[Trajectory]) -> None:
    made = make(trajectories, passes=1)
    assert sorted(np.concatenate([rows for _, rows in made.batches]).tolist()) == list(range(40))
    assert {epoch for epoch, _ in made.batches} == {0}


def test_batches_keep_to_their_padded_tokens_and_count_the_real_ones(trajectories: list[Trajectory]) -> None:
    made = make(trajectories)
    for number, tokens in enumerate(made.tokens):
        batch = made.batch(number, pad_id=0)
        assert batch["input_ids"].numel() <= 150
        assert int((batch["segments_BS"] >= 0).sum()) == tokens


def test_the_second_pass_shows_other_states(trajectories: list[Trajectory]) -> None:
    first, second = ([draw(trajectories, row, RECIPE, 0, epoch).ids_S for row in range(40)] for epoch in (0, 1))
    changed = sum(not np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert changed > 30


def test_a_plan_depends_on_its_seed_only(trajectories: list[Trajectory]) -> None:
    one, same, other = make(trajectories), make(trajectories), make(trajectories, seed=1)
    assert [rows.tolist() for _, rows in one.batches] == [rows.tolist() for _, rows in same.batches]
    assert [rows.tolist() for _, rows in one.batches] != [rows.tolist() for _, rows in other.batches]


def test_a_training_may_end_within_a_pass(trajectories: list[Trajectory]) -> None:
    made = plan(trajectories, RECIPE, 0, 150, lambda batches: batches + 3)
    assert [epoch for epoch, _ in made.batches].count(1) == 3


def test_augmentation_corrects_half_of_the_wrong_tokens_after_the_first(trajectories: list[Trajectory]) -> None:
    for row, trajectory in enumerate(trajectories):
        before = [block.copy() for block in trajectory.states]
        length = len(trajectory.response_ids)
        (choice,) = choose(trajectory.states, length, RECIPE, generator(0, 0, row))
        changed = augmented(trajectory, [choice], np.random.default_rng(row))
        assert all(np.array_equal(one, other) for one, other in zip(trajectory.states, before, strict=True))
        for old_SN, new_SN, state in zip(before, changed.states, choice.states, strict=True):
            final_N = old_SN[-1]
            wrong, still = (np.flatnonzero(states[state] != final_N).tolist() for states in (old_SN, new_SN))
            assert still[:1] == wrong[:1]
            assert set(still) <= set(wrong)
            assert len(wrong) - len(still) == max(0, len(wrong) - 1) // 2
            assert np.array_equal(new_SN[state][still], old_SN[state][still])
            others = np.arange(len(old_SN)) != state
            assert np.array_equal(new_SN[others], old_SN[others])


def test_an_augmented_training_shows_the_same_states_with_some_tokens_corrected(trajectories: list[Trajectory]) -> None:
    recipe = replace(RECIPE, augment=True)
    corrected = 0
    for row, trajectory in enumerate(trajectories):
        plain, one, again = (draw(trajectories, row, r, 0, 0) for r in (RECIPE, recipe, recipe))
        assert np.array_equal(one.ids_S, again.ids_S)
        for name in ("positions_S", "student_rows_M", "teacher_rows_M", "fixed_labels_M", "weights_M"):
            assert np.array_equal(getattr(one, name), getattr(plain, name))
        changed = np.flatnonzero(one.ids_S != plain.ids_S)
        right_R = trajectory.response_ids[one.positions_S[changed] - len(trajectory.prompt_ids)]
        assert np.array_equal(one.ids_S[changed], right_R)
        corrected += len(changed)
    assert corrected > 40
