"""`python -m fastconv validate`: the networks from fastconv's ops beside torch's."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastconv
from fastconv import models
from fastconv.backend import BACKENDS
from fastconv.testing.compare import tf32
from fastconv.testing.layers import LAYERS

from . import emulated
from .checkpoint import FORMAT, Checkpoint, load, load_checkpoint
from .common import CommandError, HelpFormatter, console, device, need, progress, replace_file
from .comparison import Row, compare_layer, compare_networks
from .data import crops, digits, fitted, photograph, pixels_of, prepared
from .info import gpus
from .networks import NAMES, VARIANTS, builder_of, input_size

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.float64, torch.bfloat16, torch.float16)}  # fmt: skip
DEFAULT_NETWORKS = (*models.SIX, *VARIANTS)
SMALL_CROP = (160, 128)  # of the float64 comparison: not square, and each network's maps are valid
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIGIT_MEAN, DIGIT_STD = (0.1307,), (0.3081,)

DESCRIPTION = f"""Compares networks from fastconv's ops with the same ones from torch.nn's layers.

Same weights, crops of a real photograph (LeNet: real digits), one training step: every output, the
loss, every gradient, and every parameter and buffer after an SGD step. First in float64, tightly,
then in --dtype (on a GPU float32 is not TF32), to ten times torch's own error; the truth is torch
in float64, and for gradients it takes the ReLU and max pooling decisions of the run it judges. Then
every distinct convolution layer beside nn.Conv2d, to twice torch's own error. Times are of a
training step, a layer forward and backward; they are an indication only (bench/ measures).
Networks: {", ".join(NAMES)}."""

EPILOG = """examples:
  python -m fastconv validate
  python -m fastconv validate --network lenet --network resnet50 --no-layers
  python -m fastconv validate --dtype bfloat16 --image photograph.jpg --json result.json
  python -m fastconv validate --checkpoint lenet.pt

exit status: 0 all passed, 1 something did not (a NaN never passes), 2 wrong use"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "validate",
        help="compare the networks and their layers with torch's",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add(
        "--network",
        action="append",
        choices=NAMES,
        metavar="NETWORK",
        help=f"may be given more than once (default: {' '.join(DEFAULT_NETWORKS)})",
    )
    add("--image", type=Path, help="a photograph (default: one that scikit-image brings)")
    add("--dtype", choices=DTYPES, default="float32", help="one of %(choices)s")
    add("--device", default="cpu", help="cpu or cuda")
    add(
        "--backend",
        choices=(*BACKENDS, emulated.NAME),
        help="%(choices)s (default: the device's); the last, for developers, runs the CUDA kernels "
        "in the tests' emulator, on LeNet and a block of each other network",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="weights: what train saved, or with one --network its state_dict (default: random)",
    )
    add("--json", type=Path, metavar="FILE", help="also write the rows there")
    add(
        "--layers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the networks' convolution layers too, or not",
    )
    add("--seed", type=int, default=0, help="of weights, crops and dropout")
    parser.set_defaults(run=run)


def weights_of(options: argparse.Namespace) -> tuple[list[str], dict[str, Any], Checkpoint | None]:
    """The networks to compare, `arguments` and `weights` for compare_networks, the checkpoint.

    Raises:
        CommandError: a checkpoint that does not go with the networks asked for.
    """
    names = list(dict.fromkeys(options.network or DEFAULT_NETWORKS))
    if options.checkpoint is None:
        return names, {}, None
    content = load(options.checkpoint)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        checkpoint = load_checkpoint(options.checkpoint)
        if options.network and names != [checkpoint.network]:
            raise CommandError(
                f"--network {' '.join(names)}: {options.checkpoint} holds {checkpoint.network}"
            )
        checkpoint.build()  # says what is wrong with it
        extra = {"arguments": checkpoint.arguments, "weights": checkpoint.model}
        return [checkpoint.network], extra, checkpoint
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CommandError(f"{options.checkpoint}: neither a checkpoint of train nor a state_dict")
    if not options.network or len(names) != 1:
        raise CommandError("--checkpoint with a state_dict needs one --network that it belongs to")
    return names, {"weights": content}, None


def batch_for(
    name: str, size: tuple[int, int], options: argparse.Namespace, checkpoint: Checkpoint | None
) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, *size), normalised, and as many different labels."""
    network, _ = builder_of(name)
    channels = input_size(name)[0]
    count = 8 if network == "lenet" else 2  # batch norm needs more than one
    if network.startswith(("alexnet", "vgg", "nin")) and not network.endswith("_bn"):
        count = 1
    if channels == 3:
        pictures = crops(photograph(options.image), count, *size, options.seed)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        if options.image:
            pictures = fitted(pixels_of(options.image, 1), *size)[None]
        else:
            images = digits().images
            pictures = images[torch.linspace(0, len(images) - 1, count).long()]
        mean, std = DIGIT_MEAN, DIGIT_STD
    if checkpoint is not None:
        mean, std = checkpoint.mean, checkpoint.std
    batch = prepared(pictures.float() / 255, (channels, *size), mean, std)
    classes = len(checkpoint.classes) if checkpoint else 10
    return batch, torch.arange(len(batch)) % classes


def tasks(options: argparse.Namespace) -> list[tuple[str, Callable[[], Row]]]:
    """What the progress bar says, and the comparison that makes a row."""
    dtype, where = DTYPES[options.dtype], device(options.device)
    if options.backend in ("cpu", "cuda") and options.backend != where.type:
        raise CommandError(
            f"--backend {options.backend} takes no tensors of --device {options.device}"
        )
    if options.backend == emulated.NAME:
        return emulated.tasks(options.network, dtype, options.seed)
    names, extra, checkpoint = weights_of(options)
    everything = options.network is None and checkpoint is None

    def network_row(name: str, size: tuple[int, int], dtype: torch.dtype) -> Row:
        pictures, labels = (t.to(where) for t in batch_for(name, size, options, checkpoint))
        return compare_networks(
            name, pictures, labels, dtype, seed=options.seed, timed=dtype == DTYPES[options.dtype],
            **extra,
        )  # fmt: skip

    found: list[tuple[str, Callable[[], Row]]] = []
    for name in names:
        size = input_size(name)[1:]
        if dtype != torch.float64:
            small = SMALL_CROP if size > SMALL_CROP else size
            found.append((name, lambda n=name, s=small: network_row(n, s, torch.float64)))
        found.append((name, lambda n=name, s=size: network_row(n, s, dtype)))
    if options.layers:
        for layer in LAYERS:
            if everything or set(names) & set(layer.networks):
                row = lambda each=layer: compare_layer(each, dtype, where, seed=options.seed)  # noqa: E731
                found.append((layer.name, row))
    return found


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Every comparison, under a progress bar.

    Raises:
        CommandError: a backend that was not built.
    """
    todo = tasks(options)
    try:
        own = options.backend and options.backend != emulated.NAME
        chosen = fastconv.backend(options.backend) if own else nullcontext()
        with chosen, tf32(False), progress() as bar:
            task = bar.add_task("", total=len(todo))
            for name, compare in todo:
                bar.update(task, description=f"{name:<28.28}")
                yield compare()
                bar.advance(task)
    except NotImplementedError as error:
        raise CommandError(f"--backend {options.backend}: {error}") from error


def table(found: list[Row]):
    """rich's table of the rows."""
    result = need("rich.table").Table(box=None, header_style="bold", pad_edge=False)
    for title, side in (
        ("", "left"), ("input", "left"), ("dtype", "left"), ("parameters", "right"),
        ("worst error", "right"), ("allowed", "right"), ("of", "left"),
        ("torch ms", "right"), ("fastconv ms", "right"), ("", "left"),
    ):  # fmt: skip
        result.add_column(title, justify=side, no_wrap=True, overflow="ellipsis")
    for row in found:
        result.add_row(
            row.name, row.input, row.dtype, f"{row.parameters:,}",
            f"{row.error:.1e}", f"{row.allowed:.1e}", row.tensor,
            *("" if ms is None else f"{ms:.2f}" for ms in (row.torch_ms, row.fastconv_ms)),
            "[green]passed[/]" if row.ok else "[bold red]FAILED[/]",
        )  # fmt: skip
    return result


def report(found: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """What --json writes; numbers that are not finite become null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {
        "fastconv": fastconv.__version__,
        "torch": torch.__version__,
        "processor": fastconv.cpu_info(),
        "GPUs": gpus(),
        "device": options.device,
        "dtype": options.dtype,
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "passed": all(row.ok for row in found),
        "rows": [{**{k: plain(v) for k, v in asdict(r).items()}, "passed": r.ok} for r in found],
    }


def run(options: argparse.Namespace) -> int:
    screen = console()
    found = list(rows(options))
    screen.print(table(found))
    failed = [row for row in found if not row.ok]
    for row in failed:
        for failure in row.failures[:3]:
            screen.print(f"{row.name} {row.dtype}: {failure}", style="red", markup=False)
    verdict = f"{len(failed)} of {len(found)} comparisons FAILED" if failed else (
        f"all {len(found)} comparisons passed"
    )  # fmt: skip
    screen.print(verdict, style="bold red" if failed else "bold green")
    if options.json:
        text = json.dumps(report(found, options), indent=1)
        replace_file(options.json, lambda file: file.write(text.encode()))
    return 1 if failed else 0
