"""The `nptool` command, its subcommands and its exit codes.

Invalid input gives one line on stderr and exit code 2, Ctrl-C one line and 130. `--debug`, anywhere on the command
line, shows the traceback instead.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nptool.cli.bench import bench
from nptool.cli.chat import chat
from nptool.cli.collect import collect
from nptool.cli.convert import convert
from nptool.cli.doctor import doctor
from nptool.cli.generate import generate
from nptool.cli.inspect_gguf import inspect
from nptool.cli.quantize import quantize
from nptool.cli.trace import trace
from nptool.cli.train import train_app
from nptool.errors import NptoolError

BAD_INPUT = 2
INTERRUPTED = 130


class Interrupted(Exception):
    """Ctrl-C, with a message about what was kept. typer would drop the message of a KeyboardInterrupt."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(str(interrupt)) from interrupt


app = typer.Typer(
    name="nptool",
    cls=_Commands,
    epilog="Add --debug anywhere to see the traceback of an error.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"nptool {version('nptool')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Teach a language model to emit several tokens per forward pass, and run it in llama.cpp."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (bench, chat, collect, convert, doctor, generate, inspect, quantize, trace):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if debug:
        # This includes llama.cpp's log.
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("nptool").setLevel(logging.DEBUG)
    else:
        # Warnings of other packages are for developers; nptool uses logging.
        warnings.simplefilter("ignore")
    sys.exit(run(words, debug))


def run(words: Sequence[str], debug: bool) -> int:
    """Run one command and return its exit code."""
    try:
        result = app(args=list(words), prog_name="nptool", standalone_mode=False)
    except NptoolError as error:
        return _fail(str(error), debug)
    except (Interrupted, KeyboardInterrupt, typer.Abort) as interrupt:
        if debug:
            raise
        _say(str(interrupt) or "interrupted; finished steps are kept")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the pipe (`| head`) has exited; without this, flushing stdout at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            where = getattr(getattr(error, "ctx", None), "command_path", "nptool")
            return _fail(f"{error.format_message()} (see `{where} --help`)", debug)
        raise
    return result if isinstance(result, int) else 0


def _fail(message: str, debug: bool) -> int:
    if debug:
        raise
    _say(f"error: {' '.join(message.split())}")
    return BAD_INPUT


def _say(message: str) -> None:
    print(f"nptool: {message}", file=sys.stderr)
