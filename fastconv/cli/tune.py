"""`python -m fastconv tune`: the fastest algorithm of each convolution of a network, measured."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fastconv

from .common import HelpFormatter, positive
from .networks import NAMES, build, input_size
from .validate import DTYPES

DESCRIPTION = """Measures which algorithm runs each convolution of a network fastest here.

The choices are kept in a file, where fastconv.tune(model, example) finds them again: call it at the
start of a program that runs the network on inputs of this size. Convolutions that only one
algorithm takes are left out."""

EPILOG = """examples:
  python -m fastconv tune --network resnet18
  python -m fastconv tune --network vgg16 --batch 16 --backward --channels-last"""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "tune",
        help="choose the algorithms of a network by measuring",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--network", choices=NAMES, metavar="NETWORK", required=True, help=", ".join(NAMES))
    add("--batch", type=positive(int), default=1, help="images at a time")
    add("--dtype", choices=DTYPES, default="float32", help="one of %(choices)s")
    add("--channels-last", action="store_true", help="in channels_last, not NCHW")
    add("--backward", action="store_true", help="for training: both gradients too")
    add("--threads", type=positive(int), help="CPU threads (default: torch's choice)")
    add("--seconds", type=positive(float), default=0.2, help="spent on each convolution")
    add("--cache", type=Path, metavar="FILE", help="the file (default: in the user's cache folder)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    dtype = DTYPES[options.dtype]
    model = build(options.network).to(dtype, memory_format=layout).eval()
    image = torch.randn(options.batch, *input_size(options.network)).to(dtype)
    choices = fastconv.tune(
        model,
        image.contiguous(memory_format=layout),
        backward=options.backward,
        seconds=options.seconds,
        cache=options.cache,
    )
    for choice in choices:
        times = "  ".join(f"{name} {1e3 * t:.4g} ms" for name, t in choice.seconds.items())
        mark = " " if choice.algorithm == next(iter(choice.seconds)) else "*"
        print(f"{mark} {choice.algorithm:<10} {times:<36} {choice.convolution}")
    other = sum(choice.algorithm != next(iter(choice.seconds)) for choice in choices)
    print(f"{len(choices)} convolutions measured; {other} (*) run otherwise than the planner says")
    return 0
