"""The states that the blocks of one answer pass through in Jacobi iteration (CLLM, arXiv 2403.00835, figure 7).

The answer is made by the ordinary loop; a proposer that watches another one writes down guesses and picks. Prints
nothing and knows no colours. Shapes: S states, N block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nptool.convergence import Mark, count_marks, mark_states
from nptool.decoding.answer import DecodeConfig
from nptool.decoding.loop.steps import Line, Proposer
from nptool.decoding.text_model import TextModel

NO_GUESS = -1
"""The last token of a block's first state: no row reads it, so it is not guessed."""


@dataclass(frozen=True)
class BlockTrace:
    """One block."""

    states_SN: NDArray[np.int32]
    """The guess, then what every iteration made of it; the last state is the text."""

    @cached_property
    def marks_SN(self) -> NDArray[np.uint8]:
        """A `Mark` for each token."""
        return mark_states(self.states_SN)

    @property
    def iterations(self) -> int:
        return len(self.states_SN) - 1


@dataclass(frozen=True)
class Trace:
    """One answer, block by block."""

    model: str
    """Path of the GGUF."""
    n: int
    prompt_tokens: int
    text: str
    blocks: tuple[BlockTrace, ...]
    pieces: dict[int, str] = field(repr=False)
    """Text of every token that occurs; special tokens by their names."""

    @property
    def tokens(self) -> int:
        return sum(block.states_SN.shape[1] for block in self.blocks)

    @property
    def iterations(self) -> int:
        """Forward passes."""
        return sum(block.iterations for block in self.blocks)

    @cached_property
    def fast_forwarded(self) -> int:
        return sum(count_marks(block.marks_SN)[0] for block in self.blocks)

    @cached_property
    def stationary(self) -> int:
        return sum(count_marks(block.marks_SN)[1] for block in self.blocks)

    def summary(self) -> dict[str, float]:
        """The figures of the whole answer; those of one block are the paper's table 3."""
        return {
            "tokens": self.tokens,
            "blocks": len(self.blocks),
            "iterations": self.iterations,
            "tokens_per_forward": self.tokens / self.iterations,
            "fast_forwarded": self.fast_forwarded,
            "fast_forwarded_per_iteration": self.fast_forwarded / self.iterations,
            "fast_forwarded_per_block": self.fast_forwarded / len(self.blocks),
            "stationary": self.stationary,
            "stationary_per_iteration": self.stationary / self.iterations,
            "stationary_per_block": self.stationary / len(self.blocks),
        }

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        blocks = [
            [
                [
                    {
                        "id": None if token == NO_GUESS else token,
                        "text": self.pieces.get(token),
                        "mark": Mark(mark).name.lower(),
                    }
                    for token, mark in zip(state, marks, strict=True)
                ]
                for state, marks in zip(block.states_SN.tolist(), block.marks_SN.tolist(), strict=True)
            ]
            for block in self.blocks
        ]
        return {
            "model": self.model,
            "n": self.n,
            "prompt_tokens": self.prompt_tokens,
            "text": self.text,
            **self.summary(),
            "states": blocks,
        }


class Recorder:
    """Lets a proposer of blocks work and writes down every state."""

    def __init__(self, proposer: Proposer[Line]) -> None:
        self.width = proposer.width
        self._proposer = proposer
        self._blocks: list[list[NDArray[np.integer]]] = []
        self._fixed: NDArray[np.integer] = np.empty(0, dtype=np.int32)
        """Tokens of the newest block that are text."""

    @property
    def seconds(self) -> float:
        """As the proposer's."""
        return self._proposer.seconds

    def propose(self, room: int) -> NDArray[np.integer]:
        """As the proposer; its first draft for a block is the block's first state."""
        draft = self._proposer.propose(room)
        if not self._blocks or self._fixed.size == self._blocks[-1][0].size:
            self._blocks.append([np.append(draft, NO_GUESS)])
            self._fixed = self._fixed[:0]
        return draft

    def observe(self, picks: NDArray[np.integer], accepted: int) -> None:
        """The picks behind what is fixed already are the block's next state."""
        self._blocks[-1].append(np.concatenate([self._fixed, picks]))
        self._fixed = self._blocks[-1][-1][: self._fixed.size + accepted + 1]
        self._proposer.observe(picks, accepted)

    def blocks(self, tokens: int) -> tuple[BlockTrace, ...]:
        """What was written down, without what lies behind the answer's `tokens` tokens."""
        blocks, position = [], 0
        for states in self._blocks:
            valid = min(states[0].size, tokens - position)
            blocks.append(BlockTrace(np.stack([state[:valid] for state in states]).astype(np.int32)))
            position += states[0].size
        return tuple(blocks)


def trace_answer(model: TextModel, prompt: NDArray[np.int32], config: DecodeConfig) -> Trace:
    """Answer a prompt block by block and keep every state.

    Args:
        config: its method must be one of blocks.

    Raises:
        ContextError: the prompt does not fit the context, or n the batch.
    """
    recorders: list[Recorder] = []

    def wrap(proposer: Proposer[Line]) -> Proposer[Line]:
        recorders.append(Recorder(proposer))
        return recorders[-1]

    answer = model.answer(prompt, config, wrap=wrap)
    for _ in answer:
        pass
    blocks = recorders[0].blocks(len(answer.tokens))
    return Trace(
        model=str(model.path),
        n=model.block_length(config),
        prompt_tokens=len(prompt),
        text=answer.text,
        blocks=blocks,
        pieces=_pieces(model, blocks),
    )


def _pieces(model: TextModel, blocks: Iterable[BlockTrace]) -> dict[int, str]:
    ids = {int(token) for block in blocks for token in np.unique(block.states_SN)} - {NO_GUESS}
    return {token: model.model.token_text(token) for token in sorted(ids)}
