"""The command line: `dsas learn`, `generate`, `sweep`, `chat`, `app` and the others of `options.yaml`.

To add a command:
    1. `commands/NAME.py`, whose docstring begins "`dsas NAME`: what it does", which is its help;
    2. in it `run(args)`, which does the work and returns the result as plain data;
    3. and `report(document)`, which prints that for people (`--json` prints the data instead); perhaps also
       `presets(args)`, which returns defaults that an argument tells, as --from does;
    4. in `options.yaml` an entry NAME under `commands`, with its options.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 an error, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import NoReturn

from dsas_core.errors import DSASError, quote, shorten
from dsas_core.model.loading import reason_of
from dsas_core.utils.saving.files import as_json

from .. import __version__
from .options import COMMANDS, add_options
from .output import one_line

#: longest message about the usage, and longest path that is quoted, in characters
LONGEST_USAGE, LONGEST_PATH = 400, 200


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; by default those of this process.

    Returns:
        The exit code.

    Example:
        >>> main(["show", "builtin:nothing"])  # an error on standard error
        1
    """
    before: dict[Path, tuple[int, int]] = {}
    args = argparse.Namespace()
    try:
        given = sys.argv[1:] if argv is None else list(argv)
        args = _parse(parser(), given)
        if presets := args.presets(args):  # what takes the place of defaults is told by an argument
            args.subparser.set_defaults(**presets)
            args = _parse(args.parser, given)
        before = _written(args)
        args.command = shlex.join(["dsas", *given])
        with warnings.catch_warnings():
            _shorten_warnings()
            document = args.run(args)
        if args.json:
            print(as_json(document))
        else:
            args.report(document)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse has printed help, a version or what was wrong
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail(_tell_interruption(before, _written(args)), 130)
    except BrokenPipeError:  # `dsas show … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("DSAS_DEBUG"):
            raise
        return _fail(f"error: {_explain(error)}")
    return 0


#: files of a folder that are looked at, to tell what an interrupted command wrote
_MOST_FILES = 10_000


def _written(args: argparse.Namespace) -> dict[Path, tuple[int, int]]:
    """The files at the places that a command writes to, with their times and sizes."""
    places = [getattr(args, name, None) or [] for name in ("out", "store", "checkpoint", "heat", "monitor")]
    places += [args.concept] if getattr(args, "in_place", False) else []
    found = {}
    for place in (Path(place).expanduser() for item in places for place in ([item] if isinstance(item, str) else item)):
        for path in (
            place,
            place.with_suffix(".json"),
            *islice(place.rglob("*") if place.is_dir() else (), _MOST_FILES),
        ):
            with suppress(OSError):
                if path.is_file() and not any(part.startswith(".dsas-") for part in path.parts):
                    found[path] = (path.stat().st_mtime_ns, path.stat().st_size)
    return found


def _tell_interruption(before: Mapping[Path, object], after: Mapping[Path, object]) -> str:
    """What is there when a command was interrupted."""
    new = sorted(str(path) for path, stamp in after.items() if before.get(path) != stamp)
    if not new:
        return "interrupted; nothing was written"
    more = f" and {len(new) - 1} more" if len(new) > 1 else ""
    return f"interrupted; {shorten(new[0], 300)}{more} had been written, each of them whole"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {DSASError(shorten(message, LONGEST_USAGE))} (see {self.prog} --help)\n")


def _parse(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """The arguments as a namespace, without those that argparse cannot take and nothing later could print."""
    for argument in given:
        if "\0" in argument or not _is_utf8(argument):
            parser.error(f"{quote(argument)} is no text in UTF-8: rename the file, or type the text again")
        if re.fullmatch(r"-\w--|--[\w-]+=--", argument):
            parser.error(f"{argument}: -- is no value, it ends the options: leave it out, or give another")
    return parser.parse_args(given)


def _is_utf8(text: str) -> bool:
    """Whether a text can be written; the bytes of an argument that are no UTF-8 are halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _explain(error: Exception) -> str:
    """What went wrong and the way out, in one line."""
    if isinstance(error, DSASError):
        return str(error)
    if isinstance(error, MemoryError) or re.search("out of memory|not enough memory|can't allocate", str(error)):
        return str(
            DSASError(f"out of memory: draw smaller or fewer pictures, or take a smaller model ({reason_of(error)})")
        )
    if isinstance(error, OSError) and error.strerror:
        place = "" if error.filename is None else f" {quote(os.fsdecode(error.filename), LONGEST_PATH)}"
        return str(
            DSASError(f"cannot use{place}: {error.strerror}: choose another file or folder, or make room for it")
        )
    hint = "(set DSAS_DEBUG=1 for the traceback)"
    return f"{DSASError(shorten(f'{type(error).__name__}: {error}', LONGEST_USAGE))} {hint}"


def parser() -> argparse.ArgumentParser:
    """The argument parser of all commands.

    Returns:
        A parser whose namespace has `run` and `report` of the command, and `usage(message)`, which ends the process
        with a usage error.

    Example:
        >>> parser().parse_args(["show", "builtin:dog-grey"]).concept
        'builtin:dog-grey'
    """
    dsas = _Parser(prog="dsas", description="Concept sliders that leave alone what they are not about.")
    dsas.add_argument("--version", action="version", version=f"dsas {__version__}")
    commands = dsas.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, options in COMMANDS.items():
        command = import_module(f".commands.{name}", __package__)
        purpose = (command.__doc__ or "").splitlines()[0].split(": ", 1)[1]
        subparser = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:])
        add_options(subparser, [*options, "output"])
        presets: Callable[[argparse.Namespace], Mapping[str, object]] = getattr(command, "presets", lambda _: {})
        subparser.set_defaults(run=command.run, report=command.report, presets=presets, usage=subparser.error)
        subparser.set_defaults(parser=dsas, subparser=subparser)
    return dsas


def _shorten_warnings() -> None:
    """Print our own warnings in one line, each once, and those of libraries not at all."""
    if os.environ.get("DSAS_DEBUG"):
        return

    shown: set[str] = set()  # Python counts what is said of one line of code as something new whenever filters change

    def show_warning(message: Warning | str, *_: object) -> None:
        line = f"dsas: warning: {one_line(message)}"
        if line not in shown:
            shown.add(line)
            print(line, file=sys.stderr)

    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"dsas_")
    warnings.showwarning = show_warning  # type: ignore[assignment]


def _fail(message: str, code: int = 1) -> int:
    print(f"dsas: {message}", file=sys.stderr)
    return code
