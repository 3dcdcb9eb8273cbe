"""Sessions: `nox -s tests`, `lint`, `types`, `demo`, `bench`.

They run in the environment nox was started from, which the README's commands have prepared: installing torch and
compiling llama.cpp once is enough. Set NPTOOL_NOX_VENV=1 for one virtual environment a session.
"""

import os

import nox

OWN_ENVIRONMENT = os.environ.get("NPTOOL_NOX_VENV") == "1"

nox.options.default_venv_backend = "virtualenv" if OWN_ENVIRONMENT else "none"
nox.options.sessions = ["lint", "types", "tests"]


def prepare(session: nox.Session) -> None:
    """Install the project where the session has an environment of its own."""
    if OWN_ENVIRONMENT:
        session.install("-c", "constraints.txt", "-e", ".[dev]")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, a process for each of two cores; arguments go to pytest."""
    prepare(session)
    # Two processes whose OpenMP threads wait for each other would take longer than one.
    one_thread = {"OMP_NUM_THREADS": "1"}
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", *session.posargs, env=one_thread)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    prepare(session)
    session.run("python", "-m", "ruff", "check", ".")
    session.run("python", "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, on the package."""
    prepare(session)
    session.run("python", "-m", "mypy")


@nox.session
def demo(session: nox.Session) -> None:
    """The main job on the embedded default: train, convert, one answer, decoded by what is fastest beside AR."""
    prepare(session)
    session.run("python", "-m", "nptool", "train")
    session.run("python", "-m", "nptool", "convert")
    session.run("python", "-m", "nptool", "generate", "--compare")


@nox.session
def bench(session: nox.Session) -> None:
    """The README's table, from the newest run."""
    prepare(session)
    session.run("python", "-m", "nptool", "bench", *session.posargs)
