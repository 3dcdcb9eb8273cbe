"""The house: what is in the wheel, and what an import loads."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "llama_cpp", "numpy")


def packages_on_disk() -> set[str]:
    """Every folder with an `__init__.py`, by its import name."""
    found = {"nptool"}
    roots = {"nptool": ROOT / "nptool", "nptool.cli": ROOT / "cli", "nptool.convert": ROOT / "convert"}
    for name, folder in roots.items():
        for init in folder.rglob("__init__.py"):
            parts = init.parent.relative_to(folder).parts
            if not (name == "nptool" and parts[:1] in (("cli",), ("convert",))):
                found.add(".".join((name, *parts)))
    return found


def settings() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_listed_in_pyproject() -> None:
    assert set(settings()["packages"]) == packages_on_disk()


def test_every_module_is_in_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = ("nptool", "cli", "convert")
    modules = {path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")}
    expected = {str(Path("nptool") / path) if path.parts[0] != "nptool" else str(path) for path in modules}
    assert expected <= names
    assert {"nptool/py.typed", "nptool/text_to_sql/newcomer_questions.txt"} <= names
    assert not [name for name in names if name.startswith(("cli/", "convert/", "tests/"))]


@pytest.mark.parametrize("statement", ["import nptool", "import nptool.cli.app"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    program = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


FLOORS = (
    ("nptool",),
    ("nptool.data", "nptool.llama", "nptool.text_to_sql"),
    ("nptool.collection", "nptool.convert.layers", "nptool.decoding.loop", "nptool.doctor"),
    ("nptool.convert.families", "nptool.decoding.proposers", "nptool.decoding.adaptive"),
    ("nptool.convert", "nptool.decoding", "nptool.training"),
    ("nptool.bench", "nptool.training.responses"),
    ("nptool.training.cllm",),
    ("nptool.training.heads",),
    ("nptool.training.base",),
    ("nptool.pipeline",),
    ("nptool.cli",),
)
"""The packages from the ground floor up. A package imports only from floors below its own."""

APART = {
    "nptool.convert": ("nptool.decoding", "nptool.bench", "nptool.collection", "nptool.training"),
    "nptool.decoding": ("torch", "transformers"),
    "nptool.llama": ("torch", "transformers"),
    "nptool.bench": ("nptool.training", "nptool.collection", "torch", "transformers"),
    "nptool.collection": ("nptool.llama", "nptool.decoding", "nptool.training", "llama_cpp"),
    "nptool.training": ("nptool.llama", "nptool.decoding", "nptool.bench", "nptool.convert", "llama_cpp"),
    "nptool.decoding.adaptive": ("nptool.decoding.proposers", "nptool.llama"),
}
"""What a package and those inside it never import, whatever the floors: training and decoding above all."""

# `import nptool` hands on to decoding, and `python -m nptool` to the command line.
ENTRIES = (ROOT / "nptool" / "__init__.py", ROOT / "nptool" / "__main__.py")


def imports_of(package: str) -> Iterator[tuple[Path, str]]:
    """Every import in the modules of a package, those inside functions too, as file and the module's name."""
    folder = ROOT.joinpath(*package.split("."))
    for path in sorted(folder.glob("*.py")):
        if path in ENTRIES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield path, node.module


def package_of(module: str) -> str:
    """`nptool.data.records` and `nptool.data` -> `nptool.data`."""
    return module if ROOT.joinpath(*module.split(".")).is_dir() else module.rpartition(".")[0]


def test_every_package_has_a_floor() -> None:
    assert sorted(package for floor in FLOORS for package in floor) == sorted(packages_on_disk())


@pytest.mark.parametrize("package", sorted(packages_on_disk()))
def test_imports_go_down_only(package: str) -> None:
    """So there is no circle of packages either."""
    floor_of = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    for path, module in imports_of(package):
        if module.partition(".")[0] == "nptool" and package_of(module) != package:
            assert floor_of[package_of(module)] < floor_of[package], f"{path} imports {module}"


@pytest.mark.parametrize("package", APART)
def test_what_is_kept_apart(package: str) -> None:
    for inside in packages_on_disk():
        if inside == package or inside.startswith(package + "."):
            for path, module in imports_of(inside):
                wrong = [name for name in APART[package] if module == name or module.startswith(name + ".")]
                assert not wrong, f"{path} imports {module}"
