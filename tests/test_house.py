"""The house: what is in the wheel, and what an import loads."""

import subprocess
import sys
import tomllib
import zipfile
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
    assert "nptool/py.typed" in names
    assert not [name for name in names if name.startswith(("cli/", "convert/", "tests/"))]


@pytest.mark.parametrize("statement", ["import nptool", "import nptool.cli.app"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    program = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


FORBIDDEN = {
    "training": ("nptool.llama", "nptool.decoding", "nptool.bench", "llama_cpp"),
    "collection": ("nptool.llama", "nptool.decoding", "nptool.bench", "llama_cpp"),
    "decoding": ("nptool.training", "nptool.collection", "torch", "transformers"),
    "llama": ("nptool.training", "nptool.collection", "nptool.decoding", "torch", "transformers"),
    "bench": ("nptool.training", "nptool.collection", "torch", "transformers"),
    "convert": ("nptool.decoding", "nptool.bench", "nptool.collection"),
}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_training_and_decoding_never_import_each_other(package: str) -> None:
    """Read from the source, so that an import inside a function counts too."""
    import ast

    for path in (ROOT / "nptool" / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                forbidden = [other for other in FORBIDDEN[package] if name == other or name.startswith(other + ".")]
                assert not forbidden, f"{path} imports {name}"
