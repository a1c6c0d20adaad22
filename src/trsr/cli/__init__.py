"""The command line: one file a command group; heavy libraries are imported inside the commands."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from trsr.cli.bench import app as bench_app
from trsr.cli.compare import compare
from trsr.cli.data import import_app, validate
from trsr.cli.experiment import demo, env, evaluate, plan, rank, run, train
from trsr.cli.keys import keys_app
from trsr.cli.models import models_app
from trsr.cli.serve import serve
from trsr.cli.summarize import store_app, summarize
from trsr.errors import OutputError, TrsrError
from trsr.train import distributed

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    name="trsr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Text-rich sequential recommendation with language models. "
    "Start with [bold]trsr demo[/bold]; every command has --help with an example, --debug shows tracebacks.",
)
app.add_typer(import_app)
app.command()(validate)
app.command()(summarize)
app.command()(plan)
app.command()(train)
app.command()(rank)
app.command()(evaluate)
app.command()(run)
app.command()(compare)
app.command()(serve)
app.add_typer(keys_app)
app.command()(demo)
app.add_typer(bench_app)
app.add_typer(models_app)
app.add_typer(store_app)
app.command()(env)


def main() -> None:
    """Run the command line; an error on purpose is one line and an exit code, not a traceback."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        with _no_interrupt_is_lost():
            app(arguments)
    except TrsrError as error:
        if debug:
            raise
        if distributed.prints_error(error):
            typer.echo("\n".join(f"Error: {line}" for line in str(error).splitlines()), err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:  # as typer ends it
            raise
        if distributed.is_main():
            typer.echo("Stopped. What was finished is kept; run the same command again to go on.", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Libraries say it in many ways: an OSError, or an error of their own with its words.
        if debug or os.strerror(errno.ENOSPC) not in str(error):
            raise
        typer.echo("Error: The disk is full; free space, then run the same command again to go on.", err=True)
        sys.exit(OutputError.exit_code)


@contextmanager
def _no_interrupt_is_lost() -> Iterator[None]:
    """Repeat a Ctrl-C that came inside a `__del__`, where Python would only print it and go on."""
    before = sys.unraisablehook

    def hook(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            # At once, it would come in here. A signal ends the main thread's waiting too.
            main_thread = threading.main_thread().ident
            threading.Timer(0.05, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
