"""Sequences and batches: the loss of a batch is the loss of its records one by one."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nptool.data.record import Message, Record
from nptool.data.rendering import render
from nptool.training.base.evaluation import evaluate
from nptool.training.batches import plan_batches
from nptool.training.sequences import Sequences, make_sequences
from nptool.training.units import Unit, cut_texts

RECORDS = [
    Record(prompt="the cat", response="sat on a mat and saw seven red birds"),
    Record(prompt="one tall tree near our house in the", response="mat"),
    Record(messages=(Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))),
]
UNITS = [Unit(record) for record in RECORDS]


def rows(sequences: Sequences) -> list[list[int]]:
    bounds = zip(sequences.starts, sequences.ends, strict=True)
    return [sequences.ids[start:end].tolist() for start, end in bounds]


def naive_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, response_only: bool
) -> list[torch.Tensor]:
    """Loss of every trained token of every record, each record alone."""
    losses = []
    for record in RECORDS:
        rendered = render(record, tokenizer)
        ids = torch.tensor(rendered.prompt_ids + (rendered.response_ids or []))
        first = len(rendered.prompt_ids) if response_only else 1
        logits_TV = model(ids[None]).logits[0]
        losses.append(cross_entropy(logits_TV[first - 1 : -1], ids[first:], reduction="none"))
    return losses


@pytest.mark.parametrize("loss", ["all", "response"])
def test_a_padded_batch_equals_its_records_alone(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, loss: str
) -> None:
    model = model.double()
    sequences = make_sequences(UNITS, tokenizer, context=64, loss=loss)  # type: ignore[arg-type]  # one of two
    batch = sequences.batch([0, 1, 2], pad=int(tokenizer.pad_token_id))
    assert batch["input_ids"].shape == (3, sequences.lengths.max())
    naive = torch.cat(naive_losses(model, tokenizer, response_only=loss == "response"))
    output = model(**batch)
    each = cross_entropy(output.logits.reshape(len(naive), -1), batch["shift_labels"], reduction="none")
    torch.testing.assert_close(each, naive, rtol=1e-12, atol=1e-12)
    # transformers computes the mean in float32.
    assert output.loss.item() == pytest.approx(naive.mean().item(), rel=1e-6)
    assert sequences.targets == len(naive)


def test_no_logits_but_those_of_targets(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    sequences = make_sequences(UNITS, tokenizer, context=64, loss="response")
    batch = sequences.batch([0, 1, 2], pad=0)
    responses = sum(len(render(record, tokenizer).response_ids or []) for record in RECORDS)
    assert model(**batch).logits.shape[:-1] == (responses,)


def test_texts_are_joined_and_cut_into_rows_that_share_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["the cat sat on a mat", "one tall tree", "a"]
    sequences = make_sequences([Unit(Record(text=text)) for text in texts], tokenizer, context=7, loss="response")
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    found = rows(sequences)
    assert [len(row) for row in found[:-1]] == [8] * (len(found) - 1)
    assert all(one[-1] == other[0] for one, other in pairwise(found))
    assert found[0][:1] + [token for row in found for token in row[1:]] == stream
    assert sequences.targets == len(stream) - 1


def test_pieces_of_a_text_have_no_seam(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "the cat sat on a mat\n" * 300
    pieces = cut_texts([Record(text=text)])
    assert len(pieces) > 1
    sequences = make_sequences(pieces, tokenizer, context=64, loss="all")
    expected = [token for piece in pieces for token in tokenizer(piece.record.text)["input_ids"]]
    assert sequences.ids.tolist() == [*expected, tokenizer.eos_token_id]


def test_texts_and_records_together(tokenizer: PreTrainedTokenizerFast) -> None:
    sequences = make_sequences([UNITS[0], Unit(Record(text="the cat")), UNITS[1]], tokenizer, context=64, loss="all")
    rendered = [render(RECORDS[index], tokenizer) for index in (0, 1)]
    text = [*tokenizer("the cat")["input_ids"], tokenizer.eos_token_id]
    assert rows(sequences) == [text, *(one.prompt_ids + (one.response_ids or []) for one in rendered)]


def test_records_that_do_not_fit_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    longest = max(len(one.prompt_ids) + len(one.response_ids or []) for one in (render(r, tokenizer) for r in RECORDS))
    assert make_sequences(UNITS, tokenizer, context=longest, loss="all").skipped == 0
    sequences = make_sequences(UNITS, tokenizer, context=longest - 1, loss="all")
    assert sequences.skipped == 1
    assert len(sequences.starts) == 2


def test_a_prompt_without_response_is_trained_only_with_all(tokenizer: PreTrainedTokenizerFast) -> None:
    unit = Unit(Record(prompt="the cat"))
    ids = render(unit.record, tokenizer).prompt_ids
    assert rows(make_sequences([unit], tokenizer, context=64, loss="all")) == [ids]
    sequences = make_sequences([unit], tokenizer, context=64, loss="response")
    assert (sequences.skipped, sequences.targets) == (1, 0)


def test_evaluation_is_the_mean_over_all_targets(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    sequences = make_sequences(UNITS, tokenizer, context=64, loss="response")
    with torch.no_grad():
        naive = torch.cat(naive_losses(model, tokenizer, response_only=True))
    for batch_tokens in (1, 40, 1000):
        found = evaluate(model, sequences, tokenizer, batch_tokens=batch_tokens)
        assert found.tokens == len(naive)
        assert found.loss == pytest.approx(float(naive.mean()), rel=1e-5)
        assert found.text_bytes == sum(
            len(response) for response in ("sat on a mat and saw seven red birds", "mat", "d")
        )
        assert found.perplexity == pytest.approx(math.exp(float(naive.mean())), rel=1e-4)
        assert found.bits_per_byte == pytest.approx(float(naive.sum()) / math.log(2) / found.text_bytes, rel=1e-5)


def test_batches_of_a_plan_cover_all_targets(tokenizer: PreTrainedTokenizerFast) -> None:
    sequences = make_sequences(UNITS * 5, tokenizer, context=64, loss="all")
    plan = plan_batches(sequences.lengths, 64, 30, seed=0)
    seen = 0
    for indices in plan:
        batch = sequences.batch(indices, pad=0)
        assert int(batch["logits_to_keep"].sum()) == len(batch["shift_labels"])
        assert batch["input_ids"].dtype == torch.int64
        seen += len(np.unique(indices))
    assert seen >= len(UNITS) * 5


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_share_of_the_prompt_is_trained_and_all_of_the_response(
    tokenizer: PreTrainedTokenizerFast, share: float
) -> None:
    units = [Unit(Record(prompt="the cat sat on a mat " * 8, response="seven red birds")) for _ in range(40)]
    sequences = make_sequences(units, tokenizer, context=512, loss="all", prompt_share=share)
    rendered = render(units[0].record, tokenizer)
    ids, start = rendered.prompt_ids + (rendered.response_ids or []), len(rendered.prompt_ids)
    batch = sequences.batch(range(40), pad=0)
    keep_BT = batch["logits_to_keep"].numpy()
    assert keep_BT[:, start - 1 :].all()
    assert sequences.targets == 40 * (len(ids) - start) + round(share * 40 * (start - 1))
    assert keep_BT[:, : start - 1].mean() == pytest.approx(share, abs=0.05)
    expected = [ids[place + 1] for row in keep_BT for place in np.flatnonzero(row)]
    assert batch["shift_labels"].tolist() == expected
    assert torch.equal(batch["logits_to_keep"], sequences.batch(range(40), pad=0)["logits_to_keep"])
