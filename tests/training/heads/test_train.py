"""Training runs: from trajectories to a multi-head checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nptool.checkpoints import load_model, load_tokenizer, save_model
from nptool.collection.store import Trajectory, read_collected, write_collected
from nptool.errors import CheckpointError, DataError, NptoolError, UsageError
from nptool.heads import HEADS_FILE, HEADS_WEIGHTS, SEPARATE, SHARED, read_heads_info
from nptool.heads_sample import HeadsFigures, read_sample
from nptool.method_note import NOTE_FILE, Measured, MethodNote, read_note, write_note
from nptool.runs import Run
from nptool.training.heads.batching import heads_batch, response_sequences
from nptool.training.heads.checkpoint import load_heads
from nptool.training.heads.config import HeadsConfig, heads_defaults
from nptool.training.heads.dry_run import dry_run
from nptool.training.heads.evaluation import RANKS, evaluate_heads
from nptool.training.heads.losses import IGNORE
from nptool.training.heads.model import add_heads
from nptool.training.heads.train import ALONE, train_heads

LAYER = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16
RANK = 2
EXTRA = {SHARED: LAYER + 3 * (16 + 2 * RANK * 16), SEPARATE: 3 * LAYER}
"""Parameters of heads 2, 3 and 4."""


@pytest.fixture(params=[SHARED, SEPARATE])
def kind(request: pytest.FixtureRequest) -> str:
    """For tests of both kinds of heads; the others train shared ones."""
    return str(request.param)


@pytest.fixture
def config(collected: Path, request: pytest.FixtureRequest) -> HeadsConfig:
    kind = request.getfixturevalue("kind") if "kind" in request.fixturenames else SHARED
    options: dict[str, Any] = {"rank": RANK} if kind == SHARED else {}
    return HeadsConfig(
        data=(collected,),
        kind=kind,
        heads=4,
        lr=1e-2,
        steps=6,
        batch_tokens=200,
        log_every=2,
        save_every=2,
        heldout=0.2,
        name="one",
        **options,
    )


def message(error: type[NptoolError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_training_leaves_the_model_as_it_was_and_heads_beside_it(
    config: HeadsConfig, kind: str, checkpoint: Path
) -> None:
    result = train_heads(replace(config, steps=60))
    run = Run(Path("runs/one"))
    before, after = (load_file(path / "model.safetensors") for path in (checkpoint, run.model))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.loss is not None
    assert result.loss[0] == result.loss_before
    assert (result.heads_kind, result.heads, result.steps, result.trained_parameters) == (kind, 4, 60, EXTRA[kind])
    assert result.trajectories + result.heldout == 40
    info = read_heads_info(run.model)
    assert info is not None
    assert (info.count, info.trunk_layer, info.model_type, info.hidden_size) == (4, 2, "llama", 16)
    assert (info.kind, info.rank) == (kind, RANK if kind == SHARED else 0)
    assert [len(row) for row in info.accuracy] == [RANKS] * 3
    assert [row[0] for row in info.accuracy] == list(result.top1 or ())[1:]
    names = set(load_file(run.model / HEADS_WEIGHTS))
    assert len(names) == (9 + 3 * 3 if kind == SHARED else 3 * 9)
    assert (
        {"layer.mlp.down_proj.weight", "depths.4.a"} if kind == SHARED else {"heads.4.mlp.down_proj.weight"}
    ) < names
    saved = json.loads(run.results.read_text())
    assert {name: saved[name] for name in asdict(result)} == json.loads(json.dumps(asdict(result)))
    assert (saved["kind"], run.checkpoints.exists()) == ("heads", False)


def test_a_held_out_sample_is_saved_with_the_heads_figures_on_it(config: HeadsConfig, collected: Path) -> None:
    result = train_heads(replace(config, steps=60))
    sample = read_sample(Path(result.model), 4)
    assert sample is not None
    assert len(sample.prompts) == result.heldout
    # All held-out responses are short, so they are the sample.
    assert sample.figures == HeadsFigures(result.tokens_per_forward or 0, result.acceptance or ())
    known = {(tuple(row.prompt_ids), tuple(row.response_ids)) for row in read_collected(collected).rows()}
    assert set(zip(sample.prompts, sample.responses, strict=True)) < known
    train_heads(replace(config, heldout=0.0, name="none"))
    assert read_sample(Path("runs/none/model"), 4) is None


def test_a_sample_is_small(config: HeadsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nptool.training.heads.sample.SAMPLE_PROMPTS", 2)
    monkeypatch.setattr("nptool.training.heads.sample.SAMPLE_TOKENS", 5)
    sample = read_sample(Path(train_heads(config).model), 4)
    assert sample is not None
    assert [len(response) for response in sample.responses] == [5, 5]


def test_heads_learn(config: HeadsConfig, kind: str, checkpoint: Path) -> None:
    short, long = train_heads(replace(config, steps=1)), train_heads(replace(config, steps=150, name="two"))
    assert short.loss is not None
    assert long.loss is not None
    assert all(after < 0.8 * before for before, after in zip(short.loss[1:], long.loss[1:], strict=True))
    assert long.loss[0] == short.loss[0]


def test_the_checkpoint_loads_as_the_plain_model(config: HeadsConfig, checkpoint: Path) -> None:
    directory = Path(train_heads(config).model)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(input_ids=ids).logits
        start = load_model(checkpoint)(input_ids=ids).logits
    assert torch.equal(plain, start)


def test_saved_heads_come_back(config: HeadsConfig, kind: str) -> None:
    directory = Path(train_heads(config).model)
    model = load_heads(directory)
    saved = load_file(directory / HEADS_WEIGHTS)
    for number in range(2, 5):
        part: Any = model.extra.depths if kind == SHARED else model.extra.layers
        prefix = f"depths.{number}." if kind == SHARED else f"heads.{number}."
        for name, weight in part[number - 2].state_dict().items():
            assert torch.equal(weight, saved.pop(prefix + name))
    if kind == SHARED:
        for name, weight in model.extra.layer.state_dict().items():
            assert torch.equal(weight, saved.pop(f"layer.{name}"))
    assert not saved
    layer: Any = model.extra.layer if kind == SHARED else model.extra.layers[0]
    assert not torch.equal(layer.mlp.up_proj.weight, model.last.mlp.up_proj.weight)


def test_a_cllm_stays_one_and_a_joint_stage_forgets_its_figure(config: HeadsConfig, checkpoint: Path) -> None:
    note = MethodNote("cllm", 16, Measured(4.5, 16))
    write_note(checkpoint, note)
    alone = train_heads(replace(config, steps=1))
    joint = train_heads(replace(config, steps=1, lr=None, joint=True, name="two"))
    assert read_note(Path(alone.model)) == note
    assert read_note(Path(joint.model)) == replace(note, measured=None)
    (checkpoint / NOTE_FILE).write_text("{}")
    assert "should read like" in message(CheckpointError, lambda: train_heads(replace(config, name="three")))
    assert not Path("runs/three").exists()


def test_the_type_of_the_weights_is_kept(config: HeadsConfig, checkpoint: Path) -> None:
    load_model(checkpoint, torch.bfloat16).save_pretrained(checkpoint)
    result = train_heads(config)
    before, after = (load_file(Path(path) / "model.safetensors") for path in (checkpoint, result.model))
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.loss is not None
    assert result.loss[0] == result.loss_before


def test_a_frozen_trunk_in_half_precision_stays_so_and_its_heads_learn_in_float32(
    config: HeadsConfig, checkpoint: Path, kind: str
) -> None:
    load_model(checkpoint, torch.bfloat16).save_pretrained(checkpoint)
    result = train_heads(replace(config, precision="bfloat16", steps=30))
    before, after = (load_file(Path(path) / "model.safetensors") for path in (checkpoint, result.model))
    assert all(torch.equal(before[name], after[name]) for name in before)
    heads = load_file(Path(result.model) / HEADS_WEIGHTS)
    assert {weight.dtype for weight in heads.values()} == {torch.float32}
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in heads.values())
    whole = train_heads(replace(config, steps=30, name="whole"))
    assert result.loss is not None
    assert result.loss == pytest.approx(whole.loss, rel=0.05)


def test_an_interrupted_training_ends_as_if_nothing_had_happened(config: HeadsConfig, kind: str) -> None:
    def interrupt(step: str, done: float, total: float, note: str = "") -> None:
        if step == "training the heads" and done == 5:
            kept = Path("runs/one/checkpoints/checkpoint-4/model.safetensors")
            assert {name.split(".")[0] for name in load_file(kept)} == {"extra"}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_heads(config, interrupt)
    assert not Path("runs/one/results.json").exists()
    resumed, whole = train_heads(config), train_heads(replace(config, name="two"))
    mine, theirs = (load_file(Path(result.model) / HEADS_WEIGHTS) for result in (resumed, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert resumed.loss == whole.loss


def test_a_finished_run_is_not_trained_again(config: HeadsConfig) -> None:
    first = train_heads(config)
    reports: list[str] = []
    assert train_heads(config, lambda step, *_, **__: reports.append(step)) == first
    assert not reports


def test_heads_are_trained_further(config: HeadsConfig) -> None:
    first = train_heads(config)
    second = train_heads(replace(config, model=first.model, steps=60, name="two"))
    assert first.loss is not None
    assert second.loss is not None
    assert sum(second.loss) < sum(first.loss)
    text = message(UsageError, lambda: train_heads(replace(config, model=first.model, heads=3, name="three")))
    assert text.startswith("runs/one/model has 4 shared heads, and 3 shared ones were asked for; give --heads 4")
    other = replace(config, model=first.model, kind=SEPARATE, rank=HeadsConfig.rank, name="three")
    assert "has 4 shared heads, and 4 separate ones were asked for" in message(UsageError, lambda: train_heads(other))


def test_the_rank_of_the_model_is_kept(config: HeadsConfig) -> None:
    first = train_heads(replace(config, steps=1))
    text = message(UsageError, lambda: train_heads(replace(config, model=first.model, rank=3, name="two")))
    assert text.startswith(
        "runs/one/model has shared heads of rank 2, --rank is 3; give --rank 2 to train them further"
    )
    found = heads_defaults({"model": first.model, "data": config.data, "heads": 4})
    assert (found["kind"], found["rank"]) == (SHARED, 2)


def test_a_run_of_an_older_version_is_one_of_separate_heads(config: HeadsConfig) -> None:
    config = replace(config, kind=SEPARATE, rank=HeadsConfig.rank)
    result = train_heads(config)
    run = Run(Path("runs/one"))
    for path, names in ((run.config, ("kind", "rank")), (run.results, ("heads_kind", "tokens_per_forward"))):
        saved = json.loads(path.read_text())
        part = saved["config"] if path == run.config else saved
        for name in names:
            del part[name]
        path.write_text(json.dumps(saved))
    assert train_heads(config) == replace(result, tokens_per_forward=None)
    assert "run with --kind separate, now it is shared" in message(
        UsageError, lambda: train_heads(replace(config, kind=SHARED))
    )


def test_a_joint_stage_follows_heads_trained_alone(config: HeadsConfig, checkpoint: Path) -> None:
    joint = train_heads(replace(config, joint=True, joint_lr=1e-3))
    assert (Path("runs/one") / ALONE / "model" / HEADS_FILE).is_file()
    assert joint.trained_parameters == joint.parameters + EXTRA[SHARED]
    before, after = (load_file(Path(path) / "model.safetensors") for path in (checkpoint, joint.model))
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert read_heads_info(Path(joint.model)) is not None


def test_the_guard_holds_head_1_near_the_original(config: HeadsConfig, checkpoint: Path) -> None:
    alone = train_heads(config)
    joint = replace(config, model=alone.model, joint=True, joint_lr=1e-2, steps=30)
    ids = torch.arange(1, 40)[None]

    def distance(result: Any) -> float:
        with torch.no_grad():
            original, trained = (
                load_model(path)(input_ids=ids).logits.log_softmax(-1) for path in (checkpoint, result)
            )
        return float(torch.nn.functional.kl_div(trained, original, reduction="sum", log_target=True))

    free = train_heads(replace(joint, guard=0.0, name="free"))
    held = train_heads(replace(joint, guard=20.0, name="held"))
    assert distance(held.model) < 0.5 * distance(free.model)


TWO_PROCESSES = """
import sys
from pathlib import Path

from nptool.training.heads.config import HeadsConfig
from nptool.training.heads.train import train_heads

train_heads(
    HeadsConfig(
        data=(Path(sys.argv[1]),),
        heads=4,
        rank=2,
        lr=1e-2,
        steps=3,
        batch_tokens=200,
        warmup=0.0,
        heldout=0.2,
        joint=True,
        name="two",
    )
)
"""


def test_two_processes_train_what_one_trains_with_twice_the_batches(config: HeadsConfig, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, str(script), str(config.data[0])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one = train_heads(replace(config, steps=3, warmup=0.0, accumulation=2, joint=True))
    saved = json.loads(Path("runs/two/results.json").read_text())
    assert saved["tokens"] == one.tokens
    assert saved["loss"] == pytest.approx(list(one.loss or ()), rel=1e-3)


def test_figures_are_those_of_a_loop_over_positions(checkpoint: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        Trajectory(rng.integers(200, size=3).astype(np.int32), rng.integers(200, size=6).astype(np.int32), None, ())
        for _ in range(4)
    ]
    model = add_heads(load_model(checkpoint), 3, SEPARATE)
    found = evaluate_heads(model, response_sequences(rows), batch_tokens=20)
    with torch.no_grad(), model.plain_model() as plain:
        for head in range(3):
            losses, ranks = [], []
            for row in rows:
                text = [*row.prompt_ids.tolist(), *row.response_ids.tolist()]
                for seen in range(3 - (head > 0), len(text) - head):
                    logits_V = plain(input_ids=torch.tensor([text[:seen]])).logits[0, -1]
                    label = text[seen + head]
                    losses.append(-float(logits_V.log_softmax(-1)[label]))
                    ranks.append(logits_V.argsort(descending=True).tolist().index(label))
            assert found.tokens[head] == len(losses) == 4 * (6 - head + (head > 0))
            assert found.loss[head] == pytest.approx(np.mean(losses), rel=1e-5)
            assert found.accuracy[head] == pytest.approx([ranks.count(rank) / len(ranks) for rank in range(RANKS)])


def test_the_chain_is_that_of_a_loop_over_steps(config: HeadsConfig, collected: Path) -> None:
    """Every step takes the drafts of its heads as far as they are the answer's tokens, and one token more."""
    model = load_heads(Path(train_heads(replace(config, steps=80)).model))
    rows = [*read_collected(collected).rows()][:12]
    accepted = []
    for row in rows:
        text = torch.tensor([[*row.prompt_ids.tolist(), *row.response_ids.tolist()]])
        seen = len(row.prompt_ids) - 1
        while seen < text.shape[1] - 1:
            with torch.no_grad():
                trunk = model.run_trunk(text[:, :seen])
                hidden = [model.hidden_states(head, trunk, torch.tensor([seen - 1])) for head in (1, 2, 3)]
            drafts = [int((model.unembedding_VD @ one[0]).argmax()) for one in hidden]
            right = [draft == token for draft, token in zip(drafts, text[0, seen + 1 :].tolist(), strict=False)]
            accepted.append([*right, False].index(False))
            seen += accepted[-1] + 1
    found = evaluate_heads(model, response_sequences(rows), batch_tokens=100)
    assert found.tokens_per_forward == pytest.approx(np.mean(accepted) + 1)
    assert found.acceptance == pytest.approx([np.mean([one >= place for one in accepted]) for place in (1, 2, 3)])
    assert max(accepted) > 0


def test_targets_end_with_the_response() -> None:
    row = Trajectory(np.array([5, 6], np.int32), np.array([7, 8, 9], np.int32), None, ())
    batch = heads_batch(response_sequences([row]), [0], 0, 3)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert batch["positions_N"].tolist() == [0, 1, 2, 3]
    assert batch["labels_NK"].tolist() == [[IGNORE, 7, 8], [7, 8, 9], [8, 9, IGNORE], [9, IGNORE, IGNORE]]


def test_without_data_the_newest_run_s_model_and_trajectories_are_taken(collected: Path) -> None:
    base = Run.create("base")
    base.publish()
    base.config.write_text(json.dumps({"kind": "base", "config": {}}))
    assert "holds no collected.parquet" in message(UsageError, lambda: heads_defaults({}))
    base.collected.write_bytes(collected.read_bytes())
    assert heads_defaults({}) == {"data": (base.collected,), "model": "runs/base/model"}
    cllm = Run.create("cllm")
    cllm.publish()
    cllm.config.write_text(json.dumps({"kind": "cllm", "config": {"data": [str(base.collected)], "model": None}}))
    anew = {"data": (base.collected,), "model": "runs/cllm/model", "answer_anew": True}
    assert heads_defaults({}) == anew
    # Collected in the CLLM's own run, by the model that it was made of, or by itself.
    cllm.collected.write_bytes(collected.read_bytes())
    assert heads_defaults({}) == anew | {"data": (cllm.collected,)}
    found = read_collected(collected)
    write_collected(cllm.collected, replace(found.metadata, model="runs/cllm/model"), list(found.rows()))
    assert heads_defaults({}) == {"data": (cllm.collected,), "model": "runs/cllm/model"}
    heads = Run.create("heads")
    heads.publish()
    saved = {"data": [str(base.collected)], "model": "runs/cllm/model", "answer_anew": True}
    heads.config.write_text(json.dumps({"kind": "heads", "config": saved}))
    heads.collected.write_bytes(b"its own answers are no data of another run")
    assert heads_defaults({}) == anew
    heads.config.write_text(json.dumps({"kind": "heads", "config": {"data": ["a.jsonl"], "model": "m", "limit": 9}}))
    assert heads_defaults({}) == {"data": (Path("a.jsonl"),), "model": "m", "limit": 9}
    assert heads_defaults({"data": (collected,)}) == {}


def test_another_model_answers_the_prompts_of_trajectories_itself(
    config: HeadsConfig, checkpoint: Path, collected: Path, tmp_path: Path
) -> None:
    """One that ends every answer at once."""
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            weight.fill_(0.0 if "proj" in name or "lm_head" in name else 1.0)
        weights["lm_head.weight"][tokenizer.eos_token_id] = 1.0
    other = str(tmp_path / "other" / "model")
    save_model(model, tokenizer, other)
    config = replace(config, model=other, steps=1)
    train_heads(config)
    assert not Run(Path("runs/one")).collected.exists()
    anew = replace(config, answer_anew=True, name="two")
    assert dry_run(anew)["config"]["model"] == other
    result = train_heads(anew)
    assert result.trajectories + result.heldout == 40
    found = read_collected(Run(Path("runs/two")).collected)
    assert found.metadata.model == other
    given = {tuple(row.prompt_ids.tolist()) for row in read_collected(collected).rows()}
    assert {tuple(row.prompt_ids.tolist()) for row in found.rows()} == given
    assert {tuple(row.response_ids.tolist()) for row in found.rows()} == {(tokenizer.eos_token_id,)}


def test_bad_input_is_one_clear_error(config: HeadsConfig, checkpoint: Path, tmp_path: Path) -> None:
    assert message(UsageError, lambda: replace(config, heads=1)).startswith("--heads is 1; the model's own last layer")
    assert message(UsageError, lambda: replace(config, guard=2.0)) == "--guard belongs to the joint stage; add --joint"
    assert "too few to hold out" in message(DataError, lambda: train_heads(replace(config, heldout=0.999999)))
    (checkpoint / "model.safetensors").unlink()
    assert "has no model.safetensors" in message(CheckpointError, lambda: train_heads(replace(config, name="two")))


def test_heads_that_do_not_fit_are_refused(config: HeadsConfig) -> None:
    directory = Path(train_heads(config).model)
    heads = load_file(directory / HEADS_WEIGHTS)
    for change, text in (
        (
            {"layer.mlp.up_proj.weight": torch.zeros(3, 4)},
            "layer.mlp.up_proj.weight has shape [3, 4], this model's heads",
        ),
        ({"layer.mlp.gate.weight": torch.zeros(1)}, "has an unknown layer.mlp.gate.weight"),
        (
            {"depths.5.e": torch.zeros(16)},
            "has an unknown depths.5.e; the heads are not the 4 shared ones of heads.json",
        ),
    ):
        save_file(heads | change, directory / HEADS_WEIGHTS)
        assert text in message(CheckpointError, lambda: load_heads(directory))
    (directory / HEADS_WEIGHTS).write_bytes(b"\0" * 20)
    assert "cannot be read" in message(CheckpointError, lambda: load_heads(directory))
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert "were trained on another trunk" in message(CheckpointError, lambda: load_heads(directory))
    (directory / HEADS_FILE).unlink()
    assert "heads.json, which describes it, is missing" in message(CheckpointError, lambda: load_heads(directory))
    (directory / HEADS_WEIGHTS).unlink()
    assert "has no heads; train some with" in message(CheckpointError, lambda: load_heads(directory))
