"""Packing: exact sequences of small trajectories, and what every token sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nptool.collection.store import Trajectory
from nptool.training.cllm.batching import attention_mask, collate, visible
from nptool.training.cllm.packing import Packed, pack, taught_rows
from nptool.training.cllm.recipe import Recipe
from nptool.training.cllm.schedule import Choice

Make = Callable[..., Trajectory]
CLEAN, NOISY, WINDOW = Recipe(context="clean"), Recipe(context="noisy"), Recipe(context="window", window=2)


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def small() -> Trajectory:
    """Prompt 90 91, response 1 2 3 | 4 5 6 | 7 8 (what follows the end token 8 is 9), n = 3."""
    states = (
        np.array([[50, 51, 52], [1, 51, 3], [1, 2, 3]], dtype=np.int32),
        np.array([[4, 53, 6], [4, 5, 6]], dtype=np.int32),
        np.array([[54, 55, 56], [7, 57, 9], [7, 8, 9]], dtype=np.int32),
    )
    return Trajectory(ids(90, 91), ids(1, 2, 3, 4, 5, 6, 7, 8), ids(1, 60, 61), states)


def tokens_of(packed: Packed, segment: int) -> list[int]:
    return packed.ids_S[packed.segments_S == segment].tolist()


def test_clean_context_branches_off_at_each_block_s_first_wrong_token() -> None:
    packed = pack(small(), [Choice((1, 0, 0), 0)], CLEAN)
    assert tokens_of(packed, 0) == [90, 91, 1, 2, 3, 4, 5, 6, 7]
    assert packed.ids_S[9:].tolist() == [51, 3, 53, 6, 54]
    assert packed.positions_S.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 6, 7, 8]
    assert packed.segments_S[9:].tolist() == [1, 1, 2, 2, 3]
    assert packed.leaves_S[9:].tolist() == [3, 3, 6, 6, 8]


def test_every_taught_row_has_the_clean_row_at_its_position_as_teacher_and_predicts_the_next_token() -> None:
    packed = pack(small(), [Choice((1, 0, 0), 0)], CLEAN)
    assert packed.student_rows_M.tolist() == [9, 10, 11, 12, 13]
    assert packed.teacher_rows_M.tolist() == [3, 4, 6, 7, 8]
    assert packed.positions_S[packed.student_rows_M].tolist() == packed.positions_S[packed.teacher_rows_M].tolist()
    assert packed.fixed_labels_M.tolist() == [3, 4, 6, 7, 8]
    assert packed.weights_M.tolist() == [1, 1, 1, 1, 1]


def test_rows_far_after_a_block_s_first_wrong_token_weigh_less() -> None:
    packed = pack(small(), [Choice((0, 0, 0), 0)], Recipe(context="clean", decay=0.5))
    assert packed.fixed_labels_M.tolist() == [2, 3, 4, 6, 7, 8]
    assert packed.weights_M.tolist() == [1, 0.5, 0.25, 1, 0.5, 1]


def test_noisy_context_is_one_branch_and_teaches_no_row_before_a_block_s_first_wrong_token() -> None:
    packed = pack(small(), [Choice((1, 0, 0), 0)], NOISY)
    assert tokens_of(packed, 1) == [51, 3, 4, 53, 6, 54]
    assert packed.leaves_S[9:].tolist() == [3] * 6
    # Not token 4: it is right, although what is before it is not.
    assert packed.ids_S[packed.student_rows_M].tolist() == [51, 3, 53, 6, 54]
    assert packed.teacher_rows_M.tolist() == [3, 4, 6, 7, 8]


@pytest.mark.parametrize(("phase", "branches"), [(0, [[51, 3, 4, 53, 6], [54]]), (1, [[51, 3], [53, 6, 54]])])
def test_window_context_is_one_branch_per_window_of_the_schedule(phase: int, branches: list[list[int]]) -> None:
    packed = pack(small(), [Choice((1, 0, 0), phase)], WINDOW)
    assert [tokens_of(packed, 1), tokens_of(packed, 2)] == branches


def test_a_block_at_its_fixed_point_has_no_branch() -> None:
    packed = pack(small(), [Choice((2, 1, 2), 0)], CLEAN)
    assert len(packed) == 9
    assert not len(packed.student_rows_M)
    assert tokens_of(pack(small(), [Choice((0, 1, 2), 0)], CLEAN), 1) == [50, 51, 52]


def test_noise_after_the_last_taught_row_is_not_stored() -> None:
    """Block 1 at its fixed point after a noisy block 0: its right tokens carry no loss, so they are not stored."""
    packed = pack(small(), [Choice((0, 1, 2), 0)], NOISY)
    assert tokens_of(packed, 1) == [50, 51, 52]


def test_rows_whose_label_lies_after_the_end_token_are_not_taught() -> None:
    # State 1 of the last block is wrong only at the end token itself (and after it).
    packed = pack(small(), [Choice((2, 1, 1), 0)], CLEAN)
    assert not len(packed.student_rows_M)
    assert packed.ar_labels_A.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.ar_rows_A.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_row_is_taught_from_the_first_wrong_token_on() -> None:
    wrong = np.array([0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1], dtype=bool)
    assert np.flatnonzero(taught_rows(wrong, 4)).tolist() == [1, 2, 3, 9]


def test_the_next_state_teaches_in_local_consistency() -> None:
    recipe = Recipe(context="clean", consistency="local")
    packed = pack(small(), [Choice((0, 0, 0), 0)], recipe)
    students = [50, 51, 52, 53, 6, 54]
    assert packed.ids_S[packed.student_rows_M].tolist() == students
    # Block 0's next state is 1 51 3: its first token is right, so a clean row teaches it. Block 1's next state is the
    # fixed point, and of block 2's (7 57) only the right token has a label.
    assert packed.ids_S[packed.teacher_rows_M].tolist() == [1, 51, 3, 5, 6, 7]
    assert packed.segments_S[packed.teacher_rows_M].tolist() == [0, 4, 4, 0, 0, 0]


@pytest.mark.parametrize(
    ("reference", "branch", "rows"),
    [
        ((60, 61, 62), [60, 61], [1, 9, 10]),
        ((1, 60, 61), [60], [1, 2, 9]),
        ((1, 2, 60), [], [1, 2, 3]),
        ((1, 2, 3, 4, 5, 6, 7, 8), [], [1, 2, 3, 4, 5, 6, 7, 8]),
        ((1, 2, 3, 4, 5, 6, 7, 60, 61), [60], [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ((60,), [], [1]),
    ],
)
def test_the_reference_is_a_branch_from_where_it_differs(
    reference: tuple[int, ...], branch: list[int], rows: list[int]
) -> None:
    trajectory = replace(small(), reference_ids=ids(*reference))
    packed = pack(trajectory, [Choice((2, 1, 2), 0)], Recipe(ar_target="reference"))
    assert tokens_of(packed, 1) == branch
    first = 2 + len(reference) - 1 - len(branch)
    assert packed.positions_S[9:].tolist() == [first + i for i in range(len(branch))]
    assert packed.leaves_S[9:].tolist() == [first] * len(branch)
    assert packed.ar_rows_A.tolist() == rows
    assert packed.ar_labels_A.tolist() == list(reference)


def test_several_choices_share_prompt_and_response() -> None:
    choices = [Choice((1, 0, 0), 0), Choice((0, 1, 2), 0)]
    packed, alone = pack(small(), choices, CLEAN), [pack(small(), [choice], CLEAN) for choice in choices]
    assert len(packed) == sum(map(len, alone)) - 9
    assert packed.segments_S.tolist() == [0] * 9 + [1, 1, 2, 2, 3, 4, 4, 4]
    assert packed.ids_S[packed.student_rows_M].tolist() == [51, 3, 53, 6, 54, 50, 51, 52]
    assert packed.teacher_rows_M.tolist() == [row for one in alone for row in one.teacher_rows_M.tolist()]
    assert packed.ar_rows_A.tolist() == alone[0].ar_rows_A.tolist()


def plain_sequence(trajectory: Trajectory, chosen: list[int], recipe: Recipe, phase: int, position: int) -> list[int]:
    """The ordinary causal sequence that a noisy row at `position` ends."""
    prompt, block = trajectory.prompt_ids.tolist(), trajectory.states[0].shape[1]
    number = (position - len(prompt)) // block
    sequence = prompt
    for earlier, states in enumerate(trajectory.states[: number + 1]):
        same_window = (earlier + phase) // recipe.window == (number + phase) // recipe.window
        noisy = earlier == number or recipe.context == "noisy" or (recipe.context == "window" and same_window)
        sequence = sequence + states[chosen[earlier] if noisy else -1].tolist()
    return sequence[: position + 1]


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.integers(1, 5),
    response=st.integers(1, 17),
    block=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    context=st.sampled_from(["noisy", "window", "clean"]),
    window=st.integers(1, 4),
    data=st.data(),
)
def test_what_a_taught_row_sees_is_the_plain_sequence_that_it_ends(
    make_trajectory: Make,
    prompt: int,
    response: int,
    block: int,
    seed: int,
    context: str,
    window: int,
    data: st.DataObject,
) -> None:
    recipe = Recipe(context=context, window=window)
    trajectory = make_trajectory(seed, prompt, response, block)
    chosen = [data.draw(st.integers(0, len(states) - 1)) for states in trajectory.states]
    phase = data.draw(st.integers(0, window - 1))
    packed = pack(trajectory, [Choice(tuple(chosen), phase)], recipe)
    batch = collate([packed])
    visible_SS = visible(batch["segments_BS"], batch["positions_BS"], batch["leaves_BS"])[0].numpy()
    clean = trajectory.prompt_ids.tolist() + trajectory.response_ids.tolist()[:-1]
    for row, seen in enumerate(visible_SS):
        order = np.flatnonzero(seen)[np.argsort(packed.positions_S[seen], kind="stable")]
        position = int(packed.positions_S[row])
        assert packed.positions_S[order].tolist() == list(range(position + 1))
        expected = (
            clean[: position + 1]
            if packed.segments_S[row] == 0
            else plain_sequence(trajectory, chosen, recipe, phase, position)
        )
        assert packed.ids_S[order].tolist() == expected


def test_padding_sees_itself_only_and_is_seen_by_nothing_else() -> None:
    long, short = pack(small(), [Choice((0, 0, 0), 0)], NOISY), pack(small(), [Choice((2, 1, 2), 0)], NOISY)
    batch = collate([long, short], pad_id=77)
    mask = attention_mask(batch, "sdpa")[1, 0]
    assert batch["input_ids"][1, len(short) :].tolist() == [77] * (len(long) - len(short))
    assert not mask[: len(short), len(short) :].any()
    assert not mask[len(short) :, : len(short)].any()
    assert mask.any(dim=1).all()


def test_rows_of_a_batch_count_its_padded_tokens() -> None:
    long, short = pack(small(), [Choice((0, 0, 0), 0)], NOISY), pack(small(), [Choice((0, 1, 2), 0)], NOISY)
    batch = collate([short, long])
    assert batch["student_rows_M"].tolist() == [
        *short.student_rows_M.tolist(),
        *(long.student_rows_M + len(long)).tolist(),
    ]
    flat = batch["input_ids"].flatten()
    assert flat[batch["student_rows_M"]].tolist() == [50, 51, 52, *long.ids_S[long.student_rows_M].tolist()]


def test_eager_attention_gets_the_mask_as_scores() -> None:
    batch = collate([pack(small(), [Choice((0, 0, 0), 0)], NOISY)])
    boolean, scores = attention_mask(batch, "sdpa"), attention_mask(batch, "eager")
    assert scores.dtype.is_floating_point
    assert ((scores == 0) == boolean).all()
    assert (scores[~boolean] < -1e30).all()
