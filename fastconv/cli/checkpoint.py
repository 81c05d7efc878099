"""Checkpoints: written beside and renamed, loaded without running any code of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .common import CommandError, replace_file
from .networks import NAMES, build

FORMAT = "fastconv checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """A network that can be built again, and what is needed to go on with its training.

    arguments: the builder's. size: (C, H, W) of its input. mean, std: of each channel of a picture
    in [0, 1]. fit: how a picture is fitted to a size, "crop" or "pad". picture: (C, H, W) of the
    pictures before they are resized to `size`. model: its state_dict. training: as
    training.Training.state gives it.
    """

    network: str
    arguments: dict[str, Any]
    classes: list[str]
    size: list[int]
    picture: list[int]
    fit: str
    mean: list[float]
    std: list[float]
    model: dict[str, Tensor]
    training: dict[str, Any]

    def save(self, path: Path) -> None:
        """Writes the file; the one before stays whole until the new one is.

        Raises:
            CommandError: the file cannot be written.
        """
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        replace_file(path, lambda file: torch.save({"format": FORMAT, **content}, file))

    def build(self, layers=None) -> nn.Module:
        """The network with its trained weights.

        Raises:
            CommandError: the weights are not this network's.
        """
        options = {} if layers is None else {"layers": layers}
        try:
            model = build(self.network, self.arguments, **options)
            model.load_state_dict(self.model)
        except (RuntimeError, TypeError, ValueError) as error:
            raise CommandError(
                f"the checkpoint's weights do not fit {self.network}: {first_line(error)}"
            ) from error
        return model


def first_line(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())[:300]


def load(path: Path) -> Any:
    """What torch.save wrote, with weights_only: no code of the file's is run.

    Raises:
        CommandError: no such file, or none that torch.save wrote.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CommandError(f"{path}: no such file") from error
    except Exception as error:  # the zip, pickle and torch layers each have errors of their own
        raise CommandError(f"{path}: not a checkpoint that can be read") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that `Checkpoint.save` wrote.

    Raises:
        CommandError: the file is none, or damaged.
    """
    content = load(path)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise CommandError(f"{path}: not a checkpoint of python -m fastconv train")
    try:
        checkpoint = Checkpoint(**{f.name: content[f.name] for f in fields(Checkpoint)})
    except KeyError as error:
        raise CommandError(f"{path}: the checkpoint lacks {error}") from error
    if checkpoint.network not in NAMES:
        raise CommandError(f"{path}: unknown network {checkpoint.network!r}")
    return checkpoint
