"""Plans: every trajectory once in a pass, new states in each, nothing left to chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nptool.collection.store import Trajectory
from nptool.training.cllm.planning import Plan, draw, plan
from nptool.training.cllm.recipe import Recipe

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
