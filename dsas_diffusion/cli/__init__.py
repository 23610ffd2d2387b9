"""The command line: `dsas learn`, `generate`, `sweep`, `chat`, `app` and the others of `_COMMANDS`.

A command is one module, whose name it has, imported here and listed in `_COMMANDS`. The first line of its docstring is
its help; `add_arguments(parser)` adds its options, `run(args)` does the work and returns the result as plain data, and
`report(document)` prints that for people. `--json` prints the data instead. Results go to standard output, progress and
errors to standard error.

Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from dsas_core.errors import DSASError
from dsas_core.utils.files import as_json

from .. import __version__
from .commands import app, calibrate, chat, doctor, env, eval, generate, learn, methods, show, sweep
from .output import one_line

_COMMANDS = (learn, calibrate, generate, sweep, chat, show, eval, doctor, methods, app, env)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; by default those of this process.

    Returns:
        The exit code.
    """
    try:
        args = parser().parse_args(argv)
        args.command = shlex.join(["dsas", *(sys.argv[1:] if argv is None else argv)])
        with warnings.catch_warnings():
            _tidy_warnings()
            document = args.run(args)
        if args.json:
            print(as_json(document))
        else:
            args.report(document)
        sys.stdout.flush()
    except SystemExit as leaving:  # argparse has printed help, a version or what was wrong
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return _failed("interrupted; nothing was written", 130)
    except BrokenPipeError:  # `dsas show … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("DSAS_DEBUG"):
            raise
        if isinstance(error, DSASError):
            return _failed(f"error: {one_line(error)}")
        return _failed(f"error: {type(error).__name__}: {one_line(error)} (set DSAS_DEBUG=1 for the traceback)")
    return 0


class _Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """What understands the arguments of every command."""
    dsas = _Parser(prog="dsas", description="Concept sliders that leave alone what they are not about.")
    dsas.add_argument("--version", action="version", version=f"dsas {__version__}")
    commands = dsas.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        purpose = (command.__doc__ or "").splitlines()[0].split(": ", 1)[1]
        name = command.__name__.rpartition(".")[2]
        own = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:])
        command.add_arguments(own)
        own.add_argument("--json", action="store_true", help="print one JSON document instead of text")
        own.add_argument("--quiet", action="store_true", help="no progress bars")
        own.set_defaults(run=command.run, report=command.report, usage=own.error)
    return dsas


def _tidy_warnings() -> None:
    """Our own warnings in one line each, and once each, those of libraries not at all."""
    if os.environ.get("DSAS_DEBUG"):
        return

    def show_warning(message: Warning | str, *_: object) -> None:
        print(f"dsas: warning: {one_line(message)}", file=sys.stderr)

    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"dsas_")
    warnings.showwarning = show_warning  # type: ignore[assignment]


def _failed(message: str, code: int = 1) -> int:
    print(f"dsas: {message}", file=sys.stderr)
    return code
