"""The command line: `python -m fastconv {info,validate,train,predict,tune}`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import info, predict, train, tune, validate
from .common import CommandError

EPILOG = """examples:
  python -m fastconv info
  python -m fastconv validate
  python -m fastconv train lenet --checkpoint lenet.pt
  python -m fastconv predict --checkpoint lenet.pt digit.png

"python -m fastconv COMMAND --help" tells each command's options."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the options to the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fastconv",
        description="Classic convolutional networks on hand-written kernels.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (info, validate, train, predict, tune):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status.

    0: all is well. 1: a comparison or a training failed. 2: wrong use. 130: interrupted.
    """
    options = make_parser().parse_args(argv)
    try:
        return options.run(options)
    except CommandError as error:
        print(f"python -m fastconv {options.command}: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
