"""`python -m fastconv predict`: the classes of pictures, by a trained network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .checkpoint import Checkpoint, load_checkpoint
from .common import CommandError, HelpFormatter, device, positive
from .data import prepared, read_picture

DESCRIPTION = """Prints the most probable classes of each picture, with their softmax probabilities.

Pictures may have any size, grey or colour. A network trained on the MNIST digits expects one
digit, white on black as there, with a margin; --invert turns black on white into that. A digit's
picture is scaled until it fits in, and its edges are continued; for a network trained on a folder
of pictures, the middle is cut out."""

EPILOG = """examples:
  python -m fastconv predict --checkpoint lenet.pt seven.png
  python -m fastconv predict --checkpoint lenet.pt --invert scan1.png scan2.png
  python -m fastconv predict --checkpoint flowers.pt --top 5 rose.jpg"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="classify pictures with a trained network",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="what train has saved"
    )
    parser.add_argument("--top", type=positive(int), default=3, help="classes to print")
    parser.add_argument("--invert", action="store_true", help="exchange black and white first")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.set_defaults(run=run)


def probabilities(
    checkpoint: Checkpoint, pictures: torch.Tensor, where: torch.device
) -> torch.Tensor:
    """(N, classes) for (N, C, H, W) of uint8, pictures as the network was trained on.

    Raises:
        CommandError: the weights do not fit, or the result is not finite.
    """
    model = checkpoint.build().to(where).eval()
    with torch.no_grad():
        batch = prepared(pictures.float() / 255, checkpoint.size, checkpoint.mean, checkpoint.std)
        result = torch.cat([model(part.to(where)).softmax(1) for part in batch.split(16)]).cpu()
    if not result.isfinite().all():
        raise CommandError("the network's result is not finite; its weights are of no use", 1)
    return result


def run(options: argparse.Namespace) -> int:
    checkpoint = load_checkpoint(options.checkpoint)
    where = device(options.device)
    pictures = torch.stack(
        [read_picture(path, tuple(checkpoint.picture), checkpoint.fit) for path in options.images]
    )
    if options.invert:
        pictures = 255 - pictures
    for path, picture, chances in zip(
        options.images, pictures, probabilities(checkpoint, pictures, where), strict=True
    ):
        if checkpoint.fit == "pad" and picture.float().mean() > 127:
            print(f"{path}: is this black on white? then --invert", file=sys.stderr)
        print(path)
        best = chances.topk(min(options.top, len(chances)))
        for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {chance:7.2%}  {checkpoint.classes[index]}")
    return 0
