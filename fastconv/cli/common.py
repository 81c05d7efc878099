"""What the commands share: errors, optional packages, devices, output, files."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch

from fastconv import files

PLAIN_WIDTH = 180  # columns of a table that goes to a file or a pipe


class CommandError(Exception):
    """Ends a command with one line on stderr and an exit status, 2 for wrong use."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of descriptions and examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool):
            return action.help  # told in words, or nothing to tell
        return super()._get_help_string(action)


def need(module: str) -> Any:
    """The optional module.

    Raises:
        CommandError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CommandError(
            f"{module.partition('.')[0]} cannot be imported ({error}); "
            "install what this command needs: pip install -e '.[demo]'"
        ) from error


def console(stream=None):
    """rich's console on `stream` (stdout): colours on a terminal, plain text elsewhere."""
    rich_console: ModuleType = need("rich.console")
    stream = stream or sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return rich_console.Console(file=stream, width=width, highlight=False)


def progress(*columns: str):
    """A progress bar on stderr, shown only where that is a terminal.

    Args:
        columns: rich's format strings, shown behind the bar.
    """
    bars = need("rich.progress")
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        *(bars.TextColumn(column) for column in columns),
        bars.TimeRemainingColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        CommandError: no such device here.
    """
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise CommandError(f"--device {name} cannot be used: {line}") from error
    if found.type not in ("cpu", "cuda"):
        raise CommandError(f"--device must be cpu or cuda, got {name}")
    return found


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """`fastconv.files.replace_file`.

    Raises:
        CommandError: the file cannot be written.
    """
    try:
        files.replace_file(path, write)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


def positive(kind: type) -> Callable[[str], Any]:
    """An argparse type: a number above zero."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def fraction(text: str) -> float:
    """An argparse type: a number from 0 up to, but not including, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {text}")
    return value


def non_negative(text: str) -> float:
    """An argparse type: a finite number, zero or above."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0 and finite, got {text}")
    return value
