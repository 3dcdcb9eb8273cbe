"""The newcomers' questions answered by a text-to-SQL model, right and wrong ones, and the score by kind of question.

python benchmarks/newcomer.py model.gguf
python benchmarks/newcomer.py runs/text-to-sql/model
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nptool.text_to_sql.newcomer import (
    NO_QUESTION_TOKENS,
    NO_QUESTIONS,
    NewcomerQuestion,
    newcomer_accuracy,
    newcomer_questions,
)

ANSWER_TOKENS = 192


class Reply(NamedTuple):
    """A greedy answer, and whether the model ended it."""

    text: str
    ended: bool


def main() -> None:
    """Ask everything, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF, or the directory of a checkpoint")
    path: Path = parser.parse_args().model
    questions = newcomer_questions()
    limits = [ANSWER_TOKENS] * len(questions) + [NO_QUESTION_TOKENS] * len(NO_QUESTIONS)
    prompts = [*(question.prompt for question in questions), *NO_QUESTIONS]
    answer = of_checkpoint if path.is_dir() else of_gguf
    replies = list(answer(path, prompts, limits))
    show(questions, [reply.text for reply in replies[: len(questions)]])
    show_endings(replies[len(questions) :])


def of_gguf(path: Path, prompts: Sequence[str], limits: Sequence[int]) -> Iterator[Reply]:
    """Answers of a GGUF, at most `limits` tokens each."""
    import nptool

    with nptool.load(path) as model:
        for prompt, limit in zip(prompts, limits, strict=True):
            answer = model.generate(prompt, max_tokens=limit)
            yield Reply(answer.text, answer.finish == "end")


def of_checkpoint(path: Path, prompts: Sequence[str], limits: Sequence[int]) -> Iterator[Reply]:
    """Answers of a checkpoint, at most `limits` tokens each."""
    import torch

    from nptool.checkpoints import load_model, load_tokenizer
    from nptool.data.records import Record
    from nptool.data.rendering import end_token_ids, render

    model, tokenizer = load_model(path), load_tokenizer(path)
    ends = sorted(end_token_ids(tokenizer, model))
    for prompt, limit in zip(prompts, limits, strict=True):
        ids = torch.tensor([render(Record(prompt=prompt), tokenizer).prompt_ids])
        made = model.generate(ids, max_new_tokens=limit, do_sample=False, eos_token_id=ends, pad_token_id=ends[0])  # type: ignore[operator]  # transformers' mixin
        answer = made[0, ids.shape[1] :].tolist()
        yield Reply(str(tokenizer.decode(answer, skip_special_tokens=True)), answer[-1] in ends)


def show(questions: Sequence[NewcomerQuestion], answers: Sequence[str]) -> None:
    """Print every question with its answer, then the scores."""
    right_by_kind: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        right = question.match(answer)
        right_by_kind[question.kind].append(right)
        print(f"{'right' if right else 'WRONG'}  {question.kind}\n{question.prompt}\n    {' '.join(answer.split())}")
        if not right:
            print(f"    gold: {question.gold}")
    for kind, rights in sorted(right_by_kind.items()):
        print(f"{kind:<12}{sum(rights):>3} of {len(rights)}")
    accuracy = newcomer_accuracy(answers)
    print(f"{'all':<12}{round(accuracy * len(questions)):>3} of {len(questions)} ({accuracy:.1%})")


def show_endings(replies: Sequence[Reply]) -> None:
    """Print the answers to inputs that are no questions, and how many of them ended."""
    for prompt, reply in zip(NO_QUESTIONS, replies, strict=True):
        print(f"{'ended' if reply.ended else 'LOOPS'}  {prompt!r}: {' '.join(reply.text.split())}")
    ended = sum(reply.ended for reply in replies)
    print(f"no question: {ended} of {len(replies)} answers end within {NO_QUESTION_TOKENS} tokens")


if __name__ == "__main__":
    main()
