"""Every distinct convolution layer of the networks: torch and fastconv, NCHW and channels_last.

    python bench/layers.py [--others] [--directions forward backward step weight] [--filter REGEX]
                           [--threads 1] [--batch 1] [--json FILE]

Each engine runs in a process of its own and is asked in turn. A row holds microseconds of the four
columns, then of fastconv's better layout: GFLOP/s (operations of the direct algorithm), the
multiple of the FMA peak measured beside it, and the gain over torch's better layout (above 1 is
faster). Directions: ``forward`` of a module in eval mode, as in inference; ``backward``, both
gradients of one that ran forward; ``step``, the two together in train mode, where weights are
packed or transformed on every call; ``weight``, the weight's gradient alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable

import torch

from common import COLUMNS, LAYOUTS, TITLES, gains, geometric_mean, measure, parser, work
from fastconv.gpus import conv_work
from fastconv.testing.layers import LAYERS, Layer
from fastconv.testing.other_layers import OTHER_LAYERS


def build(engine: str, request: dict) -> Callable[[], object]:
    """The forward or backward pass of one layer in one layout."""
    if engine == "torch":
        from torch.nn import Conv2d
    else:
        from fastconv.nn import Conv2d
    layer = next(layer for layer in LAYERS + OTHER_LAYERS if layer.name == request["name"])
    dtype, layout = getattr(torch, request["dtype"]), LAYOUTS[request["layout"]]
    module = Conv2d(
        layer.C,
        layer.K,
        (layer.R, layer.S),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        dtype=dtype,
    ).to(memory_format=layout)
    x = torch.randn(request["batch"], layer.C, layer.H, layer.W, dtype=dtype)
    x = x.contiguous(memory_format=layout)
    direction = request["direction"]
    if direction == "forward":
        module.eval().requires_grad_(False)
        return lambda: module(x)
    y = module(x.requires_grad_(direction != "weight"))
    dy = torch.randn_like(y)
    if direction == "step":
        return lambda: torch.autograd.grad(module(x), (x, module.weight), dy)
    inputs = (module.weight,) if direction == "weight" else (x, module.weight)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


DIRECTIONS = {"forward": 1, "backward": 2, "step": 3, "weight": 1}  # and their convolutions


def floating_operations(layer: Layer, batch: int, direction: str) -> int:
    """Of the direct algorithm."""
    forward, _ = conv_work(*layer.sizes(batch), element=0)
    return forward * DIRECTIONS[direction]


def table(options: argparse.Namespace) -> tuple[list[dict], int]:
    """Measures and prints every layer that the options ask for."""
    layers = OTHER_LAYERS if options.others else LAYERS
    layers = [layer for layer in layers if re.search(options.filter, layer.name)]
    width = max((len(layer.name) for layer in layers), default=0)
    requests = [
        {"name": layer.name, "direction": direction}
        for layer in layers
        for direction in options.directions
    ]

    def line(row: dict, peak: float) -> str:
        times = "".join(f"{row['seconds'][column] * 1e6:15.1f}" for column in COLUMNS)
        best = min(row["seconds"][column] for column in COLUMNS if column.startswith("fastconv"))
        layer = next(layer for layer in layers if layer.name == row["name"])
        rate = floating_operations(layer, options.batch, row["direction"]) / best / 1e9
        gain, _ = gains(row["seconds"])
        head = f"{row['name']:{width}} {row['direction']:8}"
        return f"{head}{times}{rate:10.1f}{rate / peak:8.2f}{gain:8.2f}"

    columns = "".join(f"{column:>15}" for column in TITLES)
    heading = (
        f"{'µs (cl: channels_last)':{width + 9}}{columns}{'GFLOP/s':>10}{'x FMA':>8}{'gain':>8}"
    )
    settings = {"others": True} if options.others else {}
    return measure(__file__, options, settings, requests, heading, line)


def summary(rows: list[dict], direction: str) -> str:
    """Geometric means and the worst row of one direction."""
    found = [(*gains(row["seconds"]), row["name"]) for row in rows if row["direction"] == direction]
    better, nchw = (geometric_mean(gain[i] for gain in found) for i in (0, 1))
    worst, _, name = min(found)
    return (
        f"{direction}: geometric mean {better:.3f} over torch's better layout, "
        f"{nchw:.3f} NCHW to NCHW ({len(found)} layers); worst {worst:.3f}, {name}"
    )


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--others", action="store_true", help="layers of networks that fastconv does not build"
    )
    options.add_argument(
        "--directions",
        nargs="+",
        choices=DIRECTIONS,
        default=["forward"],
        metavar="NAME",
        help=f"of {', '.join(DIRECTIONS)}; default: forward",
    )
    options = options.parse_args()
    if options.worker:
        work(options, build)
        return 0
    rows, status = table(options)
    for direction in dict.fromkeys(row["direction"] for row in rows):
        print(summary(rows, direction))
    return status


if __name__ == "__main__":
    sys.exit(main())
