"""Configuration from a file, with flags on top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from nptool.collection.config import CollectConfig
from nptool.errors import UsageError
from nptool.settings import resolve
from nptool.training.base.config import BaseConfig


@dataclass(frozen=True)
class Example:
    data: tuple[Path, ...]
    rate: float = 0.5
    size: int = 3
    limit: int | None = None
    deep: bool = False
    kind: Literal["all", "response"] = "all"
    place: Path = Path("here")
    name: str = "x"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UsageError(f"--size is {self.size}; it must be at least 0")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> Path:
    path = Path("config.yaml")
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_file_and_the_file_over_the_defaults() -> None:
    path = write("data: [a.txt, b.txt]\nrate: 1e-4\nsize: 7\nlimit: null\ndeep: true\nkind: response\nplace: there\n")
    flags = {"size": 9, "rate": None, "name": None}
    assert resolve(Example, path, flags) == Example(
        (Path("a.txt"), Path("b.txt")), 1e-4, 9, None, True, "response", Path("there"), "x"
    )


def test_no_file() -> None:
    assert resolve(Example, None, {"data": (Path("a"),)}) == Example((Path("a"),))


def test_dashes_are_underscores_and_one_path_makes_a_tuple() -> None:
    config = resolve(BaseConfig, write("data: a.txt\nhidden-size: 64\nattention_heads: 2\nlr: 1\n"), {})
    assert (config.data, config.hidden_size, config.attention_heads) == ((Path("a.txt"),), 64, 2)
    assert config.lr == 1.0
    assert isinstance(config.lr, float)


@pytest.mark.parametrize("key", ["n", "block_length", "block-length"])
def test_both_names_of_a_flag(key: str) -> None:
    config = resolve(CollectConfig, write(f"{key}: 24\n"), {"model": "m", "data": (Path("a"),), "output": Path("o")})
    assert config.n == 24


def test_an_empty_file_gives_the_defaults() -> None:
    assert resolve(Example, write("# nothing\n"), {"data": ()}) == Example(())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise: 3", "config.yaml: unknown key `sise`; the nearest is `size`"),
        (
            "colour: 3",
            "config.yaml: unknown key `colour`; known are data, rate, size, limit, deep, kind, place, name",
        ),
        ("size: many", "config.yaml: `size` is 'many'; expected a whole number"),
        ("size: 1.5", "config.yaml: `size` is 1.5; expected a whole number"),
        ("size: true", "config.yaml: `size` is True; expected a whole number"),
        ("rate: fast", "config.yaml: `rate` is 'fast'; expected a number"),
        ("deep: 1", "config.yaml: `deep` is 1; expected true or false"),
        ("kind: some", "config.yaml: `kind` is 'some'; expected one of all, response"),
        ("limit: [1]", "config.yaml: `limit` is [1]; expected a whole number"),
        ("data: [1]", "config.yaml: `data` is 1; expected a path"),
        ("name: 3", "config.yaml: `name` is 3; expected text"),
        ("- size", "config.yaml holds a list; expected a flat mapping of option names to values"),
        ("size: -1", "--size is -1; it must be at least 0"),
    ],
)
def test_mistakes_in_the_file(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(Example, write(text), {"data": None if text.startswith("data") else ()})
    assert str(error.value) == message


def test_invalid_yaml_is_one_of_our_errors() -> None:
    with pytest.raises(UsageError, match=r"config\.yaml is not valid YAML"):
        resolve(Example, write("a: [1,"), {})


def test_a_missing_file() -> None:
    with pytest.raises(UsageError) as error:
        resolve(Example, "gone.yaml", {})
    assert str(error.value) == "cannot read the configuration file gone.yaml: No such file or directory"


def test_a_required_field_that_is_given_nowhere() -> None:
    with pytest.raises(UsageError) as error:
        resolve(Example, None, {"data": None})
    assert str(error.value) == "--data is missing; give it on the line or as `data` in the configuration file"


def test_an_unknown_flag_is_our_own_mistake() -> None:
    with pytest.raises(TypeError, match="no field"):
        resolve(Example, None, {"data": (), "sise": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 1, "epochs": 2}, "--steps and --epochs exclude each other; give one of them"),
        ({"steps": 0}, "--steps is 0; it must be above 0"),
        ({"lr": -1.0}, "--lr is -1.0; it must be above 0"),
        ({"warmup": 1.5}, "--warmup is 1.5; it must be at least 0 and at most 1"),
        ({"beta2": 1.0}, "--beta2 is 1.0; it must be at least 0 and below 1"),
        ({"heldout": 1.0}, "--heldout is 1.0; it must be at least 0 and below 1"),
        ({"precision": "half"}, "--precision is 'half'; expected one of auto, float32, bfloat16"),
        ({"loss": "some"}, "--loss is 'some'; expected one of all, response"),
        ({"vocab_size": 100}, "--vocab-size is 100; it must be at least 262"),
        ({"hidden_size": 65}, "--hidden-size 65 is no multiple of --attention-heads 2"),
        ({"kv_heads": 4}, "--attention-heads 2 is no multiple of --kv-heads 4"),
        (
            {"hidden_size": 6},
            "--hidden-size 6 / --attention-heads 2 is 3; a head's size must be even (rotary positions turn pairs)",
        ),
        ({"seed": -1}, "--seed is -1; it must be at least 0 and at most 4294967295"),
        ({"name": "latest"}, "--name is 'latest', which is reserved for the newest run; choose another"),
        ({"name": "a/b"}, "--name is 'a/b'; it must be the name of a directory in runs/, without slashes"),
        ({"data": ()}, "--data is missing; name the files to train on"),
    ],
)
def test_configurations_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        BaseConfig(**{"data": (Path("a"),), "hidden_size": 64, "attention_heads": 2, **fields})
    assert str(error.value) == message


def test_a_finished_model_brings_its_own_shape() -> None:
    with pytest.raises(UsageError) as error:
        BaseConfig(data=(Path("a"),), model="some/model", layers=3)
    assert str(error.value) == "--layers describes a new model; some/model (-m) brings its own"


def test_the_run_name_depends_on_what_changes_the_result() -> None:
    data = (Path("some/data.jsonl"),)
    name = BaseConfig(data=data).run_name
    assert name.startswith("base-data-")
    assert BaseConfig(data=data, save_every=7).run_name == name
    assert BaseConfig(data=data, seed=7).run_name != name
    assert BaseConfig(data=data, name="mine").run_name == "mine"


def test_learning_rates() -> None:
    data = (Path("a"),)
    assert BaseConfig(data=data).learning_rate == 1e-3
    assert BaseConfig(data=data, model="m").learning_rate == 2e-5
    assert BaseConfig(data=data, model="m", lr=5e-5).learning_rate == 5e-5
